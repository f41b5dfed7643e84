//! Finds what a person means by the beginning of an id, or by a name.
//!
//! A whole id is believed as it is: the call that uses it says if there is no
//! such row. Row-level security decides what can be found at all.

use std::fmt;

use serde::Deserialize;
use uuid::Uuid;

use super::rpc::{Rpc, RpcError};
use crate::id::{BatchId, CommandId, IdPrefix, JobId, NodeId};

/// How many rows are looked for: that there are several, and which, is enough.
const MOST: u32 = 5;

/// What is looked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Subject {
    /// A job of one's own.
    Job,
    /// A batch of one's own.
    Batch,
    /// A node of one's own; for an operator, any.
    Node,
    /// A command to such a node.
    Command,
}

impl Subject {
    /// Returns its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Batch => "batch",
            Self::Node => "node",
            Self::Command => "command",
        }
    }

    /// Returns the table of its rows.
    const fn table(self) -> &'static str {
        match self {
            Self::Job => "jobs",
            Self::Batch => "batches",
            Self::Node => "providers",
            Self::Command => "node_commands",
        }
    }

    /// Says whether its rows are found by whose they are, so that an index of that
    /// answers and not the rows of everybody.
    const fn is_of_consumer(self) -> bool {
        matches!(self, Self::Job | Self::Batch)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// Why nothing, or not one thing, was found.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The control plane could not be asked.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// There is none.
    #[error("There is no {subject} {wanted} of yours.")]
    None {
        /// What was looked for.
        subject: Subject,
        /// What was written.
        wanted: String,
    },
    /// There are several.
    #[error("More than one {subject} begins with {wanted}.")]
    Several {
        /// What was looked for.
        subject: Subject,
        /// What was written.
        wanted: String,
        /// Some of them.
        ids: Vec<Uuid>,
    },
}

#[derive(Deserialize)]
struct Row {
    id: Uuid,
}

impl Rpc {
    /// Finds a job of one's own.
    ///
    /// # Errors
    /// When there is none, or more than one, that begins so.
    pub async fn find_job(&self, prefix: &IdPrefix) -> Result<JobId, LookupError> {
        self.find(Subject::Job, prefix).await.map(JobId::from_uuid)
    }

    /// Finds a batch of one's own.
    ///
    /// # Errors
    /// As [`Rpc::find_job`].
    pub async fn find_batch(&self, prefix: &IdPrefix) -> Result<BatchId, LookupError> {
        self.find(Subject::Batch, prefix).await.map(BatchId::from_uuid)
    }

    /// Finds a command by the beginning of its id.
    ///
    /// # Errors
    /// As [`Rpc::find_job`].
    pub async fn find_command(&self, prefix: &IdPrefix) -> Result<CommandId, LookupError> {
        self.find(Subject::Command, prefix).await.map(CommandId::from_uuid)
    }

    /// Finds a node by its id, its name, or the beginning of its id. A name goes
    /// before a beginning.
    ///
    /// # Errors
    /// As [`Rpc::find_job`].
    pub async fn find_node(&self, wanted: &str) -> Result<NodeId, LookupError> {
        if let Ok(id) = wanted.parse() {
            return Ok(id);
        }
        let unknown = match self.get_node(wanted).await {
            Ok(found) => return Ok(found.node.id),
            Err(error) if error.word() == Some("unknown_node") => error,
            Err(error) => return Err(error.into()),
        };
        match wanted.parse() {
            Ok(prefix) => self.find(Subject::Node, &prefix).await.map(NodeId::from_uuid),
            // The control plane says best what is the matter with a name.
            Err(_name) => Err(unknown.into()),
        }
    }

    async fn find(&self, subject: Subject, prefix: &IdPrefix) -> Result<Uuid, LookupError> {
        if let Some(id) = prefix.whole() {
            return Ok(id);
        }
        let consumer = match self.session() {
            Some(session) if subject.is_of_consumer() => {
                session.token().await.map_err(RpcError::SignIn)?;
                session.signed_in().map(|signed_in| signed_in.subject.to_string())
            }
            _ => None,
        };
        let (low, high) = prefix.range();
        let rows: Vec<Row> = self
            .rows(subject.table(), |postgrest| {
                let query = postgrest.from(subject.table()).select("id");
                let query = query.gte("id", low.to_string()).lte("id", high.to_string());
                let query = match &consumer {
                    Some(consumer) => query.eq("consumer_id", consumer),
                    None => query,
                };
                super::rest::page(query.order("id.asc"), MOST)
            })
            .await?;
        let ids: Vec<Uuid> = rows.into_iter().map(|row| row.id).collect();
        match ids[..] {
            [id] => Ok(id),
            [] => Err(LookupError::None { subject, wanted: format!("{prefix}…") }),
            _ => Err(LookupError::Several { subject, wanted: prefix.to_string(), ids }),
        }
    }
}
