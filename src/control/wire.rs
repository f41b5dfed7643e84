//! Sends the requests that the `postgrest` crate builds.
//!
//! The crate brings an HTTP client of its own, which knows no timeout and no
//! certificate store of the system. So its requests are taken apart and sent by
//! the one client of [`ControlPlane`]: one pool, one TLS set-up, one timeout.
//! Answers are read up to a limit; refusals become [`Refusal`].

use std::time::Duration;

use postgrest::{Builder, Postgrest};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Request};

use super::ControlPlane;
use super::rpc::{Refusal, RpcError, UnexpectedAnswer};

/// The most that is read of an answer. A result is at most 1 MB, and a page of
/// jobs far less.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

/// One control plane's `/rest/v1`.
pub(super) struct Wire {
    control: ControlPlane,
    base: String,
    postgrest: Postgrest,
}

impl Wire {
    pub(super) fn new(control: ControlPlane) -> Self {
        let base = control.base_url().to_string();
        let postgrest = Postgrest::new(control.rest_url());
        Self { control, base, postgrest }
    }

    pub(super) fn control(&self) -> &ControlPlane {
        &self.control
    }

    pub(super) fn postgrest(&self) -> &Postgrest {
        &self.postgrest
    }

    pub(super) fn unexpected(&self, call: &str, source: UnexpectedAnswer) -> RpcError {
        RpcError::Unexpected { url: self.base.clone(), call: call.to_owned(), source }
    }

    /// Sends one request and returns the body of a good answer.
    pub(super) async fn send(
        &self,
        call: &str,
        builder: Builder,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<Vec<u8>, RpcError> {
        let request = self
            .translate(builder, token, timeout)
            .map_err(|reason| self.unexpected(call, UnexpectedAnswer::Request(reason)))?;
        let mut response = self
            .control
            .http()
            .execute(request)
            .await
            .map_err(|error| self.broken(call, timeout, error))?;
        let status = response.status();
        let expected = response.content_length().and_then(|length| usize::try_from(length).ok());
        let mut body = Vec::with_capacity(expected.unwrap_or_default().min(ANSWER_LIMIT));
        while let Some(chunk) =
            response.chunk().await.map_err(|error| self.broken(call, timeout, error))?
        {
            if body.len() + chunk.len() > ANSWER_LIMIT {
                return Err(
                    self.unexpected(call, UnexpectedAnswer::TooLarge { limit: ANSWER_LIMIT })
                );
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(body);
        }
        match Refusal::parse(status, &body) {
            Some(refusal) => Err(RpcError::Refused(refusal)),
            None => Err(self.unexpected(call, UnexpectedAnswer::Status(status))),
        }
    }

    /// Takes a built request apart and makes it one of our client's.
    fn translate(
        &self,
        builder: Builder,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<Request, String> {
        let built = builder.build().build().map_err(|error| error.to_string())?;
        let method =
            Method::from_bytes(built.method().as_str().as_bytes()).map_err(|e| e.to_string())?;
        let mut request = Request::new(method, built.url().clone());
        let headers = request.headers_mut();
        for (name, value) in built.headers() {
            let name = HeaderName::from_bytes(name.as_str().as_bytes())
                .map_err(|error| error.to_string())?;
            let value =
                HeaderValue::from_bytes(value.as_bytes()).map_err(|error| error.to_string())?;
            headers.append(name, value);
        }
        authorise(headers, self.control.publishable_key(), token)?;
        if let Some(bytes) = built.body().and_then(|body| body.as_bytes())
            && !bytes.is_empty()
        {
            *request.body_mut() = Some(bytes.to_vec().into());
        }
        *request.timeout_mut() = Some(timeout);
        Ok(request)
    }

    fn broken(&self, call: &str, after: Duration, error: reqwest::Error) -> RpcError {
        // The base URL is named beside it; the query is noise.
        let error = error.without_url();
        if error.is_timeout() && !error.is_connect() {
            RpcError::Timeout { url: self.base.clone(), call: call.to_owned(), after }
        } else {
            RpcError::Unreachable { url: self.base.clone(), source: error }
        }
    }
}

/// Sets the headers of Supabase's gateway: the key always, a bearer token only
/// when there is a real one.
fn authorise(headers: &mut HeaderMap, key: &str, token: Option<&str>) -> Result<(), String> {
    let key = HeaderValue::from_str(key)
        .map_err(|_error| "the publishable key holds characters that no header may".to_owned())?;
    headers.insert("apikey", key);
    if let Some(token) = token {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_error| "the token holds characters that no header may".to_owned())?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
    }
    Ok(())
}
