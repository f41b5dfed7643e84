//! The heartbeat: one call a node that renews all leases and brings what the
//! node should know. It is also the catch-up for every message that did not
//! arrive, so the agent works without any message at all.
//!
//! The control plane sets the interval. A call that fails is followed sooner
//! by the next one; a node that was told that it is suspended keeps asking,
//! slower, and goes on by itself when an operator allows it again.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::clock;
use super::status::{Monitor, Phase};
use super::table::{CatchUp, Held, TableEvent, named};
use crate::control::rpc::{Heartbeat, NodeCommand, Rpc, RpcError, Stop};

/// The intervals that are believed: a faster beat would be a flood, a slower
/// one a node that nobody can reach without messages.
const INTERVAL_BOUNDS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

/// The first pause after a failed call; it doubles up to the interval.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The pause of a node that has been refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(15);

/// The least time that one call is given.
const CALL_AT_LEAST: Duration = Duration::from_secs(2);

/// How many failed calls in a row make the control plane unreachable.
const FAILURES_TO_TELL: u32 = 2;

/// What the heartbeat needs.
#[derive(Debug)]
pub(super) struct HeartbeatContext {
    /// The control plane's calls.
    pub(super) rpc: Rpc,
    /// What is running.
    pub(super) held: watch::Receiver<Vec<Held>>,
    /// Whether wake-ups arrive by Realtime.
    pub(super) joined: watch::Receiver<bool>,
    /// Whether the agent takes no more work, because it ends.
    pub(super) draining: watch::Receiver<bool>,
    /// Whether it takes no more work until it is resumed, because it was told so.
    pub(super) drained: watch::Receiver<bool>,
    /// Where commands go.
    pub(super) commands: watch::Sender<Vec<NodeCommand>>,
    /// Told when something may have been missed.
    pub(super) catch_up: Arc<Notify>,
    /// Where the answers go.
    pub(super) table: mpsc::Sender<TableEvent>,
    /// Where the share of stream messages goes.
    pub(super) stream_rate: watch::Sender<f64>,
    /// What `infernet status` is told.
    pub(super) monitor: Monitor,
    /// The interval until the first answer.
    pub(super) interval: Duration,
}

/// Beats until it is told to end.
pub(super) async fn run_heartbeat(mut context: HeartbeatContext, shutdown: CancellationToken) {
    let mut next_at = Instant::now();
    let mut failures = 0_u32;
    let mut pause = FIRST_PAUSE;
    loop {
        let catch_up = tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep_until(next_at) => false,
            () = context.catch_up.notified() => true,
            // The control plane should hear at once that this node wants no more.
            Ok(()) = context.draining.changed() => false,
            Ok(()) = context.drained.changed() => false,
        };
        let beat = tokio::select! {
            () = shutdown.cancelled() => return,
            beat = async {
                if catch_up { claim(&context).await } else { beat(&context).await }
            } => beat,
        };
        match beat {
            Ok(interval) => {
                if failures >= FAILURES_TO_TELL {
                    info!("the control plane is back");
                }
                failures = 0;
                pause = FIRST_PAUSE;
                if let Some(interval) = interval {
                    context.interval = interval;
                    next_at = Instant::now() + jittered(interval);
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                tell(&context.monitor, &error, failures);
                if error.is_passing() {
                    next_at = Instant::now() + jittered(pause);
                    pause = (pause * 2).min(context.interval);
                } else {
                    next_at = Instant::now() + jittered(REFUSED_PAUSE);
                }
            }
        }
    }
}

/// Why a heartbeat or a catch-up brought nothing.
#[derive(Debug, thiserror::Error)]
enum Missed {
    #[error(transparent)]
    Call(#[from] RpcError),
    #[error("The control plane did not answer within {} s", .0.as_secs())]
    Slow(Duration),
}

impl Missed {
    fn is_passing(&self) -> bool {
        match self {
            Self::Call(error) => error.is_passing(),
            Self::Slow(_) => true,
        }
    }
}

/// Makes one heartbeat; answers the interval until the next.
async fn beat(context: &HeartbeatContext) -> Result<Option<Duration>, Missed> {
    let running = named(&context.held.borrow());
    let joined = *context.joined.borrow();
    let drained = *context.drained.borrow();
    let draining = drained || *context.draining.borrow();
    let (sent, began) = (Timestamp::now(), Instant::now());
    let call = context.rpc.heartbeat(&running, joined, draining);
    let limit = context.interval.max(CALL_AT_LEAST);
    let Ok(answer) = timeout(limit, call).await else {
        return Err(Missed::Slow(limit));
    };
    let Heartbeat {
        server_time,
        heartbeat_secs,
        attempts,
        cancel,
        lost,
        commands,
        stops,
        stream_rate,
    } = answer?;
    bring(context, commands);
    let ahead = clock::ahead_ms(server_time, sent, began.elapsed());
    context.monitor.beat(ahead, stopped(&stops, drained));
    context.stream_rate.send_replace(stream_rate);
    hand_over(context, CatchUp { offered: attempts, cancel, lost }).await;
    let (least, most) = INTERVAL_BOUNDS;
    let interval = Duration::try_from_secs_f64(heartbeat_secs).unwrap_or(most);
    Ok(Some(interval.clamp(least, most)))
}

/// Asks what is ours, between two heartbeats.
async fn claim(context: &HeartbeatContext) -> Result<Option<Duration>, Missed> {
    let running = named(&context.held.borrow());
    let limit = context.interval.max(CALL_AT_LEAST);
    let Ok(answer) = timeout(limit, context.rpc.claim_attempts(&running, false)).await else {
        return Err(Missed::Slow(limit));
    };
    let answer = answer?;
    debug!(offered = answer.attempts.len(), cancel = answer.cancel.len(), "caught up");
    context.stream_rate.send_replace(answer.stream_rate);
    bring(context, answer.commands);
    let catch_up = CatchUp { offered: answer.attempts, cancel: answer.cancel, lost: answer.lost };
    hand_over(context, catch_up).await;
    Ok(None)
}

/// Hands commands on, if there are any: an empty list is no news.
fn bring(context: &HeartbeatContext, commands: Vec<NodeCommand>) {
    if !commands.is_empty() {
        context.commands.send_replace(commands);
    }
}

/// Says why the node gets no new work, and how it comes back.
fn stopped(stops: &[Stop], drained: bool) -> Option<String> {
    match stops.first() {
        Some(stop) => Some(format!("{stop} {}", stop.hint)),
        None if drained => Some(
            "Drained by a command. It takes work again after the command resume, or a restart of \
             its agent."
                .to_owned(),
        ),
        None => None,
    }
}

async fn hand_over(context: &HeartbeatContext, catch_up: CatchUp) {
    // A table that is gone means that the agent ends: nothing is left to do.
    let _ended = context.table.send(TableEvent::CatchUp(catch_up)).await;
}

/// Tells the owner that the control plane refuses or is away, once each.
fn tell(monitor: &Monitor, missed: &Missed, failures: u32) {
    match missed {
        Missed::Call(error) if !error.is_passing() => {
            let suspended = matches!(error.word(), Some("suspended")) || is_suspended_login(error);
            let phase = if suspended { Phase::Suspended } else { Phase::Refused };
            if monitor.trouble(phase, error.to_string()) {
                warn!(error = %error, "the control plane refuses this node and is asked again from time to time");
            }
        }
        _ => {
            if failures == FAILURES_TO_TELL {
                warn!(error = %missed, "the control plane is away; running attempts go on");
            }
            if failures >= FAILURES_TO_TELL {
                monitor.trouble(Phase::Unreachable, missed.to_string());
            }
        }
    }
}

/// Says whether signing in was refused because the node is suspended.
fn is_suspended_login(error: &RpcError) -> bool {
    matches!(error, RpcError::SignIn(error) if error.code() == Some("suspended"))
}

/// Shortens a duration by up to a tenth, so that nodes do not beat in step.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(1.0 - fastrand::f64() / 10.0)
}
