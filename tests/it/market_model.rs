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

use crate::still_market::{Answer, Millis};

/// Settings of a new control plane, in milliseconds.
const LEASE: Millis = 15_000;
const OFFER: Millis = 3_000;
const CANCEL: Millis = 10_000;
const FORGOTTEN: Millis = 10_000;
const LAZY_TICK: Millis = 3_000;
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
    pub(crate) hold: String,
    pub(crate) captured: Decimal,
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
    pub(crate) slots: u32,
    pub(crate) busy: u32,
    pub(crate) enabled: bool,
    pub(crate) approved: bool,
    pub(crate) price_input: Decimal,
    pub(crate) price_output: Decimal,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Node {
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
    pub(crate) last_tick: Millis,
    pub(crate) grace_until: Millis,
    pub(crate) jobs: BTreeMap<Uuid, Job>,
    pub(crate) attempts: BTreeMap<Uuid, Attempt>,
    pub(crate) offers: BTreeMap<Uuid, Offer>,
    pub(crate) nodes: BTreeMap<Uuid, Node>,
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
}

/// A call of somebody.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Submit(Submission),
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
    Leave {
        node: Uuid,
    },
    Register {
        node: Uuid,
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

macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) now: Millis,
    pub(crate) jobs: BTreeMap<Uuid, Job>,
    pub(crate) attempts: BTreeMap<Uuid, Attempt>,
    pub(crate) offers: BTreeMap<Uuid, Offer>,
    pub(crate) nodes: BTreeMap<Uuid, Node>,
    submissions: BTreeMap<Uuid, Submission>,
    /// Money that was given, and nothing else.
    granted: BTreeMap<Uuid, Decimal>,
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
            granted: seen.balances.iter().map(|(user, b)| (*user, b.available)).collect(),
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
        self.check_nothing_is_left(call, answer, seen)
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

    // ------------------------------------------------------------ calls

    /// Changes the model as the call must, and checks refusals.
    fn act(&mut self, call: &Call, answer: &Answer, seen: &Seen) -> Result<(), Fault> {
        let expected = self.refusal(call);
        ensure!(
            expected.as_deref() == answer.as_ref().err().map(String::as_str),
            "expected {}, but the answer is {answer:?}",
            expected.as_deref().unwrap_or("no refusal"),
        );
        let Ok(answer) = answer else { return Ok(()) };
        match call {
            Call::Submit(submission) => self.submit(submission, seen),
            Call::Claim { node, named, restart } => {
                if *restart {
                    self.forget(*node, named, Millis::MAX);
                }
                Ok(())
            }
            Call::Heartbeat { node, named, draining } => {
                let (now, beating) = (self.now, self.nodes.get_mut(node).unwrap());
                beating.lease_until = now + LEASE;
                beating.wants_drain = *draining;
                self.forget(*node, named, now - FORGOTTEN);
                Ok(())
            }
            Call::Start { attempt, lease, .. } => {
                let started = self.attempts.get_mut(attempt).unwrap();
                if started.state == AttemptState::Offered {
                    started.state = AttemptState::Running;
                    started.lease = Some(*lease);
                    started.started = Some(self.now);
                    self.jobs.get_mut(&started.job).unwrap().state = JobState::Running;
                }
                Ok(())
            }
            Call::Complete { attempt, lease, bytes, usage, .. } => {
                self.complete(*attempt, *lease, *bytes, *usage, answer)
            }
            Call::Fail { attempt, lease, code, retry, .. } => {
                let failed = &self.attempts[attempt];
                let is_fenced = failed.state != AttemptState::Offered
                    && !(failed.state == AttemptState::Running && failed.lease == Some(*lease));
                ensure!(answer["accepted"] == !is_fenced, "the failure was answered {answer}");
                if !is_fenced {
                    let is_final = *code == "bad_request" || !retry;
                    self.end_attempt(
                        *attempt,
                        AttemptState::Failed,
                        code,
                        *code != "shutdown",
                        is_final,
                    );
                }
                Ok(())
            }
            Call::Cancel { job, .. } => {
                self.cancel(*job);
                Ok(())
            }
            Call::Leave { node } => {
                let leaving = self.nodes.get_mut(node).unwrap();
                leaving.lease_until = self.now;
                leaving.wants_drain = false;
                let mut held = self.of_node(*node, AttemptState::Offered);
                held.append(&mut self.of_node(*node, AttemptState::Running));
                ensure!(answer["handed_back"] == held.len(), "leaving was answered {answer}");
                for attempt in held {
                    self.end_attempt(attempt, AttemptState::Lost, "node_left", false, false);
                }
                Ok(())
            }
            Call::Register { node, offers } => {
                self.register(*node, offers, seen);
                Ok(())
            }
            Call::Approve { node, approval, .. } => {
                self.nodes.get_mut(node).unwrap().approval = (*approval).to_owned();
                for offer in self.offers.values_mut().filter(|offer| offer.node == *node) {
                    offer.approved = *approval == "approved";
                }
                Ok(())
            }
            Call::Drain { node, is_operator, .. } => {
                let by = &mut self.nodes.get_mut(node).unwrap().drained_by;
                if *is_operator || by.as_deref() != Some("operator") {
                    *by = Some(if *is_operator { "operator" } else { "owner" }.to_owned());
                }
                Ok(())
            }
            Call::Resume { node, .. } => {
                self.nodes.get_mut(node).unwrap().drained_by = None;
                Ok(())
            }
            Call::Tick => Ok(()),
        }
    }

    /// Why a call must be refused, if it must.
    fn refusal(&self, call: &Call) -> Option<String> {
        let word = match call {
            Call::Submit(submission) => return self.submit_refusal(submission),
            Call::Claim { node, .. }
            | Call::Heartbeat { node, .. }
            | Call::Start { node, .. }
            | Call::Complete { node, .. }
            | Call::Fail { node, .. }
            | Call::Leave { node }
            | Call::Register { node, .. }
                if self.is_suspended(*node) =>
            {
                "suspended"
            }
            Call::Start { node, attempt, .. }
            | Call::Complete { node, attempt, .. }
            | Call::Fail { node, attempt, .. }
                if self.attempts[attempt].node != *node =>
            {
                "unknown_attempt"
            }
            Call::Start { attempt, lease, .. } => {
                let attempt = &self.attempts[attempt];
                match attempt.state {
                    AttemptState::Offered => return None,
                    AttemptState::Running if attempt.lease == Some(*lease) => return None,
                    AttemptState::Running => "not_yours",
                    _ => "gone",
                }
            }
            Call::Complete { attempt, lease, finish: "cancelled", .. }
                if self.attempts[attempt].state == AttemptState::Running
                    && self.attempts[attempt].lease == Some(*lease)
                    && self.jobs[&self.attempts[attempt].job].state != JobState::Cancelling =>
            {
                "not_cancelled"
            }
            Call::Drain { person, is_operator: false, node }
            | Call::Resume { person, is_operator: false, node }
                if self.nodes[node].owner != *person =>
            {
                "unknown_node"
            }
            Call::Resume { is_operator: false, node, .. }
                if self.nodes[node].drained_by.as_deref() == Some("operator") =>
            {
                "stopped_by_operator"
            }
            Call::Cancel { consumer, job } if self.jobs[job].consumer != *consumer => "unknown_job",
            _ => return None,
        };
        Some(word.to_owned())
    }

    fn quote(&self, submission: &Submission, input_bound: u64) -> Option<Decimal> {
        let offers = self.offers.values();
        let offers = offers.filter(|o| o.model == submission.model && o.enabled && o.approved);
        let tokens = u64::from(submission.tokens);
        offers.map(|o| price(o.price_input, o.price_output, input_bound, tokens)).min()
    }

    fn submit_refusal(&self, submission: &Submission) -> Option<String> {
        if let Some(known) = self.submissions.get(&submission.job) {
            return (known != submission).then(|| "id_conflict".to_owned());
        }
        // All inputs are equal; their bound is that of `market_property`.
        let lowest = self.quote(submission, crate::market_property::INPUT_BOUND);
        let cap = match (submission.max_cost, lowest) {
            (None, None) => return Some("no_offer".to_owned()),
            (Some(cap), Some(lowest)) if cap < lowest => {
                return Some("cap_below_offers".to_owned());
            }
            (Some(cap), _) => cap,
            (None, Some(lowest)) => lowest * Decimal::TWO,
        };
        let available = self.balance(submission.consumer).available;
        (cap > available).then(|| "insufficient_funds".to_owned())
    }

    fn submit(&mut self, submission: &Submission, seen: &Seen) -> Result<(), Fault> {
        if self.submissions.contains_key(&submission.job) {
            return Ok(());
        }
        let Some(made) = seen.jobs.get(&submission.job) else {
            return Err("the job is not there".to_owned());
        };
        ensure!(
            made.input_bound == crate::market_property::INPUT_BOUND,
            "the input is bounded by {}",
            made.input_bound
        );
        let lowest = self.quote(submission, made.input_bound);
        let cap = submission.max_cost.or(lowest.map(|lowest| lowest * Decimal::TWO));
        self.submissions.insert(submission.job, submission.clone());
        let job = Job {
            consumer: submission.consumer,
            model: submission.model.clone(),
            state: JobState::Queued,
            attempts: 0,
            max_attempts: 3,
            cap: cap.unwrap_or_default(),
            input_bound: made.input_bound,
            max_tokens: u64::from(submission.tokens),
            deadline: self.now + 1000 * Millis::from(submission.deadline_secs),
            failed_on: BTreeSet::new(),
            retry_after: None,
            cancel_at: None,
            ended: None,
            cost: None,
            code: None,
            hold: "open".to_owned(),
            captured: Decimal::ZERO,
        };
        self.jobs.insert(submission.job, job);
        Ok(())
    }

    /// Loses running attempts that their node does not name.
    fn forget(&mut self, node: Uuid, named: &[Uuid], before: Millis) {
        for attempt in self.of_node(node, AttemptState::Running) {
            if !named.contains(&attempt) && self.attempts[&attempt].started <= Some(before) {
                self.end_attempt(attempt, AttemptState::Lost, "node_restarted", true, false);
            }
        }
    }

    fn complete(
        &mut self,
        id: Uuid,
        lease: Uuid,
        bytes: usize,
        (input_tokens, output_tokens): (u64, u64),
        answer: &Value,
    ) -> Result<(), Fault> {
        let attempt = self.attempts.get_mut(&id).unwrap();
        if attempt.state != AttemptState::Running || attempt.lease != Some(lease) {
            let is_repeated =
                attempt.state == AttemptState::Completed && attempt.lease == Some(lease);
            let reason = if is_repeated { "repeated" } else { "fenced" };
            ensure!(
                answer["accepted"] == is_repeated && answer["reason"] == reason,
                "expected {reason}, but the completion was answered {answer}"
            );
            return Ok(());
        }
        ensure!(
            answer["accepted"] == true && answer["reason"].is_null(),
            "the completion was answered {answer}"
        );
        let job = self.jobs.get_mut(&attempt.job).unwrap();
        let millis = u64::try_from(self.now - attempt.started.unwrap()).unwrap();
        let in_time = (millis * TOKENS_PER_SECOND).div_ceil(1000);
        let input_tokens = input_tokens.min(job.input_bound);
        let bytes = u64::try_from(bytes).unwrap();
        let output_tokens = output_tokens.min(job.max_tokens).min(bytes).min(in_time);
        let cost = price(attempt.price_input, attempt.price_output, input_tokens, output_tokens);
        let captured = cost.min(job.cap);
        // The fee is a twentieth; it takes the remainder.
        let earned = (captured * Decimal::new(95, 2)).trunc_with_scale(12);
        attempt.state = AttemptState::Completed;
        attempt.ended = Some(self.now);
        attempt.cost = Some(cost);
        attempt.earned = Some(earned);
        job.ended = Some(self.now);
        job.cost = Some(cost);
        job.captured = captured;
        job.hold = "captured".to_owned();
        if job.state == JobState::Cancelling {
            job.state = JobState::Cancelled;
            job.code = Some("cancelled".to_owned());
        } else {
            job.state = JobState::Completed;
        }
        Ok(())
    }

    fn cancel(&mut self, id: Uuid) {
        let live = self.live(id);
        let job = self.jobs.get_mut(&id).unwrap();
        match job.state {
            JobState::Running => {
                job.state = JobState::Cancelling;
                job.cancel_at = Some(self.now);
            }
            JobState::Queued | JobState::Assigned => {
                if let Some(attempt) = live.and_then(|live| self.attempts.get_mut(&live)) {
                    attempt.state = AttemptState::Cancelled;
                    attempt.ended = Some(self.now);
                    attempt.code = Some("cancelled".to_owned());
                }
                self.end_job(id, JobState::Cancelled, "cancelled");
            }
            _ => {}
        }
    }

    fn register(&mut self, node: Uuid, offers: &[(String, u32, u32)], seen: &Seen) {
        let registered = self.nodes.get_mut(&node).unwrap();
        registered.lease_until = self.now + LEASE;
        registered.wants_drain = false;
        let approved = registered.approval == "approved";
        for offer in self.offers.values_mut().filter(|offer| offer.node == node) {
            offer.enabled = false;
        }
        for (model, slots, price) in offers {
            // The ids of offers are the database's.
            let known = seen.offers.iter().find(|(_, o)| o.node == node && o.model == *model);
            let Some((id, _)) = known else { continue };
            let busy = self.offers.get(id).map_or(0, |offer| offer.busy);
            let price = Decimal::from(*price);
            let offer = Offer {
                node,
                model: model.clone(),
                slots: *slots,
                busy,
                enabled: true,
                approved,
                price_input: price,
                price_output: price,
            };
            self.offers.insert(*id, offer);
        }
    }

    // ------------------------------------------------------------ ends

    /// Ends an attempt without a result, and decides about its job.
    fn end_attempt(
        &mut self,
        id: Uuid,
        state: AttemptState,
        code: &str,
        counts: bool,
        is_final: bool,
    ) {
        let now = self.now;
        let attempt = self.attempts.get_mut(&id).unwrap();
        attempt.state = state;
        attempt.ended = Some(now);
        attempt.code = Some(code.to_owned());
        let (id, node) = (attempt.job, attempt.node);
        let job = self.jobs.get_mut(&id).unwrap();
        if job.state == JobState::Cancelling {
            self.end_job(id, JobState::Cancelled, "cancelled");
        } else if job.deadline <= now {
            self.end_job(id, JobState::Expired, "deadline");
        } else if is_final || (counts && job.attempts >= job.max_attempts) {
            self.end_job(id, JobState::Failed, code);
        } else {
            job.state = JobState::Queued;
            job.attempts -= u32::from(!counts);
            job.failed_on.insert(node);
            // The backoff is read from the database; see `follow_backoff`.
            job.retry_after = None;
        }
    }

    fn end_job(&mut self, id: Uuid, state: JobState, code: &str) {
        let job = self.jobs.get_mut(&id).unwrap();
        job.state = state;
        job.ended = Some(self.now);
        job.code = Some(code.to_owned());
        job.hold = "released".to_owned();
    }

    // ------------------------------------------------------------ what time causes

    /// Follows pauses, which the market makes of faults, and works out who is
    /// stopped.
    fn follow_stops(&mut self, call: &Call, ticked: bool, seen: &Seen) -> Result<(), Fault> {
        let now = self.now;
        for (id, node) in &mut self.nodes {
            let Some(after) = seen.nodes.get(id) else { continue };
            if after.paused_until != node.paused_until {
                let is_over = node.paused_until.is_none_or(|until| until <= now);
                let is_resumed = matches!(call, Call::Resume { node, .. } if node == id);
                let is_allowed = match after.paused_until {
                    Some(until) => ticked && is_over && (1..=PAUSE_MOST).contains(&(until - now)),
                    None => is_over || is_resumed,
                };
                ensure!(is_allowed, "{call:?} paused {node:?} until {:?}", after.paused_until);
                node.paused_until = after.paused_until;
            }
            node.stopped = node.drained_by.is_some() || node.paused_until.is_some();
            node.draining = node.wants_drain || node.stopped;
            let is_over = node.paused_until.is_some_and(|until| until <= now);
            ensure!(!(ticked && is_over), "{node:?} is still paused");
        }
        Ok(())
    }

    /// Follows what a tick took back, and checks that each was due.
    fn follow_time(&mut self, seen: &Seen) -> Result<(), Fault> {
        let now = self.now;
        let is_spared = seen.grace_until > now;
        let lived: Vec<Uuid> =
            self.attempts.iter().filter(|(_, a)| a.state.is_live()).map(|(id, _)| *id).collect();
        for id in lived {
            let (attempt, after) = (&self.attempts[&id], &seen.attempts[&id]);
            let job = &self.jobs[&attempt.job];
            if after.state.is_live() {
                continue;
            }
            let code = after.code.as_deref().unwrap_or_default();
            let is_due = match code {
                "not_started" => {
                    attempt.state == AttemptState::Offered
                        && attempt.offered + OFFER <= now
                        && !is_spared
                }
                "node_lost" => self.nodes[&attempt.node].lease_until <= now && !is_spared,
                "deadline" => job.deadline <= now && job.state != JobState::Cancelling,
                "cancelled" => {
                    job.state == JobState::Cancelling
                        && (job.deadline <= now
                            || job.cancel_at.is_some_and(|at| at + CANCEL <= now))
                }
                _ => false,
            };
            ensure!(
                is_due,
                "the tick ended attempt {id} with {code:?}, which was not due: {attempt:?} of {job:?}"
            );
            let state = match code {
                "deadline" => AttemptState::Failed,
                "cancelled" => AttemptState::Cancelled,
                _ => AttemptState::Lost,
            };
            let code = code.to_owned();
            self.end_attempt(id, state, &code, true, false);
        }
        for id in self.queued().collect::<Vec<_>>() {
            if seen.jobs[&id].state == JobState::Expired {
                ensure!(self.jobs[&id].deadline <= now, "job {id} expired before its deadline");
                self.end_job(id, JobState::Expired, "deadline");
            }
        }
        Ok(())
    }

    /// Follows who was given what, and checks that each might be.
    fn follow_assignments(&mut self, call: &Call, seen: &Seen) -> Result<(), Fault> {
        self.follow_backoff(seen)?;
        self.count_busy();
        for (id, made) in &seen.attempts {
            if self.attempts.contains_key(id) {
                continue;
            }
            let Some(job) = self.jobs.get(&made.job) else {
                return Err(format!("attempt {id} is of no job"));
            };
            ensure!(
                job.state == JobState::Queued,
                "job {} was given away in state {:?}",
                made.job,
                job.state
            );
            let fitness = self.unfit(job, made.offer, true);
            ensure!(
                fitness.is_none(),
                "{call:?} gave {job:?} to {:?}: {}",
                self.offers[&made.offer],
                fitness.unwrap_or_default()
            );
            let number = self.attempts.values().filter(|a| a.job == made.job).count() + 1;
            let offer = self.offers.get_mut(&made.offer).unwrap();
            offer.busy += 1;
            let expected = Attempt {
                job: made.job,
                number: u32::try_from(number).unwrap(),
                offer: made.offer,
                node: offer.node,
                state: AttemptState::Offered,
                lease: None,
                price_input: offer.price_input,
                price_output: offer.price_output,
                offered: self.now,
                started: None,
                ended: None,
                cost: None,
                earned: None,
                code: None,
            };
            self.attempts.insert(*id, expected);
            let job = self.jobs.get_mut(&made.job).unwrap();
            job.state = JobState::Assigned;
            job.attempts += 1;
        }
        Ok(())
    }

    /// Reads how long a job that failed keeps away from where it did.
    fn follow_backoff(&mut self, seen: &Seen) -> Result<(), Fault> {
        for (id, job) in &mut self.jobs {
            let Some(after) = seen.jobs.get(id) else { continue };
            if job.state == JobState::Queued
                && !job.failed_on.is_empty()
                && job.retry_after.is_none()
            {
                let wait = after.retry_after.unwrap_or_default() - self.now;
                ensure!((1..=3_600_000).contains(&wait), "job {id} is tried again in {wait} ms");
            }
            job.retry_after = after.retry_after;
        }
        Ok(())
    }

    /// Why a queued job cannot be given to an offer now, if it cannot. `at_all`:
    /// it could not at any moment of the call.
    fn unfit(&self, job: &Job, offer: Uuid, at_all: bool) -> Option<&'static str> {
        let offer = &self.offers[&offer];
        let node = &self.nodes[&offer.node];
        let was_draining = self.drained_before.contains(&offer.node);
        let cost = price(offer.price_input, offer.price_output, job.input_bound, job.max_tokens);
        if offer.model != job.model {
            Some("it is another model")
        } else if !offer.enabled || !offer.approved {
            Some("the offer is off or not approved")
        } else if node.lease_until <= self.now {
            Some("the node is silent")
        } else if (node.draining && (was_draining || !at_all)) || (was_draining && !at_all) {
            Some("the node is draining")
        } else if cost > job.cap {
            Some("it is too dear")
        } else if job.deadline <= self.now {
            Some("the deadline has passed")
        } else if job.attempts >= job.max_attempts {
            Some("it had all its attempts")
        } else if job.failed_on.contains(&offer.node) && job.retry_after > Some(self.now) {
            Some("it has just failed there")
        } else if offer.busy >= offer.slots {
            Some("no slot is free")
        } else {
            None
        }
    }

    fn count_busy(&mut self) {
        for (id, offer) in &mut self.offers {
            let live = self.attempts.values().filter(|a| a.offer == *id && a.state.is_live());
            offer.busy = u32::try_from(live.count()).unwrap();
        }
    }

    // ------------------------------------------------------------ comparing

    fn balance(&self, user: Uuid) -> Balance {
        let mut balance = Balance { available: self.granted[&user], ..Balance::default() };
        for job in self.jobs.values().filter(|job| job.consumer == user) {
            let set_aside = if job.hold == "open" { job.cap } else { Decimal::ZERO };
            balance.available -= set_aside + job.captured;
            balance.held += set_aside;
        }
        let earned = self.attempts.values().filter(|a| self.nodes[&a.node].owner == user);
        balance.earned = earned.filter_map(|a| a.earned).sum();
        balance
    }

    /// Compares everything with the database.
    fn compare(&mut self, seen: &Seen) -> Result<(), Fault> {
        self.count_busy();
        equal("job", &self.jobs, &seen.jobs)?;
        equal("attempt", &self.attempts, &seen.attempts)?;
        equal("offer", &self.offers, &seen.offers)?;
        equal("node", &self.nodes, &seen.nodes)?;
        let balances = self.granted.keys().map(|user| (*user, self.balance(*user))).collect();
        equal("balance", &balances, &seen.balances)?;
        let earned: Decimal = self.attempts.values().filter_map(|a| a.earned).sum();
        let paid: Decimal = self.jobs.values().map(|job| job.captured).sum();
        ensure!(seen.fees == paid - earned, "fees are {}, not {}", seen.fees, paid - earned);
        for (id, job) in &self.jobs {
            let live = self.attempts.values().filter(|a| a.job == *id && a.state.is_live());
            let live: Vec<_> = live.map(|a| a.state).collect();
            let expected: &[AttemptState] = match job.state {
                JobState::Assigned => &[AttemptState::Offered],
                JobState::Running | JobState::Cancelling => &[AttemptState::Running],
                _ => &[],
            };
            ensure!(
                live == expected,
                "job {id} is {:?}, and its live attempts are {live:?}",
                job.state
            );
        }
        Ok(())
    }

    /// Checks what a call says that it did.
    fn check_answer(&self, call: &Call, answer: &Answer) -> Result<(), Fault> {
        let Ok(answer) = answer else { return Ok(()) };
        let said = |value: &Value| -> BTreeSet<Uuid> {
            let ids = value.as_array().into_iter().flatten();
            ids.filter_map(|id| id.as_str().or_else(|| id["attempt"].as_str()))
                .filter_map(|id| id.parse().ok())
                .collect()
        };
        match call {
            Call::Claim { node, named, .. } | Call::Heartbeat { node, named, .. } => {
                let offered = self.of_node(*node, AttemptState::Offered).into_iter().collect();
                ensure!(
                    said(&answer["attempts"]) == offered,
                    "offered are {offered:?}, said was {answer}"
                );
                let cancel = self.of_node(*node, AttemptState::Running).into_iter();
                let cancel = cancel
                    .filter(|id| self.jobs[&self.attempts[id].job].state == JobState::Cancelling)
                    .collect();
                ensure!(
                    said(&answer["cancel"]) == cancel,
                    "to cancel are {cancel:?}, said was {answer}"
                );
                let is_lost = |id: &Uuid| {
                    self.attempts[id].node != *node || !self.attempts[id].state.is_live()
                };
                let lost = named.iter().copied().filter(is_lost).collect();
                ensure!(said(&answer["lost"]) == lost, "lost are {lost:?}, said was {answer}");
            }
            Call::Complete { node, .. } | Call::Fail { node, .. } => {
                if let Some(next) = answer["next"]["attempt"].as_str() {
                    let next: Uuid = next.parse().unwrap();
                    let offered = self.of_node(*node, AttemptState::Offered);
                    ensure!(offered.contains(&next), "the next attempt is not offered: {answer}");
                }
            }
            Call::Submit(submission) => {
                let state = serde_json::from_value::<JobState>(answer["state"].clone());
                let expected = self.jobs[&submission.job].state;
                ensure!(state.ok() == Some(expected), "the job is {expected:?}, said was {answer}");
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that a call did all that it should: no free slot beside a job that
    /// it fits, and after a tick nothing that was due.
    fn check_nothing_is_left(
        &self,
        call: &Call,
        answer: &Answer,
        seen: &Seen,
    ) -> Result<(), Fault> {
        let Ok(answer) = answer else { return Ok(()) };
        let filled = |offer: &Uuid| match call {
            Call::Tick => true,
            Call::Submit(_) => answer["created"] == true,
            Call::Claim { node, .. } | Call::Register { node, .. } => {
                self.offers[offer].node == *node
            }
            Call::Heartbeat { node, draining, .. } => self.offers[offer].node == *node && !draining,
            _ => false,
        };
        let waits =
            |job: &Uuid| !matches!(call, Call::Submit(submission) if submission.job != *job);
        for id in self.queued().filter(waits) {
            for offer in self.offers.keys().filter(|offer| filled(offer)) {
                ensure!(
                    self.unfit(&self.jobs[&id], *offer, false).is_some(),
                    "job {id} waits beside a free slot of offer {offer}: {:?}",
                    self.jobs[&id]
                );
            }
        }
        if !matches!(call, Call::Tick) {
            return Ok(());
        }
        let now = self.now;
        for (id, job) in self.jobs.iter().filter(|(_, job)| !job.state.is_ended()) {
            ensure!(job.deadline > now, "job {id} lives after its deadline: {job:?}");
            let answered = job.cancel_at.is_none_or(|at| at + CANCEL > now);
            ensure!(answered, "job {id} is still being cancelled: {job:?}");
        }
        for (id, attempt) in self.attempts.iter().filter(|(_, a)| a.state.is_live()) {
            let is_fresh = self.nodes[&attempt.node].lease_until > now;
            ensure!(
                is_fresh || seen.grace_until > now,
                "attempt {id} outlives its node: {attempt:?}"
            );
            let is_late = attempt.state == AttemptState::Offered && attempt.offered + OFFER <= now;
            ensure!(
                !is_late || seen.grace_until > now,
                "attempt {id} is offered for too long: {attempt:?}"
            );
        }
        Ok(())
    }

    /// Checks that everything has ended and nothing is set aside any more.
    pub(crate) fn check_is_over(&self, seen: &Seen) -> Result<(), Fault> {
        for (id, job) in &seen.jobs {
            ensure!(job.state.is_ended(), "job {id} never ends: {job:?}");
        }
        for (user, balance) in &seen.balances {
            ensure!(
                balance.held.is_zero(),
                "{} USD of {user} are set aside for nothing",
                balance.held
            );
        }
        Ok(())
    }
}

/// Compares two maps, and names what differs first.
fn equal<T: PartialEq + Debug>(
    what: &str,
    model: &BTreeMap<Uuid, T>,
    database: &BTreeMap<Uuid, T>,
) -> Result<(), Fault> {
    for id in model.keys().chain(database.keys()) {
        let (expected, found) = (model.get(id), database.get(id));
        ensure!(
            expected == found,
            "{what} {id} differs\n  model:    {expected:?}\n  database: {found:?}"
        );
    }
    Ok(())
}
