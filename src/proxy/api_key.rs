//! The key that clients of the proxy show: made once, kept in a file of its own,
//! compared in constant time.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::identity::{KeyFileError, keep_private, open_private};

/// What every key begins with, so that it is known for one where it turns up.
const PREFIX: &str = "sk-infernet-";

/// Random bytes of a key.
const RANDOM_BYTES: usize = 32;

/// The most that is read of a key's file, in bytes.
const FILE_LIMIT: u64 = 4096;

/// A key of the proxy. `Debug` does not show it.
#[derive(Clone)]
pub struct ApiKey {
    text: String,
    /// Compares in constant time: both sides are hashed under a random key.
    comparison: hmac::Key,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeyError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The file holds something else.
    #[error("The file {} does not hold a key of the proxy ({PREFIX}…). Move it away, and a new key is made.", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
    /// The old key cannot be removed.
    #[error("The old key at {} cannot be removed.", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The system gave no randomness.
    #[error("The system gives no random numbers, without which there are no keys.")]
    NoRandomness,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ApiKey").finish_non_exhaustive()
    }
}

impl ApiKey {
    /// Makes a new random key, not yet kept anywhere.
    ///
    /// # Errors
    /// [`ApiKeyError::NoRandomness`].
    pub fn generate() -> Result<Self, ApiKeyError> {
        let mut bytes = [0; RANDOM_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| ApiKeyError::NoRandomness)?;
        Self::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Loads the key of a file, or makes one and keeps it there, mode 0600.
    ///
    /// # Errors
    /// The file is readable by others or not a key's, or cannot be made.
    pub fn load_or_create(path: &Path) -> Result<Self, ApiKeyError> {
        match Self::load(path) {
            Err(ApiKeyError::File(KeyFileError::Missing { .. })) => {}
            other => return other,
        }
        let key = Self::generate()?;
        match keep_private(path, &key.text) {
            Ok(()) => Ok(key),
            // Another process was faster.
            Err(KeyFileError::Exists { .. }) => Self::load(path),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a new key into the place of the one that is there, if any.
    ///
    /// # Errors
    /// As [`ApiKey::load_or_create`].
    pub fn replace(path: &Path) -> Result<Self, ApiKeyError> {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(ApiKeyError::Remove { path: path.to_owned(), source }),
        }
        Self::load_or_create(path)
    }

    fn load(path: &Path) -> Result<Self, ApiKeyError> {
        let corrupt = || ApiKeyError::Corrupt { path: path.to_owned() };
        let mut text = String::new();
        open_private(path)?
            .take(FILE_LIMIT)
            .read_to_string(&mut text)
            .map_err(|_unreadable| corrupt())?;
        let text = text.trim();
        let random = text.strip_prefix(PREFIX).and_then(|rest| URL_SAFE_NO_PAD.decode(rest).ok());
        if random.is_none_or(|random| random.len() != RANDOM_BYTES) {
            return Err(corrupt());
        }
        Self::new(text.to_owned())
    }

    fn new(text: String) -> Result<Self, ApiKeyError> {
        let comparison = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| ApiKeyError::NoRandomness)?;
        Ok(Self { text, comparison })
    }

    /// Returns the key itself, for a client.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Says whether this is the key. Takes the same time wherever they differ.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        let tag = hmac::sign(&self.comparison, self.text.as_bytes());
        hmac::verify(&self.comparison, shown, tag.as_ref()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.key");
        let made = ApiKey::load_or_create(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let loaded = ApiKey::load_or_create(&path).unwrap();
        assert_eq!(made.reveal(), loaded.reveal());
        let other = ApiKey::replace(&path).unwrap();
        assert_ne!(made.reveal(), other.reveal());
        assert!(other.is(ApiKey::load_or_create(&path).unwrap().reveal().as_bytes()));
    }

    #[test]
    fn only_the_key_is_the_key() {
        let key = ApiKey::generate().unwrap();
        assert!(key.is(key.reveal().as_bytes()));
        let text = key.reveal();
        for wrong in ["", PREFIX, &text[..text.len() - 1], &format!("{text}x")] {
            assert!(!key.is(wrong.as_bytes()), "{wrong}");
        }
        assert!(!format!("{key:?}").contains(&text[PREFIX.len()..]));
    }

    #[test]
    fn a_file_that_others_can_read_or_that_holds_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.key");
        ApiKey::load_or_create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = ApiKey::load_or_create(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "sk-infernet-guessable").unwrap();
        let error = ApiKey::load_or_create(&path).unwrap_err().to_string();
        assert!(!error.contains("guessable"), "{error}");
    }
}
