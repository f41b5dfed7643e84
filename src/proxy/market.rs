//! The market as the proxy sees it: calls, one socket for all jobs, and the orders
//! to cancel.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::ProxyOptions;
use crate::control::realtime::Realtime;
use crate::control::rpc::Rpc;
use crate::id::JobId;

/// Jobs that are cancelled at one time; more wait.
const CANCELS_AT_ONCE: usize = 16;

/// How often cancelling is tried. The submission itself may still be on its way.
const CANCEL_TRIES: u32 = 4;

/// The pause before the second try; later ones are longer.
const CANCEL_PAUSE: Duration = Duration::from_millis(250);

/// How long cancelling may take after the last request has ended.
const LAST_ORDERS_LIMIT: Duration = Duration::from_secs(10);

/// What requests are answered with.
#[derive(Debug)]
pub(super) struct Market {
    pub(super) rpc: Rpc,
    /// Without it, answers come whole.
    pub(super) realtime: Option<Realtime>,
    pub(super) options: ProxyOptions,
    /// Jobs that nobody waits for any more.
    pub(super) orders: mpsc::UnboundedSender<JobId>,
}

/// Cancels what is ordered, until nobody is left who could order, and then the rest
/// for a moment.
pub(super) async fn run_cancels(rpc: Rpc, mut orders: mpsc::UnboundedReceiver<JobId>) {
    let at_once = Arc::new(Semaphore::new(CANCELS_AT_ONCE));
    let mut running = JoinSet::new();
    while let Some(job) = orders.recv().await {
        while running.try_join_next().is_some() {}
        let (rpc, at_once) = (rpc.clone(), Arc::clone(&at_once));
        running.spawn(async move {
            let _permit = at_once.acquire().await;
            cancel(&rpc, job).await;
        });
    }
    let last = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_ORDERS_LIMIT, last).await.is_err() {
        tracing::warn!(jobs = running.len(), "left before all jobs were cancelled");
    }
}

/// Cancels a job; what was delivered until now is paid.
async fn cancel(rpc: &Rpc, job: JobId) {
    let mut pause = CANCEL_PAUSE;
    for attempt in 1..=CANCEL_TRIES {
        let error = match rpc.cancel_job(job).await {
            Ok(_job) => {
                tracing::info!(%job, "cancelled: nobody waits for it");
                return;
            }
            Err(error) => error,
        };
        let may_come = error.is_passing() || error.word() == Some("unknown_job");
        if !may_come || attempt == CANCEL_TRIES {
            tracing::debug!(%job, error = %error, "the job was not cancelled");
            return;
        }
        tokio::time::sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        pause *= 2;
    }
}
