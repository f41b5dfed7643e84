//! The answers of login and self-description, in the words of the protocol.
//! Headers for pages of other origins are the gateway's part.

use std::error::Error;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use crate::control::session::RefusalAnswer;
use crate::identity::LoginEventError;

/// A login that is refused: status, code, message and hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// A stable word of the protocol.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// Seconds to wait before the next attempt, for the header `Retry-After`.
    pub retry_after_secs: Option<u32>,
}

impl Refusal {
    /// The body has too many bytes.
    pub(super) fn long_body() -> Self {
        Self::bad_request("The body of the login is longer than 16 KB.")
    }

    /// The body is not a login.
    pub(super) fn bad_body() -> Self {
        Self::bad_request(
            "The body is not a login: it must be a JSON object with kind (user or node) and, for a new node, role, enrolment and name.",
        )
    }

    /// The request has a method that this address does not know.
    pub(super) fn wrong_request(expected: &str) -> Self {
        Self {
            status: 405,
            hint: format!("Send it as {expected}."),
            ..Self::bad_request("This address does not know that method.")
        }
    }

    /// The database or the signer fails.
    pub(super) fn unavailable() -> Self {
        Self {
            status: 503,
            code: "unavailable".to_owned(),
            message: "The control plane cannot answer right now.".to_owned(),
            hint: "Try again in a few seconds; if it lasts, tell the operator.".to_owned(),
            retry_after_secs: Some(3),
        }
    }

    /// Reads a refusal that SQL raised (`PTnnn`, the word in its details);
    /// `None` for any other failure.
    pub(super) fn from_sql(error: &tokio_postgres::Error) -> Option<Self> {
        let error = error.as_db_error()?;
        let status = error.code().code().strip_prefix("PT")?.parse().ok()?;
        if !(400..500).contains(&status) {
            return None;
        }
        let code = error.detail()?;
        let is_word =
            !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_word.then(|| Self {
            status,
            code: code.to_owned(),
            message: error.message().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
            // SQL counts logins by the minute.
            retry_after_secs: (status == 429).then_some(60),
        })
    }

    /// A request that makes no sense.
    fn bad_request(message: &str) -> Self {
        Self {
            status: 400,
            code: "bad_request".to_owned(),
            message: message.to_owned(),
            hint: r#"Send {"kind":"user"} or {"kind":"node"}."#.to_owned(),
            retry_after_secs: None,
        }
    }

    /// Makes the HTTP response.
    pub(super) fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after_secs;
        let answer =
            RefusalAnswer { code: self.code, message: self.message, hint: Some(self.hint) };
        let mut response = json(status, &answer);
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<LoginEventError> for Refusal {
    fn from(error: LoginEventError) -> Self {
        Self {
            status: 401,
            code: error.code().to_owned(),
            message: error.to_string(),
            hint: error.hint().to_owned(),
            retry_after_secs: None,
        }
    }
}

/// Makes a JSON response that nobody keeps.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("answers are made of strings and numbers");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Writes an error with its causes, for the log.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
