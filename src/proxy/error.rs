//! Refusals and failures in the shape of OpenAI's: what its clients turn into their
//! own exceptions.
//!
//! Those clients repeat a request that got 408, 409, 429 or a 5xx, unless the header
//! `x-should-retry` says otherwise: it does where a repeat would only cost once more.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::request::TERMS_KEY;
use crate::control::rpc::{Job, JobState, RpcError};

/// Tells OpenAI's clients whether to repeat.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A failure on its way to the client.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    /// OpenAI's `code`, or the control plane's word.
    code: Option<String>,
    message: String,
    /// The key of the request that is wrong.
    param: Option<String>,
    /// A repeat makes no sense although the status would suggest one.
    final_: bool,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, message: message.into(), param: None, final_: false }
    }

    /// Says that the request itself makes no sense.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// Says that a key of the request has a value that is not taken.
    pub(super) fn wrong(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::invalid(message) }.code("invalid_value")
    }

    /// Says that a key of the request asks for what is not offered here.
    pub(super) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::invalid(message) }
            .code("unsupported_parameter")
    }

    /// Says that the body is larger than is taken.
    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("The body is larger than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, message).code("request_too_large")
    }

    /// Says that the body did not arrive in time.
    pub(super) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "The body did not arrive in time.")
    }

    /// Says that no key, or another one, was shown.
    pub(super) fn wrong_key() -> Self {
        let message = "This is not the key of this proxy. It is in proxy.key in the folder of the \
                       configuration; infernet proxy prints where.";
        Self::new(StatusCode::UNAUTHORIZED, INVALID, message).code("invalid_api_key")
    }

    /// Says that the request was made to another name than this machine's own.
    pub(super) fn wrong_host() -> Self {
        let message = "The proxy answers to localhost and 127.0.0.1 only.";
        Self::new(StatusCode::MISDIRECTED_REQUEST, INVALID, message).code("host_not_allowed")
    }

    /// Says that nothing is at a path.
    pub(super) fn no_such_path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, format!("There is nothing at {path}."))
            .code("unknown_url")
    }

    /// Says that a path does not know a method.
    pub(super) fn wrong_method() -> Self {
        let message = "This path does not know that method.";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, message).code("method_not_allowed")
    }

    /// Says that nobody offers a model.
    pub(super) fn no_such_model(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist: nobody offers it.");
        Self { param: Some("model".to_owned()), ..Self::invalid(message) }
            .status(StatusCode::NOT_FOUND)
            .code("model_not_found")
    }

    /// Says that a later node writes something else than was already sent.
    pub(super) fn restarted() -> Self {
        let message = "The node that wrote this answer was lost, and another one began a different \
                       answer. Ask again.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, message).code("answer_restarted")
    }

    /// Says that an answer is outside the protocol.
    pub(super) fn strange_answer(message: &str) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, SERVER, message).code("bad_answer")
    }

    /// Says that the proxy is stopping.
    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "The proxy is stopping.")
    }

    /// Says why a job ended without a whole answer.
    pub(super) fn of_job(job: &Job) -> Self {
        let reason = job.error.as_ref();
        let word = reason.map(|reason| reason.code.clone());
        let words = reason.map_or("No reason was given.", |reason| reason.message.as_str());
        let error = match (job.state, word.as_deref()) {
            // The consumer's own fault: the engine said what is wrong.
            (_, Some("bad_request")) => Self::invalid(words),
            (JobState::Expired, _) => {
                let message = format!("The job expired. {words}");
                Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, message).once()
            }
            (JobState::Cancelled, _) => {
                let message = "The job was cancelled meanwhile.";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, message).once()
            }
            _ => {
                let message = format!("The job failed. {words}");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, message)
            }
        };
        error.code(word.unwrap_or_else(|| job.state.as_str().to_owned()))
    }

    fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Asks the client not to repeat.
    fn once(mut self) -> Self {
        self.final_ = true;
        self
    }

    /// Returns the body of the answer.
    pub(super) fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl From<RpcError> for ApiError {
    fn from(error: RpcError) -> Self {
        let Some(refusal) = error.refusal().cloned() else {
            let (status, code) = match error {
                _ if error.is_passing() => {
                    (StatusCode::SERVICE_UNAVAILABLE, "control_plane_unavailable")
                }
                RpcError::SignIn(_) => (StatusCode::BAD_GATEWAY, "not_signed_in"),
                _ => (StatusCode::BAD_GATEWAY, "control_plane_failed"),
            };
            // The words may name the control plane, which its own consumer knows.
            return Self::new(status, SERVER, error.to_string()).code(code);
        };
        let message = match &refusal.hint {
            Some(hint) => format!("{} {hint}", refusal.message),
            None => refusal.message.clone(),
        };
        let word = refusal.word().map(str::to_owned);
        let invalid = || Self::invalid(message.clone());
        let of = |status, kind| Self::new(status, kind, message.clone());
        match word.as_deref() {
            Some("unknown_model" | "no_offer") => {
                Self { param: Some("model".to_owned()), ..invalid() }
                    .status(StatusCode::NOT_FOUND)
                    .code("model_not_found")
            }
            // As OpenAI says it; waiting does not bring credit.
            Some("insufficient_funds") => of(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota")
                .code("insufficient_quota")
                .once(),
            Some(word @ ("bad_needs" | "bad_priority")) => {
                Self { param: Some(TERMS_KEY.to_owned()), ..invalid() }.code(word)
            }
            Some("queue_full") => {
                of(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error").code("rate_limit_exceeded")
            }
            Some("prompt_too_large") => invalid().code("context_length_exceeded"),
            Some("suspended") => of(StatusCode::FORBIDDEN, "permission_error").code("suspended"),
            Some("not_signed_in") => of(StatusCode::BAD_GATEWAY, SERVER).code("not_signed_in"),
            _ if error.is_passing() => {
                of(StatusCode::SERVICE_UNAVAILABLE, SERVER).code("control_plane_unavailable")
            }
            Some(word) if refusal.status.is_client_error() => invalid().code(word),
            // PostgreSQL cannot take the data, such as a NUL in a text.
            None if refusal.code.starts_with("22") => invalid().code("invalid_value"),
            _ => of(StatusCode::BAD_GATEWAY, SERVER).code("control_plane_failed"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.final_ {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        // What was not read of the body makes the connection useless; said, so that no client
        // sends its next request on it.
        if matches!(self.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use crate::control::rpc::Refusal;

    use super::*;

    fn refused(status: StatusCode, code: &str, word: &str) -> ApiError {
        ApiError::from(RpcError::Refused(Refusal {
            status,
            code: code.to_owned(),
            message: "No.".to_owned(),
            details: Some(word.to_owned()),
            hint: Some("Do this.".to_owned()),
        }))
    }

    #[test]
    fn refusals_get_the_status_that_openai_gives_them() {
        for (status, word, expected, code) in [
            (404, "unknown_model", 404, "model_not_found"),
            (422, "no_offer", 404, "model_not_found"),
            (402, "insufficient_funds", 429, "insufficient_quota"),
            (429, "queue_full", 429, "rate_limit_exceeded"),
            (413, "prompt_too_large", 400, "context_length_exceeded"),
            (422, "bad_input", 400, "bad_input"),
            (422, "bad_needs", 400, "bad_needs"),
            (422, "cap_below_offers", 400, "cap_below_offers"),
            (403, "suspended", 403, "suspended"),
            (401, "not_signed_in", 502, "not_signed_in"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = refused(status, &format!("PT{}", status.as_u16()), word);
            assert_eq!(error.status.as_u16(), expected, "{word}");
            assert_eq!(error.code.as_deref(), Some(code));
            assert_eq!(error.body()["error"]["message"], "No. Do this.");
        }
    }

    #[test]
    fn only_what_costs_again_for_nothing_is_not_repeated() {
        let retry = |error: ApiError| {
            error.into_response().headers().get(SHOULD_RETRY).map(|value| value.to_owned())
        };
        let broke = refused(StatusCode::PAYMENT_REQUIRED, "PT402", "insufficient_funds");
        assert_eq!(retry(broke).unwrap(), "false");
        assert_eq!(retry(refused(StatusCode::TOO_MANY_REQUESTS, "PT429", "queue_full")), None);
    }
}
