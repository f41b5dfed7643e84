//! One attempt, from its wake-up to its settlement: start, generate, stream,
//! hand in. One task each, in the table's `JoinSet`.
//!
//! The way from the wake-up to the engine is the hot path of the whole
//! network: `start_attempt` goes out at once, the engine is asked as soon as
//! the input is there, and joining the stream's topic happens beside it.
//!
//! The lease is made here and fences the attempt: an answer that says that it
//! is somebody else's now ends the work without handing anything in. While the
//! control plane is away the work goes on, and the result is handed in as long
//! as anybody could still want it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::journal::{Finished, Journal, Record};
use super::output::Output;
use super::progress::{Ended, Outcome, Progress};
use super::stream::Stream;
use super::work;
use crate::control::realtime::Realtime;
use crate::control::rpc::{
    CompleteAttempt, FailAttempt, FailureCode, Rpc, RpcError, StartedAttempt, Usage,
};
use crate::engine::{EngineError, EngineEvent, EnginePool, EngineStream, Work};
use crate::id::{AttemptId, JobId, LeaseId};
use crate::identity::{Keys, Receipt, sha256_hex};

/// The shortest time that a result is offered to a control plane that is away,
/// whatever the lease says.
const HAND_IN_AT_LEAST: Duration = Duration::from_secs(60);

/// The most bytes of an output, where the control plane does not say.
const OUTPUT_BYTES: u64 = 1_000_000;

/// Why an attempt has to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum StopReason {
    /// The consumer cancelled: hand in what there is.
    Cancelled,
    /// The agent ends: hand back.
    Shutdown,
    /// The lease is gone: throw away.
    Lost,
}

/// What every attempt of an agent needs.
#[derive(Debug)]
pub(super) struct AttemptContext {
    /// The control plane's calls.
    pub(super) rpc: Rpc,
    /// The messages.
    pub(super) realtime: Realtime,
    /// The engines.
    pub(super) engines: EnginePool,
    /// The node's key, for receipts.
    pub(super) keys: Keys,
    /// What is held, on disk.
    pub(super) journal: Journal,
    /// The control plane's URL as receipts name it.
    pub(super) url: String,
    /// The share of stream messages that each stream has, from heartbeats.
    pub(super) stream_rate: watch::Receiver<f64>,
    /// How long a lease lives without a heartbeat.
    pub(super) lease: Duration,
}

/// How generating ended.
enum Ending {
    /// There is something to hand in.
    Complete { finish: &'static str, usage: Usage },
    /// There is not.
    Failed { code: FailureCode, message: String, retry: bool },
    /// It is no longer ours.
    Lost,
}

/// Runs an attempt; answers what became of it.
pub(super) async fn run(
    context: Arc<AttemptContext>,
    attempt: AttemptId,
    job: JobId,
    progress: Arc<Progress>,
    mut stop: watch::Receiver<Option<StopReason>>,
) -> Ended {
    let lease = LeaseId::generate();
    let record =
        Record { attempt, lease, job, started: Timestamp::now().as_second(), finished: None };
    let journal = async {
        // The request goes out first; the journal is written while the control
        // plane works on it.
        tokio::task::yield_now().await;
        context.journal.write(&record)
    };
    let (started, journalled) = tokio::join!(start(&context, attempt, lease, &mut stop), journal);
    if let Err(error) = journalled {
        warn!(%attempt, error = %error, "the journal could not be written");
    }
    let Some(started) = started else {
        forget(&context, attempt);
        return Ended::alone(Outcome::NotTaken);
    };
    progress.taken(&started);
    let deadline = Instant::now() + seconds(started.deadline_secs);
    let limit = usize::try_from(started.output_bytes.unwrap_or(OUTPUT_BYTES)).unwrap_or(usize::MAX);
    let mut output = Output::new(limit, started.stream_rate);
    let ending = match work::work(&started, limit) {
        Some(work) => {
            generate(&context, &started, work, &progress, deadline, &mut output, &mut stop).await
        }
        None => Ending::Failed {
            code: FailureCode::EngineUnavailable,
            message: "This node does not run jobs of this kind.".to_owned(),
            retry: true,
        },
    };
    progress.settling();
    let give_up = (deadline + context.lease).max(Instant::now() + HAND_IN_AT_LEAST);
    let ended = match ending {
        Ending::Complete { finish, usage } => {
            let finished = finished(&context, &started, output.into_text(), finish, usage);
            hand_in(&context, record, finished, give_up, &mut stop).await
        }
        Ending::Failed { code, message, retry } => {
            warn!(%attempt, %job, ?code, reason = message, "the attempt failed");
            let failure = FailAttempt { attempt, lease, code, message, retry };
            give_back(&context, &failure, give_up, &mut stop).await
        }
        Ending::Lost => {
            info!(%attempt, %job, "the attempt is no longer this node's and was thrown away");
            Ended::alone(Outcome::Lost)
        }
    };
    forget(&context, attempt);
    ended
}

/// Hands in the finished answer of an earlier run of the agent.
pub(super) async fn resume(
    context: Arc<AttemptContext>,
    mut record: Record,
    mut stop: watch::Receiver<Option<StopReason>>,
) -> Ended {
    let attempt = record.attempt;
    let ended = match record.finished.take() {
        Some(finished) => {
            let give_up = Instant::now() + context.lease.max(HAND_IN_AT_LEAST);
            hand_in(&context, record, finished, give_up, &mut stop).await
        }
        None => Ended::alone(Outcome::NotTaken),
    };
    forget(&context, attempt);
    ended
}

/// Takes the attempt from the control plane; `None` when it is not to be had.
async fn start(
    context: &AttemptContext,
    attempt: AttemptId,
    lease: LeaseId,
    stop: &mut watch::Receiver<Option<StopReason>>,
) -> Option<StartedAttempt> {
    let give_up = Instant::now() + context.lease;
    let mut pauses = pauses();
    loop {
        let error = match context.rpc.start_attempt(attempt, lease).await {
            Ok(started) => return Some(started),
            Err(error) => error,
        };
        if !error.is_passing() {
            match error.word() {
                Some(word @ ("gone" | "not_yours")) => debug!(%attempt, word, "not to be had"),
                _ => warn!(%attempt, error = %error, "the attempt could not be started"),
            }
            return None;
        }
        debug!(%attempt, error = %error, "starting is tried again");
        if !pause(&mut pauses, give_up, stop).await {
            return None;
        }
    }
}

/// Asks the engine and streams what it writes, until it ends or is stopped.
async fn generate(
    context: &AttemptContext,
    started: &StartedAttempt,
    work: Work,
    progress: &Progress,
    deadline: Instant,
    output: &mut Output,
    stop: &mut watch::Receiver<Option<StopReason>>,
) -> Ending {
    let attempt = started.attempt;
    let cancel = CancellationToken::new();
    // Whatever way this function is left, the engine is told to stop.
    let _stop_engine = cancel.clone().drop_guard();
    let mut engine = Engine {
        opening: Box::pin(context.engines.run(&started.model, work, cancel.clone())),
        stream: None,
    };
    debug!(
        %attempt,
        after_us = progress.begun().elapsed().as_micros(),
        stream_rate = started.stream_rate,
        "asking the engine"
    );
    let mut stream = Stream::new(&context.realtime, attempt, &started.topic);
    // What the attempt was started with is newer than the last heartbeat.
    let mut rate = context.stream_rate.clone();
    rate.mark_unchanged();
    let ending = loop {
        stream.publish_due(output);
        let due = stream.due(output, Instant::now());
        tokio::select! {
            event = engine.next() => match event {
                Some(Ok(EngineEvent::Delta { text })) => {
                    progress.token(text.len());
                    if !output.push(&text) {
                        info!(%attempt, "the output reached the control plane's limit");
                        break Ending::Complete { finish: "length", usage: engine.usage() };
                    }
                }
                Some(Ok(EngineEvent::Done { finish, .. })) => {
                    break Ending::Complete { finish: finish.as_str(), usage: engine.usage() };
                }
                Some(Err(error)) => break failed(attempt, &error),
                None => break Ending::Failed {
                    code: FailureCode::EngineFailed,
                    message: "The engine's answer broke off.".to_owned(),
                    retry: true,
                },
            },
            reason = stopped(stop) => match reason {
                StopReason::Cancelled => {
                    break Ending::Complete { finish: "cancelled", usage: engine.usage() };
                }
                StopReason::Lost => break Ending::Lost,
                StopReason::Shutdown => break Ending::Failed {
                    code: FailureCode::Shutdown,
                    message: "The node is shutting down.".to_owned(),
                    retry: true,
                },
            },
            () = sleep_until(deadline) => break Ending::Failed {
                code: FailureCode::Deadline,
                message: format!(
                    "The answer was not complete after {:.0} s.", started.deadline_secs
                ),
                retry: false,
            },
            () = stream.listen(output) => {}
            () = sleep_until(due.unwrap_or(deadline)), if due.is_some() => {}
            Ok(()) = rate.changed() => {
                output.set_rate(*rate.borrow_and_update(), Instant::now());
            }
        }
    };
    if let Ending::Complete { finish, .. } = &ending {
        stream.finish(output, finish);
    }
    ending
}

/// An engine's answer from the moment it is asked for.
struct Engine<F> {
    /// Resolves when the answer begins.
    opening: Pin<Box<F>>,
    /// The answer, once it has begun.
    stream: Option<EngineStream>,
}

impl<F: Future<Output = Result<EngineStream, EngineError>>> Engine<F> {
    /// Returns the next event of the answer; safe to cancel.
    async fn next(&mut self) -> Option<Result<EngineEvent, EngineError>> {
        if self.stream.is_none() {
            match self.opening.as_mut().await {
                Ok(stream) => self.stream = Some(stream),
                Err(error) => return Some(Err(error)),
            }
        }
        self.stream.as_mut()?.next().await
    }

    /// Returns what was delivered so far; nothing while it has not begun.
    fn usage(&self) -> Usage {
        work::usage(self.stream.as_ref().map(EngineStream::usage).unwrap_or_default())
    }
}

/// Waits for an order to stop.
async fn stopped(stop: &mut watch::Receiver<Option<StopReason>>) -> StopReason {
    match stop.wait_for(Option::is_some).await {
        Ok(reason) => reason.expect("waited for a reason"),
        // The table is gone, and with it the agent.
        Err(_closed) => StopReason::Shutdown,
    }
}

/// Waits until the attempt is known to be lost.
async fn lost(stop: &mut watch::Receiver<Option<StopReason>>) {
    if stop.wait_for(|reason| *reason == Some(StopReason::Lost)).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending::<()>().await;
    }
}

/// Turns an engine's error into a failure of the attempt; only what may leave
/// this machine goes into its message.
fn failed(attempt: AttemptId, error: &EngineError) -> Ending {
    warn!(%attempt, error = %error, "the engine failed");
    let code = match error.attempt_code() {
        "bad_request" => FailureCode::BadRequest,
        "shutdown" => FailureCode::Shutdown,
        "engine_unavailable" => FailureCode::EngineUnavailable,
        _ => FailureCode::EngineFailed,
    };
    Ending::Failed { code, message: error.public_message(), retry: error.is_retryable() }
}

/// Makes the completion of an attempt, with its signed receipt.
fn finished(
    context: &AttemptContext,
    started: &StartedAttempt,
    output: String,
    finish: &str,
    usage: Usage,
) -> Finished {
    let receipt = Receipt {
        url: context.url.clone(),
        job: started.job.as_uuid(),
        attempt: started.attempt.as_uuid(),
        node: context.keys.public_hex(),
        model: started.model.clone(),
        model_digest: started.model_digest.clone(),
        input_sha256: started.input_sha256.clone(),
        output_sha256: sha256_hex(output.as_bytes()),
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        price_input: started.price_input.as_decimal().to_string(),
        price_output: started.price_output.as_decimal().to_string(),
        seconds: usage.seconds,
        price_second: usage.seconds.map(|_| started.price_second.as_decimal().to_string()),
        finish: finish.to_owned(),
    };
    let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
    Finished { output, finish: finish.to_owned(), usage, receipt: receipt.sign(&context.keys, now) }
}

/// Hands a finished answer in, again and again while the control plane is away.
async fn hand_in(
    context: &AttemptContext,
    mut record: Record,
    finished: Finished,
    give_up: Instant,
    stop: &mut watch::Receiver<Option<StopReason>>,
) -> Ended {
    let Record { attempt, lease, job, .. } = record;
    let completion = CompleteAttempt {
        attempt,
        lease,
        output: finished.output.clone(),
        finish: finished.finish.clone(),
        usage: finished.usage,
        receipt: finished.receipt.clone(),
    };
    record.finished = Some(finished);
    let mut written = false;
    let mut pauses = pauses();
    loop {
        // Not cut short when the attempt is said to be lost: that may be the
        // echo of this very call, and a late answer does no harm.
        let error = match context.rpc.complete_attempt(&completion).await {
            Ok(answer) => {
                let (reason, usage) = (answer.reason.as_deref(), answer.usage);
                let earned = answer.earned.map(|earned| earned.to_string());
                info!(%attempt, %job, accepted = answer.accepted, reason, ?usage, earned, "handed in");
                // One that is repeated had been accepted; only one that was fenced is lost.
                let outcome = match (answer.accepted, reason) {
                    (true, _) | (false, Some("repeated")) => Outcome::Accepted {
                        cancelled: completion.finish == "cancelled",
                        usage: answer.usage.unwrap_or(completion.usage),
                        earned: answer.earned.unwrap_or_default(),
                    },
                    (false, _) => Outcome::Lost,
                };
                return Ended { outcome, next: answer.next };
            }
            Err(error) => error,
        };
        if !error.is_passing() {
            warn!(%attempt, %job, error = %error, "the control plane refused the answer");
            return give_back(context, &refused(&completion, &error), give_up, stop).await;
        }
        warn!(%attempt, %job, error = %error, "handing in is tried again");
        if !written {
            written = true;
            if let Err(error) = context.journal.keep(record.clone()).await {
                warn!(%attempt, error = %error, "the answer could not be written down and is kept in memory only");
            }
        }
        if !pause(&mut pauses, give_up, stop).await {
            warn!(%attempt, %job, "the answer was not handed in: it is too late or no longer wanted");
            return Ended::alone(Outcome::Undelivered);
        }
    }
}

/// The failure that says that the control plane would not take the answer, so
/// that the job does not have to wait for the lease to run out.
fn refused(completion: &CompleteAttempt, error: &RpcError) -> FailAttempt {
    FailAttempt {
        attempt: completion.attempt,
        lease: completion.lease,
        code: FailureCode::EngineFailed,
        message: format!("The control plane refused the answer: {error}"),
        retry: true,
    }
}

/// Gives an attempt up, again and again while the control plane is away.
async fn give_back(
    context: &AttemptContext,
    failure: &FailAttempt,
    give_up: Instant,
    stop: &mut watch::Receiver<Option<StopReason>>,
) -> Ended {
    let outcome = match failure.code {
        FailureCode::Shutdown => Outcome::HandedBack,
        _ => Outcome::Failed,
    };
    let mut pauses = pauses();
    loop {
        let error = match context.rpc.fail_attempt(failure).await {
            Ok(answer) => return Ended { outcome, next: answer.next },
            Err(error) => error,
        };
        if !error.is_passing() {
            warn!(attempt = %failure.attempt, error = %error, "giving the attempt up was refused");
            return Ended::alone(outcome);
        }
        debug!(attempt = %failure.attempt, error = %error, "giving up is tried again");
        if !pause(&mut pauses, give_up, stop).await {
            return Ended::alone(outcome);
        }
    }
}

/// The pauses between tries: from 0.2 s, doubling, at most 5 s, with jitter.
fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times()
        .build()
}

/// Waits before the next try. Answers false when there is to be none: the time
/// is over, or the attempt is lost.
async fn pause(
    pauses: &mut ExponentialBackoff,
    give_up: Instant,
    stop: &mut watch::Receiver<Option<StopReason>>,
) -> bool {
    let Some(pause) = pauses.next() else { return false };
    if Instant::now() + pause >= give_up {
        return false;
    }
    tokio::select! {
        () = sleep(pause) => true,
        () = lost(stop) => false,
    }
}

fn forget(context: &AttemptContext, attempt: AttemptId) {
    if let Err(error) = context.journal.remove(attempt) {
        warn!(%attempt, error = %error, "the journal could not be cleared");
    }
}

/// Turns seconds from the control plane into a duration of at most a day.
fn seconds(secs: f64) -> Duration {
    Duration::try_from_secs_f64(secs).unwrap_or_default().min(Duration::from_secs(86_400))
}
