//! The frames of Supabase Realtime: Phoenix channels, protocol versions 1.0.0
//! and 2.0.0.
//!
//! Shared by the client beside it and by the embedded server
//! (`stack::realtime`). A frame keeps its refs and its payload as the JSON text
//! that came in, because the protocol echoes refs verbatim and hands payloads
//! on untouched: a number never passes through a float here.
//!
//! Version 1.0.0 knows text frames only. Version 2.0.0 adds two binary kinds
//! for user broadcasts: 3 from a client, 4 from the server. Every length in
//! them is one byte and counts bytes of UTF-8.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

/// The event of a request to join a topic.
pub const EVENT_JOIN: &str = "phx_join";
/// The event of a request to leave a topic.
pub const EVENT_LEAVE: &str = "phx_leave";
/// The event of an answer.
pub const EVENT_REPLY: &str = "phx_reply";
/// The event that ends a channel in order.
pub const EVENT_CLOSE: &str = "phx_close";
/// The event that ends a channel after a fault in the server.
pub const EVENT_ERROR: &str = "phx_error";
/// The event of a broadcast, in either direction.
pub const EVENT_BROADCAST: &str = "broadcast";
/// The event of the server's own messages about a channel.
pub const EVENT_SYSTEM: &str = "system";
/// The event that hands a newer access token to a joined channel.
pub const EVENT_ACCESS_TOKEN: &str = "access_token";
/// The event of a heartbeat.
pub const EVENT_HEARTBEAT: &str = "heartbeat";
/// The topic of heartbeats.
pub const TOPIC_PHOENIX: &str = "phoenix";
/// The prefix that every topic of a channel carries on the wire.
pub const TOPIC_PREFIX: &str = "realtime:";

const KIND_USER_PUSH: u8 = 3;
const KIND_USER_BROADCAST: u8 = 4;
const USER_PUSH_HEADER: usize = 7;
const USER_BROADCAST_HEADER: usize = 5;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProtocolVersion {
    /// 1.0.0: JSON objects.
    V1,
    /// 2.0.0: JSON arrays and binary broadcasts.
    V2,
}

impl ProtocolVersion {
    /// Reads the `vsn` parameter of a handshake.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "1.0.0" => Some(Self::V1),
            "2.0.0" => Some(Self::V2),
            _ => None,
        }
    }

    /// Returns the `vsn` parameter.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "1.0.0",
            Self::V2 => "2.0.0",
        }
    }
}

/// Why bytes are not a frame, or a frame cannot be written.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The text is no JSON of the shape that the version wants.
    #[error("The frame is not a message of the protocol")]
    Malformed(#[from] serde_json::Error),
    /// A text frame of version 2.0.0 has fewer than five elements.
    #[error("The frame has {0} elements and needs five")]
    TooFewElements(usize),
    /// A binary frame is of an unknown kind, cut short, or not UTF-8 where it
    /// must be.
    #[error("The binary frame is not a user broadcast")]
    MalformedBinary,
    /// A field is longer than the 255 bytes that a binary frame can say.
    #[error("The {field} has {length} bytes; a binary frame holds at most 255")]
    FieldTooLong {
        /// Which field.
        field: &'static str,
        /// Its length in bytes.
        length: usize,
    },
}

/// A ref as it came in: a string, a number or nothing.
pub type Ref = Option<Box<RawValue>>;

/// Tells whether two refs are the same text.
pub fn same_ref(left: &Ref, right: &Ref) -> bool {
    left.as_deref().map(RawValue::get) == right.as_deref().map(RawValue::get)
}

/// Turns a value into the JSON text that frames carry.
pub fn to_raw<T: Serialize + ?Sized>(value: &T) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(value)
}

/// A text frame.
#[derive(Debug, Serialize, Deserialize)]
pub struct Frame {
    /// The topic with its prefix, or `phoenix`.
    pub topic: String,
    /// The event.
    pub event: String,
    /// The payload, as written.
    pub payload: Box<RawValue>,
    /// Pairs a request with its answer.
    #[serde(rename = "ref", deserialize_with = "required_ref")]
    pub reference: Ref,
    /// The ref of the join that the frame belongs to. A server never writes it
    /// on version 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_ref: Ref,
}

/// Makes `ref` a key that must be there, though it may be null.
fn required_ref<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ref, D::Error> {
    Option::deserialize(deserializer)
}

impl Frame {
    /// Reads a text frame.
    ///
    /// # Errors
    /// When the text is not a message of that version.
    pub fn decode(version: ProtocolVersion, text: &str) -> Result<Self, FrameError> {
        match version {
            ProtocolVersion::V1 => Ok(serde_json::from_str(text)?),
            ProtocolVersion::V2 => {
                // What follows the fifth element is ignored, as the real server does.
                let elements: Vec<&RawValue> = serde_json::from_str(text)?;
                let [join_ref, reference, topic, event, payload, ..] = elements.as_slice() else {
                    return Err(FrameError::TooFewElements(elements.len()));
                };
                Ok(Self {
                    topic: serde_json::from_str(topic.get())?,
                    event: serde_json::from_str(event.get())?,
                    payload: (*payload).to_owned(),
                    reference: serde_json::from_str(reference.get())?,
                    join_ref: serde_json::from_str(join_ref.get())?,
                })
            }
        }
    }

    /// Writes a text frame.
    pub fn encode(&self, version: ProtocolVersion) -> String {
        let text = match version {
            ProtocolVersion::V1 => serde_json::to_string(self),
            ProtocolVersion::V2 => serde_json::to_string(&(
                &self.join_ref,
                &self.reference,
                &self.topic,
                &self.event,
                &self.payload,
            )),
        };
        text.expect("strings and raw JSON always serialize")
    }
}

/// How the payload of a binary broadcast is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Bytes that mean nothing to the server.
    Raw,
    /// JSON text; nobody has looked whether it is valid.
    Json,
}

impl Encoding {
    fn from_byte(byte: u8) -> Self {
        if byte == 0 { Self::Raw } else { Self::Json }
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Json => 1,
        }
    }
}

/// A binary broadcast from a client (kind 3).
#[derive(Debug, PartialEq, Eq)]
pub struct UserPush {
    /// The ref of the sender's join, empty for none.
    pub join_ref: String,
    /// The ref of this push, empty for none.
    pub reference: String,
    /// The topic with its prefix.
    pub topic: String,
    /// The user's event.
    pub event: String,
    /// How to read the payload.
    pub encoding: Encoding,
    /// The payload, untouched.
    pub payload: Bytes,
}

impl UserPush {
    /// Reads a binary frame. The sender's metadata is skipped: the protocol
    /// drops it.
    ///
    /// # Errors
    /// When the bytes are no frame of kind 3.
    pub fn decode(bytes: &Bytes) -> Result<Self, FrameError> {
        let &[KIND_USER_PUSH, join_ref, reference, topic, event, metadata, encoding] =
            bytes.get(..USER_PUSH_HEADER).ok_or(FrameError::MalformedBinary)?
        else {
            return Err(FrameError::MalformedBinary);
        };
        let mut fields = Fields { bytes, at: USER_PUSH_HEADER };
        let push = Self {
            join_ref: fields.text(join_ref)?,
            reference: fields.text(reference)?,
            topic: fields.text(topic)?,
            event: fields.text(event)?,
            encoding: Encoding::from_byte(encoding),
            payload: {
                fields.text(metadata)?;
                fields.rest()
            },
        };
        Ok(push)
    }

    /// Writes a binary frame without metadata.
    ///
    /// # Errors
    /// When a field is longer than 255 bytes.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        let mut frame = BytesMut::with_capacity(
            USER_PUSH_HEADER + self.topic.len() + self.event.len() + self.payload.len() + 16,
        );
        frame.put_u8(KIND_USER_PUSH);
        frame.put_u8(length("join_ref", &self.join_ref)?);
        frame.put_u8(length("ref", &self.reference)?);
        frame.put_u8(length("topic", &self.topic)?);
        frame.put_u8(length("event", &self.event)?);
        frame.put_u8(0);
        frame.put_u8(self.encoding.to_byte());
        for field in [&self.join_ref, &self.reference, &self.topic, &self.event] {
            frame.put_slice(field.as_bytes());
        }
        frame.put_slice(&self.payload);
        Ok(frame.freeze())
    }
}

/// A binary broadcast from the server (kind 4).
#[derive(Debug, PartialEq, Eq)]
pub struct UserBroadcast {
    /// The topic with its prefix.
    pub topic: String,
    /// The user's event.
    pub event: String,
    /// JSON text: `{"id":"UUID"}` for messages of the database, else empty.
    pub metadata: String,
    /// How to read the payload.
    pub encoding: Encoding,
    /// The payload, untouched.
    pub payload: Bytes,
}

impl UserBroadcast {
    /// Reads a binary frame.
    ///
    /// # Errors
    /// When the bytes are no frame of kind 4.
    pub fn decode(bytes: &Bytes) -> Result<Self, FrameError> {
        let &[KIND_USER_BROADCAST, topic, event, metadata, encoding] =
            bytes.get(..USER_BROADCAST_HEADER).ok_or(FrameError::MalformedBinary)?
        else {
            return Err(FrameError::MalformedBinary);
        };
        let mut fields = Fields { bytes, at: USER_BROADCAST_HEADER };
        Ok(Self {
            topic: fields.text(topic)?,
            event: fields.text(event)?,
            metadata: fields.text(metadata)?,
            encoding: Encoding::from_byte(encoding),
            payload: fields.rest(),
        })
    }

    /// Writes a binary frame.
    ///
    /// # Errors
    /// When a field is longer than 255 bytes.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        let mut frame = BytesMut::with_capacity(
            USER_BROADCAST_HEADER
                + self.topic.len()
                + self.event.len()
                + self.metadata.len()
                + self.payload.len(),
        );
        frame.put_u8(KIND_USER_BROADCAST);
        frame.put_u8(length("topic", &self.topic)?);
        frame.put_u8(length("event", &self.event)?);
        frame.put_u8(length("metadata", &self.metadata)?);
        frame.put_u8(self.encoding.to_byte());
        for field in [&self.topic, &self.event, &self.metadata] {
            frame.put_slice(field.as_bytes());
        }
        frame.put_slice(&self.payload);
        Ok(frame.freeze())
    }
}

/// Takes the fields of a binary frame one after the other.
struct Fields<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Fields<'_> {
    fn text(&mut self, length: u8) -> Result<String, FrameError> {
        let end = self.at + usize::from(length);
        let field = self.bytes.get(self.at..end).ok_or(FrameError::MalformedBinary)?;
        self.at = end;
        std::str::from_utf8(field).map(str::to_owned).map_err(|_| FrameError::MalformedBinary)
    }

    fn rest(self) -> Bytes {
        self.bytes.slice(self.at..)
    }
}

/// Returns the length of a field as the byte that a header holds.
fn length(field: &'static str, text: &str) -> Result<u8, FrameError> {
    u8::try_from(text.len()).map_err(|_| FrameError::FieldTooLong { field, length: text.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn version_1_needs_its_four_keys_and_keeps_payloads_verbatim() {
        let text = r#"{"topic":"realtime:r","event":"e","payload":{"n": 12345678901234567890.1230},"ref":7,"x":1}"#;
        let frame = Frame::decode(ProtocolVersion::V1, text).unwrap();
        assert_eq!(frame.reference.as_deref().unwrap().get(), "7");
        assert!(frame.join_ref.is_none());
        assert_eq!(frame.payload.get(), r#"{"n": 12345678901234567890.1230}"#);
        for missing in [
            r#"{"event":"e","payload":{},"ref":"1"}"#,
            r#"{"topic":"t","payload":{},"ref":"1"}"#,
            r#"{"topic":"t","event":"e","ref":"1"}"#,
            r#"{"topic":"t","event":"e","payload":{}}"#,
            "null",
            "5",
            "[]",
        ] {
            assert!(Frame::decode(ProtocolVersion::V1, missing).is_err(), "{missing}");
        }
    }

    #[test]
    fn version_1_writes_a_null_ref_but_no_missing_join_ref() {
        let frame = Frame {
            topic: "realtime:r".into(),
            event: "broadcast".into(),
            payload: raw("{}"),
            reference: None,
            join_ref: None,
        };
        assert_eq!(
            frame.encode(ProtocolVersion::V1),
            r#"{"topic":"realtime:r","event":"broadcast","payload":{},"ref":null}"#
        );
        assert_eq!(frame.encode(ProtocolVersion::V2), r#"[null,null,"realtime:r","broadcast",{}]"#);
    }

    #[test]
    fn version_2_ignores_what_follows_the_fifth_element() {
        let frame =
            Frame::decode(ProtocolVersion::V2, r#"[null,"1","phoenix","heartbeat",{},"more"]"#)
                .unwrap();
        assert_eq!(frame.topic, "phoenix");
        assert!(matches!(
            Frame::decode(ProtocolVersion::V2, r#"[null,"1","phoenix","heartbeat"]"#),
            Err(FrameError::TooFewElements(4))
        ));
        assert!(Frame::decode(ProtocolVersion::V2, r#"[null,"1",5,"heartbeat",{}]"#).is_err());
    }

    #[test]
    fn a_user_push_reads_as_the_documented_bytes() {
        let bytes = Bytes::from(
            hex::decode(
                "030101 0d020001 31 32 7265616c74696d653a726f6f6d 6869 7b226e223a317d"
                    .replace(' ', ""),
            )
            .unwrap(),
        );
        let push = UserPush::decode(&bytes).unwrap();
        assert_eq!(push.topic, "realtime:room");
        assert_eq!(push.event, "hi");
        assert_eq!(push.reference, "2");
        assert_eq!(push.encoding, Encoding::Json);
        assert_eq!(&push.payload[..], br#"{"n":1}"#);
        assert_eq!(push.encode().unwrap(), bytes);
    }

    #[test]
    fn lengths_of_binary_fields_count_bytes() {
        let broadcast = UserBroadcast {
            topic: "realtime:é🚀".into(),
            event: "évènement".into(),
            metadata: String::new(),
            encoding: Encoding::Raw,
            payload: Bytes::from_static(b"\x00\xff"),
        };
        let bytes = broadcast.encode().unwrap();
        assert_eq!(usize::from(bytes[1]), "realtime:é🚀".len());
        assert_eq!(UserBroadcast::decode(&bytes).unwrap(), broadcast);
        let long = UserBroadcast { topic: "x".repeat(256), ..broadcast };
        assert!(matches!(long.encode(), Err(FrameError::FieldTooLong { field: "topic", .. })));
    }

    #[test]
    fn garbage_is_refused_and_never_panics() {
        for text in ["", "09", "ff0000", "0302", "03010132ff6d730131", "04000000016162", "0400"] {
            let bytes = Bytes::from(hex::decode(text).unwrap());
            assert!(UserPush::decode(&bytes).is_err(), "{text}");
        }
        for length in 0..32 {
            for fill in [0_u8, 1, 3, 4, 0x7f, 0xff] {
                let mut bytes = vec![fill; length];
                if let Some(first) = bytes.first_mut() {
                    *first = 4;
                }
                let _ = UserBroadcast::decode(&Bytes::from(bytes.clone()));
                if let Some(first) = bytes.first_mut() {
                    *first = 3;
                }
                let _ = UserPush::decode(&Bytes::from(bytes));
            }
        }
    }
}
