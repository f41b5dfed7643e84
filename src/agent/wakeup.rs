//! The subscription to `node:ID`: how the agent hears of work at once.
//!
//! A message is a hint. `attempt` leads to a `start_attempt`, which the control
//! plane may refuse; everything else leads to asking what is ours. When the
//! channel cannot be had (refused, full, silent), the heartbeat goes on alone
//! and says so.

use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::table::TableEvent;
use crate::control::realtime::{ChannelEvent, JoinOptions, Realtime};
use crate::id::{AttemptId, JobId};

#[derive(Deserialize)]
struct AttemptHint {
    attempt: AttemptId,
    job: JobId,
}

/// What the subscription needs.
pub(super) struct WakeupContext {
    /// The messages.
    pub(super) realtime: Realtime,
    /// The node's topic.
    pub(super) topic: String,
    /// Where wake-ups go.
    pub(super) table: mpsc::Sender<TableEvent>,
    /// Whether the topic is joined.
    pub(super) joined: watch::Sender<bool>,
    /// Told when something may have been missed.
    pub(super) catch_up: Arc<Notify>,
}

/// Listens until it is told to end, or until the client is closed.
pub(super) async fn run_wakeups(context: WakeupContext, shutdown: CancellationToken) {
    let mut channel = context.realtime.join(&context.topic, JoinOptions::default());
    let mut dropped = 0;
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = channel.recv() => event,
        };
        let Some(event) = event else { break };
        match event {
            ChannelEvent::Joined => {
                info!("work arrives by Realtime");
                context.joined.send_replace(true);
                context.catch_up.notify_one();
            }
            ChannelEvent::Refused { reason } => {
                warn!(reason, "Realtime refused the subscription; work arrives by heartbeat");
                context.joined.send_replace(false);
            }
            ChannelEvent::Lost => {
                warn!("Realtime was lost; work arrives by heartbeat meanwhile");
                context.joined.send_replace(false);
            }
            ChannelEvent::Broadcast { event, payload, .. } => {
                if event != "attempt" {
                    context.catch_up.notify_one();
                } else if !wake(&context, payload).await {
                    return;
                }
            }
        }
        if channel.dropped() != dropped {
            dropped = channel.dropped();
            context.catch_up.notify_one();
        }
    }
    context.joined.send_replace(false);
}

/// Hands a wake-up to the table; answers false when there is none any more.
async fn wake(context: &WakeupContext, payload: serde_json::Value) -> bool {
    match serde_json::from_value::<AttemptHint>(payload) {
        Ok(hint) => context.table.send(TableEvent::WakeUp(hint.attempt, hint.job)).await.is_ok(),
        Err(error) => {
            debug!(error = %error, "a wake-up that names no attempt");
            context.catch_up.notify_one();
            true
        }
    }
}
