//! The attempt table: which attempts this agent holds. One task owns it.
//!
//! Everything that changes the table arrives as a [`TableEvent`] over one
//! bounded queue: a wake-up, the answer of a heartbeat, the end of the agent.
//! Each attempt is one task in the table's `JoinSet`; what the control plane
//! gave for a completed one (`next`) comes back as that task's result. Nothing
//! is shared but two watch channels: the attempts to name in the next
//! heartbeat, and each attempt's order to stop.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{debug, error, info};

use super::attempt::{self, AttemptContext, StopReason};
use super::journal::Record;
use crate::control::rpc::OfferedAttempt;
use crate::id::{AttemptId, JobId};

/// What the table is told.
#[derive(Debug)]
pub(super) enum TableEvent {
    /// A wake-up named an attempt. It is believed only as far as
    /// `start_attempt` agrees.
    WakeUp(AttemptId, JobId),
    /// The control plane answered which attempts are ours.
    CatchUp(CatchUp),
    /// Take no more work and end when the last attempt has.
    Drain,
    /// Hand back what is still running.
    HandBack,
}

/// The part of a heartbeat's answer that concerns attempts.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    /// Attempts offered to this node.
    pub(super) offered: Vec<OfferedAttempt>,
    /// Attempts whose consumer no longer wants them.
    pub(super) cancel: Vec<AttemptId>,
    /// Attempts that are no longer this node's.
    pub(super) lost: Vec<AttemptId>,
}

/// An attempt as the heartbeat sees it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    attempt: AttemptId,
    started: Arc<AtomicBool>,
}

/// Lists the attempts to name to the control plane: those that it has
/// confirmed as running here. One that is still being started is not named, so
/// that it cannot be answered as lost.
pub(super) fn named(held: &[Held]) -> Vec<AttemptId> {
    held.iter()
        .filter(|held| held.started.load(Ordering::Relaxed))
        .map(|held| held.attempt)
        .collect()
}

#[derive(Debug)]
struct Entry {
    task: Id,
    started: Arc<AtomicBool>,
    stop: watch::Sender<Option<StopReason>>,
}

/// The table and its tasks.
#[derive(Debug)]
pub(super) struct Table {
    context: Arc<AttemptContext>,
    entries: HashMap<AttemptId, Entry>,
    tasks: JoinSet<Option<OfferedAttempt>>,
    held: watch::Sender<Vec<Held>>,
    draining: bool,
}

impl Table {
    /// Makes an empty table that publishes what it holds to `held`.
    pub(super) fn new(context: Arc<AttemptContext>, held: watch::Sender<Vec<Held>>) -> Self {
        Self { context, entries: HashMap::new(), tasks: JoinSet::new(), held, draining: false }
    }

    /// Takes up a finished answer of an earlier run that was not handed in.
    pub(super) fn resume(&mut self, record: Record) {
        let attempt = record.attempt;
        let context = Arc::clone(&self.context);
        self.insert(attempt, true, |_started, stop| attempt::resume(context, record, stop));
    }

    /// Runs until it is drained, or until the queue closes, which stops every
    /// attempt where it is.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<TableEvent>) {
        while !(self.draining && self.entries.is_empty()) {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event),
                    None => break,
                },
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    self.ended(ended);
                }
            }
        }
        self.tasks.shutdown().await;
    }

    fn take(&mut self, event: TableEvent) {
        match event {
            TableEvent::WakeUp(attempt, job) => self.start(attempt, job),
            TableEvent::CatchUp(answer) => {
                for attempt in answer.cancel {
                    self.stop(attempt, StopReason::Cancelled);
                }
                for attempt in answer.lost {
                    self.stop(attempt, StopReason::Lost);
                }
                for offered in answer.offered {
                    self.start(offered.attempt, offered.job);
                }
            }
            TableEvent::Drain => self.draining = true,
            TableEvent::HandBack => {
                self.draining = true;
                let all: Vec<_> = self.entries.keys().copied().collect();
                info!(attempts = all.len(), "handing back what is still running");
                for attempt in all {
                    self.stop(attempt, StopReason::Shutdown);
                }
            }
        }
    }

    fn start(&mut self, attempt: AttemptId, job: JobId) {
        if self.draining {
            debug!(%attempt, "not taken, because the agent is ending");
            return;
        }
        if self.entries.contains_key(&attempt) {
            return;
        }
        let context = Arc::clone(&self.context);
        self.insert(attempt, false, |started, stop| {
            attempt::run(context, attempt, job, started, stop)
        });
    }

    fn insert<F>(
        &mut self,
        attempt: AttemptId,
        started: bool,
        task: impl FnOnce(Arc<AtomicBool>, watch::Receiver<Option<StopReason>>) -> F,
    ) where
        F: Future<Output = Option<OfferedAttempt>> + Send + 'static,
    {
        let started = Arc::new(AtomicBool::new(started));
        let (stop, stopped) = watch::channel(None);
        let task = self.tasks.spawn(task(Arc::clone(&started), stopped)).id();
        self.entries.insert(attempt, Entry { task, started, stop });
        self.publish();
    }

    fn stop(&self, attempt: AttemptId, reason: StopReason) {
        let Some(entry) = self.entries.get(&attempt) else { return };
        entry.stop.send_if_modified(|current| {
            // Lost is final: there is nothing left to hand in or back.
            let change =
                current.is_none() || (reason == StopReason::Lost && *current != Some(reason));
            if change {
                *current = Some(reason);
            }
            change
        });
    }

    fn ended(&mut self, ended: Result<(Id, Option<OfferedAttempt>), JoinError>) {
        let (task, next) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // A defect of ours: the attempt's lease runs out on its own.
                error!(error = %error, "an attempt's task broke off");
                (error.id(), None)
            }
        };
        self.entries.retain(|_attempt, entry| entry.task != task);
        self.publish();
        if let Some(offered) = next {
            self.start(offered.attempt, offered.job);
        }
    }

    fn publish(&self) {
        self.held.send_replace(
            self.entries
                .iter()
                .map(|(attempt, entry)| Held {
                    attempt: *attempt,
                    started: Arc::clone(&entry.started),
                })
                .collect(),
        );
    }
}
