//! A joined channel, the frames that are for it, and what is asked of the
//! database about it.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::authorization::{AuthorizationError, Rights};
use super::join::JoinRequest;
use super::token::Access;
use crate::control::realtime::frame::{EVENT_BROADCAST, Encoding, Frame, Ref, UserPush, to_raw};

/// What is counted for a waiting frame besides its payload.
const WAITING_OVERHEAD: usize = 256;

/// A joined channel.
pub(super) struct Channel {
    /// Its number, over all sockets.
    pub(super) id: u64,
    /// Whether the policies guard it.
    pub(super) private: bool,
    /// The join_ref as the join gave it: in the answer to the join, in the
    /// close, and what a leave must name.
    pub(super) join_ref: Ref,
    /// The join_ref of everything else; the ref of the join where it gave none.
    pub(super) reply_ref: Ref,
    /// Whether each broadcast is acknowledged.
    pub(super) ack: bool,
    /// Whether it gets its own broadcasts back.
    pub(super) self_broadcast: bool,
    /// Whether it may send, where it is private.
    pub(super) write: WriteRight,
    /// What its token says.
    pub(super) access: Access,
    /// Its token; the same one again is no news.
    pub(super) token: String,
    /// The database connection that the client was told of; None when it does
    /// not want to know.
    pub(super) told_epoch: Option<u64>,
}

/// Whether a private channel may send. The policies are asked at the join
/// already, so that the first message of a stream need not wait; a no is asked
/// again at the first message, which is when the real server asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteRight {
    /// It may.
    Granted,
    /// It could not at the join, and is asked about again.
    Unasked,
    /// It may not, until a new token comes.
    Denied,
}

impl WriteRight {
    /// The right as the join or a new token found it.
    pub(super) fn at_join(may_write: bool) -> Self {
        if may_write { Self::Granted } else { Self::Unasked }
    }
}

/// A frame from the client, text or binary.
pub(super) struct Incoming {
    /// With the prefix.
    pub(super) topic: String,
    /// The event of the protocol.
    pub(super) event: String,
    /// Its ref.
    pub(super) reference: Ref,
    /// The ref of the join that it names.
    pub(super) join_ref: Ref,
    /// What it carries.
    pub(super) body: Body,
}

/// What a frame carries.
pub(super) enum Body {
    /// The payload of a text frame.
    Json(Box<RawValue>),
    /// A binary broadcast.
    User { event: String, encoding: Encoding, payload: Bytes },
}

impl Incoming {
    /// The length of the payload in bytes.
    pub(super) fn payload_len(&self) -> usize {
        match &self.body {
            Body::Json(raw) => raw.get().len(),
            Body::User { payload, .. } => payload.len(),
        }
    }

    /// What it counts for while it waits.
    pub(super) fn weight(&self) -> usize {
        WAITING_OVERHEAD + self.payload_len()
    }
}

impl From<Frame> for Incoming {
    fn from(frame: Frame) -> Self {
        Self {
            topic: frame.topic,
            event: frame.event,
            reference: frame.reference,
            join_ref: frame.join_ref,
            body: Body::Json(frame.payload),
        }
    }
}

impl From<UserPush> for Incoming {
    fn from(push: UserPush) -> Self {
        let reference = |text: String| {
            (!text.is_empty()).then(|| to_raw(&text).expect("a string always serializes"))
        };
        Self {
            topic: push.topic,
            event: EVENT_BROADCAST.to_owned(),
            reference: reference(push.reference),
            join_ref: reference(push.join_ref),
            body: Body::User { event: push.event, encoding: push.encoding, payload: push.payload },
        }
    }
}

/// The end of something that ran beside the socket.
pub(super) struct Settled {
    /// The topic that waited for it, with the prefix.
    pub(super) topic: String,
    /// What came out.
    pub(super) outcome: Outcome,
}

/// What came out of something that ran beside the socket.
pub(super) enum Outcome {
    /// A join is refused; the pause is over.
    JoinRefused { reference: Ref, join_ref: Ref, reason: String },
    /// The policies were asked about a join.
    JoinAsked { join: Box<Join>, rights: Result<Rights, AuthorizationError> },
    /// The policies were asked about a new token.
    RefreshAsked { token: String, access: Box<Access>, rights: Result<Rights, AuthorizationError> },
    /// The policies were asked about the first message.
    WriteAsked { incoming: Box<Incoming>, rights: Result<Rights, AuthorizationError> },
}

/// A join whose token is good.
pub(super) struct Join {
    /// What it asks for.
    pub(super) request: JoinRequest,
    /// Its ref.
    pub(super) reference: Ref,
    /// Its join_ref.
    pub(super) join_ref: Ref,
    /// Its token.
    pub(super) token: String,
    /// What the token says.
    pub(super) access: Access,
}
