//! What the agent, its process and its engines fail with, for the user.

use super::{CommandError, Kind};
use crate::agent::AgentError;
use crate::agent::admin::AdminError;
use crate::agent::logbook::BadFilter;
use crate::agent::process::ProcessError;
use crate::agent::service::ServiceError;
use crate::engine::EngineError;

impl From<AgentError> for CommandError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Control(error) => error.into(),
            AgentError::Session(error) => error.into(),
            AgentError::Rpc(error) => error.into(),
            AgentError::Engine(error) => error.into(),
            AgentError::Endpoint(_) => Self::new(Kind::Config, error),
            AgentError::Journal { .. } => {
                Self::new(Kind::Config, error).hint("Check who owns the folder.")
            }
        }
    }
}

impl From<EngineError> for CommandError {
    /// The words of an engine's error say what to do already.
    fn from(error: EngineError) -> Self {
        let kind = match &error {
            EngineError::DockerNotRunning { .. }
            | EngineError::Docker { .. }
            | EngineError::DockerGone { .. }
            | EngineError::Unreachable { .. }
            | EngineError::Stopping => Kind::Unavailable,
            _ => Kind::Config,
        };
        let hint = matches!(error, EngineError::KnownEscapes { .. }).then_some(
            "Update what is named. To serve all the same, at the risk of this machine: infernet \
             start --accept-known-escapes",
        );
        let failure = Self::new(kind, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<ProcessError> for CommandError {
    fn from(error: ProcessError) -> Self {
        let (kind, hint) = match &error {
            ProcessError::AlreadyRunning { .. } => {
                (Kind::User, "See infernet status, or end it with: infernet stop")
            }
            ProcessError::File { .. } => (Kind::Config, "Check who owns the file and its folder."),
            ProcessError::Spawn(_) => {
                (Kind::Unavailable, "Try it in the foreground: infernet start --foreground")
            }
            ProcessError::Died { .. } | ProcessError::Silent { .. } => (
                Kind::Unavailable,
                "Read the end of the log, or try it in the foreground: infernet start --foreground",
            ),
            ProcessError::StillRunning { .. } => {
                (Kind::Unavailable, "Do not wait for running jobs: infernet stop --now")
            }
            ProcessError::Signal { .. } => {
                (Kind::User, "Stop it as the user who started it, or as root.")
            }
        };
        Self::new(kind, error).hint(hint)
    }
}

impl From<AdminError> for CommandError {
    fn from(error: AdminError) -> Self {
        let (kind, hint) = match error {
            AdminError::Refused(error) => return (*error).into(),
            AdminError::NotRunning => (Kind::User, "Start it with: infernet start"),
            AdminError::Forbidden { .. } => {
                (Kind::User, "Ask as the user who started it, or as root.")
            }
            AdminError::Slow { .. } => (Kind::Unavailable, "Read its log: infernet logs"),
            AdminError::Broken { .. } => (Kind::Unavailable, "Restart it: infernet restart"),
            AdminError::OtherVersion => return Self::new(Kind::User, error),
        };
        Self::new(kind, error).hint(hint)
    }
}

impl From<BadFilter> for CommandError {
    fn from(error: BadFilter) -> Self {
        Self::new(Kind::User, error)
            .hint("Use error, warn, info, debug or trace, or a filter such as infernet=debug,warn.")
    }
}

impl From<ServiceError> for CommandError {
    fn from(error: ServiceError) -> Self {
        let (kind, hint) = match &error {
            ServiceError::NoSystemd => {
                (Kind::User, "Have what starts programs here run: infernet start --foreground")
            }
            ServiceError::NotRoot => {
                (Kind::User, "Use sudo, or make it a service of your own: --user")
            }
            ServiceError::UnknownUser(_) => (Kind::User, "Name a user that exists: --run-as USER"),
            ServiceError::NoHome => (Kind::Config, "Set HOME."),
            ServiceError::File { .. } => (Kind::Config, "Check who owns the file and its folder."),
            ServiceError::BadPath(_) => (Kind::Config, "Choose another folder."),
            ServiceError::Systemctl { .. } | ServiceError::Slow { .. } => {
                (Kind::Unavailable, "Read what it logged: journalctl -u infernet")
            }
        };
        Self::new(kind, error).hint(hint)
    }
}
