//! One message in the form of each receiver.
//!
//! How a message was sent decides what it becomes: an envelope (text broadcast,
//! HTTP batch) is text for everybody; a user broadcast (binary push, single
//! HTTP, database) is binary on version 2.0.0 and text on version 1.0.0, where
//! raw bytes have no form at all.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::outbox::Outgoing;
use crate::control::realtime::frame::{
    EVENT_BROADCAST, Encoding, Frame, ProtocolVersion, TOPIC_PREFIX, UserBroadcast, to_raw,
};

/// A message on its way to everybody who joined its topic.
#[derive(Debug)]
pub(super) struct Message {
    /// The topic, without the prefix.
    pub(super) topic: String,
    /// What it says.
    pub(super) content: Content,
}

/// What a message says.
#[derive(Debug)]
pub(super) enum Content {
    /// The payload of a text broadcast, passed on as it is.
    Envelope(Box<RawValue>),
    /// An event with a payload that nobody has looked into.
    User {
        /// The user's event.
        event: String,
        /// How to read the payload.
        encoding: Encoding,
        /// The payload.
        payload: Bytes,
        /// The id of its row, when it came from the database.
        id: Option<String>,
    },
}

#[derive(Serialize)]
struct Meta<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct UserEnvelope<'a> {
    r#type: &'a str,
    event: &'a str,
    payload: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Meta<'a>>,
}

impl Message {
    /// Returns the frame for receivers of that version; None when the message
    /// has no form there.
    pub(super) fn form(&self, version: ProtocolVersion) -> Option<Outgoing> {
        let topic = format!("{TOPIC_PREFIX}{}", self.topic);
        match (&self.content, version) {
            (Content::Envelope(envelope), _) => Some(text(version, topic, envelope.clone())),
            (Content::User { event, encoding, payload, id }, ProtocolVersion::V2) => {
                let metadata = id.as_deref().map_or_else(String::new, |id| {
                    serde_json::to_string(&Meta { id }).expect("a string always serializes")
                });
                let broadcast = UserBroadcast {
                    topic,
                    event: event.clone(),
                    metadata,
                    encoding: *encoding,
                    payload: payload.clone(),
                };
                // A topic or event above 255 bytes has no binary form.
                broadcast.encode().ok().map(Outgoing::Binary)
            }
            (Content::User { encoding: Encoding::Raw, .. }, ProtocolVersion::V1) => None,
            (Content::User { event, payload, id, .. }, ProtocolVersion::V1) => {
                // Only here somebody has to know whether it is JSON at all.
                let payload = serde_json::from_slice::<&RawValue>(payload).ok()?;
                let envelope = UserEnvelope {
                    r#type: EVENT_BROADCAST,
                    event,
                    payload,
                    meta: id.as_deref().map(|id| Meta { id }),
                };
                Some(text(version, topic, to_raw(&envelope).ok()?))
            }
        }
    }
}

fn text(version: ProtocolVersion, topic: String, payload: Box<RawValue>) -> Outgoing {
    let frame = Frame {
        topic,
        event: EVENT_BROADCAST.to_owned(),
        payload,
        reference: None,
        join_ref: None,
    };
    Outgoing::text(frame.encode(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(encoding: Encoding, payload: &'static str, id: Option<&str>) -> Message {
        Message {
            topic: "r".into(),
            content: Content::User {
                event: "e".into(),
                encoding,
                payload: Bytes::from_static(payload.as_bytes()),
                id: id.map(str::to_owned),
            },
        }
    }

    #[test]
    fn a_message_of_the_database_is_text_on_version_1_and_binary_on_version_2() {
        let message = user(Encoding::Json, r#"{"n": 1.50}"#, Some("u"));
        assert_eq!(
            message.form(ProtocolVersion::V1),
            Some(Outgoing::text(
                r#"{"topic":"realtime:r","event":"broadcast","payload":{"type":"broadcast","event":"e","payload":{"n": 1.50},"meta":{"id":"u"}},"ref":null}"#
                    .into()
            ))
        );
        let Some(Outgoing::Binary(bytes)) = message.form(ProtocolVersion::V2) else {
            panic!("a binary form is expected");
        };
        let broadcast = UserBroadcast::decode(&bytes).unwrap();
        assert_eq!(broadcast.metadata, r#"{"id":"u"}"#);
        assert_eq!(&broadcast.payload[..], br#"{"n": 1.50}"#);
    }

    #[test]
    fn raw_bytes_and_broken_json_have_no_form_on_version_1() {
        assert_eq!(user(Encoding::Raw, "x", None).form(ProtocolVersion::V1), None);
        assert_eq!(user(Encoding::Json, "{x", None).form(ProtocolVersion::V1), None);
        assert!(user(Encoding::Json, "{x", None).form(ProtocolVersion::V2).is_some());
    }
}
