//! An OpenAI-compatible server on the loopback interface, in front of the market:
//! any client of OpenAI's API becomes a consumer.
//!
//! A request becomes jobs ([`request`]), each is read by the consumer's own
//! [`JobStream`](crate::control::job_stream::JobStream) ([`choice`]), and what they
//! write goes back in OpenAI's words ([`text`], [`embedding`], [`error`]).
//!
//! Who may call: whoever has the key of the file `proxy.key` ([`ApiKey`]), over a
//! loopback address and by its name. A page in a browser has neither the key nor,
//! without any cross-origin header, a way to read an answer, and one that points a
//! name of its own at 127.0.0.1 is refused by the `Host` that it sends.
//!
//! Invariants: a client that hangs up cancels its jobs; prompts, answers and the key
//! are never logged.

mod api_key;
mod choice;
mod embedding;
mod error;
mod market;
mod request;
mod text;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::api_key::{ApiKey, ApiKeyError};
use self::error::ApiError;
use self::market::Market;
use self::request::{EmbeddingRequest, Form, TextRequest};
use crate::control::job_stream::open_realtime;
use crate::control::rpc::{JobKind, JobTerms, OverviewModel, Rpc, SubmitJob};
use crate::http_server::{Limits, serve};
use crate::id::JobId;
use crate::money::Usd;

/// Where the proxy listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 8434;

/// The largest body that is read; the control plane's own limit is lower.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Connections, silence between requests, and patience when stopping.
const LIMITS: Limits =
    Limits { connections: 512, idle: Duration::from_secs(120), drain: Duration::from_secs(5) };

/// The media type of every whole answer.
const JSON: &str = "application/json";

/// What every job of the proxy is submitted with.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProxyOptions {
    /// The most that one job may cost, whatever its client asks for; the control plane's own
    /// cap when absent.
    pub max_cost: Option<Usd>,
    /// Seconds until a job expires whose client does not say; the control plane's own deadline
    /// when absent.
    pub deadline_secs: Option<u32>,
}

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The port cannot be listened on.
    #[error("Port {port} of 127.0.0.1 cannot be listened on.")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no key for clients.
    #[error(transparent)]
    ApiKey(#[from] ApiKeyError),
}

/// A running proxy. [`Proxy::stop`] ends it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    /// Ends the server.
    serving: CancellationToken,
    /// Ends the socket and the renewal of the login, which outlast the server: what
    /// it leaves open is still to be cancelled.
    living: CancellationToken,
    server: JoinSet<()>,
    background: JoinSet<()>,
}

/// What a request is answered with.
struct Context {
    market: Market,
    key: ApiKey,
}

impl ProxyOptions {
    /// Makes a job with a new id, of the terms that its client asks for. A client may
    /// lower what it may cost, and not raise it; another deadline it may set.
    fn job(&self, model: &str, kind: JobKind, input: Value, asked: &JobTerms) -> SubmitJob {
        let mut job = SubmitJob::chat(model, input);
        job.kind = kind;
        job.terms = asked.clone();
        job.terms.max_cost = asked.max_cost.into_iter().chain(self.max_cost).min();
        job.terms.deadline_secs = asked.deadline_secs.or(self.deadline_secs);
        job
    }
}

impl Proxy {
    /// Listens on a port of 127.0.0.1 (0: a free one) and answers for the holder of a
    /// session.
    ///
    /// # Errors
    /// [`ProxyError::Listen`].
    pub async fn start(
        rpc: Rpc,
        port: u16,
        key: ApiKey,
        options: ProxyOptions,
    ) -> Result<Self, ProxyError> {
        let listen = |source| ProxyError::Listen { port, source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (serving, living) = (CancellationToken::new(), CancellationToken::new());
        let mut background = JoinSet::new();
        let realtime = rpc.session().and_then(|session| {
            let (session, token) = (session.clone(), living.child_token());
            let opened = open_realtime(&session, living.child_token());
            background.spawn(async move { session.run_refresh(token).await });
            opened.inspect_err(|error| tracing::warn!(%error, "no realtime, jobs are polled")).ok()
        });
        let (orders, ordered) = mpsc::unbounded_channel();
        let mut server = JoinSet::new();
        server.spawn(market::run_cancels(rpc.clone(), ordered));
        let market = Market { rpc, realtime, options, orders };
        let routes = routes(Arc::new(Context { market, key }));
        server.spawn(serve(listener, routes, LIMITS, serving.clone()));
        Ok(Self { address, serving, living, server, background })
    }

    /// Returns the base URL for clients, such as `http://127.0.0.1:8434/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Lets open requests go on for a moment, cancels the jobs of those that are cut
    /// off, and ends.
    pub async fn stop(mut self) {
        self.serving.cancel();
        while self.server.join_next().await.is_some() {}
        self.living.cancel();
        while self.background.join_next().await.is_some() {}
    }
}

fn routes(context: Arc<Context>) -> Router {
    Router::new()
        .route("/v1/models", get(list_models))
        // Names of models may have slashes.
        .route("/v1/models/{*model}", get(show_model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(complete))
        .route("/v1/embeddings", post(embed))
        .fallback(async |uri: Uri| ApiError::no_such_path(uri.path()))
        .method_not_allowed_fallback(async || ApiError::wrong_method())
        .layer(middleware::from_fn_with_state(Arc::clone(&context), admit))
        .layer(middleware::from_fn(note))
        .with_state(context)
}

/// Logs how a request went, without a word of it.
async fn note(request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let started = Instant::now();
    let response = next.run(request).await;
    let millis = started.elapsed().as_secs_f64() * 1000.0;
    tracing::info!(%method, path, status = response.status().as_u16(), millis, "answered");
    response
}

/// Lets in who calls this machine by its own name and shows the key.
async fn admit(State(context): State<Arc<Context>>, request: Request, next: Next) -> Response {
    if !names_loopback(request.uri(), request.headers()) {
        return ApiError::wrong_host().into_response();
    }
    let shown = request
        .headers()
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .and_then(bearer)
        .unwrap_or_default();
    if !context.key.is(shown) {
        return ApiError::wrong_key().into_response();
    }
    next.run(request).await
}

/// Returns what follows `Bearer`, in any case.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

/// Says whether a request was made to this machine's own name. A name that somebody
/// else points at 127.0.0.1 is not.
fn names_loopback(uri: &Uri, headers: &HeaderMap) -> bool {
    let is_ours = |host: &str| {
        host.eq_ignore_ascii_case("localhost") || matches!(host, "127.0.0.1" | "[::1]")
    };
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let named = host.to_str().ok().and_then(|host| host.parse::<axum::http::uri::Authority>().ok());
    // Before an @ would stand a user, which no client sends.
    named.is_some_and(|named| is_ours(named.host()) && !named.as_str().contains('@'))
        && uri.host().is_none_or(is_ours)
}

/// Reads a body of at most [`BODY_LIMIT`] bytes within [`BODY_TIME`].
async fn read_body(request: Request) -> Result<Bytes, ApiError> {
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect();
    match tokio::time::timeout(BODY_TIME, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(BODY_LIMIT)),
        Ok(Err(_broken)) => Err(ApiError::invalid("The body broke off.")),
        Err(_elapsed) => Err(ApiError::too_slow()),
    }
}

async fn chat(State(context): State<Arc<Context>>, request: Request) -> Result<Response, ApiError> {
    let body = read_body(request).await?;
    let request = TextRequest::parse(Form::Chat, &body, &context.market.options)?;
    Box::pin(text::answer(&context.market, request)).await
}

async fn complete(
    State(context): State<Arc<Context>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = read_body(request).await?;
    let request = TextRequest::parse(Form::Completion, &body, &context.market.options)?;
    Box::pin(text::answer(&context.market, request)).await
}

async fn embed(
    State(context): State<Arc<Context>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = read_body(request).await?;
    let request = EmbeddingRequest::parse(&body, &context.market.options)?;
    Box::pin(embedding::answer(&context.market, request)).await
}

async fn list_models(State(context): State<Arc<Context>>) -> Result<Response, ApiError> {
    let overview = context.market.rpc.overview().await?;
    // What nobody serves now cannot be asked now.
    let models: Vec<Value> =
        overview.models.iter().filter(|model| model.online > 0).map(model_object).collect();
    let body = json!({ "object": "list", "data": models });
    Ok(([(header::CONTENT_TYPE, JSON)], body.to_string()).into_response())
}

async fn show_model(
    State(context): State<Arc<Context>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let overview = context.market.rpc.overview().await?;
    let model = overview.models.iter().find(|model| model.name == name);
    let body = model_object(model.ok_or_else(|| ApiError::no_such_model(&name))?);
    Ok(([(header::CONTENT_TYPE, JSON)], body.to_string()).into_response())
}

/// Describes a model as OpenAI does. When it was made is not known.
fn model_object(model: &OverviewModel) -> Value {
    json!({ "id": model.name, "object": "model", "created": 0, "owned_by": "infernet" })
}

/// Adds the first job's id as that of the request, by which OpenAI's clients report it.
fn with_job(mut response: Response, job: JobId) -> Response {
    let id = HeaderValue::try_from(job.to_string()).expect("an id is plain text");
    response.headers_mut().insert("x-request-id", id);
    response
}

/// Returns the seconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_own_names_are_answered() {
        let named = |uri: &str, hosts: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
            }
            names_loopback(&uri.parse().unwrap(), &headers)
        };
        for host in ["localhost", "LocalHost:8434", "127.0.0.1", "127.0.0.1:1", "[::1]:8434"] {
            assert!(named("/v1/models", &[host]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8434",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "127.0.0.2",
            "0.0.0.0",
            "localhost@evil.example",
            "evil.example@localhost:x",
        ] {
            assert!(!named("/v1/models", &[host]), "{host}");
        }
        assert!(!named("/v1/models", &[]));
        assert!(!named("/v1/models", &["localhost", "evil.example"]));
        assert!(!named("http://evil.example/v1/models", &["localhost"]));
        assert!(named("http://localhost/v1/models", &["localhost"]));
    }

    #[test]
    fn a_key_is_shown_as_bearer() {
        assert_eq!(bearer(b"Bearer abc "), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc="), None);
        assert_eq!(bearer(b"Bear"), None);
    }
}
