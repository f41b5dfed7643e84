//! How far each attempt is, and what came of it.
//!
//! An attempt's own task writes its [`Progress`]; the table and those that it tells
//! only read it. What an attempt ends with ([`Ended`]) goes back to the table, which
//! alone keeps the [`Counters`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::admin::{AttemptView, Counters, Stage};
use crate::control::rpc::{JobKind, OfferedAttempt, StartedAttempt, Usage};
use crate::id::{AttemptId, JobId};
use crate::money::Usd;

/// How far one attempt is.
#[derive(Debug)]
pub(super) struct Progress {
    job: JobId,
    begun: Instant,
    stage: AtomicU8,
    work: OnceLock<(String, JobKind)>,
    tokens: AtomicU64,
    bytes: AtomicU64,
    /// Microseconds after `begun`; 0 means that there was none yet.
    first_token: AtomicU64,
    last_token: AtomicU64,
}

impl Progress {
    /// Begins with an attempt that was just heard of.
    pub(super) fn new(job: JobId) -> Self {
        Self {
            job,
            begun: Instant::now(),
            stage: AtomicU8::new(Stage::Starting as u8),
            work: OnceLock::new(),
            tokens: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            first_token: AtomicU64::new(0),
            last_token: AtomicU64::new(0),
        }
    }

    /// Begins with an attempt of an earlier run that only has to be handed in.
    pub(super) fn resumed(job: JobId) -> Self {
        let progress = Self::new(job);
        progress.settling();
        progress
    }

    /// Returns when the agent heard of the attempt.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// Notes that the attempt was taken.
    pub(super) fn taken(&self, started: &StartedAttempt) {
        // An attempt is started once.
        let _known = self.work.set((started.model.clone(), started.kind));
        self.stage.store(Stage::Waiting as u8, Ordering::Relaxed);
    }

    /// Says whether the control plane has confirmed that the attempt runs here.
    pub(super) fn is_taken(&self) -> bool {
        self.stage.load(Ordering::Relaxed) != Stage::Starting as u8
    }

    /// Notes another token, which may also be some bytes of any output.
    pub(super) fn token(&self, bytes: usize) {
        self.token_after(self.begun.elapsed(), bytes);
    }

    fn token_after(&self, age: Duration, bytes: usize) {
        // At least one, because 0 means never.
        let now = u64::try_from(age.as_micros()).unwrap_or(u64::MAX).max(1);
        if self.tokens.fetch_add(1, Ordering::Relaxed) == 0 {
            self.first_token.store(now, Ordering::Relaxed);
            self.stage.store(Stage::Generating as u8, Ordering::Relaxed);
        }
        self.last_token.store(now, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes that the work has ended and is being settled.
    pub(super) fn settling(&self) {
        self.stage.store(Stage::Settling as u8, Ordering::Relaxed);
    }

    /// Describes the attempt for people.
    pub(super) fn view(&self, attempt: AttemptId) -> AttemptView {
        let seconds = |micros: u64| micros as f64 / 1e6;
        let tokens = self.tokens.load(Ordering::Relaxed);
        let first = self.first_token.load(Ordering::Relaxed);
        let last = self.last_token.load(Ordering::Relaxed);
        let work = self.work.get();
        AttemptView {
            attempt,
            job: self.job,
            model: work.map(|(model, _kind)| model.clone()),
            kind: work.map(|(_model, kind)| *kind),
            stage: match self.stage.load(Ordering::Relaxed) {
                stage if stage == Stage::Starting as u8 => Stage::Starting,
                stage if stage == Stage::Waiting as u8 => Stage::Waiting,
                stage if stage == Stage::Generating as u8 => Stage::Generating,
                _ => Stage::Settling,
            },
            age_secs: self.begun.elapsed().as_secs_f64(),
            first_token_secs: (first > 0).then(|| seconds(first)),
            tokens,
            output_bytes: self.bytes.load(Ordering::Relaxed),
            tokens_per_second: (tokens > 1 && last > first)
                .then(|| (tokens - 1) as f64 / seconds(last - first)),
        }
    }
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    /// It was not to be had.
    NotTaken,
    /// Its answer was accepted.
    Accepted {
        /// Whether the consumer had cancelled.
        cancelled: bool,
        /// What was captured.
        usage: Usage,
        /// What it earned.
        earned: Usd,
    },
    /// It was given up.
    Failed,
    /// It was handed back, because the agent ends.
    HandedBack,
    /// It was no longer this node's.
    Lost,
    /// Its answer could not be handed in while anybody wanted it.
    Undelivered,
}

/// How an attempt's task ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// What became of the attempt.
    pub(super) outcome: Outcome,
    /// The node's next one, if the settlement brought it.
    pub(super) next: Option<OfferedAttempt>,
}

impl Ended {
    /// Ends with an outcome that brought nothing.
    pub(super) fn alone(outcome: Outcome) -> Self {
        Self { outcome, next: None }
    }
}

/// Adds an outcome to what has happened.
pub(super) fn count(counters: &mut Counters, outcome: Outcome) {
    if outcome == Outcome::NotTaken {
        return;
    }
    counters.ended += 1;
    match outcome {
        Outcome::NotTaken => {}
        Outcome::Accepted { cancelled, usage, earned } => {
            counters.completed += u64::from(!cancelled);
            counters.cancelled += u64::from(cancelled);
            counters.input_tokens += usage.input_tokens;
            counters.output_tokens += usage.output_tokens;
            let sum = counters.earned.as_decimal().saturating_add(earned.as_decimal());
            counters.earned = Usd::from_decimal(sum);
        }
        Outcome::Failed => counters.failed += 1,
        Outcome::HandedBack => counters.handed_back += 1,
        Outcome::Lost => counters.lost += 1,
        Outcome::Undelivered => counters.undelivered += 1,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_speed_is_that_between_the_first_and_the_last_token() {
        let progress = Progress::new(JobId::generate());
        assert!(!progress.is_taken());
        for number in 0..11 {
            progress.token_after(Duration::from_millis(3000 + 100 * number), 4);
        }
        let view = progress.view(AttemptId::from_uuid(Uuid::now_v7()));
        assert_eq!(view.stage, Stage::Generating);
        assert_eq!((view.tokens, view.output_bytes), (11, 44));
        assert!((view.first_token_secs.unwrap() - 3.0).abs() < 1e-6, "{view:?}");
        assert!((view.tokens_per_second.unwrap() - 10.0).abs() < 1e-6, "{view:?}");
        progress.settling();
        assert!(progress.is_taken());
    }

    #[test]
    fn outcomes_are_counted_once_each() {
        let mut counters = Counters::default();
        let usage = Usage { input_tokens: 3, output_tokens: 5, seconds: None };
        let earned: Usd = "0.25".parse().unwrap();
        for outcome in [
            Outcome::NotTaken,
            Outcome::Accepted { cancelled: false, usage, earned },
            Outcome::Accepted { cancelled: true, usage, earned },
            Outcome::Failed,
            Outcome::HandedBack,
            Outcome::Lost,
            Outcome::Undelivered,
        ] {
            count(&mut counters, outcome);
        }
        assert_eq!((counters.ended, counters.completed, counters.cancelled), (6, 1, 1));
        assert_eq!((counters.failed, counters.handed_back), (1, 1));
        assert_eq!((counters.lost, counters.undelivered), (1, 1));
        assert_eq!((counters.input_tokens, counters.output_tokens), (6, 10));
        assert_eq!(counters.earned, "0.5".parse().unwrap());
    }
}
