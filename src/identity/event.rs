//! The strict reading of a signed Nostr event.
//!
//! The implementation in `supabase/functions/_shared/event.ts` accepts and
//! refuses exactly the same events (`tests/vectors/login.json`), so this one
//! checks the shape itself instead of taking what a lenient parser takes:
//! lower-case hex only, whole numbers only, no empty tag.

use nostr_sdk::secp256k1::schnorr::Signature;
use nostr_sdk::{Event, EventId, Kind, PublicKey, Tag, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Keys;

/// The latest time that an event may claim: the end of the year 9999.
const LATEST_TIME: u64 = 253_402_300_799;

/// What is wrong with an event before its meaning is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventFault {
    /// The text is not a JSON object with the seven fields of an event.
    #[error("it is not a Nostr event")]
    Shape,
    /// The id is not the hash of the fields, or the signature does not hold.
    #[error("it is not signed by the key that it names")]
    Signature,
}

/// An event as it is written, with the fields of NIP-01.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SignedEvent {
    /// Lower-case hex of the SHA-256 of the canonical form.
    pub(super) id: String,
    /// Lower-case hex of the signer's x-only public key.
    pub(super) pubkey: String,
    /// Seconds since 1970.
    pub(super) created_at: u64,
    /// What the event means.
    pub(super) kind: u16,
    /// Lists of strings; the first string names the tag.
    pub(super) tags: Vec<Vec<String>>,
    /// Free text.
    pub(super) content: String,
    /// Lower-case hex of the BIP-340 signature of the id.
    pub(super) sig: String,
}

impl SignedEvent {
    /// Signs an event. Signing takes fresh randomness from the system.
    pub(super) fn sign(
        keys: &Keys,
        kind: u16,
        created_at: u64,
        tags: Vec<Vec<String>>,
        content: String,
    ) -> Self {
        let public_key = keys.inner().public_key();
        let nostr_tags = parse_tags(&tags).expect("an event of ours has no empty tag");
        let id = EventId::new(
            &public_key,
            &Timestamp::from_secs(created_at),
            &Kind::from_u16(kind),
            &nostr_sdk::Tags::from_list(nostr_tags),
            &content,
        );
        let signature = keys.sign_digest(id.to_bytes());
        Self {
            id: id.to_hex(),
            pubkey: public_key.to_hex(),
            created_at,
            kind,
            tags,
            content,
            sig: signature.to_string(),
        }
    }

    /// Reads an event from JSON and checks its shape, not yet its signature.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, EventFault> {
        // By way of a map, because a list of the right length would do as well
        // for a structure.
        let fields: Map<String, Value> =
            serde_json::from_slice(json).map_err(|_| EventFault::Shape)?;
        let event: Self =
            serde_json::from_value(Value::Object(fields)).map_err(|_| EventFault::Shape)?;
        let well_formed = is_lower_hex(&event.id, 64)
            && is_lower_hex(&event.pubkey, 64)
            && is_lower_hex(&event.sig, 128)
            && event.created_at <= LATEST_TIME
            && event.tags.iter().all(|tag| !tag.is_empty());
        if well_formed { Ok(event) } else { Err(EventFault::Shape) }
    }

    /// Checks that the id is the hash of the fields and that the signature is
    /// the named key's.
    pub(super) fn verify(&self) -> Result<(), EventFault> {
        let verified = || -> Option<bool> {
            let event = Event::new(
                EventId::from_hex(&self.id).ok()?,
                PublicKey::from_hex(&self.pubkey).ok()?,
                Timestamp::from_secs(self.created_at),
                Kind::from_u16(self.kind),
                parse_tags(&self.tags)?,
                self.content.clone(),
                self.sig.parse::<Signature>().ok()?,
            );
            Some(event.verify().is_ok())
        };
        if verified() == Some(true) { Ok(()) } else { Err(EventFault::Signature) }
    }

    /// Returns the values of all tags of a name; a tag without a value counts
    /// as an empty one.
    pub(super) fn tag_values(&self, name: &str) -> Vec<&str> {
        self.tags
            .iter()
            .filter(|tag| tag.first().is_some_and(|first| first == name))
            .map(|tag| tag.get(1).map_or("", String::as_str))
            .collect()
    }

    /// Writes the event as compact JSON.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an event is made of strings and numbers")
    }
}

/// Tells whether a text is lower-case hex of exactly this many characters.
pub(super) fn is_lower_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Converts tags for the Nostr library; `None` when one is empty.
fn parse_tags(tags: &[Vec<String>]) -> Option<Vec<Tag>> {
    tags.iter().map(|tag| Tag::parse(tag.iter().cloned()).ok()).collect()
}
