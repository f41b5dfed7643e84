//! The control plane as a client sees it.
//!
//! [`ControlPlane`] is an address, a publishable key and the one HTTP client
//! that all calls share; [`session`] signs in with a key and keeps the token
//! fresh. `rpc` and `rest` make calls, `lookup` finds rows by the
//! beginning of their ids, `realtime` listens. The same code talks
//! to `infernet up`, to `supabase start` and to a Supabase project: only
//! address and key differ.

mod base_url;
pub mod job_stream;
pub mod lookup;
pub mod membership;
pub mod realtime;
pub mod rest;
pub mod rpc;
pub mod session;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

pub use base_url::{BaseUrl, BaseUrlError, PlainHttp};

/// The most time for a connection to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The most time for a whole request; the slowest call may wait 8 s in SQL.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an idle connection is kept for the next call. Longer than a
/// heartbeat's interval, so that a quiet node does not connect each time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// How often the system probes a silent connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// The largest answer of `/functions/v1/info` that is read, in bytes.
const INFO_LIMIT: usize = 64 * 1024;

/// A control plane: where it is, its publishable key and the client for it.
///
/// Cloning is cheap and shares the connections.
#[derive(Clone)]
pub struct ControlPlane {
    inner: Arc<Inner>,
}

/// What all clones share.
struct Inner {
    /// Where the control plane is.
    base_url: BaseUrl,
    /// The key that every request carries; it is public.
    publishable_key: String,
    /// The one HTTP client.
    http: reqwest::Client,
}

/// What a control plane says of itself at `/functions/v1/info`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Info {
    /// Its name, for people.
    pub name: String,
    /// The version of its software.
    #[serde(default)]
    pub version: Option<String>,
    /// The key that requests carry.
    pub publishable_key: String,
    /// The base URLs that it is published at.
    #[serde(default)]
    pub urls: Vec<String>,
    /// The operator's share of a job's price, such as `"0.05"`.
    #[serde(default)]
    pub fee_rate: Option<String>,
    /// Limits of inputs and outputs.
    #[serde(default)]
    pub limits: Limits,
    /// Its clock, RFC 3339.
    #[serde(default)]
    pub server_time: Option<String>,
}

/// Limits that a control plane states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Limits {
    /// The longest prompt, in bytes.
    #[serde(default)]
    pub prompt_bytes: Option<u64>,
    /// The most output tokens of a job.
    #[serde(default)]
    pub output_tokens: Option<u64>,
    /// The largest result, in bytes.
    #[serde(default)]
    pub result_bytes: Option<u64>,
}

/// Why a control plane cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The URL is unusable.
    #[error(transparent)]
    Url(#[from] BaseUrlError),
    /// No connection, or none in time.
    #[error(
        "The control plane at {url} cannot be reached. Check the URL and the network, and that it is running (infernet up, or supabase status), then try again."
    )]
    Unreachable {
        /// Its base URL.
        url: String,
        /// What the network said.
        #[source]
        source: reqwest::Error,
    },
    /// Something else answers there.
    #[error(
        "{url} is not an Infernet control plane: it answers {answer} at /functions/v1/info. Check the URL; on Supabase, deploy the functions (supabase functions deploy)."
    )]
    NotAControlPlane {
        /// Its base URL.
        url: String,
        /// The status or what is wrong with the answer.
        answer: String,
    },
    /// The control plane lives elsewhere. Redirects are not followed, because
    /// a login is signed for one address.
    #[error("{url} redirects to {location}. Use the address that it redirects to.")]
    Moved {
        /// Its base URL.
        url: String,
        /// The header `Location`.
        location: String,
    },
    /// It is there, but not ready.
    #[error("The control plane at {url} is not ready (status {status}). Try again in a moment.")]
    NotReady {
        /// Its base URL.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The publishable key cannot be sent in a header.
    #[error(
        "The publishable key of {url} has characters that a key cannot have. Copy it again, or let infernet init read it from the control plane."
    )]
    BadKey {
        /// Its base URL.
        url: String,
    },
    /// The HTTP client cannot be set up, mostly for want of root certificates.
    #[error(
        "No HTTPS client can be set up. Install the system's root certificates (Debian: apt install ca-certificates), then try again."
    )]
    Client(#[source] reqwest::Error),
}

impl ControlPlane {
    /// Uses a control plane whose publishable key is known, without asking it.
    ///
    /// # Errors
    ///
    /// [`ControlError::BadKey`] or [`ControlError::Client`].
    pub fn new(base_url: BaseUrl, publishable_key: &str) -> Result<Self, ControlError> {
        let sendable = !publishable_key.is_empty()
            && publishable_key.bytes().all(|byte| byte.is_ascii_graphic());
        if !sendable {
            return Err(ControlError::BadKey { url: base_url.to_string() });
        }
        let http = http_client(&base_url)?;
        Ok(Self {
            inner: Arc::new(Inner { base_url, publishable_key: publishable_key.to_owned(), http }),
        })
    }

    /// Asks a control plane what it is, so that its URL is enough to join it.
    ///
    /// # Errors
    ///
    /// Says whether the URL is unusable, nobody answers there, or something
    /// that is not a control plane.
    pub async fn discover(url: &str, plain_http: PlainHttp) -> Result<(Self, Info), ControlError> {
        let base_url = BaseUrl::parse(url, plain_http)?;
        let http = http_client(&base_url)?;
        let info = fetch_info(&http, &base_url).await?;
        let plane = Self::new(base_url, &info.publishable_key)?;
        Ok((plane, info))
    }

    /// Asks the control plane again what it is.
    ///
    /// # Errors
    ///
    /// As [`ControlPlane::discover`].
    pub async fn info(&self) -> Result<Info, ControlError> {
        fetch_info(&self.inner.http, &self.inner.base_url).await
    }

    /// Returns where the control plane is.
    pub fn base_url(&self) -> &BaseUrl {
        &self.inner.base_url
    }

    /// Returns the key that goes into the header `apikey` of every request.
    pub fn publishable_key(&self) -> &str {
        &self.inner.publishable_key
    }

    /// Returns the HTTP client: connections are pooled, requests time out.
    pub fn http(&self) -> &reqwest::Client {
        &self.inner.http
    }

    /// Returns the base URL of PostgREST, without a slash at the end.
    pub fn rest_url(&self) -> String {
        self.inner.base_url.join("/rest/v1")
    }

    /// Returns the URL of an SQL function.
    pub fn rpc_url(&self, name: &str) -> String {
        self.inner.base_url.join(&format!("/rest/v1/rpc/{name}"))
    }

    /// Returns the URL of an edge function.
    pub fn function_url(&self, name: &str) -> String {
        self.inner.base_url.join(&format!("/functions/v1/{name}"))
    }

    /// Returns the URL of the Realtime websocket, without its query.
    pub fn realtime_url(&self) -> String {
        let url = self.inner.base_url.join("/realtime/v1/websocket");
        // http becomes ws and https becomes wss.
        url.replacen("http", "ws", 1)
    }

    /// Wraps a failure of the network in an error that names the URL.
    pub fn unreachable(&self, error: reqwest::Error) -> ControlError {
        unreachable(&self.inner.base_url, error)
    }
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("ControlPlane").field(&self.inner.base_url).finish()
    }
}

/// Makes ring the cryptography of every TLS connection of this process. `main`
/// calls it first, tests before they connect; more calls change nothing.
pub fn install_tls_provider() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // An error means that the process has a provider already, which is the
        // aim.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

/// Builds the one HTTP client of a control plane.
fn http_client(base_url: &BaseUrl) -> Result<reqwest::Client, ControlError> {
    install_tls_provider();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("infernet/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_keepalive(KEEPALIVE_INTERVAL)
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none());
    if base_url.is_private() {
        // A proxy of the environment cannot see this machine's own network.
        builder = builder.no_proxy();
    }
    if !base_url.is_https() {
        // No root certificates are loaded where none can be used: a bare
        // machine may have none, and they are megabytes of memory.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(ControlError::Client)
}

/// Reads `/functions/v1/info`.
async fn fetch_info(http: &reqwest::Client, base_url: &BaseUrl) -> Result<Info, ControlError> {
    let response = http
        .get(base_url.join("/functions/v1/info"))
        .send()
        .await
        .map_err(|error| unreachable(base_url, error))?;
    let status = response.status();
    let not_ours =
        |answer: String| ControlError::NotAControlPlane { url: base_url.to_string(), answer };
    if status.is_redirection() {
        let location = response.headers().get(reqwest::header::LOCATION);
        return Err(ControlError::Moved {
            url: base_url.to_string(),
            location: location
                .and_then(|value| value.to_str().ok())
                .unwrap_or("an address that it does not name")
                .trim_end_matches("/functions/v1/info")
                .to_owned(),
        });
    }
    if matches!(status.as_u16(), 429 | 502 | 503 | 504) {
        return Err(ControlError::NotReady { url: base_url.to_string(), status: status.as_u16() });
    }
    if !status.is_success() {
        return Err(not_ours(format!("with status {}", status.as_u16())));
    }
    let body = read_limited(response, INFO_LIMIT)
        .await
        .map_err(|error| unreachable(base_url, error))?
        .ok_or_else(|| not_ours("at great length".to_owned()))?;
    serde_json::from_slice(&body).map_err(|_| not_ours("something else".to_owned()))
}

/// Reads a body of at most `limit` bytes; `None` when it is longer.
async fn read_limited(
    mut response: reqwest::Response,
    limit: usize,
) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// Wraps a failure of the network in an error that names the base URL.
fn unreachable(base_url: &BaseUrl, error: reqwest::Error) -> ControlError {
    ControlError::Unreachable { url: base_url.to_string(), source: error.without_url() }
}
