//! The attempt table: which attempts this agent holds. One task owns it.
//!
//! Everything that changes the table arrives as a [`TableEvent`] over one
//! bounded queue: a wake-up, the answer of a heartbeat, the end of the agent.
//! Each attempt is one task in the table's `JoinSet`; what the control plane
//! gave for a completed one (`next`) comes back as that task's result. Nothing
//! is shared but two watch channels, the attempts to name in the next heartbeat
//! and each attempt's order to stop, and how far each attempt is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;
use tracing::{debug, error, info};

use super::admin::{AttemptView, Counters};
use super::attempt::{self, AttemptContext, StopReason};
use super::journal::Record;
use super::progress::{Ended, Progress, count};
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
    /// Say what is in work and what has happened. The answer also proves that
    /// the table still takes its turns.
    Look(oneshot::Sender<TableView>),
}

/// What the table holds at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct TableView {
    /// The attempts in work, oldest first.
    pub(super) attempts: Vec<AttemptView>,
    /// What has happened.
    pub(super) counters: Counters,
}

/// Asks the table what it holds; `None` when it does not answer in time.
pub(super) async fn look(
    table: &mpsc::Sender<TableEvent>,
    patience: Duration,
) -> Option<TableView> {
    let (answer, answered) = oneshot::channel();
    let asking = async {
        table.send(TableEvent::Look(answer)).await.ok()?;
        answered.await.ok()
    };
    timeout(patience, asking).await.ok().flatten()
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
    progress: Arc<Progress>,
}

/// Lists the attempts to name to the control plane: those that it has
/// confirmed as running here. One that is still being started is not named, so
/// that it cannot be answered as lost.
pub(super) fn named(held: &[Held]) -> Vec<AttemptId> {
    held.iter().filter(|held| held.progress.is_taken()).map(|held| held.attempt).collect()
}

#[derive(Debug)]
struct Entry {
    task: Id,
    progress: Arc<Progress>,
    stop: watch::Sender<Option<StopReason>>,
}

/// The table and its tasks.
#[derive(Debug)]
pub(super) struct Table {
    context: Arc<AttemptContext>,
    entries: HashMap<AttemptId, Entry>,
    tasks: JoinSet<Ended>,
    held: watch::Sender<Vec<Held>>,
    counters: Counters,
    draining: bool,
}

impl Table {
    /// Makes an empty table that publishes what it holds to `held`.
    pub(super) fn new(context: Arc<AttemptContext>, held: watch::Sender<Vec<Held>>) -> Self {
        Self {
            context,
            entries: HashMap::new(),
            tasks: JoinSet::new(),
            held,
            counters: Counters::default(),
            draining: false,
        }
    }

    /// Takes up a finished answer of an earlier run that was not handed in.
    pub(super) fn resume(&mut self, record: Record) {
        let attempt = record.attempt;
        let context = Arc::clone(&self.context);
        let progress = Arc::new(Progress::resumed(record.job));
        self.counters.resumed += 1;
        self.insert(attempt, progress, |stop| attempt::resume(context, record, stop));
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
            TableEvent::Look(answer) => {
                // Who asked may have gone.
                let _gone = answer.send(self.view());
            }
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
        let progress = Arc::new(Progress::new(job));
        let seen = Arc::clone(&progress);
        self.insert(attempt, progress, |stop| attempt::run(context, attempt, job, seen, stop));
    }

    fn insert<F>(
        &mut self,
        attempt: AttemptId,
        progress: Arc<Progress>,
        task: impl FnOnce(watch::Receiver<Option<StopReason>>) -> F,
    ) where
        F: Future<Output = Ended> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(None);
        let task = self.tasks.spawn(task(stopped)).id();
        self.entries.insert(attempt, Entry { task, progress, stop });
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

    fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (task, next) = match ended {
            Ok((task, Ended { outcome, next })) => {
                count(&mut self.counters, outcome);
                (task, next)
            }
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

    fn view(&self) -> TableView {
        let mut attempts: Vec<AttemptView> =
            self.entries.iter().map(|(attempt, entry)| entry.progress.view(*attempt)).collect();
        attempts.sort_by(|one, other| other.age_secs.total_cmp(&one.age_secs));
        TableView { attempts, counters: self.counters }
    }

    fn publish(&self) {
        self.held.send_replace(
            self.entries
                .iter()
                .map(|(attempt, entry)| Held {
                    attempt: *attempt,
                    progress: Arc::clone(&entry.progress),
                })
                .collect(),
        );
    }
}
