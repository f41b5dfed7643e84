//! What can go wrong between this node and its engines.
//!
//! One enum for Docker, containers and the requests made to them. It is [`Clone`],
//! because every caller that waits for the same start gets the same answer. Messages
//! are for the owner of the machine; [`EngineError::public_message`] is what may
//! leave it, without paths, image names or log lines. No message ever holds a prompt.

use std::path::PathBuf;
use std::time::Duration;

/// Reports why an engine could not be started, reached or used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No Docker or Podman answers at the socket.
    #[error(
        "Docker is not running: nothing answers at {socket} ({reason}). Start it with \
         `systemctl start docker` (without systemd: `dockerd &` as root), or set DOCKER_HOST."
    )]
    DockerNotRunning {
        /// The socket that was tried.
        socket: String,
        /// What the attempt said.
        reason: String,
    },
    /// The socket is there, and this user may not use it.
    #[error(
        "This user may not use Docker at {socket}. Join its group with \
         `usermod -aG docker $USER`, then log in again."
    )]
    DockerForbidden {
        /// The socket that was tried.
        socket: String,
    },
    /// `DOCKER_HOST` names something other than a local unix socket.
    #[error(
        "DOCKER_HOST is {host}, but containers must run on this machine: use a unix socket such \
         as unix:///var/run/docker.sock."
    )]
    DockerHostUnsupported {
        /// The value that was found.
        host: String,
    },
    /// The server speaks an API that is older than every limit that is asked of it.
    #[error("Docker at {socket} speaks API {found}; 1.41 (Docker 20.10) or newer is needed.")]
    DockerTooOld {
        /// The socket that was asked.
        socket: String,
        /// The version that it speaks.
        found: String,
    },
    /// The server would silently leave out a part of the sandbox.
    #[error(
        "Docker on this machine cannot enforce {missing}, so that no container is started. \
         Enable it in the kernel or in Docker's configuration."
    )]
    SandboxUnavailable {
        /// What is missing, in words.
        missing: String,
    },
    /// A known way out of containers is open on this machine.
    #[error("No container is started here, because one could be left:\n{found}")]
    KnownEscapes {
        /// Each way out with its remedy, a line each.
        found: String,
    },
    /// A call to Docker failed or took too long.
    #[error("Docker could not {action}: {reason}")]
    Docker {
        /// What was attempted, as the end of the sentence "could not …".
        action: &'static str,
        /// What Docker said.
        reason: String,
    },
    /// Docker closed the connection, or does not accept one any more.
    #[error("Docker went away when it was to {action}: {reason}")]
    DockerGone {
        /// What was attempted, as the end of the sentence "it was to …".
        action: &'static str,
        /// What the connection said.
        reason: String,
    },
    /// The catalogue cannot be read or contradicts itself.
    #[error("The engine catalogue {origin} is not valid: {reason}")]
    BadCatalogue {
        /// The file, or "(built in)".
        origin: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// What belongs to a server that this agent did not start is not its affair.
    #[error("Model {model} is served by a server of its own, which this agent leaves alone.")]
    NotOurs {
        /// The model.
        model: String,
    },
    /// A served model names an engine that no catalogue has.
    #[error("Model {model} names the engine {engine}, which is not in the catalogue.")]
    UnknownEngine {
        /// The model.
        model: String,
        /// The engine that it names.
        engine: String,
    },
    /// The node does not serve this model.
    #[error("This node does not serve the model {model}.")]
    UnknownModel {
        /// The model that was asked for.
        model: String,
    },
    /// A served model is described in a way that cannot work.
    #[error("Model {model} is not valid: {reason}")]
    BadModel {
        /// The model.
        model: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The engine's image is not on this machine.
    #[error("The image {image} is not on this machine. Run `{install}`.")]
    ImageMissing {
        /// The image as the catalogue names it.
        image: String,
        /// The command that gets it.
        install: String,
    },
    /// The image is another than the one that the catalogue pins.
    #[error(
        "The image {image} has the id {found}, but the catalogue allows only {wanted}. Restore \
         the image, or change image_id in engines.toml."
    )]
    ImageNotAllowed {
        /// The image as the catalogue names it.
        image: String,
        /// The id that it has.
        found: String,
        /// The id that is allowed.
        wanted: String,
    },
    /// The model's file is not there or is not a file.
    #[error("The file of model {model} is missing: {}. Fetch it, or correct its path.", path.display())]
    ModelMissing {
        /// The model.
        model: String,
        /// Where its file should be.
        path: PathBuf,
    },
    /// The model's file cannot be read.
    #[error("The file of model {model} cannot be read: {}: {reason}", path.display())]
    ModelUnreadable {
        /// The model.
        model: String,
        /// Where its file is.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// An image or the file of a model could not be fetched.
    #[error("Model {model} could not be fetched: {reason}.")]
    FetchFailed {
        /// The model, or the image of container jobs.
        model: String,
        /// Why, as the end of a sentence.
        reason: String,
    },
    /// The model's file is another than the owner allowed.
    #[error(
        "The file of model {model} is not the one that is allowed: {} has sha256 {found}, not \
         {wanted}. Fetch it again, or correct sha256 in the configuration.",
        path.display()
    )]
    ModelMismatch {
        /// The model.
        model: String,
        /// The file.
        path: PathBuf,
        /// Its sha256, in hex.
        found: String,
        /// The sha256 that is allowed, in hex.
        wanted: String,
    },
    /// A file or folder in the runtime directory could not be made.
    #[error("The engine's directory {} cannot be used: {reason}", path.display())]
    RuntimeDirectory {
        /// The path.
        path: PathBuf,
        /// What the system said, or what to change.
        reason: String,
    },
    /// The container runs, but the engine in it was not ready in time.
    #[error(
        "The engine of model {model} was not ready after {} s. Its last words:\n{log}",
        waited.as_secs()
    )]
    NotHealthy {
        /// The model.
        model: String,
        /// How long it was waited for.
        waited: Duration,
        /// The last lines of its log, from before any request was made.
        log: String,
    },
    /// The container ended before the engine was ready.
    #[error("The engine of model {model} did not start: {reason}. Its last words:\n{log}")]
    StartFailed {
        /// The model.
        model: String,
        /// How it ended.
        reason: String,
        /// The last lines of its log, from before any request was made.
        log: String,
    },
    /// There is not enough memory for one more engine.
    #[error(
        "There is no room for the engine of model {model}: it needs {lack}, and nothing idle can \
         be stopped for it."
    )]
    NoRoom {
        /// The model.
        model: String,
        /// What it needs, of how much.
        lack: String,
    },
    /// The engine was killed for its memory.
    #[error(
        "The engine of model {model} ran out of its {memory_mb} MiB of memory. Raise memory_mb, \
         or lower slots or context_length."
    )]
    OutOfMemory {
        /// The model.
        model: String,
        /// Its limit.
        memory_mb: u64,
    },
    /// The engine ended or cut the connection in the middle of an answer.
    #[error("The engine of model {model} died in the middle of an answer: {reason}.")]
    DiedMidStream {
        /// The model.
        model: String,
        /// How it ended.
        reason: String,
    },
    /// The engine cannot be reached.
    #[error("The engine of model {model} cannot be reached: {reason}")]
    Unreachable {
        /// The model.
        model: String,
        /// What the attempt said.
        reason: String,
    },
    /// The engine took a request and then said nothing for too long.
    #[error("The engine of model {model} said nothing for {} s.", waited.as_secs())]
    Stalled {
        /// The model.
        model: String,
        /// How long it was silent.
        waited: Duration,
    },
    /// The engine refused or failed a request.
    #[error("The engine of model {model} failed the request (status {status}): {message}")]
    Failed {
        /// The model.
        model: String,
        /// Its HTTP status, or 500 for an error inside the stream.
        status: u16,
        /// Its own message, shortened.
        message: String,
    },
    /// The engine answered something that is not the protocol.
    #[error("The engine of model {model} does not speak the protocol: {reason}")]
    Protocol {
        /// The model.
        model: String,
        /// What was not understood.
        reason: String,
    },
    /// The program of a container job failed.
    #[error("The program in the container failed: {reason}.{}", said(stderr))]
    JobFailed {
        /// How it ended.
        reason: String,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// What a container job made cannot be taken.
    #[error("{reason}")]
    OutputRefused {
        /// A sentence that says why.
        reason: String,
    },
    /// The request is the consumer's fault, and no other node could answer it.
    #[error("{message}")]
    BadRequest {
        /// What is wrong with it.
        message: String,
    },
    /// The pool is being stopped.
    #[error("The engines of this node are being stopped.")]
    Stopping,
}

/// Ends a sentence with what a program said last, if it said anything.
fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(" It said: {stderr}") }
}

impl EngineError {
    /// Returns the code that `fail_attempt` knows for this error.
    #[must_use]
    pub fn attempt_code(&self) -> &'static str {
        match self {
            // With the same input it fails on every node.
            Self::BadRequest { .. } | Self::JobFailed { .. } | Self::OutputRefused { .. } => {
                "bad_request"
            }
            Self::Stopping => "shutdown",
            Self::DiedMidStream { .. }
            | Self::Stalled { .. }
            | Self::Failed { .. }
            | Self::Protocol { .. }
            | Self::OutOfMemory { .. } => "engine_failed",
            _ => "engine_unavailable",
        }
    }

    /// Tells whether Docker cannot be reached, as while it is restarted.
    #[must_use]
    pub(crate) fn is_host_away(&self) -> bool {
        matches!(self, Self::DockerNotRunning { .. } | Self::DockerGone { .. })
    }

    /// Tells whether another node, or this one later, may do better.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.attempt_code() != "bad_request"
    }

    /// Returns a sentence that may be shown to the consumer: it names no path, no
    /// image and no line of a log.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::BadRequest { message } => message.clone(),
            Self::Stopping => "The node is shutting down.".to_owned(),
            Self::UnknownModel { .. }
            | Self::NotOurs { .. }
            | Self::OutOfMemory { .. }
            | Self::JobFailed { .. }
            | Self::OutputRefused { .. }
            | Self::DiedMidStream { .. }
            | Self::Stalled { .. } => self.to_string(),
            Self::FetchFailed { .. } => "The model could not be fetched.".to_owned(),
            Self::Failed { status, .. } => format!("The engine failed with status {status}."),
            Self::Protocol { .. } => "The engine gave an answer that is not understood.".to_owned(),
            _ => "The engine could not be started on this node.".to_owned(),
        }
    }
}
