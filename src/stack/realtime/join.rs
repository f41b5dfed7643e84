//! What a join asks for. Anything that cannot be read counts as not asked for,
//! as on the real server; only what is not served is kept in mind, to be told.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use thiserror::Error;

/// A join, read.
#[derive(Debug, Default, PartialEq)]
pub(super) struct JoinRequest {
    /// Whether the policies guard the channel.
    pub(super) private: bool,
    /// Whether each broadcast is acknowledged.
    pub(super) ack: bool,
    /// Whether the channel gets its own broadcasts back.
    pub(super) self_broadcast: bool,
    /// Whether the client wants to be told when messages of the database flow.
    pub(super) replication_ready: bool,
    /// Whether presence is asked for, which is not served.
    pub(super) presence: bool,
    /// What is asked for of `broadcast.replay`, which is not served.
    pub(super) replay: Option<Value>,
    /// The entries of `postgres_changes`, which are not served, each with its
    /// id, for the answer.
    pub(super) postgres_changes: Vec<Value>,
    /// The access token; None means that the connection's key is the token.
    pub(super) access_token: Option<String>,
}

/// Why a join cannot be read at all.
#[derive(Debug, Error)]
#[error("Unknown Error on Channel")]
pub(super) struct UnreadableJoin;

#[derive(Deserialize)]
struct Payload {
    #[serde(default, deserialize_with = "present")]
    config: Option<Value>,
    #[serde(default)]
    access_token: Value,
    #[serde(default)]
    user_token: Value,
}

/// Keeps apart a key that is null and a key that is absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl JoinRequest {
    /// Reads the payload of a join of `topic`, given without the prefix.
    pub(super) fn parse(topic: &str, payload: &RawValue) -> Result<Self, UnreadableJoin> {
        if !payload.get().starts_with('{') {
            return Err(UnreadableJoin);
        }
        let payload: Payload = serde_json::from_str(payload.get()).map_err(|_| UnreadableJoin)?;
        let access_token =
            [payload.access_token, payload.user_token].into_iter().find_map(|token| match token {
                // A key of the new style is no token.
                Value::String(token) if !token.starts_with("sb_") => Some(token),
                _ => None,
            });
        let Some(config) = payload.config else {
            return Ok(Self {
                postgres_changes: legacy_changes(topic),
                access_token,
                ..Self::default()
            });
        };
        let broadcast = match config.get("broadcast") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(broadcast)) => broadcast.clone(),
            Some(_) => return Err(UnreadableJoin),
        };
        Ok(Self {
            private: truthy(config.get("private")),
            ack: truthy(broadcast.get("ack")),
            self_broadcast: truthy(broadcast.get("self")),
            replication_ready: truthy(broadcast.get("replication_ready")),
            presence: truthy(config.get("presence").and_then(|presence| presence.get("enabled"))),
            replay: broadcast.get("replay").filter(|replay| !replay.is_null()).cloned(),
            postgres_changes: config
                .get("postgres_changes")
                .and_then(Value::as_array)
                .map(|entries| entries.iter().filter_map(with_id).collect())
                .unwrap_or_default(),
            access_token,
        })
    }

    /// Returns why the asked replay is refused; None when none was asked for.
    pub(super) fn replay_refusal(&self) -> Option<&'static str> {
        let replay = self.replay.as_ref()?;
        let valid = replay.get("since").is_some_and(Value::is_i64)
            && replay.get("limit").is_none_or(Value::is_u64);
        Some(if !valid {
            "UnableToReplayMessages: Replay params are not valid"
        } else if !self.private {
            "UnableToReplayMessages: Replay is not allowed for public channels"
        } else {
            "UnableToReplayMessages: Replay is not served by this gateway"
        })
    }
}

/// Reads a boolean as the real server does: true, or the word in any case.
fn truthy(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(value)) => *value,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// Adds an id to an entry; clients compare the rest one by one, so nothing else
/// changes. What is no object is left out.
fn with_id(entry: &Value) -> Option<Value> {
    let mut entry = entry.as_object()?.clone();
    let id = fnv1a(serde_json::to_string(&entry).unwrap_or_default().as_bytes());
    entry.insert("id".to_owned(), json!(id));
    Some(Value::Object(entry))
}

/// Reads the protocol of 2021, where the topic itself names schema, table and
/// filter.
fn legacy_changes(topic: &str) -> Vec<Value> {
    let entry: Map<String, Value> = ["schema", "table", "filter"]
        .into_iter()
        .zip(topic.splitn(3, ':'))
        .map(|(name, part)| (name.to_owned(), json!(part)))
        .collect();
    with_id(&Value::Object(entry)).into_iter().collect()
}

/// Hashes bytes to the 32 bits of an entry's id.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<JoinRequest, UnreadableJoin> {
        JoinRequest::parse("a:b:c=eq.1:2", &RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn anything_odd_counts_as_not_asked_for() {
        for text in [
            r#"{"config":{}}"#,
            r#"{"config":null}"#,
            r#"{"config":{"private":"maybe","presence":5,"postgres_changes":[null]},"zzz":null}"#,
        ] {
            assert_eq!(parse(text).unwrap(), JoinRequest::default(), "{text}");
        }
        let request = parse(
            r#"{"config":{"private":"true","broadcast":{"self":"TRUE","ack":true}},"access_token":"sb_x","user_token":"t"}"#,
        )
        .unwrap();
        assert!(request.private && request.self_broadcast && request.ack);
        assert_eq!(request.access_token.as_deref(), Some("t"));
        assert!(parse(r#""text""#).is_err());
        assert!(parse(r#"{"config":{"broadcast":"yes"}}"#).is_err());
    }

    #[test]
    fn without_a_config_the_topic_names_the_changes() {
        let request = parse("{}").unwrap();
        let entry = &request.postgres_changes[0];
        assert_eq!(entry["schema"], "a");
        assert_eq!(entry["table"], "b");
        assert_eq!(entry["filter"], "c=eq.1:2");
        assert!(entry["id"].is_u64());
    }

    #[test]
    fn replay_is_refused_with_the_word_that_fits() {
        let of = |text: &str| parse(text).unwrap().replay_refusal();
        assert_eq!(of(r#"{"config":{}}"#), None);
        assert!(
            of(r#"{"config":{"broadcast":{"replay":{"limit":5}},"private":true}}"#)
                .unwrap()
                .contains("not valid")
        );
        assert!(
            of(r#"{"config":{"broadcast":{"replay":{"since":1}}}}"#).unwrap().contains("public")
        );
        assert!(
            of(r#"{"config":{"broadcast":{"replay":{"since":1}},"private":true}}"#)
                .unwrap()
                .contains("not served")
        );
    }
}
