//! Login events: proof that the sender of a login holds a key (NIP-98).
//!
//! A login event names the exact URL, the method and the hash of the body, so
//! that it is of no use for another control plane or another request. It is
//! good for [`LOGIN_WINDOW_SECS`] and for one use (`consume_login` in SQL keeps
//! the ids). `supabase/functions/_shared/login_event.ts` is the same function
//! for Supabase; `tests/vectors/login.json` holds both to the same answers,
//! words included.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::event::{EventFault, SignedEvent};
use super::{Keys, sha256_hex};

/// The kind of a NIP-98 event.
pub const LOGIN_EVENT_KIND: u16 = 27_235;

/// How far the time of an event may be from the server's, in seconds.
pub const LOGIN_WINDOW_SECS: u64 = 60;

/// The longest accepted value of the `Authorization` header, in bytes.
const HEADER_LIMIT: usize = 8 * 1024;

/// A signed proof for one login request.
#[derive(Debug, Clone)]
pub struct LoginEvent(SignedEvent);

/// A login event that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLogin {
    /// The event's id, 64 hex digits: to be consumed once.
    pub event_id: String,
    /// The key that signed, 64 hex digits.
    pub public_key: String,
    /// When the event says that it was made, seconds since 1970.
    pub created_at: u64,
}

/// Why a login event is refused. The messages are part of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginEventError {
    /// The header does not carry a well-formed login event.
    #[error("The login event cannot be used: {0}.")]
    BadEvent(&'static str),
    /// The signature is not the named key's.
    #[error("The login event is not signed by the key that it names.")]
    BadSignature,
    /// The event is for another address, maybe another control plane.
    #[error("The login event is for {}, but this control plane's login is at {}.", or_nothing(found), expected.join(" or "))]
    WrongUrl {
        /// What the event names.
        found: String,
        /// Where this control plane's login is.
        expected: Vec<String>,
    },
    /// The event is for another kind of request.
    #[error(
        "The login event is for the method {}, but the request is {expected}.",
        or_nothing(found)
    )]
    WrongMethod {
        /// What the event names.
        found: String,
        /// What the request is.
        expected: String,
    },
    /// The event does not bind the body.
    #[error("The login event does not cover the body: it has no payload tag.")]
    MissingPayload,
    /// The body is another than the signed one.
    #[error("The body is not the one that the login event was signed for.")]
    PayloadMismatch,
    /// The event was made too long ago or lies in the future.
    #[error("Your clock is {} seconds {} the control plane's: the login event was made at {}, and the control plane's clock says {}.",
        server.abs_diff(*made), if made < server { "behind" } else { "ahead of" }, utc(*made), utc(*server))]
    ClockSkew {
        /// When the event was made, seconds since 1970.
        made: u64,
        /// The server's clock, seconds since 1970.
        server: u64,
    },
}

impl LoginEvent {
    /// Makes the event for one `POST` of a body to a URL.
    ///
    /// `now` is in seconds since 1970. Two events are never the same, even
    /// within a second, because each can be used only once.
    pub fn make(keys: &Keys, url: &str, body: &[u8], now: u64) -> Self {
        Self::make_with_nonce(keys, url, body, now, &uuid::Uuid::new_v4().simple().to_string())
    }

    /// Makes the event with a given nonce; the same arguments give the same
    /// bytes.
    fn make_with_nonce(keys: &Keys, url: &str, body: &[u8], now: u64, nonce: &str) -> Self {
        let tag = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
        let tags = vec![
            tag("u", url),
            tag("method", "POST"),
            tag("payload", &sha256_hex(body)),
            tag("nonce", nonce),
        ];
        Self(SignedEvent::sign(keys, LOGIN_EVENT_KIND, now, tags, String::new()))
    }

    /// Returns the value of the `Authorization` header.
    pub fn header(&self) -> String {
        format!("Nostr {}", STANDARD.encode(self.0.to_json()))
    }

    /// Checks the `Authorization` header of a login.
    ///
    /// `urls` are the addresses at which this login is published; the header
    /// `Host` and forwarded headers play no part. `now` is the server's clock
    /// in seconds since 1970. Whether the event was used before is for the
    /// caller to find out.
    ///
    /// # Errors
    ///
    /// The first fault, in the order of [`LoginEventError`]'s variants.
    pub fn verify(
        header: Option<&str>,
        urls: &[String],
        method: &str,
        body: &[u8],
        now: u64,
    ) -> Result<VerifiedLogin, LoginEventError> {
        use LoginEventError::{
            BadEvent, BadSignature, ClockSkew, MissingPayload, PayloadMismatch, WrongMethod,
            WrongUrl,
        };

        let header = header.ok_or(BadEvent("the Authorization header is missing"))?;
        if header.len() > HEADER_LIMIT {
            return Err(BadEvent("it is longer than 8 KB"));
        }
        let (scheme, encoded) = header.split_once(' ').unwrap_or((header, ""));
        if !scheme.eq_ignore_ascii_case("nostr") {
            return Err(BadEvent("the Authorization header's scheme is not Nostr"));
        }
        let json = STANDARD.decode(encoded).map_err(|_| BadEvent("it is not base64"))?;
        let event =
            SignedEvent::from_json(&json).map_err(|_| BadEvent("it is not a Nostr event"))?;
        if event.kind != LOGIN_EVENT_KIND {
            return Err(BadEvent("its kind is not 27235"));
        }
        let url = only_tag(&event, "u").map_err(|_| BadEvent("it has more than one u tag"))?;
        let signed_method =
            only_tag(&event, "method").map_err(|_| BadEvent("it has more than one method tag"))?;
        let payload = only_tag(&event, "payload")
            .map_err(|_| BadEvent("it has more than one payload tag"))?;

        event.verify().map_err(|fault| match fault {
            EventFault::Shape | EventFault::Signature => BadSignature,
        })?;
        let url = url.unwrap_or("");
        if !urls.iter().any(|expected| expected == url) {
            return Err(WrongUrl { found: url.to_owned(), expected: urls.to_vec() });
        }
        if signed_method != Some(method) {
            return Err(WrongMethod {
                found: signed_method.unwrap_or("").to_owned(),
                expected: method.to_owned(),
            });
        }
        if payload.ok_or(MissingPayload)? != sha256_hex(body) {
            return Err(PayloadMismatch);
        }
        if event.created_at.abs_diff(now) > LOGIN_WINDOW_SECS {
            return Err(ClockSkew { made: event.created_at, server: now });
        }
        Ok(VerifiedLogin {
            event_id: event.id,
            public_key: event.pubkey,
            created_at: event.created_at,
        })
    }
}

impl LoginEventError {
    /// Returns the word of the protocol for this refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadEvent(_) => "bad_event",
            Self::BadSignature => "bad_signature",
            Self::WrongUrl { .. } => "wrong_url",
            Self::WrongMethod { .. } => "wrong_method",
            Self::MissingPayload => "missing_payload",
            Self::PayloadMismatch => "payload_mismatch",
            Self::ClockSkew { .. } => "clock_skew",
        }
    }

    /// Returns what the sender can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BadEvent(_) => {
                "Send the header Authorization: Nostr followed by the base64 of a signed event of kind 27235 with one tag each of u, method and payload."
            }
            Self::BadSignature => "Sign the event with the secret key of its pubkey.",
            Self::WrongUrl { .. } => {
                "Use the control plane's public URL; the operator sets which those are."
            }
            Self::WrongMethod { .. } => "Sign the event for the method POST.",
            Self::MissingPayload | Self::PayloadMismatch => {
                "Add a payload tag with the hex SHA-256 of exactly the bytes of the body."
            }
            Self::ClockSkew { .. } => {
                "Set your machine's clock, for example with timedatectl set-ntp true, and try again."
            }
        }
    }
}

/// Returns the value of a tag that may appear once; `Err` when it appears more
/// often, because two readers could then believe different ones.
fn only_tag<'event>(event: &'event SignedEvent, name: &str) -> Result<Option<&'event str>, ()> {
    match event.tag_values(name).as_slice() {
        [] => Ok(None),
        [value] => Ok(Some(value)),
        _ => Err(()),
    }
}

/// Replaces an empty text in a message.
fn or_nothing(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}

/// Writes seconds since 1970 as UTC, like `2026-01-31T23:59:59Z`.
fn utc(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const URL: &str = "https://plane.example/functions/v1/auth";
    const NOW: u64 = 1_790_000_000;

    fn check(event: &LoginEvent, body: &[u8], now: u64) -> Result<VerifiedLogin, LoginEventError> {
        LoginEvent::verify(Some(&event.header()), &[URL.to_owned()], "POST", body, now)
    }

    #[test]
    fn an_event_holds_within_the_window_only() {
        let keys = Keys::generate();
        let event = LoginEvent::make(&keys, URL, b"{}", NOW);
        for now in [NOW - 60, NOW, NOW + 60] {
            assert_eq!(check(&event, b"{}", now).unwrap().public_key, keys.public_hex());
        }
        for now in [NOW - 61, NOW + 61] {
            assert_eq!(check(&event, b"{}", now).unwrap_err().code(), "clock_skew");
        }
    }

    #[test]
    fn the_message_of_a_wrong_clock_names_both_times_and_the_difference() {
        let event = LoginEvent::make(&Keys::generate(), URL, b"{}", NOW);
        assert_eq!(
            check(&event, b"{}", NOW + 120).unwrap_err().to_string(),
            "Your clock is 120 seconds behind the control plane's: the login event was made at \
             2026-09-21T14:13:20Z, and the control plane's clock says 2026-09-21T14:15:20Z."
        );
        let ahead = check(&event, b"{}", NOW - 90).unwrap_err().to_string();
        assert!(
            ahead.starts_with("Your clock is 90 seconds ahead of the control plane's"),
            "{ahead}"
        );
    }

    #[test]
    fn two_events_of_the_same_second_differ() {
        let keys = Keys::generate();
        let ids: Vec<String> = (0..2)
            .map(|_| check(&LoginEvent::make(&keys, URL, b"{}", NOW), b"{}", NOW).unwrap().event_id)
            .collect();
        assert_ne!(ids[0], ids[1]);
    }
}
