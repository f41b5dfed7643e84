//! The secrets of an embedded control plane: made once, kept in one file that
//! only its owner may read.
//!
//! Everything here is shown to the operator who asks `infernet up` for it and to
//! nobody else: no secret appears in a log, an error, an argument or a URL that
//! is logged.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    data_dir::{DataDir, DataDirError, read_private, write_private},
    jwt::{KeyError, sign_hs256},
};

/// How long the tokens of the legacy keys hold: ten years, in seconds, as on
/// Supabase.
const LEGACY_TOKEN_SECS: i64 = 10 * 365 * 24 * 3600;

/// Why the secrets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The file does not work.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The operating system gives no random bytes.
    #[error("The operating system gives no random bytes")]
    NoRandomness,
    /// The secret of the tokens is unusable.
    #[error("The JWT secret in the data directory cannot be used")]
    Key(#[from] KeyError),
}

/// The secrets, as the file holds them.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// Signs and verifies tokens (HS256).
    pub jwt_secret: String,
    /// The key of anonymous callers; public.
    pub publishable_key: String,
    /// The key that bypasses row level security.
    pub secret_key: String,
    /// The token that the publishable key stands for; public.
    pub anon_key: String,
    /// The token that the secret key stands for.
    pub service_role_key: String,
    /// Password of the cluster's superuser.
    pub superuser_password: String,
    /// Password of `postgres`, the owner of the schema.
    pub postgres_password: String,
    /// Password of `authenticator`, as which the gateway connects.
    pub authenticator_password: String,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("publishable_key", &self.publishable_key)
            .finish_non_exhaustive()
    }
}

impl Secrets {
    /// Reads the secrets of `data`, and makes them first if there are none. The
    /// caller holds the lock of `data`.
    pub fn load_or_create(data: &DataDir) -> Result<Self, SecretsError> {
        let path = data.secrets();
        if let Some(text) = read_private(&path)? {
            // The parser's own words could quote the content.
            return serde_json::from_str(&text).map_err(|error| {
                let reason = format!("line {}, column {}", error.line(), error.column());
                DataDirError::Malformed { path, reason }.into()
            });
        }
        let secrets = Self::generate()?;
        let text = serde_json::to_string_pretty(&secrets).expect("text fields become JSON");
        write_private(&path, text.as_bytes())?;
        Ok(secrets)
    }

    /// Makes new secrets.
    fn generate() -> Result<Self, SecretsError> {
        let random = SystemRandom::new();
        let jwt_secret = random_text::<40>(&random)?;
        Ok(Self {
            publishable_key: api_key("sb_publishable_", &random)?,
            secret_key: api_key("sb_secret_", &random)?,
            anon_key: legacy_token("anon", &jwt_secret)?,
            service_role_key: legacy_token("service_role", &jwt_secret)?,
            jwt_secret,
            superuser_password: random_hex(&random)?,
            postgres_password: random_hex(&random)?,
            authenticator_password: random_hex(&random)?,
        })
    }
}

/// Signs the token that a legacy key is.
fn legacy_token(role: &str, jwt_secret: &str) -> Result<String, KeyError> {
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({
        "iss": "infernet", "role": role, "iat": now, "exp": now + LEGACY_TOKEN_SECS,
    });
    let claims = claims.as_object().expect("the literal above is an object");
    sign_hs256(claims, jwt_secret)
}

/// Makes a key of Supabase's shape: the prefix, 22 characters of chance, `_`, and
/// 8 characters that show a typing error.
fn api_key(prefix: &str, random: &SystemRandom) -> Result<String, SecretsError> {
    let body = format!("{prefix}{}", random_text::<16>(random)?);
    let sum = digest::digest(&digest::SHA256, body.as_bytes());
    let sum = URL_SAFE_NO_PAD.encode(&sum.as_ref()[..6]);
    Ok(format!("{body}_{sum}"))
}

/// Returns `N` random bytes in base64url.
fn random_text<const N: usize>(random: &SystemRandom) -> Result<String, SecretsError> {
    let mut bytes = [0; N];
    random.fill(&mut bytes).map_err(|_| SecretsError::NoRandomness)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Returns a password that needs no quoting in SQL or a URL.
fn random_hex(random: &SystemRandom) -> Result<String, SecretsError> {
    let mut bytes = [0; 24];
    random.fill(&mut bytes).map_err(|_| SecretsError::NoRandomness)?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn secrets_are_made_once_and_are_private() {
        let temporary = tempfile::tempdir().unwrap();
        let data = DataDir::create(temporary.path()).unwrap();
        let first = Secrets::load_or_create(&data).unwrap();
        let second = Secrets::load_or_create(&data).unwrap();
        assert_eq!(first.jwt_secret, second.jwt_secret);
        assert_eq!(first.service_role_key, second.service_role_key);
        let mode = std::fs::metadata(data.secrets()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn keys_have_the_shape_of_supabase() {
        let secrets = Secrets::generate().unwrap();
        for (key, prefix) in
            [(&secrets.publishable_key, "sb_publishable_"), (&secrets.secret_key, "sb_secret_")]
        {
            let rest = key.strip_prefix(prefix).unwrap();
            assert_eq!(rest.len(), 22 + 1 + 8, "{key}");
            assert_eq!(rest.as_bytes()[22], b'_', "{key}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let temporary = tempfile::tempdir().unwrap();
        let data = DataDir::create(temporary.path()).unwrap();
        let secrets = Secrets::load_or_create(&data).unwrap();
        let shown = format!("{secrets:?}");
        for secret in [&secrets.jwt_secret, &secrets.secret_key, &secrets.postgres_password] {
            assert!(!shown.contains(secret.as_str()));
        }
        let broken = format!("{{\"jwt_secret\": \"{}\" oops", secrets.jwt_secret);
        write_private(&data.secrets(), broken.as_bytes()).unwrap();
        let error = format!("{:?}", Secrets::load_or_create(&data).unwrap_err());
        assert!(error.contains("line 1") && !error.contains(&secrets.jwt_secret), "{error}");
    }
}
