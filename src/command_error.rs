//! The one map from inner failures to words, hints and exit codes.
//!
//! Library errors stay typed; here each meets its [`Kind`], which is also the
//! exit code:
//!
//! | code | kind | meaning |
//! |---|---|---|
//! | 0 | | it worked |
//! | 1 | `user`, `config` | what was asked cannot be done, or a file is wrong |
//! | 2 | `usage` | the command line makes no sense |
//! | 3 | `broken_pipe` | the reader of the output went away; nothing is said |
//! | 4 | `not_signed_in` | no key, or the control plane does not accept it |
//! | 5 | `job_failed` | the job failed or expired |
//! | 69 | `unavailable` | control plane, Docker or daemon are away; try later |
//! | 130 | `interrupted` | stopped by Ctrl-C |
//! | 255 | `internal` | a bug |

mod agent;
#[cfg(feature = "proxy")]
mod proxy;
mod relay;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;

pub use self::relay::RelayedError;
use crate::config::ConfigError;
use crate::control::lookup::{LookupError, Subject};
use crate::control::rpc::{Refusal, RpcError};
use crate::control::session::SessionError;
use crate::control::{BaseUrlError, ControlError};
use crate::identity::KeyFileError;
#[cfg(feature = "stack")]
use crate::stack::StackError;

/// What sort of failure it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// What was asked cannot be done.
    User,
    /// A file of ours is wrong.
    Config,
    /// The command line makes no sense.
    Usage,
    /// The reader of the output went away.
    BrokenPipe,
    /// No key, or the control plane does not accept it.
    NotSignedIn,
    /// The job failed or expired.
    JobFailed,
    /// Something that must run does not; try later.
    Unavailable,
    /// Stopped by Ctrl-C.
    Interrupted,
    /// A bug.
    Internal,
}

impl Kind {
    /// Every kind, for the table of exit codes.
    pub const ALL: [Self; 9] = [
        Self::User,
        Self::Config,
        Self::Usage,
        Self::BrokenPipe,
        Self::NotSignedIn,
        Self::JobFailed,
        Self::Unavailable,
        Self::Interrupted,
        Self::Internal,
    ];

    /// Returns the exit code of the process.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::User | Self::Config => 1,
            Self::Usage => 2,
            Self::BrokenPipe => 3,
            Self::NotSignedIn => 4,
            Self::JobFailed => 5,
            Self::Unavailable => 69,
            Self::Interrupted => 130,
            Self::Internal => 255,
        }
    }

    /// Returns the kind's word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Config => "config",
            Self::Usage => "usage",
            Self::BrokenPipe => "broken_pipe",
            Self::NotSignedIn => "not_signed_in",
            Self::JobFailed => "job_failed",
            Self::Unavailable => "unavailable",
            Self::Interrupted => "interrupted",
            Self::Internal => "internal",
        }
    }
}

/// A failure on its way to the user.
#[derive(Debug)]
pub struct CommandError {
    kind: Kind,
    error: Box<dyn Error + Send + Sync>,
    word: Option<String>,
    hints: Vec<String>,
}

impl CommandError {
    /// Wraps an error whose `Display` is a sentence for people.
    pub fn new(kind: Kind, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, error: error.into(), word: None, hints: Vec::new() }
    }

    /// Makes a failure of the user's doing from a sentence.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(Kind::User, message.into())
    }

    /// Makes a failure of something that is away from a sentence.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message.into())
    }

    /// Adds a line that says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Sets the stable word, such as `insufficient_funds`.
    #[must_use]
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.word = Some(word.into());
        self
    }

    /// Returns what sort of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Writes the failure to stderr, as words or as one JSON object, and returns
    /// the exit code.
    pub fn report(&self, as_json: bool) -> ExitCode {
        if self.kind != Kind::BrokenPipe {
            let text = if as_json { self.json() } else { self.words() };
            // Without a stderr there is nobody to tell; the code still says it.
            drop(writeln!(io::stderr().lock(), "{text}"));
        }
        ExitCode::from(self.kind.exit_code())
    }

    /// Returns the failure as people read it: the error, what caused it, hints.
    pub fn words(&self) -> String {
        let mut text = match self.kind {
            Kind::Internal => format!("Error (a bug in infernet): {}", self.error),
            _ => format!("Error: {}", self.error),
        };
        for cause in causes(&*self.error) {
            text.push_str("\n  because: ");
            text.push_str(&cause);
        }
        for hint in &self.hints {
            text.push_str("\nHint: ");
            text.push_str(hint);
        }
        text
    }

    /// Returns the failure and what caused it on one line, and what to do.
    pub fn sentence(&self) -> (String, Option<String>) {
        let mut what = self.error.to_string();
        for cause in causes(&*self.error) {
            what.push_str(" Because: ");
            what.push_str(&cause);
        }
        (what, (!self.hints.is_empty()).then(|| self.hints.join(" ")))
    }

    /// Returns the failure as one JSON object.
    fn json(&self) -> String {
        json!({
            "error": {
                "kind": self.kind.as_str(),
                "code": self.word,
                "message": self.error.to_string(),
                "causes": causes(&*self.error),
                "hints": self.hints,
                "exit_code": self.kind.exit_code(),
            }
        })
        .to_string()
    }
}

/// Returns what caused an error, leaving out causes that only repeat what is
/// above them.
fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut last = error.to_string();
    let mut chain = Vec::new();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !last.contains(&text) {
            chain.push(text.clone());
            last = text;
        }
        source = error.source();
    }
    chain
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        let hint = match &error {
            ConfigError::NoHome => {
                "Set HOME, or INFERNET_CONFIG_DIR, INFERNET_STATE_DIR and INFERNET_RUNTIME_DIR."
            }
            ConfigError::Read { .. } | ConfigError::Write { .. } => {
                "Check who owns the file and its folder."
            }
            ConfigError::Wrong { .. } => {
                "Correct that line, or move the file away and run: infernet init"
            }
            ConfigError::NoSuchKey { .. } => "See what there is: infernet config show",
            ConfigError::Override { .. } => "Correct the flag or the variable.",
            ConfigError::NoControlPlane => {
                "Run infernet init, or name one with --url or INFERNET_URL."
            }
            ConfigError::NoNode => "Run: infernet init",
        };
        Self::new(Kind::Config, error).hint(hint)
    }
}

impl From<BaseUrlError> for CommandError {
    fn from(error: BaseUrlError) -> Self {
        Self::new(Kind::User, error)
    }
}

impl From<ControlError> for CommandError {
    fn from(error: ControlError) -> Self {
        Self::new(control_kind(&error), error)
    }
}

/// Says of which kind it is when a control plane cannot be talked to.
fn control_kind(error: &ControlError) -> Kind {
    match error {
        ControlError::Unreachable { .. } | ControlError::NotReady { .. } => Kind::Unavailable,
        ControlError::Url(_)
        | ControlError::NotAControlPlane { .. }
        | ControlError::Moved { .. }
        | ControlError::BadKey { .. }
        | ControlError::Client(_) => Kind::User,
    }
}

impl From<KeyFileError> for CommandError {
    fn from(error: KeyFileError) -> Self {
        let kind = match &error {
            KeyFileError::Missing { .. } => Kind::NotSignedIn,
            _ => Kind::Config,
        };
        Self::new(kind, error)
    }
}

impl From<SessionError> for CommandError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Control(control) => {
                let kind = control_kind(&control);
                Self::new(kind, SessionError::Control(control))
            }
            SessionError::Refused { ref code, ref hint, .. } => {
                let (code, hint) = (code.clone(), hint.clone());
                let kind = if error.is_temporary() { Kind::Unavailable } else { Kind::NotSignedIn };
                let mut failure = Self::new(kind, error).word(code);
                failure.hints.extend(hint);
                failure
            }
            SessionError::BadAnswer { .. } => Self::new(Kind::Unavailable, error),
        }
    }
}

impl From<RpcError> for CommandError {
    fn from(error: RpcError) -> Self {
        match error {
            RpcError::SignIn(error) => error.into(),
            RpcError::Unreachable { .. } => Self::new(Kind::Unavailable, error).hint(
                "Check the URL and the network, and that it is running (infernet up, or supabase \
                 status).",
            ),
            RpcError::Timeout { .. } => {
                Self::new(Kind::Unavailable, error).hint("Try again in a moment.")
            }
            RpcError::Refused(ref refusal) => {
                let kind = refusal_kind(refusal, error.is_passing());
                of_refusal(kind, refusal.clone(), error)
            }
            RpcError::Unauthenticated(ref refusal) => {
                of_refusal(Kind::NotSignedIn, refusal.clone(), error)
            }
            RpcError::Unexpected { .. } => {
                let kind = if error.is_passing() { Kind::Unavailable } else { Kind::Internal };
                Self::new(kind, error).hint(
                    "Check that the URL is that of the control plane, and that both sides run the \
                     same version.",
                )
            }
        }
    }
}

impl From<LookupError> for CommandError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Rpc(error) => error.into(),
            LookupError::None { subject, .. } => Self::new(Kind::User, error)
                .word(format!("unknown_{subject}"))
                .hint(listing(subject)),
            LookupError::Several { ref ids, .. } => {
                let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
                Self::new(Kind::User, error)
                    .word("ambiguous_id")
                    .hint(format!("Write more of it: {}", ids.join(", ")))
            }
        }
    }
}

/// Says where ids of a kind are listed.
fn listing(subject: Subject) -> &'static str {
    match subject {
        Subject::Job => "See: infernet job ls",
        Subject::Batch => "See: infernet batch ls",
        Subject::Node => "See: infernet node ls",
        Subject::Command => "See: infernet node show NODE",
    }
}

fn refusal_kind(refusal: &Refusal, passing: bool) -> Kind {
    match refusal.word() {
        Some("not_signed_in") => Kind::NotSignedIn,
        _ if passing => Kind::Unavailable,
        _ => Kind::User,
    }
}

fn of_refusal(kind: Kind, refusal: Refusal, error: RpcError) -> CommandError {
    let mut failure = CommandError::new(kind, error);
    failure.word = refusal.word().map(str::to_owned).or(Some(refusal.code));
    failure.hints.extend(refusal.hint);
    if failure.word.as_deref() == Some("not_an_operator") {
        failure.hints.push(
            "Name the operator's key with --key-file; infernet up keeps it as operator.key in its \
             data folder."
                .to_owned(),
        );
    }
    failure
}

#[cfg(feature = "stack")]
impl From<StackError> for CommandError {
    fn from(error: StackError) -> Self {
        use crate::stack::data_dir::DataDirError;
        let (kind, hint) = match &error {
            StackError::DataDir(DataDirError::InUse { .. }) => {
                (Kind::User, Some("Stop it with infernet down, or choose another --data-dir."))
            }
            StackError::DataDir(_) | StackError::Secrets(_) | StackError::OperatorKey(_) => {
                (Kind::Config, None)
            }
            StackError::Migrate(_) | StackError::Operator(_) | StackError::Settings(_) => {
                (Kind::User, Some("The log of the database is postgres.log in the data folder."))
            }
            StackError::Ended { .. } => (Kind::Unavailable, Some("Start it again: infernet up")),
            _ => (Kind::User, None),
        };
        let failure = Self::new(kind, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<io::Error> for CommandError {
    /// Turns a failed write to the output into a failure; errors of files carry
    /// their own types with the path.
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::BrokenPipe => Kind::BrokenPipe,
            _ => Kind::User,
        };
        Self::new(kind, error)
    }
}

impl From<clap::Error> for CommandError {
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        let text = text.trim();
        Self::new(Kind::Usage, text.strip_prefix("error: ").unwrap_or(text))
    }
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Outer.")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("Inner.")]
    struct Inner;

    #[test]
    fn the_exit_codes_are_those_of_the_table() {
        let codes: Vec<(&str, u8)> =
            Kind::ALL.iter().map(|kind| (kind.as_str(), kind.exit_code())).collect();
        assert_eq!(
            codes,
            [
                ("user", 1),
                ("config", 1),
                ("usage", 2),
                ("broken_pipe", 3),
                ("not_signed_in", 4),
                ("job_failed", 5),
                ("unavailable", 69),
                ("interrupted", 130),
                ("internal", 255),
            ]
        );
    }

    #[test]
    fn causes_and_hints_follow_the_error() {
        let error = CommandError::new(Kind::User, Outer(Inner)).hint("Do this.").hint("Or that.");
        assert_eq!(
            error.words(),
            "Error: Outer.\n  because: Inner.\nHint: Do this.\nHint: Or that."
        );
    }

    #[test]
    fn a_refusal_speaks_in_the_control_planes_words() {
        let refusal = Refusal {
            status: StatusCode::PAYMENT_REQUIRED,
            code: "PT402".into(),
            message: "There is $0.00, and the job needs $0.01.".into(),
            details: Some("insufficient_funds".into()),
            hint: Some("Ask the operator for credit.".into()),
        };
        let error = CommandError::from(RpcError::Refused(refusal));
        assert_eq!(error.kind(), Kind::User);
        assert_eq!(
            error.words(),
            "Error: There is $0.00, and the job needs $0.01.\nHint: Ask the operator for credit."
        );
        assert!(error.json().contains("\"code\":\"insufficient_funds\""));
    }
}
