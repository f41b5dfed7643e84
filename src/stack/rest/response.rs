//! From what a transaction returned to an HTTP response.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::error::RestError;
use super::execute::Outcome;
use super::range::RowRange;

/// What is known of the response before the transaction.
pub(crate) struct Frame {
    pub(crate) head: bool,
    pub(crate) content_type: String,
    /// The schema, where it was negotiated.
    pub(crate) profile: Option<String>,
    pub(crate) preference_applied: Option<String>,
    pub(crate) range: RowRange,
    /// The function returns nothing.
    pub(crate) void: bool,
}

impl Frame {
    /// Makes the response of a read or a call.
    pub(crate) fn respond(self, outcome: Outcome) -> Result<Response<Body>, RestError> {
        let (mut status, content_range) = self.range.status_and_header(outcome.page, outcome.total);
        let mut body = outcome.body;
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            body = out_of_bounds(self.range.offset(), outcome.total.unwrap_or(0));
        }
        let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
        let mut add = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.push((name, value));
            }
        };
        add(header::CONTENT_RANGE, &content_range);
        if let Some(applied) = &self.preference_applied {
            add(HeaderName::from_static("preference-applied"), applied);
        }
        if self.void {
            status = StatusCode::NO_CONTENT;
            body.clear();
        } else {
            add(header::CONTENT_TYPE, &self.content_type);
            if let Some(schema) = &self.profile {
                add(HeaderName::from_static("content-profile"), schema);
            }
        }
        if let Some(text) = &outcome.status {
            status = read_status(text)?;
        }
        let set_headers = outcome.headers.as_deref().map(read_headers).transpose()?;
        let set_headers = set_headers.unwrap_or_default();

        let mut response = Response::new(if self.head { Body::empty() } else { Body::from(body) });
        *response.status_mut() = status;
        let target = response.headers_mut();
        for (name, value) in headers {
            // What a function set stands instead of what would be sent.
            if !set_headers.iter().any(|(set, _)| *set == name) {
                target.insert(name, value);
            }
        }
        for (name, value) in set_headers {
            target.append(name, value);
        }
        Ok(response)
    }
}

/// An offset beyond the end is no error like others: the page is described as
/// ever, and only the body says what is wrong.
fn out_of_bounds(offset: i64, total: i64) -> String {
    json!({
        "code": "PGRST103",
        "message": "Requested range not satisfiable",
        "details": format!("An offset of {offset} was requested, but there are only {total} rows."),
        "hint": null,
    })
    .to_string()
}

fn read_status(text: &str) -> Result<StatusCode, RestError> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or(RestError::ResponseStatus)
}

fn read_headers(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, RestError> {
    let list: Vec<Map<String, Value>> =
        serde_json::from_str(text).map_err(|_| RestError::ResponseHeaders)?;
    list.into_iter()
        .map(|object| {
            let mut entries = object.into_iter();
            let (Some((name, Value::String(value))), None) = (entries.next(), entries.next())
            else {
                return Err(RestError::ResponseHeaders);
            };
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_bytes(value.as_bytes());
            match (name, value) {
                (Ok(name), Ok(value)) => Ok((name, value)),
                _ => Err(RestError::ResponseHeaders),
            }
        })
        .collect()
}
