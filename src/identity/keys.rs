//! A key pair and the file that it lives in.
//!
//! The file holds the secret as one `nsec1…` line, mode 0600, in a directory
//! that nobody else may write. A file that others could have read or put there
//! is refused rather than repaired: its secret may already be known.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nostr_sdk::secp256k1::schnorr::Signature;
use nostr_sdk::secp256k1::{Keypair, Message};
use nostr_sdk::{SECP256K1, ToBech32};

/// The most that a key file or a pasted key may hold, in bytes.
const KEY_TEXT_LIMIT: u64 = 4096;

/// A BIP-340 key pair: the identity of a person or a machine.
///
/// `Debug` and `Display` show the public key only; the secret is erased from
/// memory when the last clone goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(nostr_sdk::Keys);

/// Why a key could not be read, made or kept.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no key file.
    #[error("There is no key at {}. Run infernet init to make one.", path.display())]
    Missing {
        /// Where the key was looked for.
        path: PathBuf,
    },
    /// There is a key file already, and a key is never overwritten.
    #[error("There is a key at {} already, and a key is never overwritten. Move it away first if you want another one.", path.display())]
    Exists {
        /// The file that is there.
        path: PathBuf,
    },
    /// Others may read or write the file.
    #[error("The key file {} can be read or written by others (mode {mode:04o}), so its secret may be known. If you are sure that it is not, run: chmod 600 {}", path.display(), shell_word(path))]
    LoosePermissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others may replace files in the key's directory.
    #[error("The directory {} of the key file can be written by others (mode {mode:04o}), who could put another key there. Run: chmod 700 {}", path.display(), shell_word(path))]
    LooseDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file or its directory belongs to somebody else.
    #[error("{} belongs to user id {owner}, not to you (user id {user}). Run as that user, or make a key of your own elsewhere.", path.display())]
    ForeignOwner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user that this process runs as.
        user: u32,
    },
    /// The path is a symbolic link, a directory or a device.
    #[error("{} is not a plain file (a symbolic link, a directory or a device is never followed for a key). Put the key file itself there, with mode 600.", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The text is not a secret key.
    #[error("This is not a secret key: it must be nsec1… or 64 hex digits.")]
    NotAKey,
    /// The file does not hold a secret key.
    #[error("The key file {} does not hold a secret key (nsec1… or 64 hex digits). Restore it from your backup.", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("The key file {} could not be {action}.", path.display())]
    Io {
        /// What was tried, as a past participle.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Keys {
    /// Makes a new random key, not yet kept anywhere.
    pub fn generate() -> Self {
        Self(nostr_sdk::Keys::generate())
    }

    /// Reads a secret key from text: `nsec1…` or 64 hex digits, with
    /// surrounding white space.
    ///
    /// # Errors
    ///
    /// [`KeyFileError::NotAKey`]; the text itself is never part of the error.
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        nostr_sdk::Keys::parse(text.trim()).map(Self).map_err(|_| KeyFileError::NotAKey)
    }

    /// Reads a secret key from a stream such as standard input, which unlike an
    /// argument is not visible to others.
    ///
    /// # Errors
    ///
    /// [`KeyFileError::NotAKey`] when the stream fails, is too long or holds
    /// something else.
    pub fn import(source: impl Read) -> Result<Self, KeyFileError> {
        let mut text = String::new();
        let read = source.take(KEY_TEXT_LIMIT + 1).read_to_string(&mut text);
        match read {
            Ok(length) if length as u64 <= KEY_TEXT_LIMIT => Self::parse(&text),
            _ => Err(KeyFileError::NotAKey),
        }
    }

    /// Loads the key of a file.
    ///
    /// # Errors
    ///
    /// Refuses a file that is missing, a link, somebody else's, readable or
    /// writable by others, or in a directory that others may write.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let file = open_private(path)?;
        Self::import(file).map_err(|_| KeyFileError::Corrupt { path: path.to_owned() })
    }

    /// Keeps the key in a new file of mode 0600, making its directory with mode
    /// 0700 when there is none. The file appears whole or not at all.
    ///
    /// # Errors
    ///
    /// [`KeyFileError::Exists`] when anything is there already, and refuses a
    /// directory that others may write.
    pub fn store(&self, path: &Path) -> Result<(), KeyFileError> {
        let nsec = match self.0.secret_key().to_bech32() {
            Ok(nsec) => nsec,
            Err(never) => match never {},
        };
        keep_private(path, &nsec)
    }

    /// Loads the key of a file, or makes one and keeps it there. The second
    /// value tells whether it was made.
    ///
    /// # Errors
    ///
    /// As [`Keys::load`] and [`Keys::store`]. When two processes make the key
    /// at once, both end up with the same one.
    pub fn load_or_create(path: &Path) -> Result<(Self, bool), KeyFileError> {
        match Self::load(path) {
            Err(KeyFileError::Missing { .. }) => {}
            other => return other.map(|keys| (keys, false)),
        }
        let keys = Self::generate();
        match keys.store(path) {
            Ok(()) => Ok((keys, true)),
            Err(KeyFileError::Exists { .. }) => Self::load(path).map(|found| (found, false)),
            Err(error) => Err(error),
        }
    }

    /// Returns the public key as 64 lower-case hex digits, the form that the
    /// control plane keeps.
    pub fn public_hex(&self) -> String {
        self.0.public_key().to_hex()
    }

    /// Returns the public key as `npub1…`, the form for people.
    pub fn npub(&self) -> String {
        match self.0.public_key().to_bech32() {
            Ok(npub) => npub,
            Err(never) => match never {},
        }
    }

    /// Returns the key pair for the Nostr library.
    pub(super) fn inner(&self) -> &nostr_sdk::Keys {
        &self.0
    }

    /// Signs a 32-byte digest as BIP-340 has it.
    pub(super) fn sign_digest(&self, digest: [u8; 32]) -> Signature {
        let mut pair = Keypair::from_secret_key(SECP256K1, self.0.secret_key());
        // Without auxiliary randomness BIP-340 is still safe, and the same
        // event always has the same bytes.
        let signature = SECP256K1.sign_schnorr_no_aux_rand(&Message::from_digest(digest), &pair);
        pair.non_secure_erase();
        signature
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Keys").field(&self.npub()).finish()
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.npub())
    }
}

/// Opens a file that holds a secret for reading.
///
/// # Errors
///
/// Refuses a file that is missing, a link, somebody else's, readable or
/// writable by others, or in a directory that others may write.
pub(crate) fn open_private(path: &Path) -> Result<File, KeyFileError> {
    let failed = |source| KeyFileError::Io { action: "read", path: path.to_owned(), source };
    check_directory(&directory_of(path))?;
    let file = OpenOptions::new()
        .read(true)
        // Neither a link is followed nor the opening of a pipe waited for.
        .custom_flags((nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits())
        .open(path)
        .map_err(|error| match error.raw_os_error().map(nix::errno::Errno::from_raw) {
            Some(nix::errno::Errno::ENOENT) => KeyFileError::Missing { path: path.to_owned() },
            Some(nix::errno::Errno::ELOOP) => KeyFileError::NotAFile { path: path.to_owned() },
            _ => failed(error),
        })?;
    // The checks look at the opened file, so that it cannot be exchanged
    // between check and use.
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile { path: path.to_owned() });
    }
    check_owner(path, metadata.uid())?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::LoosePermissions { path: path.to_owned(), mode });
    }
    Ok(file)
}

/// Keeps a secret as the one line of a new file of mode 0600, making its directory
/// with mode 0700 when there is none. The file appears whole or not at all.
///
/// # Errors
///
/// [`KeyFileError::Exists`] when anything is there already, and refuses a
/// directory that others may write.
pub(crate) fn keep_private(path: &Path, text: &str) -> Result<(), KeyFileError> {
    let failed = |source| KeyFileError::Io { action: "written", path: path.to_owned(), source };
    let directory = directory_of(path);
    DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
    check_directory(&directory)?;
    let draft = directory.join(format!(".key-{}.draft", uuid::Uuid::new_v4().simple()));
    let result = write_draft(&draft, text).and_then(|()| {
        // A hard link, unlike a rename, fails when the name is taken.
        fs::hard_link(&draft, path)
    });
    let removed = fs::remove_file(&draft);
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(KeyFileError::Exists { path: path.to_owned() });
        }
        other => other.and(removed).map_err(failed)?,
    }
    File::open(&directory).and_then(|opened| opened.sync_all()).map_err(failed)
}

/// Writes a secret to a new file that only its owner can read.
fn write_draft(draft: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    // The mode of a new file is cut by the umask but never widened; an
    // odd umask could still take the owner's own bits.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// Returns the directory of a path; a bare file name is in the current one.
fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Refuses a directory in which others could exchange the key file. A missing
/// one passes: opening the file will say so.
fn check_directory(directory: &Path) -> Result<(), KeyFileError> {
    let Ok(metadata) = fs::metadata(directory) else { return Ok(()) };
    let owner = metadata.uid();
    // The superuser may own the directory: it can read every file anyway.
    if owner != 0 {
        check_owner(directory, owner)?;
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(KeyFileError::LooseDirectory { path: directory.to_owned(), mode });
    }
    Ok(())
}

/// Refuses what belongs to another user.
fn check_owner(path: &Path, owner: u32) -> Result<(), KeyFileError> {
    let user = nix::unistd::geteuid().as_raw();
    if owner == user {
        Ok(())
    } else {
        Err(KeyFileError::ForeignOwner { path: path.to_owned(), owner, user })
    }
}

/// Writes a path so that it can be pasted into a shell.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain =
        |character: char| character.is_ascii_alphanumeric() || "/._-+~@%:,".contains(character);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fresh() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_stored_key_comes_back_from_a_private_file() {
        let home = fresh();
        let path = home.path().join("keys/node.nsec");
        let (made, created) = Keys::load_or_create(&path).unwrap();
        assert!(created);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let directory = path.parent().unwrap();
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(directory).unwrap().count(), 1, "the draft is gone");
        let (loaded, created) = Keys::load_or_create(&path).unwrap();
        assert!(!created);
        assert_eq!(made, loaded);
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let home = fresh();
        let path = home.path().join("key");
        Keys::generate().store(&path).unwrap();
        let before = fs::read(&path).unwrap();
        let error = Keys::generate().store(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Exists { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
        // A dangling link counts as taken as well.
        let link = home.path().join("link");
        std::os::unix::fs::symlink(home.path().join("nowhere"), &link).unwrap();
        let error = Keys::generate().store(&link).unwrap_err();
        assert!(matches!(error, KeyFileError::Exists { .. }), "{error}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_chmod_to_run() {
        let home = fresh();
        let path = home.path().join("my key");
        Keys::generate().store(&path).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let message = Keys::load(&path).unwrap_err().to_string();
            let command = format!("chmod 600 '{}'", path.display());
            assert!(message.ends_with(&command), "{message}");
            assert!(message.contains(&format!("mode {mode:04o}")), "{message}");
            // It is refused, not repaired.
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let home = fresh();
        let directory = home.path().join("shared");
        let path = directory.join("key");
        Keys::generate().store(&path).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        let message = Keys::load(&path).unwrap_err().to_string();
        assert!(message.ends_with(&format!("chmod 700 {}", directory.display())), "{message}");
        let other = Keys::generate().store(&directory.join("other")).unwrap_err();
        assert!(matches!(other, KeyFileError::LooseDirectory { .. }), "{other}");
    }

    #[test]
    fn links_directories_and_pipes_are_refused() {
        let home = fresh();
        let path = home.path().join("key");
        Keys::generate().store(&path).unwrap();
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Keys::load(&link).unwrap_err(), KeyFileError::NotAFile { .. }));
        assert!(matches!(
            Keys::load(home.path()).unwrap_err(),
            KeyFileError::NotAFile { .. } | KeyFileError::LooseDirectory { .. }
        ));
        let pipe = home.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(Keys::load(&pipe).unwrap_err(), KeyFileError::NotAFile { .. }));
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            // Only the superuser can give a file away; the owner of / is
            // another user's for everybody else.
            let error = check_owner(Path::new("/"), 0).unwrap_err();
            assert!(matches!(error, KeyFileError::ForeignOwner { .. }));
            return;
        }
        let home = fresh();
        let path = home.path().join("key");
        Keys::generate().store(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        let error = Keys::load(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::ForeignOwner { owner: 65_534, .. }), "{error}");
    }

    #[test]
    fn missing_and_corrupt_files_say_what_to_do() {
        let home = fresh();
        let path = home.path().join("key");
        let message = Keys::load(&path).unwrap_err().to_string();
        assert!(message.contains("infernet init"), "{message}");
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(b"nsec1nonsense").unwrap();
        let message = Keys::load(&path).unwrap_err().to_string();
        assert!(message.contains("backup") && !message.contains("nonsense"), "{message}");
    }

    #[test]
    fn keys_are_imported_from_nsec_and_hex() {
        let hex = "7".repeat(64);
        let keys = Keys::import(format!("  {hex}\n").as_bytes()).unwrap();
        let nsec = keys.inner().secret_key().to_bech32().unwrap();
        assert_eq!(Keys::parse(&nsec).unwrap(), keys);
        assert!(keys.npub().starts_with("npub1"));
        assert_eq!(keys.public_hex().len(), 64);
        for wrong in ["", "7777", &"0".repeat(64), &"f".repeat(64), &keys.npub(), &hex.repeat(100)]
        {
            assert!(
                matches!(Keys::import(wrong.as_bytes()), Err(KeyFileError::NotAKey)),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let hex = "7".repeat(64);
        let keys = Keys::parse(&hex).unwrap();
        let nsec = keys.inner().secret_key().to_bech32().unwrap();
        for shown in [format!("{keys:?}"), format!("{keys:#?}"), format!("{keys}")] {
            assert!(!shown.contains(&hex) && !shown.contains(&nsec), "{shown}");
            assert!(shown.contains(&keys.npub()));
        }
    }
}
