//! Calls about what became of jobs: their life told, those that failed for good,
//! and forgetting what they said.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::job::{AttemptState, Job, JobState, NodeName, OfJob, Reason};
use super::{Rpc, RpcError};
use crate::id::{AttemptId, JobId};
use crate::money::Usd;

/// The life of a job: the answer to [`Rpc::explain_job`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Explanation {
    /// The job.
    pub job: JobId,
    /// Where it stands.
    pub state: JobState,
    /// What happened, in order.
    pub story: Vec<StoryLine>,
    /// Its attempts, in order.
    pub attempts: Vec<ToldAttempt>,
    /// What it did to accounts, in order.
    pub ledger: Vec<ToldEntry>,
    /// Why it waits, while it is queued.
    pub waiting: Option<ToldWaiting>,
    /// Whether its history is as it was written.
    pub chain: Chain,
}

/// One thing that happened to a job.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StoryLine {
    /// Its number in the history; none for what is kept elsewhere.
    pub seq: Option<u32>,
    /// When.
    pub at: Timestamp,
    /// A stable word: the job's new state, `submitted`, `late_result`.
    pub event: String,
    /// A sentence for people.
    pub what: String,
    /// Who or what caused it: `consumer`, `node`, `score`, `line`, or the code of
    /// a failure.
    pub cause: Option<String>,
    /// The attempt that it is about.
    pub attempt: Option<AttemptId>,
    /// The node of that attempt.
    pub node: Option<NodeName>,
}

/// An attempt, with what was seen of the market when it was given.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ToldAttempt {
    /// Its id.
    pub id: AttemptId,
    /// The how-manieth it is, from 1.
    pub number: u32,
    /// Where it stands.
    pub state: AttemptState,
    /// The node.
    pub node: NodeName,
    /// When it was offered.
    pub offered_at: Timestamp,
    /// When the node took it.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Until when its lease is good, while it has one.
    pub lease_until: Option<Timestamp>,
    /// USD per million tokens of input.
    pub price_input: Usd,
    /// USD per million tokens of output.
    pub price_output: Usd,
    /// USD per second of a container.
    pub price_second: Usd,
    /// What it cost.
    pub cost: Option<Usd>,
    /// What of that its owner earned.
    pub earned: Option<Usd>,
    /// Why it failed.
    pub error: Option<Reason>,
    /// How its node was chosen.
    pub choice: Choice,
}

/// How a node was chosen.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Choice {
    /// `score`: the best of several offers; `line`: the next job for a free slot.
    pub by: Option<String>,
    /// How many offers were looked at.
    pub seen: Option<u32>,
    /// The best of them, and why others were not chosen.
    pub offers: Vec<SeenOffer>,
}

/// An offer that was looked at.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SeenOffer {
    /// Its node; none when its owner keeps it private.
    pub node: Option<NodeName>,
    /// How it was scored, lower being better, where it could take the job.
    pub score: Option<f64>,
    /// Why it could not.
    pub reason: Option<String>,
}

/// One account's part in a transfer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ToldEntry {
    /// The transfer.
    pub transfer: uuid::Uuid,
    /// `hold`, `capture`, `release`.
    pub kind: String,
    /// `available`, `held`, `earned`, `fee`.
    pub account: String,
    /// What came (above zero) or went.
    pub amount: Usd,
    /// When.
    pub at: Timestamp,
    /// Whether it is for the whole batch that the job is of.
    pub of_batch: bool,
}

/// Why a job waits, with the offers that do not take it now.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ToldWaiting {
    /// The word and the sentence.
    #[serde(flatten)]
    pub reason: Reason,
    /// How many offers were looked at.
    pub seen: Option<u32>,
    /// Each with why it does not take the job.
    pub offers: Vec<SeenOffer>,
}

/// Whether a history is as it was written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Chain {
    /// Whether it is.
    pub ok: bool,
    /// How many events there are.
    pub events: u32,
    /// The first event that is wrong, missing or one too many.
    pub broken_at: Option<u32>,
}

/// A job that failed for good or expired.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct FailedJob {
    /// Its id.
    pub id: JobId,
    /// `failed` or `expired`.
    pub state: JobState,
    /// The model.
    pub model: String,
    /// A name for people.
    pub title: Option<String>,
    /// The batch that it is of.
    pub batch: Option<uuid::Uuid>,
    /// When it failed.
    pub failed_at: Timestamp,
    /// Why.
    pub error: Reason,
    /// What each attempt came to.
    pub attempts: Vec<FailedAttempt>,
}

/// What an attempt of a failed job came to.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct FailedAttempt {
    /// The how-manieth it is, from 1.
    pub number: u32,
    /// What its node's owner calls the node.
    pub node: String,
    /// Where it ended.
    pub state: AttemptState,
    /// The stable word of its failure.
    pub code: Option<String>,
    /// Why it failed, for people.
    pub message: Option<String>,
}

impl Rpc {
    /// Asks for the life of a job.
    pub async fn explain_job(&self, job: JobId) -> Result<Explanation, RpcError> {
        self.call("explain_job", &OfJob { p_job: job }).await
    }

    /// Lists at most `limit` jobs that failed for good, the last first; with
    /// `before`, those that failed earlier.
    pub async fn failed_jobs(
        &self,
        limit: u32,
        before: Option<Timestamp>,
    ) -> Result<Vec<FailedJob>, RpcError> {
        #[derive(Serialize)]
        struct Arguments {
            p_limit: u32,
            p_before: Option<Timestamp>,
        }
        #[derive(Deserialize)]
        struct Answer {
            jobs: Vec<FailedJob>,
        }
        let answer: Answer =
            self.call("failed_jobs", &Arguments { p_limit: limit, p_before: before }).await?;
        Ok(answer.jobs)
    }

    /// Lets a job that failed for good try again, under a new hold.
    pub async fn retry_job(&self, job: JobId) -> Result<Job, RpcError> {
        self.call("retry_job", &OfJob { p_job: job }).await
    }

    /// Takes a job off the list of those that failed for good.
    pub async fn discard_job(&self, job: JobId) -> Result<Job, RpcError> {
        self.call("discard_job", &OfJob { p_job: job }).await
    }

    /// Deletes what a job said and answered; its payment stays.
    pub async fn forget_job(&self, job: JobId) -> Result<Job, RpcError> {
        self.call("forget_job", &OfJob { p_job: job }).await
    }
}
