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
    /// A batch: jobs that were submitted together.
    BatchId
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

impl BatchId {
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

/// How much of an id must be written, in hexadecimal digits.
const LEAST_DIGITS: usize = 4;

/// The beginning of an id, or all of it: what a person writes instead of 36
/// characters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdPrefix {
    low: Uuid,
    high: Uuid,
    digits: usize,
}

/// Why a text is no beginning of an id.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdPrefixError {
    /// It has characters that no id has, or too many of them.
    #[error("\"{0}\" is not an id, nor the beginning of one")]
    NotAnId(String),
    /// It would fit too many.
    #[error("\"{0}\" is too little of an id; write at least {LEAST_DIGITS} digits of it")]
    TooShort(String),
}

impl IdPrefix {
    /// Returns the id, where all of it was written.
    pub fn whole(&self) -> Option<Uuid> {
        (self.digits == 32).then_some(self.low)
    }

    /// Returns the lowest and the highest id that begin so.
    pub const fn range(&self) -> (Uuid, Uuid) {
        (self.low, self.high)
    }
}

impl FromStr for IdPrefix {
    type Err = IdPrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(id) = Uuid::try_parse(text) {
            return Ok(Self { low: id, high: id, digits: 32 });
        }
        let wrong = || IdPrefixError::NotAnId(text.to_owned());
        let (mut value, mut digits) = (0_u128, 0);
        for (at, character) in text.chars().enumerate() {
            match (character, at) {
                ('-', 8 | 13 | 18 | 23) => {}
                _ => {
                    value = (value << 4) | u128::from(character.to_digit(16).ok_or_else(wrong)?);
                    digits += 1;
                }
            }
            if digits > 31 {
                return Err(wrong());
            }
        }
        if digits < LEAST_DIGITS {
            return Err(IdPrefixError::TooShort(text.to_owned()));
        }
        let rest = 4 * (32 - digits);
        let low = value << rest;
        let high = low | ((1_u128 << rest) - 1);
        Ok(Self { low: Uuid::from_u128(low), high: Uuid::from_u128(high), digits })
    }
}

impl fmt::Display for IdPrefix {
    /// Writes as much as was written, with the hyphens of an id.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.low.to_string();
        let end = whole
            .char_indices()
            .filter(|(_at, character)| *character != '-')
            .nth(self.digits)
            .map_or(whole.len(), |(at, _character)| at);
        formatter.pad(whole[..end].trim_end_matches('-'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_an_id_is_a_range() {
        let prefix: IdPrefix = "0192F3a4-5b6c-7d".parse().unwrap();
        let (low, high) = prefix.range();
        assert_eq!(low.to_string(), "0192f3a4-5b6c-7d00-0000-000000000000");
        assert_eq!(high.to_string(), "0192f3a4-5b6c-7dff-ffff-ffffffffffff");
        assert_eq!(prefix.whole(), None);
        assert_eq!(prefix.to_string(), "0192f3a4-5b6c-7d");
        assert_eq!("0192f3a45b6c".parse::<IdPrefix>().unwrap().to_string(), "0192f3a4-5b6c");
        assert_eq!("0192".parse::<IdPrefix>().unwrap().to_string(), "0192");

        let whole: IdPrefix = "0192f3a4-5b6c-7d8e-9f00-112233445566".parse().unwrap();
        assert_eq!(whole.whole().unwrap().to_string(), whole.to_string());
        assert_eq!(whole.range().0, whole.range().1);

        for wrong in ["nonsense", "019-2", "0192f3a4-5b6c-7d8e-9f00-1122334455667", "-0192"] {
            assert!(matches!(wrong.parse::<IdPrefix>(), Err(IdPrefixError::NotAnId(_))), "{wrong}");
        }
        for short in ["", "0", "019"] {
            assert!(
                matches!(short.parse::<IdPrefix>(), Err(IdPrefixError::TooShort(_))),
                "{short}"
            );
        }
    }

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
