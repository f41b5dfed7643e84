//! The agent as a process of the machine: one at a time, in the background,
//! and reached by the processes of its owner.
//!
//! `infernet start` starts the same binary again as a session of its own and
//! waits on the child's standard output for one line, a [`Readiness`]. Whether
//! an agent runs is said by a lock on the PID file and not by the number in
//! it, so that a killed agent leaves nothing that would have to be cleaned up.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Introduction, logbook};
use crate::command_error::RelayedError;

/// How often a waiting `infernet stop` looks whether the agent is gone.
const STOP_POLL: Duration = Duration::from_millis(50);

/// How often, and how long apart, the lock is tried before another agent is
/// believed to hold it.
const LOCK_LOOKS: u32 = 3;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why the agent's process could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Another agent holds the lock.
    #[error("An agent is already running on this machine, as process {pid}.")]
    AlreadyRunning {
        /// Its process id.
        pid: i32,
    },
    /// A file of the process could not be used.
    #[error("Cannot use {}.", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The background process could not be started.
    #[error("Cannot start the agent in the background.")]
    Spawn(#[source] io::Error),
    /// The background process ended before it was ready and left no reason.
    #[error("The agent ended before it was ready ({status}). Its log is {}", log.display())]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// Where it logs.
        log: PathBuf,
    },
    /// The background process neither became ready nor failed in time.
    #[error("The agent was not ready after {} seconds. Its log is {}", after.as_secs(), log.display())]
    Silent {
        /// How long was waited.
        after: Duration,
        /// Where it logs.
        log: PathBuf,
    },
    /// The agent did not end in time.
    #[error("Process {pid} did not end within {} seconds.", after.as_secs())]
    StillRunning {
        /// Its process id.
        pid: i32,
        /// How long was waited.
        after: Duration,
    },
    /// The system refused the signal.
    #[error("Cannot signal process {pid}.")]
    Signal {
        /// The process.
        pid: i32,
        /// What the system said.
        #[source]
        source: Errno,
    },
}

impl ProcessError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Where the agent's process keeps its files.
#[derive(Clone, Debug)]
pub struct ProcessFiles {
    runtime_dir: PathBuf,
    state_dir: PathBuf,
}

impl ProcessFiles {
    /// Names the directories: `runtime_dir` for what dies with the process,
    /// `state_dir` for what outlives it.
    pub fn new(runtime_dir: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        Self { runtime_dir: runtime_dir.into(), state_dir: state_dir.into() }
    }

    /// Makes both directories, 0700 where they are new.
    pub fn prepare(&self) -> Result<(), ProcessError> {
        for directory in [&self.runtime_dir, &self.state_dir] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(ProcessError::file(directory))?;
        }
        Ok(())
    }

    /// Returns the path of the PID file.
    pub fn pid(&self) -> PathBuf {
        self.runtime_dir.join("agent.pid")
    }

    /// Returns the path of the status file.
    pub fn status(&self) -> PathBuf {
        self.runtime_dir.join("agent.json")
    }

    /// Returns the path of the admin socket.
    pub fn admin(&self) -> PathBuf {
        self.runtime_dir.join("agent.sock")
    }

    /// Returns the runtime directory.
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// Returns the path of the log.
    pub fn log(&self) -> PathBuf {
        self.state_dir.join("agent.log")
    }

    /// Returns the state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }
}

/// The right to be the machine's agent; held until it is dropped.
#[derive(Debug)]
pub struct PidFile {
    _lock: Flock<File>,
}

impl PidFile {
    /// Takes the lock and writes this process's id.
    pub fn take(files: &ProcessFiles) -> Result<Self, ProcessError> {
        files.prepare()?;
        let path = files.pid();
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(ProcessError::file(&path))?;
        let mut file = file;
        let mut looks = 0;
        let mut lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                // A passing `infernet status` holds a shared lock for an instant.
                Err((again, Errno::EWOULDBLOCK)) if looks < LOCK_LOOKS => {
                    looks += 1;
                    std::thread::sleep(LOCK_PAUSE);
                    file = again;
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let pid = read_pid(&mut file).unwrap_or_default();
                    return Err(ProcessError::AlreadyRunning { pid });
                }
                Err((_file, errno)) => return Err(ProcessError::file(&path)(errno.into())),
            }
        };
        // Over what an earlier agent wrote, which needs no room on a full disk.
        let line = format!("{}\n", std::process::id());
        lock.write_all(line.as_bytes())
            .and_then(|()| lock.set_len(line.len() as u64))
            .map_err(ProcessError::file(&path))?;
        Ok(Self { _lock: lock })
    }
}

/// Finds the id of the running agent, `None` when none runs.
pub fn running(files: &ProcessFiles) -> Result<Option<i32>, ProcessError> {
    let path = files.pid();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ProcessError::file(&path)(error)),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_free) => Ok(None),
        Err((mut file, Errno::EWOULDBLOCK)) => {
            read_pid(&mut file).map(Some).map_err(ProcessError::file(&path))
        }
        Err((_file, errno)) => Err(ProcessError::file(&path)(errno.into())),
    }
}

fn read_pid(file: &mut File) -> io::Result<i32> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Asks the running agent to end and waits for it; blocks the thread.
///
/// Answers the process id, or `None` when no agent ran. With `now` the agent
/// is told twice, which it takes as "do not wait for running jobs". What is
/// still there after `patience` is an error and is left running.
pub fn stop(
    files: &ProcessFiles,
    now: bool,
    patience: Duration,
) -> Result<Option<i32>, ProcessError> {
    let Some(pid) = running(files)? else { return Ok(None) };
    let term = || match kill(Pid::from_raw(pid), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(source) => Err(ProcessError::Signal { pid, source }),
    };
    term()?;
    let started = Instant::now();
    let mut told_twice = !now;
    while running(files)? == Some(pid) {
        std::thread::sleep(STOP_POLL);
        if !told_twice {
            // Two signals at once could be delivered as one.
            told_twice = true;
            term()?;
        }
        if started.elapsed() > patience {
            return Err(ProcessError::StillRunning { pid, after: patience });
        }
    }
    Ok(Some(pid))
}

/// The one line that a background agent writes to its standard output.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// It takes work.
    Ready(Introduction),
    /// It could not start.
    Failed(RelayedError),
}

/// Starts this binary again in the background with `arguments` and waits until
/// it is ready or has failed; blocks the thread.
///
/// The child's standard error is the log. It has to call [`enter_background`]
/// first and [`report`] exactly once.
pub fn spawn_background(
    files: &ProcessFiles,
    arguments: &[std::ffi::OsString],
    patience: Duration,
) -> Result<Readiness, ProcessError> {
    files.prepare()?;
    let path = files.log();
    let log = logbook::open(&path).map_err(ProcessError::file(&path))?;
    let binary = std::env::current_exe().map_err(ProcessError::Spawn)?;
    let mut child = std::process::Command::new(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // It is no service of its own: nobody waits for what it would say there.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .spawn()
        .map_err(ProcessError::Spawn)?;
    match wait_for_line(&mut child, patience) {
        Some(line) => match serde_json::from_str(&line) {
            Ok(failed @ Readiness::Failed(_)) => {
                child.wait().map_err(ProcessError::Spawn)?;
                Ok(failed)
            }
            Ok(ready) => Ok(ready),
            Err(_not_a_report) => {
                let status = child.wait().map_err(ProcessError::Spawn)?;
                Err(ProcessError::Died { status, log: files.log() })
            }
        },
        None => {
            // Not ready is not running: what does not answer must not linger.
            child.kill().and_then(|()| child.wait()).map_err(ProcessError::Spawn)?;
            Err(ProcessError::Silent { after: patience, log: files.log() })
        }
    }
}

/// Reads one line from the child; an empty one means that it ended.
fn wait_for_line(child: &mut Child, patience: Duration) -> Option<String> {
    let stdout = child.stdout.take().expect("the child's standard output is piped");
    let (sender, receiver) = std::sync::mpsc::channel();
    // A thread of its own because a pipe cannot be read with a time limit; it
    // ends when the child's end of the pipe closes.
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        // A failed read is the same to the parent as a child that is gone.
        let _read = BufReader::new(stdout).read_line(&mut line);
        let _parent_gave_up = sender.send(line);
    });
    let line = receiver.recv_timeout(patience).ok();
    if line.is_some() {
        reader.join().expect("reading a line does not panic");
    }
    line
}

/// Makes this process a session of its own, so that closing the terminal does
/// not end it.
pub fn enter_background() -> Result<(), ProcessError> {
    match nix::unistd::setsid() {
        // A process that already leads its group keeps it: nothing to do.
        Ok(_) | Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(ProcessError::Spawn(errno.into())),
    }
}

/// Tells the waiting parent how starting went and closes standard output.
pub fn report(readiness: &Readiness) -> Result<(), ProcessError> {
    let write = || -> io::Result<()> {
        let mut line = serde_json::to_vec(readiness)?;
        line.push(b'\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(&line)?;
        stdout.flush()?;
        let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
        nix::unistd::dup2_stdout(&null)?;
        Ok(())
    };
    write().map_err(ProcessError::Spawn)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn files(home: &tempfile::TempDir) -> ProcessFiles {
        ProcessFiles::new(home.path().join("run"), home.path().join("state"))
    }

    #[test]
    fn one_agent_at_a_time_and_none_after_it() {
        let home = tempfile::tempdir().unwrap();
        let files = files(&home);
        assert_eq!(running(&files).unwrap(), None);
        let held = PidFile::take(&files).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(running(&files).unwrap(), Some(own));
        let second = PidFile::take(&files).unwrap_err();
        assert_eq!(
            second.to_string(),
            format!("An agent is already running on this machine, as process {own}.")
        );
        drop(held);
        assert_eq!(running(&files).unwrap(), None);
        assert_eq!(stop(&files, false, Duration::ZERO).unwrap(), None);
        let mode = fs::metadata(files.pid()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
