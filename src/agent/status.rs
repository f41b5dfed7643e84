//! What a running agent says of itself: a small file (0600) that `infernet
//! status` reads.
//!
//! It holds no secret and no prompt. The control plane's own view comes from
//! the call `node_status`; this is the node's.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::clock;
use super::{Held, Introduction};

/// The least time between two writes of the file.
const WRITE_PAUSE: Duration = Duration::from_millis(250);

/// What the agent is doing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Takes work.
    Running,
    /// Takes no more work and finishes what it holds.
    Draining,
    /// Drained, in maintenance or paused; the message says why and until when.
    Stopped,
    /// Suspended by the control plane until an operator allows it again.
    Suspended,
    /// Refused by the control plane for another reason.
    Refused,
    /// Cannot reach the control plane and keeps trying.
    Unreachable,
}

/// How wake-ups reach the agent.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wakeups {
    /// By Realtime, at once.
    Realtime,
    /// By the heartbeat, because Realtime is not to be had.
    Heartbeat,
}

/// The agent's own view.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AgentStatus {
    /// The process.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// Who it is.
    pub introduction: Introduction,
    /// What it does.
    pub phase: Phase,
    /// The control plane's words for why it is not running, or the last error.
    pub message: Option<String>,
    /// How it hears of work.
    pub wakeups: Wakeups,
    /// Attempts in work.
    pub running: usize,
    /// When the control plane last answered a heartbeat.
    pub last_heartbeat: Option<Timestamp>,
    /// By how much this machine's clock is ahead of the server's, in
    /// milliseconds; negative when behind.
    pub clock_ahead_ms: Option<i64>,
    /// Why attempts cannot be written down at present, such as a full disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_trouble: Option<String>,
}

/// Collects what the agent's tasks know of its state.
#[derive(Clone, Debug)]
pub(super) struct Monitor {
    status: watch::Sender<AgentStatus>,
}

impl Monitor {
    /// Begins with a running agent.
    pub(super) fn new(introduction: Introduction) -> Self {
        Self {
            status: watch::Sender::new(AgentStatus {
                pid: std::process::id(),
                started_at: Timestamp::now(),
                introduction,
                phase: Phase::Running,
                message: None,
                wakeups: Wakeups::Heartbeat,
                running: 0,
                last_heartbeat: None,
                clock_ahead_ms: None,
                journal_trouble: None,
            }),
        }
    }

    /// Notes an answered heartbeat, how far the clocks are apart, and why the
    /// control plane gives this node no new work, if it does not.
    pub(super) fn beat(&self, clock_ahead_ms: i64, stopped: Option<String>) {
        let complaint = clock::complaint(clock_ahead_ms);
        self.status.send_modify(|status| {
            status.last_heartbeat = Some(Timestamp::now());
            let phase = if stopped.is_some() { Phase::Stopped } else { Phase::Running };
            if status.phase != Phase::Draining {
                match (status.phase == Phase::Stopped, &stopped) {
                    (false, Some(why)) => warn!("this node gets no new work: {why}"),
                    (true, None) => info!("this node gets work again"),
                    _ => {}
                }
                status.phase = phase;
            }
            if let Some(complaint) = &complaint {
                let had = status.clock_ahead_ms.and_then(clock::complaint).is_some();
                if !had {
                    warn!("{complaint}");
                }
            }
            status.clock_ahead_ms = Some(clock_ahead_ms);
            status.message = stopped.or(complaint);
        });
    }

    /// Notes trouble with the control plane; answers whether it is news.
    pub(super) fn trouble(&self, phase: Phase, message: String) -> bool {
        self.status.send_if_modified(|status| {
            let phase = if status.phase == Phase::Draining { Phase::Draining } else { phase };
            let news = status.phase != phase || status.message.as_ref() != Some(&message);
            status.phase = phase;
            status.message = Some(message);
            news
        })
    }

    /// Notes that the agent takes no more work.
    pub(super) fn draining(&self) {
        self.status.send_modify(|status| status.phase = Phase::Draining);
    }
}

/// What the agent's status is made of.
#[derive(Clone, Debug)]
pub(super) struct StatusSources {
    /// What the tasks said.
    pub(super) monitor: Monitor,
    /// What is running.
    pub(super) held: watch::Receiver<Vec<Held>>,
    /// Whether wake-ups arrive by Realtime.
    pub(super) joined: watch::Receiver<bool>,
    /// Why attempts cannot be written down.
    pub(super) journal_trouble: watch::Receiver<Option<String>>,
}

impl StatusSources {
    /// Puts the status together as it is now.
    pub(super) fn now(&self) -> AgentStatus {
        let mut current = self.monitor.status.borrow().clone();
        current.running = self.held.borrow().len();
        current.wakeups =
            if *self.joined.borrow() { Wakeups::Realtime } else { Wakeups::Heartbeat };
        current.journal_trouble.clone_from(&self.journal_trouble.borrow());
        current
    }
}

/// Keeps the file in step with the agent's state until it is told to end, and
/// removes it then.
pub(super) async fn run_status_file(
    mut sources: StatusSources,
    file: StatusFile,
    shutdown: CancellationToken,
) {
    let mut status = sources.monitor.status.subscribe();
    let mut broken = false;
    loop {
        status.mark_unchanged();
        sources.held.mark_unchanged();
        sources.joined.mark_unchanged();
        sources.journal_trouble.mark_unchanged();
        let current = sources.now();
        match file.write(&current) {
            Ok(()) => broken = false,
            Err(error) if !broken => {
                broken = true;
                warn!(error = %error, "the status file cannot be written");
            }
            Err(_again) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            Ok(()) = status.changed() => {}
            Ok(()) = sources.held.changed() => {}
            Ok(()) = sources.joined.changed() => {}
            Ok(()) = sources.journal_trouble.changed() => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(WRITE_PAUSE) => {}
        }
    }
    if let Err(error) = file.remove() {
        warn!(error = %error, "the status file cannot be removed");
    }
}

/// The status file.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
}

impl StatusFile {
    /// Names the file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Replaces the file in one step.
    pub fn write(&self, status: &AgentStatus) -> io::Result<()> {
        let draft = self.path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&serde_json::to_vec(status)?)?;
        fs::rename(draft, &self.path)
    }

    /// Removes the file at the agent's end; one that is not there is no error.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Reads the status file; `None` when there is none or it does not parse.
pub fn read(path: &Path) -> Option<AgentStatus> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
