//! Broadcasts over HTTP: the batch, and the newer call for a single message.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Service;
use super::authorization::{AuthorizationError, rights};
use super::message::{Content, Message};
use super::token::{self, Access};
use crate::control::realtime::frame::{EVENT_BROADCAST, Encoding, to_raw};

const BLANK: &str = "can't be blank";
const INVALID: &str = "is invalid";

/// Answers what is no route of ours, as the real server does.
pub(super) async fn not_found() -> Response {
    answer(StatusCode::NOT_FOUND, &json!("Not Found"))
}

/// Lets pages of any origin read the answer, as the real server does; the
/// gateway in front answers preflights.
pub(super) async fn allow_any_origin(mut response: Response) -> Response {
    response
        .headers_mut()
        .entry(header::ACCESS_CONTROL_ALLOW_ORIGIN)
        .or_insert(HeaderValue::from_static("*"));
    response
}

/// A message of a batch, read.
struct BatchMessage {
    private: bool,
    message: Message,
}

/// Sends a batch: 202, also when a private message was dropped for lack of
/// rights. Public messages go out before private ones.
pub(super) async fn broadcast_batch(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(access) = access_of(&service, &headers) else { return unauthorized() };
    let messages = match read_batch(&headers, &body, service.limits.max_payload_bytes) {
        Ok(messages) => messages,
        Err(refusal) => return *refusal,
    };
    if messages.len() > service.limits.batch_messages {
        return answer(
            StatusCode::TOO_MANY_REQUESTS,
            &json!({ "message": "Too many messages to broadcast, please reduce the batch size" }),
        );
    }
    let (private, public): (Vec<_>, Vec<_>) =
        messages.into_iter().partition(|message| message.private);
    // The policies are asked before anything goes out, so that a failure of the
    // database is answered for the batch as a whole.
    let mut may_write = HashMap::new();
    for BatchMessage { message, .. } in &private {
        if !may_write.contains_key(&message.topic) {
            match rights(&service, &access, &message.topic).await {
                Ok(rights) => may_write.insert(message.topic.clone(), rights.write),
                Err(error) => return unavailable(&error),
            };
        }
    }
    for BatchMessage { message, .. } in &public {
        service.hub.publish(false, message, None);
    }
    for BatchMessage { message, .. } in &private {
        if may_write.get(&message.topic) == Some(&true) {
            service.hub.publish(true, message, None);
        }
    }
    accepted()
}

/// Sends one message, JSON or raw: 202, or 403 without the right.
pub(super) async fn broadcast_single(
    State(service): State<Arc<Service>>,
    Path((topic, event)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(access) = access_of(&service, &headers) else { return unauthorized() };
    let encoding = match media_type(&headers).as_str() {
        "application/json" => Encoding::Json,
        "application/octet-stream" => Encoding::Raw,
        _ => {
            return answer(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                &json!({ "message": "Send application/json or application/octet-stream" }),
            );
        }
    };
    if encoding == Encoding::Json && serde_json::from_slice::<&RawValue>(&body).is_err() {
        return bad_request();
    }
    if body.len() > service.limits.max_payload_bytes {
        return answer(
            StatusCode::UNPROCESSABLE_ENTITY,
            &json!({ "errors": { "payload": ["Payload size exceeds tenant limit"] } }),
        );
    }
    let private = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .any(|(name, value)| name == "private" && (value == "true" || value == "1"));
    if private {
        match rights(&service, &access, &topic).await {
            Ok(rights) if rights.write => {}
            Ok(_) => {
                return answer(StatusCode::FORBIDDEN, &json!({ "message": "Unauthorized" }));
            }
            Err(error) => return unavailable(&error),
        }
    }
    let content = Content::User { event, encoding, payload: body, id: None };
    service.hub.publish(private, &Message { topic, content }, None);
    accepted()
}

/// Reads the body of a batch, or the refusal of it.
fn read_batch(
    headers: &HeaderMap,
    body: &[u8],
    max_payload_bytes: usize,
) -> Result<Vec<BatchMessage>, Box<Response>> {
    #[derive(Deserialize)]
    struct Batch<'a> {
        #[serde(borrow, default)]
        messages: Option<&'a RawValue>,
    }
    // Without the content type the real server sees no parameters at all.
    let is_json = media_type(headers) == "application/json";
    let batch: Batch<'_> = if is_json && !body.is_empty() {
        // Any JSON that is no object has no messages.
        serde_json::from_slice::<&RawValue>(body).map_err(|_| Box::new(bad_request()))?;
        serde_json::from_slice(body).unwrap_or(Batch { messages: None })
    } else {
        Batch { messages: None }
    };
    let Some(messages) = batch.messages.map(RawValue::get) else {
        // An absent key is blank, a null is invalid; serde reads both as None.
        let is_null = is_json
            && serde_json::from_slice::<Map<String, Value>>(body)
                .is_ok_and(|batch| batch.contains_key("messages"));
        return Err(Box::new(invalid(&json!([if is_null { INVALID } else { BLANK }]))));
    };
    let Ok(messages) = serde_json::from_str::<Vec<&RawValue>>(messages) else {
        return Err(Box::new(invalid(&json!([INVALID]))));
    };
    if messages.is_empty() {
        return Err(Box::new(invalid(&json!([BLANK]))));
    }
    let mut read = Vec::with_capacity(messages.len());
    let mut errors = Vec::with_capacity(messages.len());
    for message in messages {
        match read_message(message, max_payload_bytes) {
            Ok(message) => {
                read.push(message);
                errors.push(Value::Object(Map::new()));
            }
            Err(error) => errors.push(error),
        }
    }
    if read.len() < errors.len() {
        return Err(Box::new(invalid(&Value::Array(errors))));
    }
    Ok(read)
}

/// Reads one message of a batch; the error names each field that is wrong.
fn read_message(message: &RawValue, max_payload_bytes: usize) -> Result<BatchMessage, Value> {
    #[derive(Serialize)]
    struct Envelope<'a> {
        r#type: &'a str,
        event: &'a str,
        payload: &'a RawValue,
    }
    let Ok(fields) = serde_json::from_str::<HashMap<String, &RawValue>>(message.get()) else {
        return Err(json!([INVALID]));
    };
    let mut errors = Map::new();
    let mut text = |name: &str| {
        let value = fields.get(name).map(|raw| raw.get()).filter(|raw| *raw != "null");
        let problem = match value.map(serde_json::from_str::<String>) {
            Some(Ok(text)) if !text.trim().is_empty() => return text,
            Some(Err(_)) => INVALID,
            _ => BLANK,
        };
        errors.insert(name.to_owned(), json!([problem]));
        String::new()
    };
    let topic = text("topic");
    let event = text("event");
    let payload = fields.get("payload").copied().filter(|raw| raw.get() != "null");
    let problem = match payload {
        None => Some(BLANK),
        Some(raw) if !raw.get().starts_with('{') => Some(INVALID),
        Some(raw) if raw.get().len() > max_payload_bytes => {
            Some("Payload size exceeds tenant limit")
        }
        Some(_) => None,
    };
    if let Some(problem) = problem {
        errors.insert("payload".to_owned(), json!([problem]));
    }
    let private = match fields.get("private").map(|raw| raw.get()) {
        None | Some("null" | "false" | "\"false\"" | "\"0\"" | "0") => false,
        Some("true" | "\"true\"" | "\"1\"" | "1") => true,
        Some(_) => {
            errors.insert("private".to_owned(), json!([INVALID]));
            false
        }
    };
    match payload {
        Some(payload) if errors.is_empty() => {
            let envelope = Envelope { r#type: EVENT_BROADCAST, event: &event, payload };
            let envelope = to_raw(&envelope).expect("strings and raw JSON always serialize");
            Ok(BatchMessage {
                private,
                message: Message { topic, content: Content::Envelope(envelope) },
            })
        }
        _ => Err(Value::Object(errors)),
    }
}

/// Verifies the token of a request; `Authorization` wins over `apikey`.
fn access_of(service: &Service, headers: &HeaderMap) -> Option<Access> {
    let token = service.api_keys.token_of_request(headers)?;
    token::verify(&service.verifier, token).ok()
}

/// Returns the media type without its parameters, in lower case.
fn media_type(headers: &HeaderMap) -> String {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase())
        .unwrap_or_default()
}

fn accepted() -> Response {
    StatusCode::ACCEPTED.into_response()
}

fn bad_request() -> Response {
    (StatusCode::BAD_REQUEST, "Bad Request").into_response()
}

fn unauthorized() -> Response {
    answer(StatusCode::UNAUTHORIZED, &json!({ "message": "Unauthorized" }))
}

fn invalid(messages: &Value) -> Response {
    answer(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "errors": { "messages": messages } }))
}

fn unavailable(error: &AuthorizationError) -> Response {
    let message = json!({ "message": error.to_string() });
    let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, &message);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Makes an answer with a JSON body.
pub(super) fn answer(status: StatusCode, body: &Value) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
    (status, content_type, body.to_string()).into_response()
}
