//! Reads of tables and views, through the query builder of the `postgrest` crate.
//!
//! Row-level security decides which rows there are: a consumer sees its own jobs,
//! an owner its own ledger. Money is selected as text, so that no digit is lost
//! on the way.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::rpc::{AttemptState, JobKind, JobState, Rpc, RpcError, UnexpectedAnswer, repeat};
use crate::id::{AttemptId, JobId, NodeId};
use crate::money::Usd;

const JOB_COLUMNS: &str = "id,title,kind,state,model_name,price_cap::text,cost::text,input_tokens,\
                           output_tokens,finish,error_code,error,created_at,started_at,ended_at,\
                           deadline_at";

const ATTEMPT_COLUMNS: &str = "id,job_id,number,state,provider_id,provider_name,offered_at,\
                               started_at,ended_at,error_code,error,cost::text";

const STATEMENT_COLUMNS: &str =
    "id,created_at,account,amount::text,balance_after::text,kind,job_id,memo";

/// A row of `jobs`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// A name for people.
    pub title: Option<String>,
    /// What kind of work it is.
    pub kind: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// The model.
    pub model_name: Option<String>,
    /// The most it may cost.
    pub price_cap: Option<Usd>,
    /// What it cost, once settled.
    pub cost: Option<Usd>,
    /// Tokens of the prompt that were captured.
    pub input_tokens: Option<u64>,
    /// Tokens of the output that were captured.
    pub output_tokens: Option<u64>,
    /// Why the output ended.
    pub finish: Option<String>,
    /// The stable word of its failure.
    pub error_code: Option<String>,
    /// Why it failed, for people.
    pub error: Option<String>,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When a node first took it.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// When it expires.
    pub deadline_at: Option<Timestamp>,
}

/// A row of `job_attempts`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AttemptRow {
    /// Its id.
    pub id: AttemptId,
    /// Its job.
    pub job_id: JobId,
    /// The how-manieth it is, from 1.
    pub number: u32,
    /// Where it stands.
    pub state: AttemptState,
    /// The node.
    pub provider_id: Option<NodeId>,
    /// What the node's owner calls it.
    pub provider_name: Option<String>,
    /// When it was offered.
    pub offered_at: Option<Timestamp>,
    /// When the node took it.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The stable word of its failure.
    pub error_code: Option<String>,
    /// Why it failed, for people.
    pub error: Option<String>,
    /// What it cost.
    pub cost: Option<Usd>,
}

/// A line of the ledger, as its holder reads it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StatementLine {
    /// Its id.
    pub id: serde_json::Value,
    /// When it was posted.
    pub created_at: Timestamp,
    /// `available`, `held`, `earned`, …
    pub account: String,
    /// What came (above zero) or went.
    pub amount: Usd,
    /// What the account had afterwards.
    pub balance_after: Option<Usd>,
    /// `grant`, `hold`, `capture`, `release`, …
    pub kind: String,
    /// The job that it is about.
    pub job_id: Option<JobId>,
    /// A word from whoever posted it.
    pub memo: Option<String>,
}

impl Rpc {
    /// Reads the newest jobs of this user, at most `limit`, in one state or all.
    pub async fn jobs(&self, limit: u32, state: Option<JobState>) -> Result<Vec<JobRow>, RpcError> {
        // Row level security would answer the same without the filter, from all
        // jobs that there are: its own condition leads to no index.
        let own = self.whoami().await?.id.to_string();
        self.rows("jobs", |postgrest| {
            let query = postgrest.from("jobs").select(JOB_COLUMNS).eq("consumer_id", &own);
            let query = match state {
                Some(state) => query.eq("state", state.as_str()),
                None => query,
            };
            page(query.order("created_at.desc,id.desc"), limit)
        })
        .await
    }

    /// Reads the attempts of a job, in order.
    pub async fn job_attempts(&self, job: JobId) -> Result<Vec<AttemptRow>, RpcError> {
        self.rows("job_attempts", |postgrest| {
            postgrest
                .from("job_attempts")
                .select(ATTEMPT_COLUMNS)
                .eq("job_id", job.to_string())
                .order("number.asc")
        })
        .await
    }

    /// Reads the newest lines of this user's ledger, at most `limit`, of one job
    /// or all.
    pub async fn statement(
        &self,
        limit: u32,
        job: Option<JobId>,
    ) -> Result<Vec<StatementLine>, RpcError> {
        let own = self.whoami().await?.id.to_string();
        self.rows("ledger_statement", |postgrest| {
            let query = postgrest.from("ledger_statement").select(STATEMENT_COLUMNS);
            let query = query.eq("party_id", &own);
            let query = match job {
                Some(job) => query.eq("job_id", job.to_string()),
                None => query,
            };
            page(query.order("created_at.desc,id.desc"), limit)
        })
        .await
    }

    /// Reads rows that a query of the builder selects.
    pub(super) async fn rows<T, F>(&self, name: &'static str, build: F) -> Result<Vec<T>, RpcError>
    where
        T: DeserializeOwned,
        F: Fn(&postgrest::Postgrest) -> postgrest::Builder,
    {
        let answer = repeat(|| self.authorised(name, |wire| build(wire.postgrest()))).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| self.unexpected(name, UnexpectedAnswer::Body(error)))
    }
}

/// Limits a query; the crate takes no zero.
pub(super) fn page(query: postgrest::Builder, limit: u32) -> postgrest::Builder {
    query.limit(usize::try_from(limit.max(1)).unwrap_or(usize::MAX))
}
