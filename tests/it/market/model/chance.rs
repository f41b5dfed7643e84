//! What chance and time do: read from the database, allowed or not, followed.

use uuid::Uuid;

use super::{
    Attempt, AttemptState, CANCEL, Call, Fault, Job, JobState, Model, OFFER, PAUSE_MOST,
    RUNNING_LIMIT, Seen, price,
};

/// The one reason that a moment changes.
const BUSY: &str = "no slot is free";

impl Model {
    /// Whether a consumer has as many jobs with nodes as it may.
    pub(super) fn is_limited(&self, consumer: Uuid) -> bool {
        let live = self.attempts.values().filter(|a| a.state.is_live());
        let runs = live.filter(|a| self.jobs[&a.job].consumer == consumer).count();
        self.limited == Some(consumer) && runs >= RUNNING_LIMIT
    }

    /// Follows pauses, which the market makes of faults, and works out who is
    /// stopped.
    pub(super) fn follow_stops(
        &mut self,
        call: &Call,
        ticked: bool,
        seen: &Seen,
    ) -> Result<(), Fault> {
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
    pub(super) fn follow_time(&mut self, seen: &Seen) -> Result<(), Fault> {
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
                "deadline" => job.deadline <= now,
                "cancelled" => {
                    job.state == JobState::Cancelling
                        && job.cancel_at.is_some_and(|at| at + CANCEL <= now)
                }
                _ => false,
            };
            ensure!(
                is_due,
                "the tick ended attempt {id} with {code:?}, which was not due: {attempt:?} of {job:?}"
            );
            let state = match code {
                "deadline" if job.state != JobState::Cancelling => AttemptState::Failed,
                "deadline" => AttemptState::Cancelled,
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
    pub(super) fn follow_assignments(&mut self, call: &Call, seen: &Seen) -> Result<(), Fault> {
        self.follow_backoff(seen)?;
        self.count_busy();
        let mut given = Vec::new();
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
            given.push((made.job, made.offer));
            self.attempts.insert(*id, expected);
            let job = self.jobs.get_mut(&made.job).unwrap();
            job.state = JobState::Assigned;
            job.attempts += 1;
        }
        for (job, offer) in given {
            self.check_line(job, offer)?;
        }
        Ok(())
    }

    /// Checks that nobody in the line was passed by: no job of higher priority,
    /// and no earlier one of the same consumer, that the offer fits too.
    fn check_line(&self, given: Uuid, offer: Uuid) -> Result<(), Fault> {
        let job = &self.jobs[&given];
        if !self.lined_up.contains(&given) {
            return Ok(());
        }
        let passed = self.queued().filter(|id| self.lined_up.contains(id)).find(|id| {
            let other = &self.jobs[id];
            let is_before = other.priority > job.priority
                || (other.priority == job.priority
                    && other.consumer == job.consumer
                    && self.is_untouched(*id)
                    && self.is_untouched(given)
                    && self.turns[id] < self.turns[&given]);
            is_before
                && other.model == job.model
                && self.unfit(other, offer, false).is_none_or(|why| why == BUSY)
        });
        match passed {
            None => Ok(()),
            Some(passed) => Err(format!(
                "job {passed} was passed by in the line: {:?}\n  got it: {job:?}",
                self.jobs[&passed]
            )),
        }
    }

    /// Whether a job has stood in its line since it was submitted.
    fn is_untouched(&self, id: Uuid) -> bool {
        let is_tried = self.attempts.values().filter(|a| a.job == id).count() > 1;
        let was_delayed = self.submissions[&id].delay_secs > 0;
        let was_retried = self.jobs[&id].deadline != self.first_deadline[&id];
        !is_tried && !was_delayed && !was_retried
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
    pub(super) fn unfit(&self, job: &Job, offer: Uuid, at_all: bool) -> Option<&'static str> {
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
        } else if job.exclude.contains(&offer.node) {
            Some("the node is excluded")
        } else if job.labels.iter().any(|label| !offer.labels.contains(label)) {
            Some("the node has not all labels")
        } else if job.start > Some(self.now) {
            Some("it is to start later")
        } else if cost > job.cap {
            Some("it is too dear")
        } else if job.deadline <= self.now {
            Some("the deadline has passed")
        } else if job.attempts >= job.max_attempts {
            Some("it had all its attempts")
        } else if job.failed_on.contains(&offer.node) && job.retry_after > Some(self.now) {
            Some("it has just failed there")
        } else if self.is_limited(job.consumer) {
            Some("its consumer runs as many as may run")
        } else if offer.busy >= offer.slots {
            Some(BUSY)
        } else {
            None
        }
    }

    pub(super) fn count_busy(&mut self) {
        for (id, offer) in &mut self.offers {
            let live = self.attempts.values().filter(|a| a.offer == *id && a.state.is_live());
            offer.busy = u32::try_from(live.count()).unwrap();
        }
    }
}
