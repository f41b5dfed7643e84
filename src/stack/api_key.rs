//! API keys: maps `apikey: sb_publishable_…` and `sb_secret_…` to the tokens
//! of the roles `anon` and `service_role`, as Supabase's gateway does.
//!
//! Used by the REST part, Realtime and the functions, in front of
//! [`jwt`](super::jwt). An `Authorization` header with a real token always
//! wins; a key that is not one of ours is taken for a token itself (the legacy
//! kind of key) and is judged by its signature.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use ring::hmac;
use ring::rand::SystemRandom;

use crate::stack::jwt::{self, KeyError};

/// The header that carries the key.
pub const API_KEY_HEADER: HeaderName = HeaderName::from_static("apikey");

/// The project's keys and the tokens that they stand for.
#[derive(Clone)]
pub struct ApiKeys {
    publishable: String,
    secret: String,
    anon_token: String,
    service_token: String,
    /// Compares in constant time: both sides are hashed under a random key.
    comparison: hmac::Key,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeys").field("publishable", &self.publishable).finish_non_exhaustive()
    }
}

impl ApiKeys {
    /// Holds the two keys and the tokens of `anon` and `service_role`.
    pub fn new(
        publishable: impl Into<String>,
        secret: impl Into<String>,
        anon_token: impl Into<String>,
        service_token: impl Into<String>,
    ) -> Result<Self, KeyError> {
        let comparison = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| KeyError::Rejected)?;
        Ok(Self {
            publishable: publishable.into(),
            secret: secret.into(),
            anon_token: anon_token.into(),
            service_token: service_token.into(),
            comparison,
        })
    }

    /// Returns the publishable key, which is not secret.
    pub fn publishable(&self) -> &str {
        &self.publishable
    }

    /// Returns the token that `key` stands for: of ours that of the role, else
    /// the key itself.
    pub fn token_for<'a>(&'a self, key: &'a str) -> &'a str {
        // Both comparisons always run, so that timing says nothing.
        let is_secret = self.same(key, &self.secret);
        let is_publishable = self.same(key, &self.publishable);
        if is_secret {
            &self.service_token
        } else if is_publishable {
            &self.anon_token
        } else {
            key
        }
    }

    /// Returns the token of a request: that of `Authorization` unless it is
    /// absent or carries an `sb_` key, else what `apikey` stands for. `None`
    /// when there is neither.
    pub fn token_of_request<'a>(&'a self, headers: &'a HeaderMap) -> Option<&'a str> {
        let authorization =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if let Some(token) = authorization.and_then(jwt::bearer_token)
            && !is_opaque_key(token)
        {
            return Some(token);
        }
        if let Some(key) = headers.get(&API_KEY_HEADER).and_then(|value| value.to_str().ok()) {
            return Some(self.token_for(key));
        }
        None
    }

    /// Rewrites `Authorization` as the gateway does: an existing value that is
    /// not `Bearer sb_…` is left alone, else it becomes the token that
    /// `apikey` stands for.
    pub fn rewrite(&self, headers: &mut HeaderMap) {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let opaque = value.to_str().ok().and_then(jwt::bearer_token).is_some_and(is_opaque_key);
            if !opaque {
                return;
            }
        }
        let Some(key) = headers.get(&API_KEY_HEADER).and_then(|value| value.to_str().ok()) else {
            return;
        };
        let bearer = format!("Bearer {}", self.token_for(key));
        if let Ok(mut value) = HeaderValue::from_str(&bearer) {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
    }

    fn same(&self, given: &str, ours: &str) -> bool {
        let tag = hmac::sign(&self.comparison, ours.as_bytes());
        hmac::verify(&self.comparison, given.as_bytes(), tag.as_ref()).is_ok()
    }
}

/// Says whether `token` is one of the new keys, which are never tokens.
fn is_opaque_key(token: &str) -> bool {
    token.starts_with("sb_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> ApiKeys {
        ApiKeys::new("sb_publishable_a", "sb_secret_b", "anon.token.x", "service.token.x").unwrap()
    }

    fn rewritten(pairs: &[(&'static str, &'static str)]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        keys().rewrite(&mut headers);
        headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn keys_become_tokens() {
        let bearer = |token: &str| Some(format!("Bearer {token}"));
        assert_eq!(rewritten(&[]), None);
        assert_eq!(rewritten(&[("apikey", "sb_publishable_a")]), bearer("anon.token.x"));
        assert_eq!(rewritten(&[("apikey", "sb_secret_b")]), bearer("service.token.x"));
        assert_eq!(rewritten(&[("apikey", "legacy.jwt.key")]), bearer("legacy.jwt.key"));
        assert_eq!(
            rewritten(&[("apikey", "sb_secret_b"), ("authorization", "Bearer user.jwt.x")]),
            bearer("user.jwt.x")
        );
        assert_eq!(
            rewritten(&[
                ("apikey", "sb_publishable_a"),
                ("authorization", "Bearer sb_publishable_a")
            ]),
            bearer("anon.token.x")
        );
        assert_eq!(rewritten(&[("authorization", "Basic abc")]), Some("Basic abc".into()));
    }

    #[test]
    fn the_debug_form_has_no_secret() {
        assert!(!format!("{:?}", keys()).contains("sb_secret_b"));
    }
}
