//! Opens the websocket: TCP without delay, TLS where the URL says so, the
//! handshake, and one timeout over all of it.

use serde::Deserialize;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls_with_config};
use url::Host;

use super::{RealtimeEndpoint, Timing};

/// The largest message that is taken in, above what any server sends.
const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// An open websocket.
pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Why there is no websocket. The texts name neither the URL nor the key.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    /// It took too long.
    #[error("The connection timed out")]
    Timeout,
    /// The server answered the handshake with another status than 101.
    #[error("The server refused the websocket with status {status}: {reason}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The server's words.
        reason: String,
    },
    /// The network failed.
    #[error("The connection failed: {0}")]
    Network(#[from] std::io::Error),
    /// TLS or the protocol failed.
    #[error("The websocket failed: {0}")]
    Protocol(Box<tungstenite::Error>),
}

impl From<tungstenite::Error> for ConnectError {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Http(response) => Self::Refused {
                status: response.status().as_u16(),
                reason: refusal(response.body().as_deref().unwrap_or_default()),
            },
            tungstenite::Error::Io(error) => Self::Network(error),
            other => Self::Protocol(Box::new(other)),
        }
    }
}

/// Takes the server's words out of the body of a refusal. Older servers and
/// gateways send an empty body or a message under another key.
fn refusal(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(alias = "message")]
        error: String,
    }
    serde_json::from_slice::<Refusal>(body).map_or_else(
        |_| {
            let text: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
            if text.is_empty() { "no reason given".to_owned() } else { text }
        },
        |refusal| refusal.error,
    )
}

/// Opens a websocket.
pub(super) async fn connect(
    endpoint: &RealtimeEndpoint,
    timing: &Timing,
) -> Result<Socket, ConnectError> {
    tokio::time::timeout(timing.connect_timeout, open(endpoint))
        .await
        .map_err(|_| ConnectError::Timeout)?
}

async fn open(endpoint: &RealtimeEndpoint) -> Result<Socket, ConnectError> {
    let url = &endpoint.url;
    let request = url.as_str().into_client_request()?;
    let port = url.port_or_known_default().unwrap_or(443);
    let stream = match url.host() {
        Some(Host::Ipv4(address)) => TcpStream::connect((address, port)).await?,
        Some(Host::Ipv6(address)) => TcpStream::connect((address, port)).await?,
        Some(Host::Domain(name)) => TcpStream::connect((name, port)).await?,
        None => return Err(std::io::Error::from(std::io::ErrorKind::AddrNotAvailable).into()),
    };
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let (socket, _) =
        Box::pin(client_async_tls_with_config(request, stream, Some(config), None)).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_in_every_form_that_servers_send() {
        assert_eq!(refusal(br#"{"error":"Token has expired"}"#), "Token has expired");
        assert_eq!(refusal(br#"{"message":"Invalid credentials"}"#), "Invalid credentials");
        assert_eq!(refusal(b"Bad gateway\n"), "Bad gateway");
        assert_eq!(refusal(b""), "no reason given");
    }
}
