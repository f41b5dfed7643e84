//! The admin socket: how other processes of this machine talk to the running
//! agent.
//!
//! A unix socket of this user alone (0600). A client sends one [`Request`] as a
//! line of JSON and gets one [`Answer`] as a line of JSON; then the connection
//! is over. The agent's side is [`server`]; everything a command needs is in the
//! functions here: [`snapshot`], [`standing`], [`drain`], [`resume`], [`log`],
//! [`set_log`].
//!
//! Invariants
//! - Nothing that is asked here decides about work: that stays with the attempt
//!   table and the control plane.
//! - No answer holds a secret, a prompt or an output.

mod client;
pub(super) mod server;

use serde::{Deserialize, Serialize};

pub use self::client::{AdminError, drain, log, resume, set_log, snapshot, standing};
use super::status::AgentStatus;
use crate::command_error::RelayedError;
use crate::control::rpc::{JobKind, NodeStatus};
use crate::id::{AttemptId, JobId};
use crate::money::Usd;

/// What the agent is asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Request {
    /// Everything that it knows of itself.
    Snapshot {
        /// How many of the log's last lines to add.
        #[serde(default)]
        log_lines: usize,
    },
    /// How the control plane sees the node, earnings included; asked with the
    /// agent's own session.
    Standing,
    /// Take no more work until told otherwise, and finish what is running.
    Drain,
    /// Take work again.
    Resume,
    /// The log's lines from a number on.
    Log {
        /// The first line that is wanted; `None` asks for the last ones.
        from: Option<u64>,
        /// The most lines.
        lines: usize,
    },
    /// Log what this filter lets through from now on.
    SetLog {
        /// Such as `info` or `infernet=debug,warn`.
        filter: String,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", tag = "answer", content = "with")]
pub enum Answer {
    /// To [`Request::Snapshot`].
    Snapshot(Box<Snapshot>),
    /// To [`Request::Standing`].
    Standing(Box<NodeStatus>),
    /// To [`Request::Drain`] and [`Request::Resume`]: how many attempts run.
    Draining {
        /// Whether the node takes no more work now.
        draining: bool,
        /// Attempts that are still running.
        running: usize,
    },
    /// To [`Request::Log`].
    Log(LogLines),
    /// To [`Request::SetLog`]: the filter that was in force before.
    LogSet {
        /// The filter until now.
        before: String,
    },
    /// It cannot be done, and why.
    Refused(RelayedError),
}

/// Everything that an agent knows of itself, at one moment.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Snapshot {
    /// The agent's version.
    pub version: String,
    /// What it is and does.
    pub status: AgentStatus,
    /// Whether its owner drained it.
    pub draining: bool,
    /// How many jobs at once, over all models.
    pub slots: u32,
    /// The attempts in work, oldest first.
    pub attempts: Vec<AttemptView>,
    /// The engines, by model.
    pub engines: Vec<EngineView>,
    /// The GPUs; empty where there are none.
    pub gpus: Vec<GpuView>,
    /// What happened since the agent started.
    pub counters: Counters,
    /// The resident memory of the agent, in bytes, where the system tells it.
    pub resident_bytes: Option<u64>,
    /// What is logged, as a filter.
    pub log_filter: String,
    /// The last lines of the log, oldest first.
    pub log: LogLines,
}

/// How far an attempt is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is being taken from the control plane.
    Starting,
    /// The engine has been asked and has not answered yet.
    Waiting,
    /// The engine writes.
    Generating,
    /// It has ended, and the control plane is being told.
    Settling,
}

/// An attempt in work.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AttemptView {
    /// Its id.
    pub attempt: AttemptId,
    /// Its job.
    pub job: JobId,
    /// The model; unknown until the attempt was taken.
    pub model: Option<String>,
    /// What kind of work it is; unknown until the attempt was taken.
    pub kind: Option<JobKind>,
    /// How far it is.
    pub stage: Stage,
    /// Seconds since the agent heard of it.
    pub age_secs: f64,
    /// Seconds from then to the first token, once there was one.
    pub first_token_secs: Option<f64>,
    /// Tokens written so far.
    pub tokens: u64,
    /// Bytes written so far.
    pub output_bytes: u64,
    /// Tokens a second from the first token to the newest one.
    pub tokens_per_second: Option<f64>,
}

/// What an engine is doing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EnginePhase {
    /// Not running; the next job starts it.
    Stopped,
    /// Being started.
    Starting,
    /// Ready.
    Ready,
    /// Failed; the message says why.
    Failed,
}

/// The engine of a model.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EngineView {
    /// The model's name on the market.
    pub model: String,
    /// The entry of the catalogue, or `external`.
    pub engine: String,
    /// What it is doing.
    pub phase: EnginePhase,
    /// Why it failed, or for how long it has been starting.
    pub message: Option<String>,
    /// How many jobs it may have at once.
    pub slots: u32,
    /// How many attempts of this agent are with it.
    pub running: usize,
}

/// A GPU at one moment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct GpuView {
    /// Its number on this machine, from 0.
    pub index: u32,
    /// The product's name.
    pub name: Option<String>,
    /// The size of its memory.
    pub memory_bytes: Option<u64>,
    /// What is used of it, by any program.
    pub memory_used_bytes: Option<u64>,
    /// The share of the last moment in which it computed, in percent.
    pub use_percent: Option<u32>,
    /// Its temperature, in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// What it draws, in watts.
    pub power_watts: Option<u32>,
    /// What is wrong with it, in sentences.
    pub complaints: Vec<String>,
}

/// What happened since the agent started.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counters {
    /// Attempts that have ended, whatever came of them.
    pub ended: u64,
    /// Answers of an earlier run that were taken up again.
    pub resumed: u64,
    /// Answers that were accepted.
    pub completed: u64,
    /// Answers that were accepted although the consumer had cancelled.
    pub cancelled: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts that were handed back, because the agent ended.
    pub handed_back: u64,
    /// Attempts that were no longer this node's when they ended.
    pub lost: u64,
    /// Answers that could not be handed in while anybody wanted them.
    pub undelivered: u64,
    /// Tokens that accepted answers read.
    pub input_tokens: u64,
    /// Tokens that accepted answers wrote.
    pub output_tokens: u64,
    /// What accepted answers earned.
    pub earned: Usd,
}

/// A part of the log that is kept in memory.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LogLines {
    /// The lines, oldest first.
    pub lines: Vec<String>,
    /// The number of the line after these.
    pub next: u64,
    /// The file that the log is written to; `None` means standard error.
    pub file: Option<String>,
}
