//! The one HTTP server of an embedded control plane: accepts connections, gives
//! each request to the part that serves its path, and adds what belongs to all
//! of them (request ids, cross-origin headers, time limits, JSON for unknown
//! paths).
//!
//! | path | part |
//! |---|---|
//! | `/rest/v1` | `rest` |
//! | `/realtime/v1` | `realtime` |
//! | `/functions/v1/auth`, `/functions/v1/info` | [`auth`](super::auth) |
//! | `/functions/v1/NAME` | [`functions`](super::functions) |
//! | `/health` | this module |
//!
//! Invariants: a query string is never logged (websockets carry their key
//! there); a connection is one task of the server's set and ends with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use deadpool_postgres::Pool;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::READER_NAME;
use crate::http_server::{Limits, serve};

/// Connections at one time; more wait to be accepted.
const CONNECTION_LIMIT: usize = 4096;
/// How long a connection may stay silent. Longer than clients of ours keep an
/// idle connection, so that they close it and not we, at a moment when a request
/// is already on its way.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// How long a request may take, as on Supabase. Statements have shorter limits.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// How long open requests may go on when the server stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long the database may take to say that it is well.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// Identifies a request in answers and logs.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers that a page may send, where it does not ask for particular ones.
const ALLOWED_HEADERS: &str = "accept, accept-profile, apikey, authorization, content-profile, \
     content-type, prefer, range, range-unit, x-client-info, x-region, x-request-id, \
     x-retry-count, x-supabase-api-version";
/// Headers that a page may read.
const EXPOSED_HEADERS: &str = "Content-Encoding, Content-Location, Content-Range, Content-Type, \
     Date, Location, Preference-Applied, Proxy-Status, Range-Unit, Retry-After, \
     Transfer-Encoding, X-Request-Id";

/// What `/health` reports on.
#[derive(Debug, Clone)]
pub(super) struct Health {
    /// Connections to the database.
    pub(super) pool: Pool,
    /// The newest migration of the database.
    pub(super) migration: Option<String>,
    /// Whether functions other than the native ones can run.
    pub(super) functions: bool,
}

/// Puts the parts together. `parts` answers under the full public paths.
pub(super) fn router(parts: Router, health: Health) -> Router {
    Router::new()
        .route("/health", get(serve_health).with_state(Arc::new(health)))
        .merge(parts)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(cross_origin))
        .layer(middleware::from_fn(identify))
}

/// Ends requests that take too long. For parts whose answers are whole; streams
/// have limits of their own.
pub(super) async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => answer(
            StatusCode::GATEWAY_TIMEOUT,
            &json!({
                "code": "timeout",
                "message": format!("The request took longer than {} s.", REQUEST_LIMIT.as_secs()),
                "hint": "Ask for less at a time, or try again later.",
            }),
        ),
    }
}

/// Serves until `shutdown`, then lets open requests end for a moment.
pub(super) async fn run_gateway(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) {
    let limits = Limits { connections: CONNECTION_LIMIT, idle: IDLE_LIMIT, drain: DRAIN_LIMIT };
    serve(listener, router, limits, shutdown).await;
}

/// Gives each request an id and logs how it went.
async fn identify(mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .filter(|id| is_plain(id))
        .cloned()
        .unwrap_or_else(new_request_id);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let started = Instant::now();
    let span = tracing::debug_span!("request", id = id.to_str().unwrap_or_default());
    let mut response = next.run(request).instrument(span.clone()).await;
    span.in_scope(|| {
        let millis = started.elapsed().as_secs_f64() * 1000.0;
        tracing::debug!(%method, path, status = response.status().as_u16(), millis, "answered");
    });
    response.headers_mut().entry(REQUEST_ID).or_insert(id);
    response
}

/// Makes the id of a request that has none.
fn new_request_id() -> HeaderValue {
    HeaderValue::try_from(Uuid::new_v4().to_string()).expect("a UUID is plain text")
}

/// Says whether a request's own id can be taken over into logs.
fn is_plain(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=64).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Lets pages of any origin call: nothing here relies on cookies, a caller is
/// known by its key and token alone.
async fn cross_origin(request: Request, next: Next) -> Response {
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if is_preflight {
        return preflight(request.headers());
    }
    let mut response = next.run(request).await;
    // What a part says itself stays.
    let headers = response.headers_mut();
    headers.entry(header::ACCESS_CONTROL_ALLOW_ORIGIN).or_insert(HeaderValue::from_static("*"));
    headers
        .entry(header::ACCESS_CONTROL_EXPOSE_HEADERS)
        .or_insert(HeaderValue::from_static(EXPOSED_HEADERS));
    response
}

/// Answers a browser that asks before it sends.
fn preflight(request: &HeaderMap) -> Response {
    let allowed = request
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .cloned()
        .unwrap_or(HeaderValue::from_static(ALLOWED_HEADERS));
    let mut response = Response::default();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD, PUT, PATCH, POST, DELETE, OPTIONS"),
    );
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
    headers.insert(header::VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    response
}

/// Answers `/health`: 503 when requests cannot be served, else 200, also where
/// what is missing is only messages, which nothing depends on.
async fn serve_health(State(health): State<Arc<Health>>) -> Response {
    let (database, realtime) =
        match tokio::time::timeout(HEALTH_LIMIT, ask_database(&health.pool)).await {
            Ok(Ok(true)) => ("ok", "ok"),
            Ok(Ok(false)) => ("ok", "not_listening"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the database is not well");
                ("unreachable", "unknown")
            }
            Err(_) => ("slow", "unknown"),
        };
    let (code, status) = match (database, realtime) {
        ("ok", "ok") => (StatusCode::OK, "ok"),
        ("ok", _) => (StatusCode::OK, "degraded"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    answer(
        code,
        &json!({
            "status": status,
            "version": env!("CARGO_PKG_VERSION"),
            "database": database,
            "realtime": realtime,
            "migration": health.migration,
            "functions": if health.functions { "ok" } else { "off" },
        }),
    )
}

/// Asks the database whether it is there, and whether Realtime reads it.
async fn ask_database(pool: &Pool) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let connection = pool.get().await?;
    let statement = connection
        .prepare_cached("select exists (select from pg_stat_activity where application_name = $1)")
        .await?;
    Ok(connection.query_one(&statement, &[&READER_NAME]).await?.try_get(0)?)
}

/// Answers for a path that no part serves.
async fn not_found() -> Response {
    answer(
        StatusCode::NOT_FOUND,
        &json!({
            "code": "not_found",
            "message": "Nothing is served at this path.",
            "hint": "The parts are /rest/v1, /realtime/v1, /functions/v1 and /health.",
        }),
    )
}

/// Answers for a method that the path does not know.
async fn method_not_allowed() -> Response {
    answer(
        StatusCode::METHOD_NOT_ALLOWED,
        &json!({
            "code": "method_not_allowed",
            "message": "This path does not know that method.",
            "hint": null,
        }),
    )
}

/// Makes a JSON answer.
pub(super) fn answer(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(body.to_string().into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ids_are_taken_over() {
        for (id, taken) in [
            ("a-1_b.C", true),
            ("", false),
            ("a b", false),
            ("a\tb", false),
            (&"x".repeat(65), false),
        ] {
            assert_eq!(is_plain(&HeaderValue::from_str(id).unwrap()), taken, "{id:?}");
        }
    }

    #[test]
    fn a_preflight_allows_what_is_asked_for() {
        let mut request = HeaderMap::new();
        let response = preflight(&request);
        let allowed = response.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap();
        for name in ["apikey", "authorization", "prefer", "range", "x-client-info"] {
            assert!(allowed.split(", ").any(|allowed| allowed == name), "{name}");
        }
        request.insert(
            header::ACCESS_CONTROL_REQUEST_HEADERS,
            HeaderValue::from_static("apikey, x-own"),
        );
        let response = preflight(&request);
        assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS], "apikey, x-own");
    }
}
