//! Public keys as people write them.

use std::fmt;
use std::str::FromStr;

/// A public key: who somebody is to everybody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(String);

/// The text is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("This is not a public key: it must be npub1… or 64 hex digits.")]
pub struct NotAPublicKey;

impl PublicKey {
    /// Returns the key as 64 lower-case hex digits, the form that the control
    /// plane keeps.
    pub fn as_hex(&self) -> &str {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = NotAPublicKey;

    /// Reads `npub1…` or 64 hex digits, with surrounding white space.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        nostr_sdk::PublicKey::parse(text.trim())
            .map(|key| Self(key.to_hex()))
            .map_err(|_| NotAPublicKey)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Keys;
    use super::*;

    #[test]
    fn both_forms_are_the_same_key() {
        let keys = Keys::generate();
        let hex: PublicKey = keys.public_hex().parse().unwrap();
        let npub: PublicKey = format!(" {}\n", keys.npub()).parse().unwrap();
        assert_eq!(hex, npub);
        assert_eq!(hex.as_hex(), keys.public_hex());
        assert_eq!("nsec1".parse::<PublicKey>(), Err(NotAPublicKey));
    }
}
