//! JSON Web Tokens: verification and signing, HS256 and ES256.
//!
//! One implementation serves the REST part, Realtime, the functions and login.
//! What a wrong token is called differs between them, so verification returns
//! typed errors ([`JwtError`]); PostgREST's own codes and words are here as
//! well ([`JwtError::code`], [`JwtError::message`], [`JwtError::details`]),
//! Realtime has its own mapping.
//!
//! Invariants: an algorithm is bound to its key (a token cannot choose another
//! one), `none` is refused, and no token or key ever appears in an error.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use ring::{digest, hmac};
use serde_json::{Map, Value, json};

/// Seconds by which clocks may differ before `exp`, `nbf` and `iat` count.
pub const LEEWAY_SECS: i64 = 30;

/// Longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The claims of a verified token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Claims(pub Map<String, Value>);

impl Claims {
    /// Returns the claim `name` when it is a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// Returns the `role` claim when it is a string.
    pub fn role(&self) -> Option<&str> {
        self.text("role")
    }

    /// Returns the `exp` claim in seconds since 1970, when it is a number.
    pub fn expires_at(&self) -> Option<i64> {
        self.0.get("exp").and_then(seconds)
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// There is a `Bearer` scheme with nothing after it.
    #[error("Empty JWT is sent in Authorization header")]
    Missing,
    /// The token has not three parts.
    #[error("Expected 3 parts in JWT; got {parts}")]
    Parts {
        /// Number of parts, separated by dots.
        parts: usize,
    },
    /// The header is not base64url or not a JSON object with `alg`.
    #[error("JWT couldn't be decoded")]
    Malformed,
    /// The algorithm is `none`.
    #[error("Wrong or unsupported encoding algorithm")]
    Unsecured,
    /// No key of ours has this algorithm or key id.
    #[error("No suitable key or wrong key type")]
    NoKey,
    /// A key fits, but the signature does not.
    #[error("No suitable key or wrong key type")]
    BadSignature,
    /// The payload is signed but not a JSON object.
    #[error("Parsing claims failed")]
    MalformedClaims,
    /// A time claim is not a number.
    #[error("The JWT '{claim}' claim must be a number")]
    ClaimNotNumber {
        /// `exp`, `nbf` or `iat`.
        claim: &'static str,
    },
    /// The audience is neither a string nor an array of strings.
    #[error("The JWT 'aud' claim must be a string or an array of strings")]
    AudienceType,
    /// `exp` has passed.
    #[error("JWT expired")]
    Expired {
        /// Seconds since it expired.
        seconds: i64,
    },
    /// `nbf` is still to come.
    #[error("JWT not yet valid")]
    NotYetValid,
    /// `iat` is still to come.
    #[error("JWT issued at future")]
    IssuedInFuture,
    /// `aud` does not name us.
    #[error("JWT not in audience")]
    NotInAudience,
    /// Claims that the caller requires are absent.
    #[error("Required claims are missing from the JWT: {names}")]
    MissingClaims {
        /// The absent names, separated by commas.
        names: String,
    },
}

impl JwtError {
    /// Returns PostgREST's error code: `PGRST301` for what cannot be decoded,
    /// `PGRST303` for claims that do not hold.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing
            | Self::Parts { .. }
            | Self::Malformed
            | Self::Unsecured
            | Self::NoKey
            | Self::BadSignature => "PGRST301",
            _ => "PGRST303",
        }
    }

    /// Returns PostgREST's message, which is also the `error_description` of
    /// `WWW-Authenticate`.
    pub fn message(&self) -> String {
        self.to_string()
    }

    /// Returns PostgREST's `details`, where it gives any.
    pub fn details(&self) -> Option<&'static str> {
        match self {
            Self::Unsecured => Some("JWT is unsecured but expected 'alg' was not 'none'"),
            Self::NoKey => Some("No suitable key was found to decode the JWT"),
            Self::BadSignature => Some("None of the keys was able to decode the JWT"),
            _ => None,
        }
    }
}

/// Why a key or a set of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A symmetric secret is too short to be safe.
    #[error("The token secret has {bytes} bytes; give at least 32")]
    ShortSecret {
        /// Length of the secret given.
        bytes: usize,
    },
    /// The text is not a JWK or JWKS document.
    #[error("The key set is not a JSON Web Key Set: {reason}")]
    Malformed {
        /// What is wrong, without the key itself.
        reason: &'static str,
    },
    /// The private key is refused by the cryptography library.
    #[error("The signing key is not a P-256 private key that can be used")]
    Rejected,
}

/// One key that tokens are verified with.
#[derive(Clone)]
enum VerifyingKey {
    /// A shared secret, HS256.
    Symmetric { kid: Option<String>, key: hmac::Key },
    /// A point on P-256 in uncompressed form, ES256.
    Elliptic { kid: Option<String>, point: Vec<u8> },
}

impl VerifyingKey {
    fn kid(&self) -> Option<&str> {
        match self {
            Self::Symmetric { kid, .. } | Self::Elliptic { kid, .. } => kid.as_deref(),
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Symmetric { .. } => "HS256",
            Self::Elliptic { .. } => "ES256",
        }
    }

    fn verify(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Symmetric { key, .. } => hmac::verify(key, signed, signature).is_ok(),
            Self::Elliptic { point, .. } => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(signed, signature)
                .is_ok(),
        }
    }
}

/// Verifies tokens against a set of keys.
///
/// Share it through an `Arc`: a clone copies the keys.
#[derive(Clone)]
pub struct JwtVerifier {
    keys: Vec<VerifyingKey>,
    audience: Option<String>,
}

impl fmt::Debug for JwtVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtVerifier")
            .field("keys", &self.keys.len())
            .field("audience", &self.audience)
            .finish()
    }
}

impl JwtVerifier {
    /// Makes a verifier for the project's shared secret (HS256).
    pub fn from_secret(secret: &str) -> Result<Self, KeyError> {
        let key = symmetric(secret.as_bytes())?;
        Ok(Self { keys: vec![VerifyingKey::Symmetric { kid: None, key }], audience: None })
    }

    /// Makes a verifier from a JWK Set or a single JWK. Keys of a kind that
    /// is not HS256 or ES256 are left out; a set in which none remains is an
    /// error.
    pub fn from_jwks(document: &str) -> Result<Self, KeyError> {
        let value: Value = serde_json::from_str(document)
            .map_err(|_| KeyError::Malformed { reason: "it is not JSON" })?;
        let jwks = match value.get("keys").and_then(Value::as_array) {
            Some(list) => list.clone(),
            None => vec![value],
        };
        let mut keys = Vec::new();
        for jwk in &jwks {
            if let Some(key) = parse_jwk(jwk)? {
                keys.push(key);
            }
        }
        if keys.is_empty() {
            return Err(KeyError::Malformed { reason: "it holds no HS256 or ES256 key" });
        }
        Ok(Self { keys, audience: None })
    }

    /// Adds the keys of `other`, so that tokens of either are accepted.
    pub fn with_keys_of(mut self, other: Self) -> Self {
        self.keys.extend(other.keys);
        self
    }

    /// Requires `audience` to be among a token's `aud`, where it has one.
    pub fn with_audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// Verifies signature and time claims as PostgREST does, with a leeway of
    /// [`LEEWAY_SECS`].
    pub fn verify(&self, token: &str) -> Result<Claims, JwtError> {
        let claims = self.verify_signature(token)?;
        self.check_claims(&claims, LEEWAY_SECS)?;
        Ok(claims)
    }

    /// Verifies the signature only. Callers with their own words for the rest
    /// go on with [`JwtVerifier::check_claims`] and [`require_claims`].
    pub fn verify_signature(&self, token: &str) -> Result<Claims, JwtError> {
        if token.is_empty() {
            return Err(JwtError::Missing);
        }
        let parts = token.split('.').count();
        if parts != 3 {
            return Err(JwtError::Parts { parts });
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(JwtError::Malformed)?;
        let header: Map<String, Value> = decode_json(header).ok_or(JwtError::Malformed)?;
        let algorithm = header.get("alg").and_then(Value::as_str).ok_or(JwtError::Malformed)?;
        if algorithm.eq_ignore_ascii_case("none") {
            return Err(JwtError::Unsecured);
        }
        let kid = header.get("kid").and_then(Value::as_str);
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtError::Malformed)?;
        let mut fits = false;
        for key in &self.keys {
            let same_kid = match (kid, key.kid()) {
                (Some(ours), Some(theirs)) => ours == theirs,
                // A key without an id is the legacy secret; a token with an id was not made
                // with it, unless ids are not in use at all.
                (Some(_), None) => self.keys.len() == 1,
                (None, _) => true,
            };
            if key.algorithm() != algorithm || !same_kid {
                continue;
            }
            fits = true;
            if key.verify(signed.as_bytes(), &signature) {
                let claims = decode_json(payload).ok_or(JwtError::MalformedClaims)?;
                return Ok(Claims(claims));
            }
        }
        Err(if fits { JwtError::BadSignature } else { JwtError::NoKey })
    }

    /// Checks `exp`, `nbf`, `iat` and `aud` against the clock, allowing
    /// `leeway_secs` of difference.
    pub fn check_claims(&self, claims: &Claims, leeway_secs: i64) -> Result<(), JwtError> {
        let now = now_secs();
        if let Some(exp) = time_claim(claims, "exp")?
            && now - leeway_secs > exp
        {
            return Err(JwtError::Expired { seconds: now - exp });
        }
        if let Some(nbf) = time_claim(claims, "nbf")?
            && now + leeway_secs < nbf
        {
            return Err(JwtError::NotYetValid);
        }
        if let Some(iat) = time_claim(claims, "iat")?
            && now + leeway_secs < iat
        {
            return Err(JwtError::IssuedInFuture);
        }
        let accepts = |name: &str| self.audience.as_deref().is_none_or(|ours| ours == name);
        let accepted = match claims.0.get("aud") {
            None | Some(Value::Null) => true,
            Some(Value::String(name)) => accepts(name),
            Some(Value::Array(names)) => {
                let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
                let names = names.ok_or(JwtError::AudienceType)?;
                names.is_empty() || names.into_iter().any(accepts)
            }
            Some(_) => return Err(JwtError::AudienceType),
        };
        if accepted { Ok(()) } else { Err(JwtError::NotInAudience) }
    }
}

/// Requires all of `names` to be present and not null.
pub fn require_claims(claims: &Claims, names: &[&str]) -> Result<(), JwtError> {
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| claims.0.get(*name).is_none_or(Value::is_null))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(JwtError::MissingClaims { names: missing.join(", ") })
    }
}

/// Signs claims with the project's shared secret (HS256).
pub fn sign_hs256(claims: &Map<String, Value>, secret: &str) -> Result<String, KeyError> {
    let key = symmetric(secret.as_bytes())?;
    let signed = signing_input(&json!({"alg": "HS256", "typ": "JWT"}), claims);
    let signature = hmac::sign(&key, signed.as_bytes());
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// A P-256 private key that signs tokens (ES256).
pub struct Es256Key {
    kid: String,
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl fmt::Debug for Es256Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Es256Key").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Es256Key {
    /// Makes a new key and returns its PKCS#8 document, which is secret.
    pub fn generate() -> Result<Vec<u8>, KeyError> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| KeyError::Rejected)?;
        Ok(document.as_ref().to_vec())
    }

    /// Reads a PKCS#8 document (DER). Without `kid` the key's id is its
    /// RFC 7638 thumbprint.
    pub fn from_pkcs8(document: &[u8], kid: Option<String>) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document, &random)
            .map_err(|_| KeyError::Rejected)?;
        Ok(Self::with_pair(pair, kid, random))
    }

    /// Reads a private JWK, as `supabase gen signing-key --algorithm ES256`
    /// prints it.
    pub fn from_jwk(document: &str) -> Result<Self, KeyError> {
        let jwk: Value = serde_json::from_str(document)
            .map_err(|_| KeyError::Malformed { reason: "it is not JSON" })?;
        let Some(VerifyingKey::Elliptic { kid, point }) = parse_jwk(&jwk)? else {
            return Err(KeyError::Malformed { reason: "it is not an ES256 key" });
        };
        let private = jwk
            .get("d")
            .and_then(Value::as_str)
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
            .ok_or(KeyError::Malformed { reason: "it has no private part" })?;
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &private,
            &point,
            &random,
        )
        .map_err(|_| KeyError::Rejected)?;
        Ok(Self::with_pair(pair, kid, random))
    }

    fn with_pair(pair: EcdsaKeyPair, kid: Option<String>, random: SystemRandom) -> Self {
        let kid = kid.unwrap_or_else(|| thumbprint(pair.public_key().as_ref()));
        Self { kid, pair, random }
    }

    /// Returns the key's id, the `kid` of its tokens.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Returns the public half as a JWK, for a JWK Set.
    pub fn public_jwk(&self) -> Value {
        let (x, y) = coordinates(self.pair.public_key().as_ref());
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "key_ops": ["verify"],
               "kid": self.kid, "x": x, "y": y})
    }

    /// Signs claims (ES256, with the key's id in the header).
    pub fn sign(&self, claims: &Map<String, Value>) -> Result<String, KeyError> {
        let header = json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"});
        let signed = signing_input(&header, claims);
        let signature =
            self.pair.sign(&self.random, signed.as_bytes()).map_err(|_| KeyError::Rejected)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Signs claims with a P-256 key (ES256).
pub fn sign_es256(claims: &Map<String, Value>, key: &Es256Key) -> Result<String, KeyError> {
    key.sign(claims)
}

/// Returns the token of an `Authorization` header: `None` without a `Bearer`
/// scheme (whose name has no case), an empty text when nothing follows it.
pub fn bearer_token(authorization: &str) -> Option<&str> {
    let trimmed = authorization.trim_start();
    let scheme = trimmed.split(char::is_whitespace).next().unwrap_or_default();
    scheme.eq_ignore_ascii_case("bearer").then(|| trimmed[scheme.len()..].trim())
}

/// Makes the HMAC key of a shared secret, refusing short ones.
fn symmetric(secret: &[u8]) -> Result<hmac::Key, KeyError> {
    if secret.len() < 32 {
        return Err(KeyError::ShortSecret { bytes: secret.len() });
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, secret))
}

/// Reads one JWK; `None` for a kind or algorithm that is not verified here.
fn parse_jwk(jwk: &Value) -> Result<Option<VerifyingKey>, KeyError> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| text(name).and_then(|value| URL_SAFE_NO_PAD.decode(value).ok());
    let kid = text("kid").map(str::to_owned);
    match (text("kty"), text("alg"), text("crv")) {
        (Some("oct"), None | Some("HS256"), _) => {
            let secret = bytes("k").ok_or(KeyError::Malformed { reason: "an oct key has no k" })?;
            Ok(Some(VerifyingKey::Symmetric { kid, key: symmetric(&secret)? }))
        }
        (Some("EC"), None | Some("ES256"), Some("P-256")) => {
            let (Some(x), Some(y)) = (bytes("x"), bytes("y")) else {
                return Err(KeyError::Malformed { reason: "an EC key has no x or y" });
            };
            if x.len() != 32 || y.len() != 32 {
                return Err(KeyError::Malformed { reason: "an EC key has x or y of a wrong size" });
            }
            let point = [&[4][..], &x, &y].concat();
            Ok(Some(VerifyingKey::Elliptic { kid, point }))
        }
        (Some(_), ..) => Ok(None),
        (None, ..) => Err(KeyError::Malformed { reason: "a key has no kty" }),
    }
}

/// Joins header and claims, encoded, as the text that is signed.
fn signing_input(header: &Value, claims: &Map<String, Value>) -> String {
    let claims = serde_json::to_vec(claims).expect("a JSON map always serialises");
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims))
}

/// Splits an uncompressed point into base64url coordinates.
fn coordinates(point: &[u8]) -> (String, String) {
    (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..65]))
}

/// Computes the RFC 7638 thumbprint of a P-256 public key.
fn thumbprint(point: &[u8]) -> String {
    let (x, y) = coordinates(point);
    let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, canonical.as_bytes()))
}

/// Decodes a base64url part that must be a JSON object.
fn decode_json(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Reads a time claim; absent and null count as not there.
fn time_claim(claims: &Claims, claim: &'static str) -> Result<Option<i64>, JwtError> {
    match claims.0.get(claim) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => seconds(value).map(Some).ok_or(JwtError::ClaimNotNumber { claim }),
    }
}

/// Reads a JSON number as whole seconds, cutting off a fraction.
fn seconds(value: &Value) -> Option<i64> {
    let number = value.as_number()?;
    // A number beyond i64 saturates, which is what a far future needs.
    number.as_i64().or_else(|| number.as_f64().map(|float| float as i64))
}

/// Returns the seconds since 1970 of this machine's clock.
fn now_secs() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "super-secret-jwt-token-with-at-least-32-characters-long";

    fn claims(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_signed_token_is_verified() {
        let verifier = JwtVerifier::from_secret(SECRET).unwrap();
        let wanted = claims(json!({"role": "authenticated", "sub": "u1", "exp": 4102444800_i64}));
        let token = sign_hs256(&wanted, SECRET).unwrap();
        let got = verifier.verify(&token).unwrap();
        assert_eq!(got.0, wanted);
        assert_eq!(got.role(), Some("authenticated"));
        assert_eq!(got.expires_at(), Some(4102444800));
    }

    #[test]
    fn an_elliptic_key_signs_and_verifies_by_kid() {
        let key = Es256Key::from_pkcs8(&Es256Key::generate().unwrap(), None).unwrap();
        let set = json!({"keys": [key.public_jwk()]}).to_string();
        let verifier = JwtVerifier::from_jwks(&set)
            .unwrap()
            .with_keys_of(JwtVerifier::from_secret(SECRET).unwrap());
        let wanted = claims(json!({"role": "anon"}));
        assert_eq!(verifier.verify(&key.sign(&wanted).unwrap()).unwrap().0, wanted);
        assert!(verifier.verify(&sign_hs256(&wanted, SECRET).unwrap()).is_ok());
        let other = Es256Key::from_pkcs8(&Es256Key::generate().unwrap(), None).unwrap();
        assert_eq!(verifier.verify(&other.sign(&wanted).unwrap()), Err(JwtError::NoKey));
        let same_kid =
            Es256Key::from_pkcs8(&Es256Key::generate().unwrap(), Some(key.kid().into())).unwrap();
        assert_eq!(verifier.verify(&same_kid.sign(&wanted).unwrap()), Err(JwtError::BadSignature));
    }

    #[test]
    fn a_public_key_is_no_shared_secret() {
        let key = Es256Key::from_pkcs8(&Es256Key::generate().unwrap(), None).unwrap();
        let public = key.public_jwk();
        let verifier = JwtVerifier::from_jwks(&public.to_string()).unwrap();
        let forged = sign_hs256(&claims(json!({"role": "service_role"})), &public.to_string());
        assert_eq!(verifier.verify(&forged.unwrap()), Err(JwtError::NoKey));
    }

    #[test]
    fn a_private_jwk_is_read() {
        // Appendix A.3 of RFC 7515, with the algorithm named.
        let document = r#"{"kty":"EC","crv":"P-256","alg":"ES256",
            "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            "d":"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"}"#;
        let key = Es256Key::from_jwk(document).unwrap();
        let verifier = JwtVerifier::from_jwks(&key.public_jwk().to_string()).unwrap();
        let token = sign_es256(&claims(json!({"role": "anon"})), &key).unwrap();
        assert!(verifier.verify(&token).is_ok());
    }

    #[test]
    fn times_have_a_leeway() {
        let verifier = JwtVerifier::from_secret(SECRET).unwrap();
        let now = now_secs();
        let check = |value: Value| verifier.verify(&sign_hs256(&claims(value), SECRET).unwrap());
        assert!(check(json!({"exp": now - 20})).is_ok());
        assert!(matches!(check(json!({"exp": now - 40})), Err(JwtError::Expired { .. })));
        assert!(check(json!({"exp": now as f64 + 60.5})).is_ok());
        assert!(check(json!({"nbf": now + 20})).is_ok());
        assert_eq!(check(json!({"nbf": now + 40})), Err(JwtError::NotYetValid));
        assert_eq!(check(json!({"iat": now + 40})), Err(JwtError::IssuedInFuture));
        assert_eq!(check(json!({"exp": "x"})), Err(JwtError::ClaimNotNumber { claim: "exp" }));
        assert_eq!(check(json!({"aud": 5})), Err(JwtError::AudienceType));
    }

    #[test]
    fn bearer_tokens_are_found() {
        assert_eq!(bearer_token("Bearer a.b.c"), Some("a.b.c"));
        assert_eq!(bearer_token("bearer   a.b.c "), Some("a.b.c"));
        assert_eq!(bearer_token("Bearer"), Some(""));
        assert_eq!(bearer_token("Basic abc"), None);
        assert_eq!(bearer_token("a.b.c"), None);
    }

    #[test]
    fn short_secrets_are_refused() {
        assert!(matches!(
            JwtVerifier::from_secret("short"),
            Err(KeyError::ShortSecret { bytes: 5 })
        ));
    }
}
