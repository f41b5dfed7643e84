//! The asking side of the admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Answer, LogLines, Request, Snapshot};
use crate::agent::process::ProcessFiles;
use crate::command_error::RelayedError;
use crate::control::rpc::NodeStatus;

/// How long an answer that the agent has itself may take.
const ANSWER_TIME: Duration = Duration::from_secs(3);

/// How long an answer that the agent has to ask for may take.
const STANDING_TIME: Duration = Duration::from_secs(6);

/// The longest answer that is read, in bytes.
const ANSWER_BYTES: u64 = 8 * 1024 * 1024;

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No agent listens.
    #[error("No agent is running on this machine.")]
    NotRunning,
    /// It belongs to another user.
    #[error("The agent of this machine belongs to another user: {} cannot be used.", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// It does not answer.
    #[error("The agent did not answer within {} s.", after.as_secs())]
    Slow {
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke.
    #[error("The agent cannot be talked to over {}.", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It answered what this version does not understand.
    #[error("The agent is of another version than this program. Restart it: infernet restart")]
    OtherVersion,
    /// It refused.
    #[error("The agent refused.")]
    Refused(Box<RelayedError>),
}

/// Asks for everything that the agent knows of itself, with so many lines of its
/// log.
pub async fn snapshot(files: &ProcessFiles, log_lines: usize) -> Result<Snapshot, AdminError> {
    match ask(files, &Request::Snapshot { log_lines }, ANSWER_TIME).await? {
        Answer::Snapshot(snapshot) => Ok(*snapshot),
        _ => Err(AdminError::OtherVersion),
    }
}

/// Asks how the control plane sees the node; the agent asks with its own session
/// and remembers the answer for some seconds.
pub async fn standing(files: &ProcessFiles) -> Result<NodeStatus, AdminError> {
    match ask(files, &Request::Standing, STANDING_TIME).await? {
        Answer::Standing(standing) => Ok(*standing),
        _ => Err(AdminError::OtherVersion),
    }
}

/// Has the node take no more work; answers how many attempts still run.
pub async fn drain(files: &ProcessFiles) -> Result<usize, AdminError> {
    draining(files, &Request::Drain).await
}

/// Has the node take work again; answers how many attempts run.
pub async fn resume(files: &ProcessFiles) -> Result<usize, AdminError> {
    draining(files, &Request::Resume).await
}

/// Asks for at most so many lines of the log: those from a number on, or the last.
pub async fn log(
    files: &ProcessFiles,
    from: Option<u64>,
    lines: usize,
) -> Result<LogLines, AdminError> {
    match ask(files, &Request::Log { from, lines }, ANSWER_TIME).await? {
        Answer::Log(lines) => Ok(lines),
        _ => Err(AdminError::OtherVersion),
    }
}

/// Changes what the agent logs; answers the filter until now.
pub async fn set_log(files: &ProcessFiles, filter: &str) -> Result<String, AdminError> {
    let request = Request::SetLog { filter: filter.to_owned() };
    match ask(files, &request, ANSWER_TIME).await? {
        Answer::LogSet { before } => Ok(before),
        _ => Err(AdminError::OtherVersion),
    }
}

async fn draining(files: &ProcessFiles, request: &Request) -> Result<usize, AdminError> {
    match ask(files, request, ANSWER_TIME).await? {
        Answer::Draining { running, .. } => Ok(running),
        _ => Err(AdminError::OtherVersion),
    }
}

/// Sends one request and reads its answer.
async fn ask(
    files: &ProcessFiles,
    request: &Request,
    patience: Duration,
) -> Result<Answer, AdminError> {
    let path = files.admin();
    let exchange = timeout(patience, exchange(&path, request));
    let answer = match exchange.await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(source)) => return Err(failed(path, source)),
        Err(_slow) => return Err(AdminError::Slow { after: patience }),
    };
    match serde_json::from_slice(&answer) {
        Ok(Answer::Refused(error)) => Err(AdminError::Refused(Box::new(error))),
        Ok(answer) => Ok(answer),
        Err(_unknown) => Err(AdminError::OtherVersion),
    }
}

async fn exchange(path: &Path, request: &Request) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path).await?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn failed(path: PathBuf, source: io::Error) -> AdminError {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AdminError::NotRunning,
        io::ErrorKind::PermissionDenied => AdminError::Forbidden { path },
        _ => AdminError::Broken { path, source },
    }
}
