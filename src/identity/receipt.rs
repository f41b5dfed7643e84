//! Receipts: what a node signs about an attempt that it completed.
//!
//! SQL checks the fields of a receipt against its own rows (`complete_attempt`);
//! the signature is checked here, offline, by `infernet verify` and by anybody
//! with a Nostr library.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Keys;
use super::event::{EventFault, SignedEvent, is_lower_hex};

/// The kind of a receipt's event.
pub const RECEIPT_EVENT_KIND: u16 = 27_237;

/// What a node states about a completed attempt: the content of the event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The base URL of the control plane that assigned the attempt.
    pub url: String,
    /// The job.
    pub job: uuid::Uuid,
    /// The attempt of that job.
    pub attempt: uuid::Uuid,
    /// The node's public key, 64 hex digits.
    pub node: String,
    /// The model's name.
    pub model: String,
    /// The digest of the model as the node offers it, where it has one.
    pub model_digest: Option<String>,
    /// Hex SHA-256 of the input as `start_attempt` names it.
    pub input_sha256: String,
    /// Hex SHA-256 of the UTF-8 output.
    pub output_sha256: String,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Price of input in USD per million tokens, as SQL wrote it.
    pub price_input: String,
    /// Price of output in USD per million tokens, as SQL wrote it.
    pub price_output: String,
    /// Seconds that a container ran; only of a container job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Price in USD of a second, as SQL wrote it; only of a container job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_second: Option<String>,
    /// How the output ended: `stop`, `length` or `cancelled`.
    pub finish: String,
}

/// A receipt whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedReceipt {
    /// The event's id, 64 hex digits.
    pub event_id: String,
    /// When the node says that it signed, seconds since 1970.
    pub signed_at: u64,
    /// What it states.
    pub receipt: Receipt,
}

/// Why a receipt proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// The event itself is malformed or not signed by its key.
    #[error("The receipt is not genuine: {0}.")]
    Event(#[from] EventFault),
    /// The event is something else.
    #[error("This is an event of kind {kind}, not a receipt (27237).")]
    WrongKind {
        /// The kind of the event.
        kind: u16,
    },
    /// The content lacks fields or has others.
    #[error("The receipt's content is not that of a receipt.")]
    Content(#[source] serde_json::Error),
    /// The content names another node than the one that signed.
    #[error("The receipt speaks of node {named}, but is signed by {signer}.")]
    WrongNode {
        /// The node in the content.
        named: String,
        /// The key that signed.
        signer: String,
    },
    /// A hash is not one.
    #[error("The receipt's {field} is not a SHA-256 in hex.")]
    BadHash {
        /// The field.
        field: &'static str,
    },
}

impl Receipt {
    /// Signs the receipt and returns the event, as `complete_attempt` takes it.
    ///
    /// `now` is in seconds since 1970. The caller has set `node` to the public
    /// key of `keys`, or the receipt will not verify.
    pub fn sign(&self, keys: &Keys, now: u64) -> Value {
        let content =
            serde_json::to_string(self).expect("a receipt is made of strings and numbers");
        let event = SignedEvent::sign(keys, RECEIPT_EVENT_KIND, now, Vec::new(), content);
        serde_json::to_value(event).expect("an event is made of strings and numbers")
    }

    /// Checks a receipt offline: shape, kind, id, signature and fields.
    ///
    /// Whether its numbers are those of the job is for the caller to compare.
    ///
    /// # Errors
    ///
    /// Says what about the receipt is not as it must be.
    pub fn verify(event: &Value) -> Result<VerifiedReceipt, ReceiptError> {
        let event = SignedEvent::from_json(event.to_string().as_bytes())?;
        if event.kind != RECEIPT_EVENT_KIND {
            return Err(ReceiptError::WrongKind { kind: event.kind });
        }
        event.verify()?;
        let receipt: Self = serde_json::from_str(&event.content).map_err(ReceiptError::Content)?;
        if receipt.node != event.pubkey {
            return Err(ReceiptError::WrongNode { named: receipt.node, signer: event.pubkey });
        }
        for (field, hash) in
            [("input_sha256", &receipt.input_sha256), ("output_sha256", &receipt.output_sha256)]
        {
            if !is_lower_hex(hash, 64) {
                return Err(ReceiptError::BadHash { field });
            }
        }
        Ok(VerifiedReceipt { event_id: event.id, signed_at: event.created_at, receipt })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::sha256_hex;
    use super::*;

    fn receipt(keys: &Keys) -> Receipt {
        Receipt {
            url: "https://plane.example".into(),
            job: uuid::Uuid::from_u128(1),
            attempt: uuid::Uuid::from_u128(2),
            node: keys.public_hex(),
            model: "smollm2:135m".into(),
            model_digest: Some("sha256:00".into()),
            input_sha256: sha256_hex(b"in"),
            output_sha256: sha256_hex("außen".as_bytes()),
            input_tokens: 12,
            output_tokens: 34,
            price_input: "0.010000000000".into(),
            price_output: "0.020000000000".into(),
            seconds: None,
            price_second: None,
            finish: "stop".into(),
        }
    }

    #[test]
    fn a_signed_receipt_verifies_and_says_what_was_signed() {
        let keys = Keys::generate();
        let made = receipt(&keys);
        let verified = Receipt::verify(&made.sign(&keys, 1_790_000_000)).unwrap();
        assert_eq!(verified.receipt, made);
        assert_eq!(verified.signed_at, 1_790_000_000);
        let without_digest = Receipt { model_digest: None, ..made };
        Receipt::verify(&without_digest.sign(&keys, 1)).unwrap();
    }

    #[test]
    fn a_changed_receipt_is_not_genuine() {
        let keys = Keys::generate();
        let event = receipt(&keys).sign(&keys, 1_790_000_000);
        let cheaper = receipt(&keys);
        let cheaper = Receipt { output_tokens: 3400, ..cheaper };
        for (field, value) in [
            ("content", Value::from(serde_json::to_string(&cheaper).unwrap())),
            ("created_at", Value::from(1_790_000_001)),
            ("pubkey", Value::from(Keys::generate().public_hex())),
            ("id", Value::from("0".repeat(64))),
            ("sig", Value::from("0".repeat(128))),
        ] {
            let mut forged = event.clone();
            forged[field] = value;
            let error = Receipt::verify(&forged).unwrap_err();
            assert!(
                matches!(error, ReceiptError::Event(EventFault::Signature)),
                "{field}: {error}"
            );
        }
        let mut shapeless = event.clone();
        shapeless["sig"] = Value::from("F".repeat(128));
        assert!(matches!(Receipt::verify(&shapeless), Err(ReceiptError::Event(EventFault::Shape))));
        assert!(matches!(
            Receipt::verify(&Value::Null),
            Err(ReceiptError::Event(EventFault::Shape))
        ));
    }

    #[test]
    fn a_receipt_for_another_node_or_with_odd_fields_is_refused() {
        let keys = Keys::generate();
        let other = Receipt { node: Keys::generate().public_hex(), ..receipt(&keys) };
        assert!(matches!(
            Receipt::verify(&other.sign(&keys, 1)),
            Err(ReceiptError::WrongNode { .. })
        ));
        let unhashed = Receipt { output_sha256: "abc".into(), ..receipt(&keys) };
        assert!(matches!(
            Receipt::verify(&unhashed.sign(&keys, 1)),
            Err(ReceiptError::BadHash { field: "output_sha256" })
        ));
        let event = SignedEvent::sign(&keys, RECEIPT_EVENT_KIND, 1, Vec::new(), "{}".into());
        let event = serde_json::to_value(event).unwrap();
        assert!(matches!(Receipt::verify(&event), Err(ReceiptError::Content(_))));
        let login = SignedEvent::sign(&keys, 27_235, 1, Vec::new(), "{}".into());
        let login = serde_json::to_value(login).unwrap();
        assert!(matches!(Receipt::verify(&login), Err(ReceiptError::WrongKind { kind: 27_235 })));
    }
}
