//! Ids of the rows that cross the wire, one type each.
//!
//! A job's id cannot be passed where an attempt's is meant. Ids of jobs and
//! transfers are made by the client (UUIDv7, also the idempotency key); those of
//! attempts, nodes and users come from the control plane; a lease's is made by
//! the agent that takes it and is random, because it fences.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! row_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
        )]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that is known to be one of these.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Returns the UUID.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self)
            }
        }
    };
}

row_id! {
    /// A job: one prompt or container run, made by a consumer.
    JobId
}
row_id! {
    /// An attempt: one assignment of a job to a node.
    AttemptId
}
row_id! {
    /// A node: a provider, an aggregator or a client row.
    NodeId
}
row_id! {
    /// A lease: the token that fences an attempt.
    LeaseId
}
row_id! {
    /// A user: an owner, consumer or operator.
    UserId
}
row_id! {
    /// An offer: what a node serves, at which price.
    OfferId
}
row_id! {
    /// A transfer of the ledger.
    TransferId
}
row_id! {
    /// A command to a node.
    CommandId
}

impl JobId {
    /// Makes a new id, ordered by time (UUIDv7).
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

impl TransferId {
    /// Makes a new id, ordered by time (UUIDv7).
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

impl LeaseId {
    /// Makes a new id, random (UUIDv4): it must not be guessed.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_and_write_as_plain_uuids() {
        let text = "0192f3a4-5b6c-7d8e-9f00-112233445566";
        let id: JobId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{text}\""));
        assert!("not an id".parse::<JobId>().is_err());
    }

    #[test]
    fn job_ids_are_ordered_by_time_and_leases_are_random() {
        assert_eq!(JobId::generate().as_uuid().get_version_num(), 7);
        assert_eq!(LeaseId::generate().as_uuid().get_version_num(), 4);
    }
}
