//! Calls about batches: many jobs that are submitted, held for and cancelled as
//! one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::job::{JobKind, JobState, Reason};
use super::{JobTerms, Rpc, RpcError};
use crate::id::{BatchId, JobId};
use crate::money::Usd;

/// How far a batch is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Batch {
    /// Its id, made by the consumer.
    pub id: BatchId,
    /// A name for people.
    pub title: Option<String>,
    /// What kind of work its items are.
    pub kind: JobKind,
    /// The model.
    pub model: String,
    /// How many items it has.
    pub items: u32,
    /// How many of them have ended.
    pub done: u32,
    /// How many are in which state.
    pub states: BTreeMap<String, u32>,
    /// What is held for those that have not ended.
    pub held: Usd,
    /// What those that ended cost.
    pub cost: Usd,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When it was cancelled.
    pub cancelled_at: Option<Timestamp>,
    /// When its last item ended.
    pub ended_at: Option<Timestamp>,
}

impl Batch {
    /// Returns how many items are in a state.
    pub fn count(&self, state: JobState) -> u32 {
        self.states.get(state.as_str()).copied().unwrap_or(0)
    }
}

/// The answer to [`Rpc::submit_batch`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SubmittedBatch {
    /// The batch.
    #[serde(flatten)]
    pub batch: Batch,
    /// False when this id had been submitted before.
    pub created: bool,
}

/// What [`Rpc::submit_batch`] sends.
#[derive(Clone, Debug, Serialize)]
pub struct SubmitBatch {
    /// The batch's id: the same id again is the same batch.
    #[serde(rename = "p_id")]
    pub id: BatchId,
    /// The model.
    #[serde(rename = "p_model")]
    pub model: String,
    /// The input of each item.
    #[serde(rename = "p_items")]
    pub items: Vec<Value>,
    /// What kind of work they are.
    #[serde(rename = "p_kind")]
    pub kind: JobKind,
    /// The most tokens of output of each.
    #[serde(rename = "p_max_tokens", skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// What each may cost, when they run, and on which nodes; the title is the batch's.
    #[serde(flatten)]
    pub terms: JobTerms,
}

impl SubmitBatch {
    /// Starts a batch with a new id and the control plane's own limits.
    pub fn new(model: impl Into<String>, kind: JobKind, items: Vec<Value>) -> Self {
        Self {
            id: BatchId::generate(),
            model: model.into(),
            items,
            kind,
            max_tokens: None,
            terms: JobTerms::default(),
        }
    }
}

/// What became of an item so far.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BatchItem {
    /// Its number, from 1.
    pub item: u32,
    /// Its job.
    pub id: JobId,
    /// Where that stands.
    pub state: JobState,
    /// The whole output, once there.
    pub output: Option<String>,
    /// Why the output ended.
    pub finish: Option<String>,
    /// What it cost, once settled.
    pub cost: Option<Usd>,
    /// Why it failed.
    pub error: Option<Reason>,
}

/// A batch with a page of its items: the answer to [`Rpc::get_batch`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BatchPage {
    /// The batch.
    #[serde(flatten)]
    pub batch: Batch,
    /// The items, by their numbers.
    pub results: Vec<BatchItem>,
}

impl Rpc {
    /// Submits a batch. Safe to repeat: the id makes it one batch.
    pub async fn submit_batch(&self, batch: &SubmitBatch) -> Result<SubmittedBatch, RpcError> {
        self.call("submit_batch", batch).await
    }

    /// Asks how far a batch is, with at most `limit` (1000) items after number
    /// `after`.
    pub async fn get_batch(
        &self,
        batch: BatchId,
        after: u32,
        limit: u32,
    ) -> Result<BatchPage, RpcError> {
        #[derive(Serialize)]
        struct Arguments {
            p_batch: BatchId,
            p_after: u32,
            p_limit: u32,
        }
        self.call("get_batch", &Arguments { p_batch: batch, p_after: after, p_limit: limit }).await
    }

    /// Lists one's batches, at most `limit` (100), the newest first.
    pub async fn list_batches(&self, limit: u32) -> Result<Vec<Batch>, RpcError> {
        #[derive(Serialize)]
        struct Arguments {
            p_limit: u32,
        }
        #[derive(Deserialize)]
        struct Answer {
            batches: Vec<Batch>,
        }
        let answer: Answer = self.call("list_batches", &Arguments { p_limit: limit }).await?;
        Ok(answer.batches)
    }

    /// Cancels what of a batch has not ended.
    pub async fn cancel_batch(&self, batch: BatchId) -> Result<Batch, RpcError> {
        #[derive(Serialize)]
        struct Arguments {
            p_batch: BatchId,
        }
        self.call("cancel_batch", &Arguments { p_batch: batch }).await
    }
}
