//! A small model of the market: jobs, attempts, slots and balances, and the
//! rules by which they may change.
//!
//! What a call must do, the model does too. What is left to chance, which node
//! gets a job, and what time alone causes, it reads from the database, checks
//! that it was allowed, and follows. Afterwards both must be equal in every
//! field. `market_property` makes the calls.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use rust_decimal::{Decimal, RoundingStrategy};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::support::frozen_market::{Answer, Millis};

/// Settings of a new control plane, in milliseconds.
const LEASE: Millis = 15_000;
const OFFER: Millis = 3_000;
const CANCEL: Millis = 10_000;
const FORGOTTEN: Millis = 10_000;
const LAZY_TICK: Millis = 3_000;
/// Of the consumer whose limit `market_property` sets.
pub(crate) const RUNNING_LIMIT: usize = 2;
const PAUSE_MOST: Millis = 3_600_000;
const TOKENS_PER_SECOND: u64 = 2_000;

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobState {
    Queued,
    Assigned,
    Running,
    Cancelling,
    Completed,
    Failed,
    Cancelled,
    Expired,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AttemptState {
    Offered,
    Running,
    Completed,
    Failed,
    Lost,
    Cancelled,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Job {
    pub(crate) consumer: Uuid,
    pub(crate) model: String,
    pub(crate) state: JobState,
    pub(crate) attempts: u32,
    pub(crate) max_attempts: u32,
    pub(crate) cap: Decimal,
    pub(crate) input_bound: u64,
    pub(crate) max_tokens: u64,
    pub(crate) deadline: Millis,
    pub(crate) failed_on: BTreeSet<Uuid>,
    pub(crate) retry_after: Option<Millis>,
    pub(crate) cancel_at: Option<Millis>,
    pub(crate) ended: Option<Millis>,
    pub(crate) cost: Option<Decimal>,
    pub(crate) code: Option<String>,
    pub(crate) batch: Option<Uuid>,
    pub(crate) item: Option<u8>,
    pub(crate) priority: i16,
    pub(crate) start: Option<Millis>,
    pub(crate) exclude: Vec<Uuid>,
    pub(crate) labels: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Attempt {
    pub(crate) job: Uuid,
    pub(crate) number: u32,
    pub(crate) offer: Uuid,
    pub(crate) node: Uuid,
    pub(crate) state: AttemptState,
    pub(crate) lease: Option<Uuid>,
    pub(crate) price_input: Decimal,
    pub(crate) price_output: Decimal,
    pub(crate) offered: Millis,
    pub(crate) started: Option<Millis>,
    pub(crate) ended: Option<Millis>,
    pub(crate) cost: Option<Decimal>,
    pub(crate) earned: Option<Decimal>,
    pub(crate) code: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Offer {
    pub(crate) node: Uuid,
    pub(crate) model: String,
    pub(crate) labels: Vec<String>,
    pub(crate) slots: u32,
    pub(crate) busy: u32,
    pub(crate) enabled: bool,
    pub(crate) approved: bool,
    pub(crate) price_input: Decimal,
    pub(crate) price_output: Decimal,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct ModelNode {
    pub(crate) owner: Uuid,
    pub(crate) lease_until: Millis,
    pub(crate) approval: String,
    /// Its own wish.
    pub(crate) wants_drain: bool,
    /// Somebody else's, or the market's.
    pub(crate) stopped: bool,
    pub(crate) draining: bool,
    pub(crate) drained_by: Option<String>,
    pub(crate) paused_until: Option<Millis>,
}

/// The money of a person.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
pub(crate) struct Balance {
    pub(crate) available: Decimal,
    pub(crate) held: Decimal,
    pub(crate) earned: Decimal,
}

/// What `tests.seen()` reads from the database.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Seen {
    /// Whether what had ended before is there too.
    pub(crate) whole: bool,
    pub(crate) last_tick: Millis,
    pub(crate) grace_until: Millis,
    pub(crate) jobs: BTreeMap<Uuid, Job>,
    pub(crate) attempts: BTreeMap<Uuid, Attempt>,
    /// The queue: whether a job stands in its line already.
    pub(crate) waiting: BTreeMap<Uuid, bool>,
    /// The live attempts of jobs.
    pub(crate) live: BTreeMap<Uuid, Uuid>,
    /// Jobs that failed for good and were not discarded.
    pub(crate) failed: BTreeSet<Uuid>,
    pub(crate) offers: BTreeMap<Uuid, Offer>,
    pub(crate) nodes: BTreeMap<Uuid, ModelNode>,
    pub(crate) balances: BTreeMap<Uuid, Balance>,
    pub(crate) fees: Decimal,
}

/// A submission, as its consumer makes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Submission {
    pub(crate) consumer: Uuid,
    pub(crate) job: Uuid,
    pub(crate) model: String,
    pub(crate) tokens: u16,
    pub(crate) max_cost: Option<Decimal>,
    pub(crate) deadline_secs: u16,
    pub(crate) priority: i16,
    pub(crate) delay_secs: u16,
    pub(crate) exclude: Vec<Uuid>,
    pub(crate) labels: Vec<String>,
}

/// A call of somebody.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Submit(Submission),
    /// So many jobs like the one that has the batch's id.
    SubmitBatch(Submission, u8),
    CancelBatch {
        consumer: Uuid,
        batch: Uuid,
    },
    Claim {
        node: Uuid,
        named: Vec<Uuid>,
        restart: bool,
    },
    Heartbeat {
        node: Uuid,
        named: Vec<Uuid>,
        draining: bool,
    },
    Start {
        node: Uuid,
        attempt: Uuid,
        lease: Uuid,
    },
    Complete {
        node: Uuid,
        attempt: Uuid,
        lease: Uuid,
        bytes: usize,
        usage: (u64, u64),
        finish: &'static str,
        /// As SQL, with the receipt.
        arguments: String,
    },
    /// Attempts and their leases.
    StartMany {
        node: Uuid,
        attempts: Vec<(Uuid, Uuid)>,
    },
    /// Attempts and their leases, all with the same output and usage.
    CompleteMany {
        node: Uuid,
        attempts: Vec<(Uuid, Uuid)>,
        bytes: usize,
        usage: (u64, u64),
        /// As JSON, with the receipts.
        results: Value,
    },
    Fail {
        node: Uuid,
        attempt: Uuid,
        lease: Uuid,
        code: &'static str,
        retry: bool,
    },
    Cancel {
        consumer: Uuid,
        job: Uuid,
    },
    Retry {
        consumer: Uuid,
        job: Uuid,
    },
    Discard {
        consumer: Uuid,
        job: Uuid,
    },
    Leave {
        node: Uuid,
    },
    Register {
        node: Uuid,
        labels: Vec<String>,
        offers: Vec<(String, u32, u32)>,
    },
    Approve {
        operator: Uuid,
        node: Uuid,
        approval: &'static str,
    },
    Drain {
        person: Uuid,
        is_operator: bool,
        node: Uuid,
    },
    Resume {
        person: Uuid,
        is_operator: bool,
        node: Uuid,
    },
    Tick,
}

/// Why the database and the model differ.
pub(crate) type Fault = String;

/// Fails with a sentence unless something holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

mod calls;
mod chance;
mod comparison;

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) now: Millis,
    pub(crate) jobs: BTreeMap<Uuid, Job>,
    pub(crate) attempts: BTreeMap<Uuid, Attempt>,
    pub(crate) offers: BTreeMap<Uuid, Offer>,
    pub(crate) nodes: BTreeMap<Uuid, ModelNode>,
    submissions: BTreeMap<Uuid, Submission>,
    /// In which order jobs were submitted.
    turns: BTreeMap<Uuid, usize>,
    batches: BTreeMap<Uuid, (Submission, u8)>,
    /// Jobs that failed for good and were not discarded.
    failed: BTreeSet<Uuid>,
    /// Jobs that stood in a line when the call began.
    lined_up: BTreeSet<Uuid>,
    /// Money that was given, and nothing else.
    granted: BTreeMap<Uuid, Decimal>,
    /// Who may run but a few jobs at a time.
    pub(crate) limited: Option<Uuid>,
    first_deadline: BTreeMap<Uuid, Millis>,
    last_tick: Millis,
    /// Nodes that took no work when the call began; one call may both stop a
    /// node and give work away, in either order.
    drained_before: BTreeSet<Uuid>,
}

fn price(input: Decimal, output: Decimal, input_tokens: u64, output_tokens: u64) -> Decimal {
    let cost = (input * Decimal::from(input_tokens) + output * Decimal::from(output_tokens))
        / Decimal::from(1_000_000);
    cost.round_dp_with_strategy(12, RoundingStrategy::MidpointAwayFromZero)
}

impl AttemptState {
    fn is_live(self) -> bool {
        matches!(self, Self::Offered | Self::Running)
    }
}

impl JobState {
    pub(crate) fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled | Self::Expired)
    }
}

impl Model {
    /// Begins with what is there before the first call; only money that was
    /// granted may be.
    pub(crate) fn new(now: Millis, seen: &Seen) -> Self {
        Self {
            now,
            jobs: BTreeMap::new(),
            attempts: BTreeMap::new(),
            offers: seen.offers.clone(),
            nodes: seen.nodes.clone(),
            submissions: BTreeMap::new(),
            turns: BTreeMap::new(),
            batches: BTreeMap::new(),
            failed: BTreeSet::new(),
            lined_up: BTreeSet::new(),
            granted: seen.balances.iter().map(|(user, b)| (*user, b.available)).collect(),
            limited: None,
            first_deadline: BTreeMap::new(),
            last_tick: seen.last_tick,
            drained_before: BTreeSet::new(),
        }
    }

    /// Does what a call does, and compares with what the database did.
    pub(crate) fn follow(
        &mut self,
        call: &Call,
        answer: &Answer,
        seen: &Seen,
    ) -> Result<(), Fault> {
        let ticked = match call {
            Call::Tick => true,
            _ => seen.last_tick != self.last_tick,
        };
        ensure!(
            matches!(call, Call::Tick) || !ticked || self.last_tick < self.now - LAZY_TICK,
            "the tick ran inside of a call, {} ms after the last one",
            self.now - self.last_tick
        );
        let drained = self.nodes.iter().filter(|(_, node)| node.draining);
        self.drained_before = drained.map(|(id, _)| *id).collect();
        self.act(call, answer, seen)?;
        self.follow_stops(call, ticked, seen)?;
        if ticked {
            self.follow_time(seen)?;
        }
        self.last_tick = seen.last_tick;
        self.follow_assignments(call, seen)?;
        self.compare(seen)?;
        self.check_answer(call, answer)?;
        self.check_nothing_is_left(call, answer, seen)?;
        self.lined_up =
            seen.waiting.iter().filter(|(_, stands)| **stands).map(|(id, _)| *id).collect();
        Ok(())
    }

    /// The jobs of a batch.
    fn items(&self, batch: Uuid) -> Vec<Uuid> {
        let items = self.jobs.iter().filter(|(_, job)| job.batch == Some(batch));
        items.map(|(id, _)| *id).collect()
    }

    fn queued(&self) -> impl Iterator<Item = Uuid> {
        self.jobs.iter().filter(|(_, job)| job.state == JobState::Queued).map(|(id, _)| *id)
    }

    /// The live attempt of a job.
    fn live(&self, job: Uuid) -> Option<Uuid> {
        self.attempts.iter().find(|(_, a)| a.job == job && a.state.is_live()).map(|(id, _)| *id)
    }

    /// Attempts of a node in a state.
    pub(crate) fn of_node(&self, node: Uuid, state: AttemptState) -> Vec<Uuid> {
        let of_node = self.attempts.iter().filter(|(_, a)| a.node == node && a.state == state);
        of_node.map(|(id, _)| *id).collect()
    }

    fn is_suspended(&self, node: Uuid) -> bool {
        self.nodes[&node].approval == "suspended"
    }
}
