//! The upgrade to a websocket: version, key, refusals.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;

use super::socket::{self, Opening};
use super::{Service, http, token};
use crate::control::realtime::frame::ProtocolVersion;

/// The header that carries the key; it wins over the query.
const KEY_HEADER: &str = "x-api-key";

/// Answers a handshake and, when it is good, starts the socket's task.
pub(super) async fn upgrade(
    State(service): State<Arc<Service>>,
    mut request: Request<Body>,
) -> Response {
    let Some(accept) = accept_key(request.method(), request.headers()) else {
        return (
            StatusCode::UPGRADE_REQUIRED,
            [(header::UPGRADE, "websocket"), (header::SEC_WEBSOCKET_VERSION, "13")],
            "This is a websocket; connect with a websocket client",
        )
            .into_response();
    };
    let mut key_of_query = None;
    let mut version = ProtocolVersion::V1;
    let query = request.uri().query().unwrap_or_default();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "apikey" => key_of_query = Some(value.into_owned()),
            "vsn" => match ProtocolVersion::parse(&value) {
                Some(known) => version = known,
                None => return StatusCode::FORBIDDEN.into_response(),
            },
            _ => {}
        }
    }
    let key_of_header =
        request.headers().get(KEY_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let Some(key) = key_of_header.or(key_of_query).filter(|key| !key.is_empty()) else {
        return refuse(&service, StatusCode::UNAUTHORIZED, "API key is missing").await;
    };
    let token = service.api_keys.token_for(&key).to_owned();
    if let Err(error) = token::verify(&service.verifier, &token) {
        return refuse(&service, StatusCode::UNAUTHORIZED, &error.handshake_text()).await;
    }
    let Some(place) = Place::take(&service) else {
        return refuse(&service, StatusCode::TOO_MANY_REQUESTS, "Too many connected users").await;
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let opening = Opening { version, token };
    service.tasks.clone().spawn(async move {
        let upgraded = tokio::select! {
            () = service.shutdown.cancelled() => return,
            upgraded = upgrade => upgraded,
        };
        match upgraded {
            Ok(upgraded) => {
                Box::pin(socket::run(Arc::clone(&service), TokioIo::new(upgraded), opening)).await;
            }
            Err(error) => debug!(%error, "a websocket was not upgraded"),
        }
        drop(place);
    });
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "Upgrade".to_owned()),
            (header::UPGRADE, "websocket".to_owned()),
            (header::SEC_WEBSOCKET_ACCEPT, accept),
        ],
    )
        .into_response()
}

/// Returns what proves to the client that its handshake was understood; None
/// when the request is no handshake.
fn accept_key(method: &Method, headers: &HeaderMap) -> Option<String> {
    let has = |name: header::HeaderName, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    let good = method == Method::GET
        && has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    good.then(|| derive_accept_key(key.as_bytes()))
}

/// Refuses a handshake in the real server's words, a little late.
async fn refuse(service: &Service, status: StatusCode, text: &str) -> Response {
    tokio::select! {
        () = service.shutdown.cancelled() => {}
        () = tokio::time::sleep(service.limits.refusal_delay) => {}
    }
    let mut response = http::answer(status, &json!({ "error": text }));
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("60"));
    }
    response
}

/// One of the places for open sockets; dropping it frees it.
struct Place {
    service: Arc<Service>,
}

impl Place {
    fn take(service: &Arc<Service>) -> Option<Self> {
        let place = Self { service: Arc::clone(service) };
        let taken = service.sockets.fetch_add(1, Ordering::Relaxed);
        (taken < service.limits.max_sockets).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.service.sockets.fetch_sub(1, Ordering::Relaxed);
    }
}
