//! Signs the tokens of a login.

use std::fmt;

use serde_json::{Map, Value};

use crate::control::session::LoginKind;
use crate::stack::jwt::{Es256Key, KeyError, sign_hs256};

/// What tokens are signed with.
pub enum TokenSigner {
    /// The project's shared secret, HS256.
    Secret(String),
    /// An imported P-256 key, ES256.
    Key(Box<Es256Key>),
}

impl TokenSigner {
    /// Signs the token of a login. Times are in seconds since 1970.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when the secret or key cannot sign.
    pub fn sign(
        &self,
        subject: uuid::Uuid,
        kind: LoginKind,
        public_key: &str,
        issued_at: u64,
        expires_at: u64,
    ) -> Result<String, KeyError> {
        let claims: Map<String, Value> = [
            ("sub", Value::from(subject.to_string())),
            ("role", Value::from("authenticated")),
            ("pubkey", Value::from(public_key)),
            ("kind", Value::from(kind.as_str())),
            ("iat", Value::from(issued_at)),
            ("exp", Value::from(expires_at)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        match self {
            Self::Secret(secret) => sign_hs256(&claims, secret),
            Self::Key(key) => key.sign(&claims),
        }
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Secret(_) => "TokenSigner::Secret",
            Self::Key(_) => "TokenSigner::Key",
        })
    }
}
