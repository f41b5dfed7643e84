//! Connections to an engine: HTTP/1.1 over a unix socket or the loopback interface.
//!
//! Connections are kept and used again, since a new one costs the engine a thread and
//! the first token its start. A connection is driven by the task that reads its
//! answer, not by one of its own: dropping it closes the socket at that moment, which
//! is how an engine learns that nobody listens.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection is kept for the next request. Servers close idle ones after
/// five seconds (llama.cpp, uvicorn); younger ones are rarely closed under our hands.
const IDLE_LIMIT: Duration = Duration::from_secs(4);

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A port of the loopback interface, and the path that comes before every other.
    Loopback {
        /// The address.
        socket: SocketAddr,
        /// Such as `/api`, or nothing.
        prefix: String,
    },
}

impl Address {
    /// Reads `unix:/path`, `unix:///path` or `http://127.0.0.1:PORT[/prefix]`.
    ///
    /// # Errors
    /// A sentence, when the address is not one of these or is not of this machine.
    pub fn parse(url: &str) -> Result<Self, String> {
        if let Some(rest) = url.strip_prefix("unix:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if !path.starts_with('/') {
                return Err(format!("the endpoint {url} must name an absolute path"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let parsed = url::Url::parse(url)
            .map_err(|error| format!("the endpoint {url} is no URL: {error}"))?;
        if parsed.scheme() != "http" {
            return Err(format!("the endpoint {url} must start with unix: or http:"));
        }
        let ip = match parsed.host() {
            Some(url::Host::Ipv4(ip)) if ip.is_loopback() => IpAddr::V4(ip),
            Some(url::Host::Ipv6(ip)) if ip.is_loopback() => IpAddr::V6(ip),
            Some(url::Host::Domain("localhost")) => IpAddr::from([127, 0, 0, 1]),
            _ => return Err(format!("the endpoint {url} must be on the loopback interface")),
        };
        let port = parsed.port_or_known_default().unwrap_or(80);
        // Ours are the paths below /v1; a base that already ends in it means the same.
        let prefix = parsed.path().trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Self::Loopback { socket: SocketAddr::new(ip, port), prefix })
    }

    /// Returns the path to ask for on this server.
    fn path(&self, path: &str) -> String {
        match self {
            Self::Unix(_) => path.to_owned(),
            Self::Loopback { prefix, .. } => format!("{prefix}{path}"),
        }
    }

    fn host(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Loopback { socket, .. } => socket.to_string(),
        }
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection could be made.
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Http(#[from] hyper::Error),
    /// The connection was closed in the middle.
    #[error("the connection was closed")]
    Closed,
    /// The request could not be put together.
    #[error("the request is not valid: {0}")]
    Request(#[from] hyper::http::Error),
}

/// The two kinds of stream, as one.
trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl Duplex for UnixStream {}
impl Duplex for TcpStream {}

type Driver = http1::Connection<TokioIo<Box<dyn Duplex>>, Full<Bytes>>;

/// One connection, and what makes it move.
struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    motor: Motor,
}

/// What moves bytes between a connection and its request and answer; nothing once the
/// connection has ended.
struct Motor(Option<Pin<Box<Driver>>>);

impl Motor {
    /// Waits for `work` while driving the connection that it depends on. `None` when
    /// the connection has ended and the work cannot.
    async fn drive<F: Future>(&mut self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            loop {
                if let Poll::Ready(output) = work.as_mut().poll(context) {
                    return Poll::Ready(Some(output));
                }
                let Some(driver) = &mut self.0 else { return Poll::Ready(None) };
                // Whatever the driver did, the work is asked once more: what it waits
                // for may have come, or be the end.
                if driver.as_mut().poll(context).is_ready() {
                    self.0 = None;
                } else {
                    return work.as_mut().poll(context).map(Some);
                }
            }
        })
        .await
    }
}

/// An engine's address and the connections to it that wait for a request.
pub struct Transport {
    address: Address,
    /// The most connections that are kept.
    keep: usize,
    /// The lock is held only to push and pop.
    idle: Mutex<Vec<Idle>>,
}

/// A connection that waits for a request.
struct Idle {
    link: Link,
    /// What may be left of its last answer: the end of the body is often still under
    /// way when the last event has been read, and is not worth waiting for then.
    rest: Option<Incoming>,
    since: Instant,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Transport").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The answer to a request while its body is being read. Dropping it closes the
/// connection; [`Transport::recycle`] keeps it for the next request.
pub struct Answer {
    response: Response<Incoming>,
    link: Link,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Answer").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Transport {
    /// Makes a transport that keeps up to `keep` idle connections. Nothing is connected.
    #[must_use]
    pub fn new(address: Address, keep: usize) -> Self {
        Self { address, keep, idle: Mutex::new(Vec::new()) }
    }

    /// Sends a request and waits for the head of its answer; `body` makes it a POST of
    /// JSON. A kept connection that turns out to be closed is replaced once.
    ///
    /// # Errors
    /// [`TransportError`]. There is no timeout in here: the caller knows how long an
    /// answer may take.
    pub async fn send(&self, path: &str, body: Option<Bytes>) -> Result<Answer, TransportError> {
        if let Some(link) = self.take_idle() {
            // A server that closed a kept connection has not begun to answer on it.
            if let Ok(answer) = self.exchange(link, path, body.clone()).await {
                return Ok(answer);
            }
        }
        let link = self.connect().await?;
        self.exchange(link, path, body).await
    }

    /// Proves that something accepts connections.
    ///
    /// # Errors
    /// [`TransportError::Connect`].
    pub async fn probe(&self) -> Result<(), TransportError> {
        let link = self.connect().await?;
        self.keep(link, None);
        Ok(())
    }

    /// Takes back the connection of an answer of which everything was read but, maybe,
    /// its end.
    pub fn recycle(&self, answer: Answer) {
        self.keep(answer.link, Some(answer.response.into_body()));
    }

    fn keep(&self, link: Link, rest: Option<Incoming>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.keep {
            idle.push(Idle { link, rest, since: Instant::now() });
        }
    }

    /// Takes the connection that was used last and whose answer has ended since.
    fn take_idle(&self) -> Option<Link> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() < IDLE_LIMIT);
        while let Some(Idle { mut link, rest, .. }) = idle.pop() {
            let Some(mut rest) = rest else { return Some(link) };
            // One that is still being written to would mix two answers.
            if let Some(Some(None)) = link.motor.drive(rest.frame()).now_or_never() {
                return Some(link);
            }
        }
        None
    }

    async fn connect(&self) -> Result<Link, TransportError> {
        let connecting = async {
            let stream: Box<dyn Duplex> = match &self.address {
                Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Address::Loopback { socket, .. } => {
                    let stream = TcpStream::connect(socket).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            };
            Ok::<_, std::io::Error>(stream)
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(TransportError::Connect)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Link { sender, motor: Motor(Some(Box::pin(driver))) })
    }

    async fn exchange(
        &self,
        mut link: Link,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Answer, TransportError> {
        let builder = Request::builder()
            .uri(self.address.path(path))
            .header(hyper::header::HOST, self.address.host());
        let request = match body {
            None => builder.method("GET").body(Full::default())?,
            Some(body) => builder
                .method("POST")
                .header(hyper::header::CONTENT_TYPE, "application/json")
                .body(Full::new(body))?,
        };
        link.motor.drive(link.sender.ready()).await.ok_or(TransportError::Closed)??;
        let answering = link.sender.send_request(request);
        let response = link.motor.drive(answering).await.ok_or(TransportError::Closed)??;
        Ok(Answer { response, link })
    }
}

impl Answer {
    /// Returns the status of the answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Returns the next piece of the body as it arrives, `None` at its end. Nothing is
    /// read ahead: a caller that does not ask slows the engine down.
    ///
    /// # Errors
    /// [`TransportError`] when the connection ends before the body does.
    pub async fn next(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            let frame = self
                .link
                .motor
                .drive(self.response.body_mut().frame())
                .await
                .ok_or(TransportError::Closed)?;
            match frame.transpose()?.map(Frame::into_data) {
                None => return Ok(None),
                Some(Ok(data)) if !data.is_empty() => return Ok(Some(data)),
                // Empty pieces and trailers say nothing.
                Some(_) => {}
            }
        }
    }

    /// Reads up to `limit` bytes of the body, for messages and small documents.
    ///
    /// # Errors
    /// As [`Answer::next`].
    pub async fn read_small(&mut self, limit: usize) -> Result<Vec<u8>, TransportError> {
        let mut bytes = Vec::new();
        while bytes.len() < limit {
            match self.next().await? {
                Some(data) => bytes.extend_from_slice(&data[..data.len().min(limit - bytes.len())]),
                None => break,
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_of_this_machine() {
        assert_eq!(Address::parse("unix:/a.sock"), Ok(Address::Unix(PathBuf::from("/a.sock"))));
        assert_eq!(Address::parse("unix:///a.sock"), Ok(Address::Unix(PathBuf::from("/a.sock"))));
        let loopback = Address::parse("http://127.0.0.1:8080/v1/").unwrap();
        assert_eq!(loopback.path("/v1/completions"), "/v1/completions");
        let below = Address::parse("http://localhost:8080/api").unwrap();
        assert_eq!(below.path("/v1/completions"), "/api/v1/completions");
        assert!(Address::parse("http://[::1]:1").is_ok());
        for bad in ["http://10.0.0.1:80", "https://127.0.0.1", "unix:a.sock", "file:///x", "x"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
