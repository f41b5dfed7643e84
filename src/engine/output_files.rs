//! What a container left in its output directory, taken out without trusting it.
//!
//! Nothing is unpacked, followed or guessed: plain files of a directory become one
//! JSON object, `{"files":[{"path","text"}|{"path","base64"}]}`, or the whole output
//! is refused with a sentence. Links, devices, pipes and sockets, names that are no
//! text, more or larger files than allowed: each refuses all of it. An archive is a
//! file like any other. [`size`] is how a running container's directory is watched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::OFlag;
use serde_json::{Map, Value, json};

/// The most files and directories of an output.
const ENTRY_LIMIT: usize = 1024;

/// The most directories inside each other.
const DEPTH_LIMIT: usize = 8;

/// The longest path inside the output, in bytes.
const PATH_LIMIT: usize = 512;

/// Why an output is not taken, as a sentence for the consumer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OutputFault {
    /// Something that is neither a file nor a directory.
    #[error("The output holds {path}, which is {kind}; only files and directories are taken.")]
    Special {
        /// Where it is, inside the output.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// A name that cannot be told.
    #[error("The output holds a name that is not plain text.")]
    Name,
    /// Too many, or too deep.
    #[error("The output has more than {ENTRY_LIMIT} files, or directories too deep.")]
    Entries,
    /// Too large.
    #[error("The output is larger than the {limit} bytes that are taken.")]
    Size {
        /// The most that is taken.
        limit: usize,
    },
    /// A file that the program made unreadable, or a disk that fails.
    #[error("The output cannot be read ({0}).")]
    Unreadable(String),
}

impl From<io::Error> for OutputFault {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.kind().to_string())
    }
}

/// Takes a directory's files out as JSON text of at most `limit` bytes. Nothing may
/// write to the directory any more.
pub(super) fn collect(directory: &Path, limit: usize) -> Result<String, OutputFault> {
    let mut files = Vec::new();
    let mut left = limit;
    for (path, inside) in list(directory)? {
        let bytes = read(&path, &inside, left, limit)?;
        left -= bytes.len();
        let mut file = Map::from_iter([("path".to_owned(), json!(inside))]);
        match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => file.insert("text".to_owned(), Value::from(text)),
            Ok(text) => file.insert("base64".to_owned(), STANDARD.encode(text).into()),
            Err(error) => {
                file.insert("base64".to_owned(), STANDARD.encode(error.as_bytes()).into())
            }
        };
        files.push(Value::Object(file));
    }
    let text = json!({ "files": files }).to_string();
    if text.len() > limit { Err(OutputFault::Size { limit }) } else { Ok(text) }
}

/// Returns how many bytes of disk a directory takes that is still written to, or a
/// fault when it has too many entries to say. What disappears meanwhile counts nothing.
pub(super) fn size(directory: &Path) -> Result<u64, OutputFault> {
    let mut total = 0_u64;
    let mut entries = 0;
    let mut waiting = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = waiting.pop() {
        let Ok(listing) = fs::read_dir(&directory) else { continue };
        for entry in listing.flatten() {
            entries += 1;
            if entries > ENTRY_LIMIT || depth > DEPTH_LIMIT {
                return Err(OutputFault::Entries);
            }
            // Of the link itself, where it is one.
            let Ok(metadata) = entry.metadata() else { continue };
            total = total.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                waiting.push((entry.path(), depth + 1));
            }
        }
    }
    Ok(total)
}

/// Removes a directory with all that is in it, also where its program took the rights
/// away that its owner needs for that. Follows no link.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        open(&directory)?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            // Not of what a link points at.
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(directory)
}

/// Lists the files of a directory with their paths inside it, sorted; refuses what is
/// not taken.
fn list(directory: &Path) -> Result<Vec<(PathBuf, String)>, OutputFault> {
    let mut files = Vec::new();
    let mut entries = 0;
    let mut waiting = vec![(directory.to_owned(), String::new(), 0)];
    while let Some((directory, prefix, depth)) = waiting.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            entries += 1;
            if entries > ENTRY_LIMIT || depth >= DEPTH_LIMIT {
                return Err(OutputFault::Entries);
            }
            let name = entry.file_name().into_string().map_err(|_| OutputFault::Name)?;
            let inside = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if inside.chars().any(char::is_control) || inside.len() > PATH_LIMIT {
                return Err(OutputFault::Name);
            }
            let kind = fs::symlink_metadata(entry.path())?.file_type();
            if kind.is_dir() {
                waiting.push((entry.path(), inside, depth + 1));
            } else if kind.is_file() {
                files.push((entry.path(), inside));
            } else {
                let kind = if kind.is_symlink() { "a link" } else { "a device, pipe or socket" };
                return Err(OutputFault::Special { path: inside, kind });
            }
        }
    }
    files.sort_by(|one, other| one.1.cmp(&other.1));
    Ok(files)
}

/// Reads a file of at most `left` bytes, which is no link and has no other name.
fn read(path: &Path, inside: &str, left: usize, limit: usize) -> Result<Vec<u8>, OutputFault> {
    // A pipe would be waited for for ever; a link would lead elsewhere.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file: File = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(OutputFault::Special { path: inside.to_owned(), kind: "a link" });
    }
    let too_large = OutputFault::Size { limit };
    // Before anything is read: a file may claim a size without having it.
    if metadata.len() > left as u64 {
        return Err(too_large);
    }
    let mut bytes = Vec::new();
    file.take(left as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > left { Err(too_large) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn files_become_text_or_base64() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b.txt"), "höre").unwrap();
        fs::write(folder.path().join("c.bin"), [0, 255]).unwrap();
        let text = collect(folder.path(), 1000).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let wanted = json!({"files": [
            {"path": "a/b.txt", "text": "höre"},
            {"path": "c.bin", "base64": "AP8="},
        ]});
        assert_eq!(value, wanted);
        assert!(size(folder.path()).unwrap() >= 512);
    }

    #[test]
    fn what_is_no_plain_file_refuses_all_of_it() {
        let secret = tempfile::tempdir().unwrap();
        fs::write(secret.path().join("key"), "secret").unwrap();
        type Make = fn(&Path, &Path);
        let cases: [(Make, &str); 6] = [
            (|inside, secret| symlink(secret.join("key"), inside.join("x")).unwrap(), "a link"),
            (|inside, secret| symlink(secret, inside.join("x")).unwrap(), "a link"),
            (|inside, _| symlink("y", inside.join("x")).unwrap(), "a link"),
            (
                |inside, secret| fs::hard_link(secret.join("key"), inside.join("x")).unwrap(),
                "a link",
            ),
            (|inside, _| drop(UnixListener::bind(inside.join("x")).unwrap()), "a device, pipe"),
            (
                |inside, _| {
                    nix::unistd::mkfifo(&inside.join("x"), nix::sys::stat::Mode::S_IRWXU).unwrap();
                },
                "a device, pipe",
            ),
        ];
        for (make, wanted) in cases {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("good"), "good").unwrap();
            make(folder.path(), secret.path());
            let error = collect(folder.path(), 1000).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_is_too_much_refuses_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("sparse")).unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(collect(folder.path(), 1000), Err(OutputFault::Size { limit: 1000 }));
        fs::remove_file(folder.path().join("sparse")).unwrap();
        fs::write(folder.path().join("a"), "x".repeat(600)).unwrap();
        fs::write(folder.path().join("b"), "x".repeat(600)).unwrap();
        assert_eq!(collect(folder.path(), 1000), Err(OutputFault::Size { limit: 1000 }));

        let many = tempfile::tempdir().unwrap();
        for number in 0..=ENTRY_LIMIT {
            fs::write(many.path().join(number.to_string()), "").unwrap();
        }
        assert_eq!(collect(many.path(), 1 << 20), Err(OutputFault::Entries));
        assert_eq!(size(many.path()), Err(OutputFault::Entries));
        let deep = tempfile::tempdir().unwrap();
        let path = (0..=DEPTH_LIMIT).fold(deep.path().to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("f"), "").unwrap();
        assert_eq!(collect(deep.path(), 1000), Err(OutputFault::Entries));
    }

    #[test]
    fn what_was_locked_is_removed_and_links_are_not_followed() {
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("kept"), "").unwrap();
        fs::set_permissions(other.path(), fs::Permissions::from_mode(0o750)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let locked = folder.path().join("job/locked");
        fs::create_dir_all(&locked).unwrap();
        fs::write(locked.join("f"), "").unwrap();
        symlink(other.path(), folder.path().join("job/away")).unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
        remove(&folder.path().join("job")).unwrap();
        assert!(!folder.path().join("job").exists());
        assert!(other.path().join("kept").exists());
        assert_eq!(fs::metadata(other.path()).unwrap().permissions().mode() & 0o777, 0o750);
    }
}
