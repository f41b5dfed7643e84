//! Calls of a user: quote, submit, watch and cancel jobs, see the balance, make
//! enrolment codes.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{JobTerms, NoArguments, Rpc, RpcError};
use crate::id::{AttemptId, JobId, NodeId};
use crate::money::Usd;

/// Where a job stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for its payment.
    Unpaid,
    /// Waits for a node.
    Queued,
    /// Offered to a node that has not started it.
    Assigned,
    /// A node works on it.
    Running,
    /// Done; the output is in the row.
    Completed,
    /// Given up, with the reason.
    Failed,
    /// Cancelled while it ran; the node still has to say what it delivered.
    Cancelling,
    /// Cancelled and settled.
    Cancelled,
    /// Its deadline passed before it was done.
    Expired,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl JobState {
    /// Says whether nothing will change any more.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled | Self::Expired)
    }

    /// Returns the state's word, as in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unpaid => "unpaid",
            Self::Queued => "queued",
            Self::Assigned => "assigned",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Offered to a node.
    Offered,
    /// The node took it.
    Running,
    /// The node finished it.
    Completed,
    /// The node gave it up.
    Failed,
    /// The lease ran out.
    Lost,
    /// The consumer cancelled.
    Cancelled,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl AttemptState {
    /// Returns the state's word, as in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for AttemptState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// What kind of work a job is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// `{"messages":[{"role","content"}],…}`.
    #[default]
    Chat,
    /// `{"prompt":"…"}`.
    Completion,
    /// `{"input":"…"}`, or a list of texts: the output is the list of their vectors.
    Embedding,
    /// A fresh container for one job.
    Container,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

impl JobKind {
    /// Returns the kind's word, as in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Embedding => "embedding",
            Self::Container => "container",
            Self::Unknown => "unknown",
        }
    }
}

/// What a job used: tokens, or the seconds of a container.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    #[serde(default)]
    pub input_tokens: u64,
    /// Tokens of the output.
    #[serde(default)]
    pub output_tokens: u64,
    /// Seconds that a container ran; no other kind of job has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

impl fmt::Display for Usage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            Some(1) => write!(formatter, "1 second"),
            Some(seconds) => write!(formatter, "{seconds} seconds"),
            None => {
                write!(formatter, "{} tokens in, {} out", self.input_tokens, self.output_tokens)
            }
        }
    }
}

/// A node as a consumer sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeName {
    /// Its id.
    pub id: NodeId,
    /// What its owner calls it.
    pub name: String,
}

/// The current or last attempt of a job.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct JobAttempt {
    /// Its id: deltas of any other attempt are not of this job any more.
    pub id: AttemptId,
    /// The how-manieth it is, from 1.
    pub number: u32,
    /// Where it stands.
    pub state: AttemptState,
    /// Who works on it.
    pub node: NodeName,
    /// Bytes of output that are stored so far.
    #[serde(default)]
    pub offset: u64,
}

/// Why a job failed or waits: a stable word and a sentence.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reason {
    /// The stable word, such as `engine_failed` or `all_busy`.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// A job as the control plane tells it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Job {
    /// Its id, made by the consumer.
    pub id: JobId,
    /// A name for people.
    #[serde(default)]
    pub title: Option<String>,
    /// Where it stands.
    pub state: JobState,
    /// What kind of work it is.
    pub kind: JobKind,
    /// The model.
    pub model: String,
    /// The private topic of its stream, `job:UID:ID`.
    pub topic: String,
    /// The current or last attempt.
    pub attempt: Option<JobAttempt>,
    /// Attempts made.
    pub attempts: u32,
    /// Attempts allowed.
    pub max_attempts: u32,
    /// What is held of the consumer's balance.
    pub held: Usd,
    /// What it cost, once settled.
    pub cost: Option<Usd>,
    /// What was captured, once settled.
    pub usage: Option<Usage>,
    /// The whole output, once there.
    pub output: Option<String>,
    /// Why the output ended: `stop`, `length`, `cancelled`.
    pub finish: Option<String>,
    /// Hex sha256 of the input, as SQL computed it.
    #[serde(default)]
    pub input_sha256: Option<String>,
    /// Hex sha256 of the output, as SQL computed it.
    #[serde(default)]
    pub output_sha256: Option<String>,
    /// The node's signed receipt, a Nostr event, once settled.
    #[serde(default)]
    pub receipt: Option<Value>,
    /// Why it failed.
    pub error: Option<Reason>,
    /// Why it waits.
    pub waiting: Option<Reason>,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When a node first took it.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// When it expires.
    pub deadline_at: Option<Timestamp>,
    /// When what it said and answered was deleted.
    #[serde(default)]
    pub forgotten_at: Option<Timestamp>,
}

/// The answer to [`Rpc::submit_job`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SubmittedJob {
    /// The job.
    #[serde(flatten)]
    pub job: Job,
    /// False when this id had been submitted before.
    pub created: bool,
}

/// What [`Rpc::submit_job`] sends.
#[derive(Clone, Debug, Serialize)]
pub struct SubmitJob {
    /// The job's id: the same id again is the same job.
    #[serde(rename = "p_id")]
    pub id: JobId,
    /// The model.
    #[serde(rename = "p_model")]
    pub model: String,
    /// The OpenAI request without its model.
    #[serde(rename = "p_input")]
    pub input: Value,
    /// What kind of work it is.
    #[serde(rename = "p_kind")]
    pub kind: JobKind,
    /// The most tokens of output; the control plane's limit when absent.
    #[serde(rename = "p_max_tokens", skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// What it may cost, when it runs, and on which nodes.
    #[serde(flatten)]
    pub terms: JobTerms,
    /// The most seconds that a container may run; the control plane's default when absent.
    #[serde(rename = "p_max_seconds", skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<u32>,
}

impl SubmitJob {
    /// Starts a chat job with a new id and the control plane's own limits.
    pub fn chat(model: impl Into<String>, input: Value) -> Self {
        Self {
            id: JobId::generate(),
            model: model.into(),
            input,
            kind: JobKind::Chat,
            max_tokens: None,
            terms: JobTerms::default(),
            max_seconds: None,
        }
    }
}

/// The answer to [`Rpc::quote_job`]: the bounds that a hold would be made from.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Quote {
    /// The model.
    pub model: String,
    /// Most tokens of the prompt.
    pub input_tokens: u64,
    /// Most tokens of the output; none where an image is asked for.
    pub output_tokens: Option<u64>,
    /// Most seconds of a container, where an image is asked for.
    #[serde(default)]
    pub seconds: Option<u64>,
    /// How many offers there are.
    pub offers: u64,
    /// How many of them are of nodes that are there now.
    pub online: u64,
    /// The least it can cost at most.
    pub lowest: Option<Usd>,
    /// The most it can cost at most.
    pub highest: Option<Usd>,
    /// What would be held.
    pub cap: Option<Usd>,
}

/// The answer to [`Rpc::balance`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Balance {
    /// What can be spent.
    pub available: Usd,
    /// What is held for jobs.
    pub held: Usd,
    /// What one's nodes earned.
    pub earned: Usd,
}

/// What one's nodes earned together: the answer to [`Rpc::my_earnings`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OwnerEarnings {
    /// Since midnight UTC.
    pub today: Usd,
    /// In 30 days.
    pub days30: Usd,
    /// Of all that was earned, what is not paid out yet.
    pub pending: Usd,
}

/// The answer to [`Rpc::whoami`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Whoami {
    /// The id of the user or node.
    pub id: uuid::Uuid,
    /// `user` or `node`.
    pub kind: String,
    /// The public key, hex.
    pub public_key: String,
    /// The name, if it has one.
    pub name: Option<String>,
    /// `active`, `suspended`, …
    pub status: String,
    /// Whether it is an operator of this control plane.
    #[serde(default)]
    pub operator: bool,
    /// More about the node, when it is one.
    #[serde(default)]
    pub node: Value,
}

/// The answer to [`Rpc::make_enrolment`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Enrolment {
    /// The one-time code.
    pub code: String,
    /// The role of the node that may use it.
    pub role: String,
    /// Until when.
    pub expires_at: Timestamp,
}

/// The arguments of a call about one job.
#[derive(Serialize)]
pub(super) struct OfJob {
    /// The job.
    pub(super) p_job: JobId,
}

impl Rpc {
    /// Asks who this key is to the control plane.
    pub async fn whoami(&self) -> Result<Whoami, RpcError> {
        self.call("whoami", &NoArguments {}).await
    }

    /// Makes a one-time code for one node of this owner.
    pub async fn make_enrolment(
        &self,
        role: &str,
        expires_secs: Option<u32>,
    ) -> Result<Enrolment, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_role: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            p_expires_secs: Option<u32>,
        }
        self.call("make_enrolment", &Arguments { p_role: role, p_expires_secs: expires_secs }).await
    }

    /// Asks what a job would cost at most.
    pub async fn quote_job(
        &self,
        model: &str,
        input: &Value,
        max_tokens: Option<u32>,
    ) -> Result<Quote, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_model: &'a str,
            p_input: &'a Value,
            #[serde(skip_serializing_if = "Option::is_none")]
            p_max_tokens: Option<u32>,
        }
        self.call(
            "quote_job",
            &Arguments { p_model: model, p_input: input, p_max_tokens: max_tokens },
        )
        .await
    }

    /// Submits a job. A repeat with the same id is the same job.
    pub async fn submit_job(&self, job: &SubmitJob) -> Result<SubmittedJob, RpcError> {
        self.call("submit_job", job).await
    }

    /// Reads a job.
    pub async fn get_job(&self, job: JobId) -> Result<Job, RpcError> {
        self.call("get_job", &OfJob { p_job: job }).await
    }

    /// Cancels a job; what was delivered until now is paid.
    pub async fn cancel_job(&self, job: JobId) -> Result<Job, RpcError> {
        self.call("cancel_job", &OfJob { p_job: job }).await
    }

    /// Reads what one's nodes earned together.
    pub async fn my_earnings(&self) -> Result<OwnerEarnings, RpcError> {
        self.call("my_earnings", &NoArguments {}).await
    }

    /// Reads the balance.
    pub async fn balance(&self) -> Result<Balance, RpcError> {
        self.call("balance", &NoArguments {}).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_reads_as_the_protocol_writes_it() {
        let text = r#"{"id":"0192f3a4-5b6c-7d8e-9f00-112233445566","state":"running","kind":"chat",
            "model":"smollm2","topic":"job:a:b","attempt":{"id":"0192f3a4-5b6c-7d8e-9f00-112233445577",
            "number":1,"state":"running","node":{"id":"0192f3a4-5b6c-7d8e-9f00-112233445588","name":"attic"},
            "offset":0},"attempts":1,"max_attempts":3,"held":"0.000100000000","cost":null,"usage":null,
            "output":null,"finish":null,"error":null,"waiting":null,
            "created_at":"2026-11-23T14:00:00.123456+00:00","started_at":"2026-11-23T14:00:01+00:00",
            "ended_at":null,"deadline_at":"2026-11-23T15:00:00Z","created":true,"later":"ignored"}"#;
        let submitted: SubmittedJob = serde_json::from_str(text).unwrap();
        assert!(submitted.created);
        assert_eq!(submitted.job.held.to_string(), "$0.0001");
        assert_eq!(submitted.job.attempt.unwrap().node.name, "attic");
        assert!(!submitted.job.state.has_ended());
    }

    #[test]
    fn arguments_that_are_not_given_are_left_to_sql() {
        let submit = SubmitJob::chat("m", serde_json::json!({"messages": []}));
        let text = serde_json::to_string(&submit).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"p_id":"{}","p_model":"m","p_input":{{"messages":[]}},"p_kind":"chat"}}"#,
                submit.id
            )
        );
    }

    #[test]
    fn a_state_of_a_later_version_is_not_an_error() {
        let state: JobState = serde_json::from_str("\"archived\"").unwrap();
        assert_eq!(state, JobState::Unknown);
        assert!(!state.has_ended());
    }
}
