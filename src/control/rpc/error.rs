//! What can go wrong with a call.

use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;

use crate::control::session::SessionError;

/// Why a call gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// No connection, or it broke.
    #[error("The control plane at {url} cannot be reached.")]
    Unreachable {
        /// Its base URL.
        url: String,
        /// What the HTTP client said.
        #[source]
        source: reqwest::Error,
    },
    /// No answer in time. Whether the call had an effect is not known; every
    /// call may be repeated with the same ids.
    #[error("The control plane at {url} did not answer {call} within {} s.", after.as_secs())]
    Timeout {
        /// Its base URL.
        url: String,
        /// The call.
        call: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The control plane said no, in words.
    #[error("{0}")]
    Refused(Refusal),
    /// The session could not be opened or renewed.
    #[error(transparent)]
    SignIn(SessionError),
    /// Signed in anew, and still not believed.
    #[error("The control plane does not accept this key's token: {0}")]
    Unauthenticated(Refusal),
    /// An answer outside the protocol.
    #[error(
        "The control plane at {url} answered {call} in a way this version does not understand."
    )]
    Unexpected {
        /// Its base URL.
        url: String,
        /// The call.
        call: String,
        /// What was wrong with the answer.
        #[source]
        source: UnexpectedAnswer,
    },
}

/// What was wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum UnexpectedAnswer {
    /// The body is not the object that the protocol names.
    #[error("The body does not fit the protocol.")]
    Body(#[source] serde_json::Error),
    /// The body is larger than any answer of the protocol.
    #[error("The body is larger than {limit} bytes.")]
    TooLarge {
        /// The most that is read.
        limit: usize,
    },
    /// An HTTP status without an explanation in PostgREST's form.
    #[error("HTTP status {0} without an explanation.")]
    Status(StatusCode),
    /// The request could not even be built.
    #[error("The request could not be built: {0}")]
    Request(String),
}

/// A refusal in the control plane's own words.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// `PTnnn` of the control plane's functions, `PGRSTnnn` of PostgREST, or an
    /// SQLSTATE.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The stable word, such as `insufficient_funds`.
    pub details: Option<String>,
    /// What to do next.
    pub hint: Option<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Refusal {
    /// Returns the stable word of the refusal, if it is one of the protocol's.
    pub fn word(&self) -> Option<&str> {
        if self.code.starts_with("PT") { self.details.as_deref() } else { None }
    }

    /// Reads PostgREST's error body; `None` when the body is something else.
    pub(crate) fn parse(status: StatusCode, body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Body {
            #[serde(default)]
            code: Option<String>,
            #[serde(alias = "msg")]
            message: String,
            #[serde(default)]
            details: Option<String>,
            #[serde(default)]
            hint: Option<String>,
        }
        let body: Body = serde_json::from_slice(body).ok()?;
        Some(Self {
            status,
            code: body.code.unwrap_or_default(),
            message: body.message,
            details: body.details,
            hint: body.hint,
        })
    }

    /// Says whether the same call may succeed a moment later: the server was
    /// starting, stopping, full, or lost a race between transactions.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self.status,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        ) || matches!(self.code.as_str(), "40001" | "40P01" | "55P03" | "57P01")
    }
}

impl RpcError {
    /// Returns the stable word of a refusal, such as `no_offer`.
    pub fn word(&self) -> Option<&str> {
        self.refusal().and_then(Refusal::word)
    }

    /// Returns the refusal, if the control plane answered with one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) | Self::Unauthenticated(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Says whether the same call may succeed later without anybody changing
    /// anything: the control plane is away or busy.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => true,
            Self::Refused(refusal) => refusal.is_passing(),
            Self::SignIn(error) => error.is_temporary(),
            Self::Unauthenticated(_) => false,
            Self::Unexpected { source, .. } => match source {
                UnexpectedAnswer::Status(status) => status.is_server_error(),
                _ => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_the_stable_word_and_the_hint() {
        let refusal = Refusal::parse(
            StatusCode::PAYMENT_REQUIRED,
            br#"{"code":"PT402","message":"Not enough.","details":"insufficient_funds","hint":"Ask."}"#,
        )
        .unwrap();
        assert_eq!(refusal.word(), Some("insufficient_funds"));
        assert_eq!(refusal.hint.as_deref(), Some("Ask."));
        assert!(!refusal.is_passing());
    }

    #[test]
    fn details_of_postgrest_itself_are_no_words() {
        let refusal = Refusal::parse(
            StatusCode::NOT_FOUND,
            br#"{"code":"PGRST202","message":"No function.","details":"Searched...","hint":null}"#,
        )
        .unwrap();
        assert_eq!(refusal.word(), None);
    }

    #[test]
    fn lost_races_and_restarts_may_be_repeated() {
        let refusal = |status, code: &str| Refusal {
            status,
            code: code.to_owned(),
            message: String::new(),
            details: None,
            hint: None,
        };
        assert!(refusal(StatusCode::INTERNAL_SERVER_ERROR, "40001").is_passing());
        assert!(refusal(StatusCode::SERVICE_UNAVAILABLE, "PGRST002").is_passing());
        assert!(!refusal(StatusCode::CONFLICT, "PT409").is_passing());
    }
}
