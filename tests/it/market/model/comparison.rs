//! Whether the model and the database are equal, and nothing is left undone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use rust_decimal::Decimal;
use serde_json::Value;
use uuid::Uuid;

use super::{AttemptState, Balance, CANCEL, Call, Fault, JobState, Model, OFFER, Seen, Submission};
use crate::support::frozen_market::{Answer, Millis};

impl Model {
    pub(super) fn balance(&self, user: Uuid) -> Balance {
        let mut balance = Balance { available: self.granted[&user], ..Balance::default() };
        for job in self.jobs.values().filter(|job| job.consumer == user) {
            let set_aside = if job.state.is_ended() { Decimal::ZERO } else { job.cap };
            balance.available -= set_aside + job.cost.unwrap_or_default();
            balance.held += set_aside;
        }
        let earned = self.attempts.values().filter(|a| self.nodes[&a.node].owner == user);
        balance.earned = earned.filter_map(|a| a.earned).sum();
        balance
    }

    /// Compares everything with the database.
    pub(super) fn compare(&mut self, seen: &Seen) -> Result<(), Fault> {
        self.count_busy();
        let is_seen = |ended: Option<Millis>| seen.whole || ended.is_none_or(|at| at >= self.now);
        equal("job", &part(&self.jobs, |job| is_seen(job.ended)), &part(&seen.jobs, |_| true))?;
        let attempts = part(&self.attempts, |attempt| is_seen(attempt.ended));
        equal("attempt", &attempts, &part(&seen.attempts, |_| true))?;
        let live = self.attempts.iter().filter(|(_, a)| a.state.is_live());
        equal("live attempt of job", &live.map(|(id, a)| (a.job, *id)).collect(), &seen.live)?;
        let waiting: BTreeSet<Uuid> = self.queued().collect();
        let queue: BTreeSet<Uuid> = seen.waiting.keys().copied().collect();
        ensure!(waiting == queue, "waiting are {waiting:?}, in the queue {queue:?}");
        ensure!(self.failed == seen.failed, "failed are {:?}, not {:?}", self.failed, seen.failed);
        equal("offer", &self.offers, &seen.offers)?;
        equal("node", &self.nodes, &seen.nodes)?;
        let balances = self.granted.keys().map(|user| (*user, self.balance(*user))).collect();
        equal("balance", &balances, &seen.balances)?;
        let earned: Decimal = self.attempts.values().filter_map(|a| a.earned).sum();
        let paid: Decimal = self.jobs.values().filter_map(|job| job.cost).sum();
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
    pub(super) fn check_answer(&self, call: &Call, answer: &Answer) -> Result<(), Fault> {
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
            Call::CompleteMany { node, .. } => {
                let offered = self.of_node(*node, AttemptState::Offered);
                for result in answer["results"].as_array().into_iter().flatten() {
                    let next = result["next"]["attempt"].as_str().map(|next| next.parse().unwrap());
                    let is_offered = next.is_none_or(|next| offered.contains(&next));
                    ensure!(is_offered, "the next attempt is not offered: {result}");
                }
            }
            Call::Submit(submission) => {
                let said = serde_json::from_value::<JobState>(answer["state"].clone()).ok();
                let state = self.jobs[&submission.job].state;
                // A tick after the answer may have given it away.
                let is_right = said == Some(state)
                    || (said == Some(JobState::Queued) && state == JobState::Assigned);
                ensure!(is_right, "the job is {state:?}, said was {answer}");
            }
            Call::SubmitBatch(Submission { job: batch, .. }, _)
            | Call::CancelBatch { batch, .. } => {
                let done = self
                    .items(*batch)
                    .iter()
                    .filter(|job| self.jobs[*job].state.is_ended())
                    .count();
                ensure!(answer["done"] == done, "{done} items are done, said was {answer}");
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that a call did all that it should: no free slot beside a job that
    /// it fits, and after a tick nothing that was due.
    pub(super) fn check_nothing_is_left(
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
        let stands = |job: &Uuid| seen.waiting[job];
        for id in self.queued().filter(waits).filter(stands) {
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
            let is_late =
                job.state == JobState::Queued && job.start <= Some(now) && !seen.waiting[id];
            ensure!(!is_late, "job {id} has not joined its line: {job:?}");
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

/// What of a map fits.
fn part<T>(map: &BTreeMap<Uuid, T>, fits: impl Fn(&T) -> bool) -> BTreeMap<Uuid, &T> {
    map.iter().filter(|(_, value)| fits(value)).map(|(id, value)| (*id, value)).collect()
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
