//! What calls must do.

use std::collections::{BTreeMap, BTreeSet};

use rust_decimal::Decimal;
use serde_json::Value;
use uuid::Uuid;

use super::{
    AttemptState, Call, FORGOTTEN, Fault, Job, JobState, LEASE, Model, Offer, Seen, Submission,
    TOKENS_PER_SECOND, price,
};
use crate::market::property::INPUT_BOUND;
use crate::support::frozen_market::{Answer, Millis};

impl Model {
    /// Changes the model as the call must, and checks refusals.
    pub(super) fn act(&mut self, call: &Call, answer: &Answer, seen: &Seen) -> Result<(), Fault> {
        let expected = self.refusal(call);
        ensure!(
            expected.as_deref() == answer.as_ref().err().map(String::as_str),
            "expected {}, but the answer is {answer:?}",
            expected.as_deref().unwrap_or("no refusal"),
        );
        let Ok(answer) = answer else { return Ok(()) };
        match call {
            Call::Submit(submission) => self.submit(submission, seen),
            Call::SubmitBatch(submission, items) => {
                if self.batches.contains_key(&submission.job) {
                    return Ok(());
                }
                self.batches.insert(submission.job, (submission.clone(), *items));
                // The ids of its jobs are the database's.
                let made = seen.jobs.iter().filter(|(_, job)| job.batch == Some(submission.job));
                let made: BTreeMap<_, _> = made.map(|(id, job)| (job.item, *id)).collect();
                for item in 1..=*items {
                    let Some(job) = made.get(&Some(item)).copied() else {
                        return Err(format!("item {item} of the batch is not there"));
                    };
                    self.submit(&Submission { job, ..submission.clone() }, seen)?;
                    let made = self.jobs.get_mut(&job).unwrap();
                    (made.batch, made.item) = (Some(submission.job), Some(item));
                }
                Ok(())
            }
            Call::CancelBatch { batch, .. } => {
                for job in self.items(*batch) {
                    self.cancel(job);
                }
                Ok(())
            }
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
                self.start(*attempt, *lease);
                Ok(())
            }
            Call::StartMany { attempts, .. } => {
                for (index, (id, lease)) in attempts.iter().enumerate() {
                    let said = &answer["started"][index];
                    let expected = self.start(*id, *lease);
                    ensure!(
                        said["attempt"] == id.to_string() && said["refused"].as_str() == expected,
                        "expected {expected:?}, but the start was answered {said}"
                    );
                }
                Ok(())
            }
            Call::CompleteMany { attempts, bytes, usage, .. } => {
                for (index, (id, lease)) in attempts.iter().enumerate() {
                    self.complete(*id, *lease, *bytes, *usage, &answer["results"][index])?;
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
            Call::Retry { job, .. } => {
                let retried = self.jobs.get_mut(job).unwrap();
                if retried.state.is_ended() {
                    self.failed.remove(job);
                    let secs = self.submissions[job].deadline_secs;
                    retried.state = JobState::Queued;
                    retried.attempts = 0;
                    retried.failed_on.clear();
                    retried.start = None;
                    retried.deadline = self.now + 1000 * Millis::from(secs);
                    retried.cancel_at = None;
                    retried.ended = None;
                    retried.code = None;
                }
                Ok(())
            }
            Call::Discard { job, .. } => {
                self.failed.remove(job);
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
            Call::Register { node, labels, offers } => {
                self.register(*node, labels, offers, seen);
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
            Call::Submit(submission) => {
                return match self.submissions.get(&submission.job) {
                    Some(known) => (known != submission).then(|| "id_conflict".to_owned()),
                    None => self.submit_refusal(submission, 1),
                };
            }
            Call::SubmitBatch(submission, items) => {
                return match self.batches.get(&submission.job) {
                    Some((known, count)) => {
                        (known != submission || count != items).then(|| "id_conflict".to_owned())
                    }
                    None => self.submit_refusal(submission, *items),
                };
            }
            Call::CancelBatch { consumer, batch }
                if self.batches[batch].0.consumer != *consumer =>
            {
                "unknown_batch"
            }
            Call::Claim { node, .. }
            | Call::Heartbeat { node, .. }
            | Call::Start { node, .. }
            | Call::StartMany { node, .. }
            | Call::CompleteMany { node, .. }
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
            Call::Cancel { consumer, job }
            | Call::Retry { consumer, job }
            | Call::Discard { consumer, job }
                if self.jobs[job].consumer != *consumer =>
            {
                "unknown_job"
            }
            Call::Retry { consumer, job } => {
                let job = (&self.jobs[job], self.failed.contains(job));
                match job {
                    (job, true) if job.cap > self.balance(*consumer).available => {
                        "insufficient_funds"
                    }
                    (job, false) if job.state.is_ended() || job.state == JobState::Cancelling => {
                        "not_failed"
                    }
                    _ => return None,
                }
            }
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

    /// Why so many new jobs must be refused, if they must.
    fn submit_refusal(&self, submission: &Submission, count: u8) -> Option<String> {
        if submission.priority > 0 {
            return Some("bad_priority".to_owned());
        }
        let lowest = self.quote(submission, INPUT_BOUND);
        let cap = match (submission.max_cost, lowest) {
            (None, None) => return Some("no_offer".to_owned()),
            (Some(cap), Some(lowest)) if cap < lowest => {
                return Some("cap_below_offers".to_owned());
            }
            (Some(cap), _) => cap,
            (None, Some(lowest)) => lowest * Decimal::TWO,
        };
        let id = submission.job;
        if self.batches.contains_key(&id) || self.submissions.contains_key(&id) {
            // A job under the id of a batch, or the other way round.
            return Some("id_conflict".to_owned());
        }
        let available = self.balance(submission.consumer).available;
        (cap * Decimal::from(count) > available).then(|| "insufficient_funds".to_owned())
    }

    fn submit(&mut self, submission: &Submission, seen: &Seen) -> Result<(), Fault> {
        if self.submissions.contains_key(&submission.job) {
            return Ok(());
        }
        let Some(made) = seen.jobs.get(&submission.job) else {
            return Err("the job is not there".to_owned());
        };
        ensure!(made.input_bound == INPUT_BOUND, "the input is bounded by {}", made.input_bound);
        let lowest = self.quote(submission, made.input_bound);
        let cap = submission.max_cost.or(lowest.map(|lowest| lowest * Decimal::TWO));
        self.turns.insert(submission.job, self.turns.len());
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
            deadline: self.now
                + 1000 * Millis::from(submission.delay_secs + submission.deadline_secs),
            failed_on: BTreeSet::new(),
            retry_after: None,
            cancel_at: None,
            ended: None,
            cost: None,
            code: None,
            batch: None,
            item: None,
            priority: submission.priority,
            start: (submission.delay_secs > 0)
                .then(|| self.now + 1000 * Millis::from(submission.delay_secs)),
            exclude: submission.exclude.clone(),
            labels: submission.labels.clone(),
        };
        self.first_deadline.insert(submission.job, job.deadline);
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

    /// Starts an attempt, or says why not.
    fn start(&mut self, id: Uuid, lease: Uuid) -> Option<&'static str> {
        let attempt = self.attempts.get_mut(&id).unwrap();
        match attempt.state {
            AttemptState::Offered => {
                attempt.state = AttemptState::Running;
                attempt.lease = Some(lease);
                attempt.started = Some(self.now);
                self.jobs.get_mut(&attempt.job).unwrap().state = JobState::Running;
                None
            }
            AttemptState::Running if attempt.lease == Some(lease) => None,
            AttemptState::Running => Some("not_yours"),
            _ => Some("gone"),
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
        // The fee is a twentieth; it takes the remainder.
        let earned = (cost.min(job.cap) * Decimal::new(95, 2)).trunc_with_scale(12);
        attempt.state = AttemptState::Completed;
        attempt.ended = Some(self.now);
        attempt.cost = Some(cost);
        attempt.earned = Some(earned);
        job.ended = Some(self.now);
        job.cost = Some(cost);
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

    fn register(
        &mut self,
        node: Uuid,
        labels: &[String],
        offers: &[(String, u32, u32)],
        seen: &Seen,
    ) {
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
                labels: labels.to_vec(),
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

    /// Ends an attempt without a result, and decides about its job.
    pub(super) fn end_attempt(
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

    pub(super) fn end_job(&mut self, id: Uuid, state: JobState, code: &str) {
        let job = self.jobs.get_mut(&id).unwrap();
        job.state = state;
        job.ended = Some(self.now);
        job.code = Some(code.to_owned());
        if matches!(state, JobState::Failed | JobState::Expired) {
            self.failed.insert(id);
        }
    }
}
