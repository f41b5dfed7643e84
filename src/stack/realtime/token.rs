//! Access tokens, in Realtime's words. Unlike PostgREST, Realtime allows no
//! difference of clocks: a token is over at the second that it names.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use thiserror::Error;

use crate::stack::jwt::{JwtError, JwtVerifier};

/// A verified token.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// The database role that the bearer acts as.
    pub(super) role: String,
    /// When the token ends, in seconds since 1970.
    pub(super) expires_at: i64,
    /// Everything that it says, for the policies.
    pub(super) claims: Map<String, Value>,
}

/// Why a token is refused. The texts are those of the real server.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum TokenError {
    /// It is no token.
    #[error("The token provided is not a valid JWT")]
    Malformed,
    /// It was signed with another key.
    #[error("Failed to validate JWT signature")]
    Signature,
    /// No key of ours has its algorithm or key id.
    #[error("Failed to generate JWT signer, check your JWT secret or JWKS")]
    Signer,
    /// It is over.
    #[error("Token has expired {seconds} seconds ago")]
    Expired {
        /// For how long.
        seconds: i64,
    },
    /// It lacks a claim that Realtime needs.
    #[error("Fields `role` and `exp` are required in JWT")]
    MissingClaims,
}

impl TokenError {
    /// Returns the code that stands before the text where a join is refused.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "MalformedJWT",
            Self::Signature => "JwtSignatureError",
            Self::Signer => "JwtSignerError",
            Self::Expired { .. } | Self::MissingClaims => "InvalidJWTToken",
        }
    }

    /// Returns the text of a refused handshake.
    pub(super) fn handshake_text(&self) -> String {
        match self {
            Self::Expired { .. } => "Token has expired".to_owned(),
            other => other.to_string(),
        }
    }

    /// Returns the text of the system message that ends a channel.
    pub(super) fn refresh_text(&self) -> String {
        match self {
            // The real server shows an inspected atom here.
            Self::Signature => ":signature_error".to_owned(),
            other => other.to_string(),
        }
    }
}

/// Returns the milliseconds since 1970.
pub(super) fn now_millis() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |passed| i64::try_from(passed.as_millis()).unwrap_or(i64::MAX))
}

/// Returns the seconds since 1970.
pub(super) fn now_secs() -> i64 {
    now_millis() / 1000
}

/// Verifies a token: signature, then `exp`, then the claims that must be there.
pub(super) fn verify(verifier: &JwtVerifier, token: &str) -> Result<Access, TokenError> {
    let claims = verifier.verify_signature(token).map_err(|error| match error {
        JwtError::BadSignature => TokenError::Signature,
        JwtError::NoKey | JwtError::Unsecured => TokenError::Signer,
        _ => TokenError::Malformed,
    })?;
    let expires_at = claims.expires_at();
    let now = now_secs();
    if let Some(expires_at) = expires_at
        && expires_at <= now
    {
        return Err(TokenError::Expired { seconds: now - expires_at });
    }
    match (claims.role(), expires_at) {
        (Some(role), Some(expires_at)) => {
            Ok(Access { role: role.to_owned(), expires_at, claims: claims.0 })
        }
        _ => Err(TokenError::MissingClaims),
    }
}
