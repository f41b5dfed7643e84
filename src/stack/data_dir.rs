//! The data directory of an embedded control plane: where each file lies, who
//! may read it, and the lock that keeps two of them off one directory.
//!
//! Used by the rest of [`stack`](super) and by `infernet down`. The lock is an
//! advisory one of the operating system, so that it ends with the process
//! however that ends; the process id beside it is only believed while the lock
//! is held.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// No home directory is known, so there is no default place.
    #[error("No directory for the data is known, name one with --data-dir")]
    NoDefault,
    /// A file or directory cannot be made, read or written.
    #[error("Cannot {action} {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Another control plane holds the directory.
    #[error("{}", running_text(path, running.as_ref()))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the other one wrote down, if it got that far.
        running: Option<Running>,
    },
    /// A file that holds secrets can be read by others.
    #[error(
        "{path} holds secrets but can be read by others (mode {mode:04o}); run `chmod 600 {path}`"
    )]
    LoosePermissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file of ours holds something else.
    #[error("{path} cannot be understood: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without its content.
        reason: String,
    },
}

/// Words the refusal of a second control plane.
fn running_text(path: &Path, running: Option<&Running>) -> String {
    let path = path.display();
    match running {
        Some(Running { url: Some(url), pid, .. }) => {
            format!("A control plane is already running at {url} on {path} (process {pid})")
        }
        Some(Running { url: None, pid, .. }) => {
            format!("A control plane is already starting on {path} (process {pid})")
        }
        None => format!("Another process is using {path}"),
    }
}

/// What a running control plane writes into its lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its process id.
    pub pid: u32,
    /// Where it answers; `None` while it starts.
    pub url: Option<String>,
    /// Port of its database on 127.0.0.1; `None` while it starts.
    pub database_port: Option<u16>,
}

/// The data directory and the places in it.
#[derive(Debug, Clone)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Names the default place: `/var/lib/infernet` for root, because PostgreSQL
    /// runs as another user who must reach it, else the platform's directory for
    /// the data of a user.
    pub fn default_root() -> Result<PathBuf, DataDirError> {
        if geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/infernet"));
        }
        directories::ProjectDirs::from("", "", "infernet")
            .map(|dirs| dirs.data_dir().to_owned())
            .ok_or(DataDirError::NoDefault)
    }

    /// Names a directory without touching it.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes the directory if it is not there, and resolves its path, since
    /// PostgreSQL and its lock files want an absolute one.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let root: PathBuf = root.into();
        // As root, the account of PostgreSQL must pass through to its own
        // directory; what is secret beside it has a mode of its own.
        let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
        let io_error = |source| DataDirError::Io {
            action: "create the directory",
            path: root.clone(),
            source,
        };
        let is_new = !root.exists();
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(mode);
        builder.create(&root).map_err(io_error)?;
        if is_new {
            // The umask took from the mode what the account needs.
            fs::set_permissions(&root, fs::Permissions::from_mode(mode)).map_err(io_error)?;
        }
        let root = root.canonicalize().map_err(|source| DataDirError::Io {
            action: "resolve",
            path: root.clone(),
            source,
        })?;
        Ok(Self { root })
    }

    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the directory of PostgreSQL's cluster.
    pub fn cluster(&self) -> PathBuf {
        self.root.join("postgres")
    }

    /// Returns the directory of PostgreSQL's unix socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Returns PostgreSQL's log file.
    pub fn postgres_log(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    /// Returns the file of the generated secrets.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets.json")
    }

    /// Returns the file of the operator's secret key.
    pub fn operator_key(&self) -> PathBuf {
        self.root.join("operator.key")
    }

    /// Returns the directory that the functions are unpacked to.
    pub fn functions(&self) -> PathBuf {
        self.root.join("functions")
    }

    /// Returns the log of a control plane that runs in the background.
    pub fn log(&self) -> PathBuf {
        self.root.join("infernet.log")
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Takes the directory for this process, or says who has it.
    pub fn lock(&self) -> Result<DataDirLock, DataDirError> {
        let path = self.lock_path();
        let io_error = |action| {
            let path = path.clone();
            move |source| DataDirError::Io { action, path, source }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open"))?;
        // A glance of `running` holds the lock for a moment, hence a few tries.
        let mut tries = 5;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(DataDirError::InUse {
                        path: self.root.clone(),
                        running: read_running(&path),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io_error("lock")(source)),
            }
        }
        let mut lock = DataDirLock { file, path };
        lock.write(&Running { pid: std::process::id(), url: None, database_port: None })?;
        Ok(lock)
    }

    /// Returns the control plane that holds the directory now, if any.
    pub fn running(&self) -> Result<Option<Running>, DataDirError> {
        let path = self.lock_path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DataDirError::Io { action: "open", path, source }),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(read_running(&path)),
            Err(TryLockError::Error(source)) => {
                Err(DataDirError::Io { action: "lock", path, source })
            }
        }
    }

    /// Waits until nobody holds the directory; false when `limit` passes first.
    pub async fn wait_released(&self, limit: Duration) -> Result<bool, DataDirError> {
        let deadline = tokio::time::Instant::now() + limit;
        while self.running()?.is_some() {
            if tokio::time::Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(true)
    }
}

/// Reads what the holder of a lock wrote; `None` while it is writing.
fn read_running(path: &Path) -> Option<Running> {
    let text = fs::read_to_string(path).ok()?;
    serde_json::from_str(&text).ok()
}

/// Holds a data directory for the life of this value, or of the process.
#[derive(Debug)]
pub struct DataDirLock {
    file: File,
    path: PathBuf,
}

impl DataDirLock {
    /// Writes down where this control plane and its database answer.
    pub fn announce(&mut self, url: &str, database_port: u16) -> Result<(), DataDirError> {
        self.write(&Running {
            pid: std::process::id(),
            url: Some(url.to_owned()),
            database_port: Some(database_port),
        })
    }

    fn write(&mut self, running: &Running) -> Result<(), DataDirError> {
        let text = serde_json::to_string(running).expect("plain fields become JSON");
        let written = self
            .file
            .rewind()
            .and_then(|()| self.file.set_len(0))
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.flush());
        written.map_err(|source| DataDirError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        })
    }
}

impl Drop for DataDirLock {
    fn drop(&mut self) {
        // The file stays, since removing it would let two processes lock two
        // files of one name; emptied, it names nobody.
        if let Err(error) = self.file.set_len(0) {
            tracing::debug!(%error, "the lock file was not emptied");
        }
    }
}

/// Writes a file that only its owner may read, replacing an old one as a whole:
/// a reader sees the old content or the new, also after a crash.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), DataDirError> {
    let io_error = |action| {
        let path = path.to_owned();
        move |source| DataDirError::Io { action, path, source }
    };
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error("create"))?;
    // An old temporary file keeps its mode when it is opened again.
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(io_error("protect"))?;
    file.write_all(content).map_err(io_error("write"))?;
    file.sync_all().map_err(io_error("write"))?;
    fs::rename(&temporary, path).map_err(io_error("write"))?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io_error("write"))?;
    }
    Ok(())
}

/// Reads a file that only its owner may read, and refuses one that others can;
/// `None` when there is none.
pub fn read_private(path: &Path) -> Result<Option<String>, DataDirError> {
    let io_error = |source| DataDirError::Io { action: "read", path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    let mode = file.metadata().map_err(io_error)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(DataDirError::LoosePermissions { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(io_error)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_first() {
        let temporary = tempfile::tempdir().unwrap();
        let data = DataDir::create(temporary.path().join("data")).unwrap();
        assert_eq!(data.running().unwrap(), None);
        let mut lock = data.lock().unwrap();
        let error = data.lock().unwrap_err().to_string();
        assert!(error.contains("already starting"), "{error}");
        lock.announce("http://127.0.0.1:1", 2).unwrap();
        let error = data.lock().unwrap_err().to_string();
        assert!(error.contains("already running at http://127.0.0.1:1 on "), "{error}");
        assert_eq!(data.running().unwrap().unwrap().pid, std::process::id());
        drop(lock);
        assert_eq!(data.running().unwrap(), None);
        data.lock().unwrap();
    }

    #[test]
    fn private_files_are_private_and_others_are_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("secrets.json");
        assert_eq!(read_private(&path).unwrap(), None);
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(read_private(&path).unwrap().as_deref(), Some("two"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_private(&path).unwrap_err().to_string();
        assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
    }
}
