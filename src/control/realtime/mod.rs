//! The client of Supabase Realtime: one websocket, many channels.
//!
//! [`Realtime::spawn`] starts one task that owns the socket. It connects,
//! reconnects with backoff and jitter, beats the heart, rejoins every channel
//! and pushes the newest access token to each of them. [`Channel`]s talk to it
//! through a queue and never block.
//!
//! Invariants
//! - **A message is a hint.** Nothing here promises that a broadcast arrives:
//!   one sent while the channel is not joined is refused with an error, one
//!   received faster than it is read is dropped and counted.
//! - A channel rejoins by itself until it is dropped; dropping it leaves.
//! - Broadcasts of one channel keep their order in both directions, and a leave
//!   goes out after everything that the channel sent before.
//!
//! The client speaks protocol version 1.0.0, which every server from Realtime
//! 2.34 on accepts, and the embedded one (`stack::realtime`). `frame` holds the
//! frames, which both sides share.

mod backoff;
mod connection;
pub mod frame;
mod subscription;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use url::Url;

use self::frame::{EVENT_BROADCAST, Frame, ProtocolVersion, TOPIC_PREFIX, to_raw};
use self::worker::{Command, Worker};

/// How many broadcasts may wait to be sent, over all channels of a socket.
const MAX_OUTGOING: usize = 4096;
/// How many received broadcasts may wait in one channel until it is read.
const MAX_INCOMING: usize = 4096;

/// Where a Realtime server is and the key that opens its door.
#[derive(Clone)]
pub struct RealtimeEndpoint {
    url: Url,
}

impl std::fmt::Debug for RealtimeEndpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The query holds the key of the API.
        let mut url = self.url.clone();
        url.set_query(None);
        formatter.debug_tuple("RealtimeEndpoint").field(&url.as_str()).finish()
    }
}

/// Why a URL is no control plane.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The scheme is none of http, https, ws and wss.
    #[error(
        "The control plane's URL has the scheme {0}; give one that starts with https:// or http://"
    )]
    Scheme(String),
    /// The URL names no host.
    #[error("The control plane's URL names no host; give one such as https://example.com")]
    Host,
}

impl RealtimeEndpoint {
    /// Makes the endpoint of a control plane: `base` is its base URL (`http`,
    /// `https`, `ws` or `wss`), `api_key` its publishable key.
    ///
    /// # Errors
    /// When the URL has another scheme or no host.
    pub fn new(base: &Url, api_key: &str) -> Result<Self, EndpointError> {
        let scheme = match base.scheme() {
            "http" | "ws" => "ws",
            "https" | "wss" => "wss",
            other => return Err(EndpointError::Scheme(other.to_owned())),
        };
        if base.host().is_none() {
            return Err(EndpointError::Host);
        }
        let mut url = base.clone();
        url.set_scheme(scheme).map_err(|()| EndpointError::Scheme(base.scheme().to_owned()))?;
        url.set_fragment(None);
        url.path_segments_mut().map_err(|()| EndpointError::Host)?.pop_if_empty().extend([
            "realtime",
            "v1",
            "websocket",
        ]);
        url.query_pairs_mut()
            .clear()
            .append_pair("apikey", api_key)
            .append_pair("vsn", ProtocolVersion::V1.as_str());
        Ok(Self { url })
    }
}

/// How long the client waits for what. The defaults suit production; tests
/// shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The longest time for resolving, connecting, TLS and the handshake.
    pub connect_timeout: Duration,
    /// The time between two heartbeats; one that is unanswered when the next is
    /// due ends the connection.
    pub heartbeat: Duration,
    /// The longest wait for the answer to a join.
    pub join_timeout: Duration,
    /// The longest time that writing to the socket may stall.
    pub write_timeout: Duration,
    /// The first and the longest pause before a new attempt to connect or to
    /// rejoin a channel that the server ended.
    pub retry: (Duration, Duration),
    /// The same after a refusal: of the handshake or of a join.
    pub refused: (Duration, Duration),
    /// The same after "too many": such a server must be left alone for minutes.
    pub crowded: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(25),
            join_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            retry: (Duration::from_millis(500), Duration::from_secs(30)),
            refused: (Duration::from_secs(5), Duration::from_secs(60)),
            crowded: (Duration::from_secs(120), Duration::from_secs(600)),
        }
    }
}

/// What the socket is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// It is being connected.
    Connecting,
    /// It is open; channels are joined or being joined.
    Open,
    /// It was lost or could not be connected, and is tried again.
    Waiting {
        /// What went wrong.
        reason: String,
        /// The pause before the next attempt.
        retry_in: Duration,
    },
    /// The server refused the handshake; it is tried again after a longer pause.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The server's words.
        reason: String,
        /// The pause before the next attempt.
        retry_in: Duration,
    },
    /// The client was shut down. It does not come back.
    Closed,
}

/// How a channel is joined.
#[derive(Clone, Copy, Debug)]
pub struct JoinOptions {
    /// Whether the channel is private, that is, guarded by the policies on
    /// `realtime.messages`.
    pub private: bool,
    /// Whether the channel gets its own broadcasts back.
    pub self_broadcast: bool,
    /// Whether the server acknowledges each broadcast. The client does not use
    /// the answers; they only show in a trace.
    pub ack: bool,
}

impl Default for JoinOptions {
    fn default() -> Self {
        Self { private: true, self_broadcast: false, ack: false }
    }
}

/// What happens on a channel.
#[derive(Clone, Debug, PartialEq)]
pub enum ChannelEvent {
    /// The channel is joined: from now on broadcasts may arrive and may be
    /// sent. What was missed before is to be asked for by a call.
    Joined,
    /// A message.
    Broadcast {
        /// Its event.
        event: String,
        /// Its payload.
        payload: Value,
        /// The id of its row, when it came from the database.
        id: Option<String>,
    },
    /// The server refused the join. It is tried again, at once when a newer
    /// access token comes.
    Refused {
        /// The server's words.
        reason: String,
    },
    /// The channel is not joined any more: the socket is gone or the server
    /// ended the channel. It rejoins by itself, and then `Joined` comes again.
    Lost,
}

/// Why a broadcast was not sent. None of these is a reason to stop: a message
/// is a hint.
#[derive(Debug, Error)]
pub enum SendError {
    /// The channel is not joined at the moment.
    #[error("The channel is not joined")]
    NotJoined,
    /// Too many broadcasts wait for the socket.
    #[error("Too many messages wait to be sent")]
    Full,
    /// The client was shut down.
    #[error("The Realtime client is closed")]
    Closed,
    /// The payload cannot be written as JSON.
    #[error("The message cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
}

/// A handle to the socket; clones share it. The socket is closed when the last
/// handle and the last channel are gone, or at shutdown.
#[derive(Clone, Debug)]
pub struct Realtime {
    commands: mpsc::UnboundedSender<Command>,
    outgoing: Arc<AtomicUsize>,
    channel_ids: Arc<AtomicU64>,
    refs: Arc<AtomicU64>,
    state: watch::Receiver<SocketState>,
}

impl Realtime {
    /// Starts the task that owns the socket. `tokens` holds the newest access
    /// token (empty: none yet, joins then go out with the API key's rights);
    /// each change is pushed to every joined channel.
    ///
    /// Must be called inside a tokio runtime.
    pub fn spawn(
        endpoint: RealtimeEndpoint,
        tokens: watch::Receiver<String>,
        shutdown: CancellationToken,
    ) -> Self {
        Self::spawn_with(endpoint, tokens, shutdown, Timing::default())
    }

    /// Starts the task with other times than the default ones.
    pub fn spawn_with(
        endpoint: RealtimeEndpoint,
        tokens: watch::Receiver<String>,
        shutdown: CancellationToken,
        timing: Timing,
    ) -> Self {
        let (commands, queue) = mpsc::unbounded_channel();
        let (state_sender, state) = watch::channel(SocketState::Connecting);
        let outgoing = Arc::new(AtomicUsize::new(0));
        let refs = Arc::new(AtomicU64::new(1));
        let worker = Worker::new(
            endpoint,
            timing,
            tokens,
            shutdown,
            queue,
            Arc::clone(&outgoing),
            Arc::clone(&refs),
            state_sender,
        );
        // The task ends by itself with the last handle or with the token, and
        // says so as `SocketState::Closed`.
        tokio::spawn(worker.run());
        Self { commands, outgoing, channel_ids: Arc::new(AtomicU64::new(1)), refs, state }
    }

    /// Watches what the socket is doing.
    pub fn state(&self) -> watch::Receiver<SocketState> {
        self.state.clone()
    }

    /// Tells whether the socket is open now. This is what a node reports in its
    /// heartbeat.
    pub fn is_open(&self) -> bool {
        *self.state.borrow() == SocketState::Open
    }

    /// Joins a topic, given without the prefix `realtime:`. The join goes out
    /// as soon as the socket is open; the channel's first event is its answer.
    /// A topic is joined once a socket: joining it again ends the older channel.
    pub fn join(&self, topic: &str, options: JoinOptions) -> Channel {
        let (events, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            id: self.channel_ids.fetch_add(1, Ordering::Relaxed),
            topic: format!("{TOPIC_PREFIX}{topic}"),
            join_ref: AtomicU64::new(0),
            incoming: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
        });
        // A closed queue means a closed client: the channel then ends at once,
        // because the event sender is dropped with the command.
        let _ = self.commands.send(Command::Join { shared: Arc::clone(&shared), options, events });
        let sender = ChannelSender {
            shared,
            commands: self.commands.clone(),
            outgoing: Arc::clone(&self.outgoing),
            refs: Arc::clone(&self.refs),
        };
        Channel { sender, receiver }
    }

    /// Waits until the socket is closed for good: after the shutdown token was
    /// cancelled, what was queued is flushed first.
    pub async fn closed(&self) {
        let mut state = self.state.clone();
        // An error means that the task is gone, which is the same.
        let _ = state.wait_for(|state| *state == SocketState::Closed).await;
    }
}

/// What a channel and the socket's task share.
#[derive(Debug)]
struct Shared {
    id: u64,
    /// With the prefix.
    topic: String,
    /// The ref of the current join; 0 while the channel is not joined.
    join_ref: AtomicU64,
    /// Broadcasts that wait to be read.
    incoming: AtomicUsize,
    /// Broadcasts that were dropped because too many waited.
    dropped: AtomicU64,
}

/// A joined topic. Dropping it leaves the topic.
#[derive(Debug)]
pub struct Channel {
    sender: ChannelSender,
    receiver: mpsc::UnboundedReceiver<ChannelEvent>,
}

impl Channel {
    /// Returns the topic, without the prefix.
    pub fn topic(&self) -> &str {
        self.sender.topic()
    }

    /// Tells whether the channel is joined now.
    pub fn is_joined(&self) -> bool {
        self.sender.is_joined()
    }

    /// Queues a broadcast; see [`ChannelSender::send`].
    ///
    /// # Errors
    /// When the channel is not joined, too much is queued, the client is
    /// closed, or the payload is no JSON.
    pub fn send<T: Serialize + ?Sized>(&self, event: &str, payload: &T) -> Result<(), SendError> {
        self.sender.send(event, payload)
    }

    /// Returns a handle that sends on this channel from elsewhere. It does not
    /// keep the channel joined.
    pub fn sender(&self) -> ChannelSender {
        self.sender.clone()
    }

    /// Waits for the next event. None means that the channel is over: the
    /// client was shut down, or the topic was joined again elsewhere. Safe to
    /// cancel.
    pub async fn recv(&mut self) -> Option<ChannelEvent> {
        let event = self.receiver.recv().await;
        self.took(event)
    }

    /// Returns the next event if one is there.
    pub fn try_recv(&mut self) -> Option<ChannelEvent> {
        let event = self.receiver.try_recv().ok();
        self.took(event)
    }

    /// Returns how many broadcasts were dropped because the channel was not
    /// read fast enough.
    pub fn dropped(&self) -> u64 {
        self.sender.shared.dropped.load(Ordering::Relaxed)
    }

    fn took(&self, event: Option<ChannelEvent>) -> Option<ChannelEvent> {
        if let Some(ChannelEvent::Broadcast { .. }) = event {
            self.sender.shared.incoming.fetch_sub(1, Ordering::Relaxed);
        }
        event
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let _ = self.sender.commands.send(Command::Leave { id: self.sender.shared.id });
    }
}

/// Sends on a channel; clones share it.
#[derive(Clone, Debug)]
pub struct ChannelSender {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    outgoing: Arc<AtomicUsize>,
    refs: Arc<AtomicU64>,
}

impl ChannelSender {
    /// Returns the topic, without the prefix.
    pub fn topic(&self) -> &str {
        &self.shared.topic[TOPIC_PREFIX.len()..]
    }

    /// Tells whether the channel is joined now.
    pub fn is_joined(&self) -> bool {
        self.shared.join_ref.load(Ordering::Acquire) != 0
    }

    /// Queues a broadcast and returns at once. Success means that it was
    /// queued, not that anybody gets it.
    ///
    /// # Errors
    /// When the channel is not joined, too much is queued, the client is
    /// closed, or the payload is no JSON.
    pub fn send<T: Serialize + ?Sized>(&self, event: &str, payload: &T) -> Result<(), SendError> {
        let join_ref = self.shared.join_ref.load(Ordering::Acquire);
        if join_ref == 0 {
            return Err(if self.commands.is_closed() {
                SendError::Closed
            } else {
                SendError::NotJoined
            });
        }
        if self.outgoing.fetch_add(1, Ordering::Relaxed) >= MAX_OUTGOING {
            self.outgoing.fetch_sub(1, Ordering::Relaxed);
            return Err(SendError::Full);
        }
        let queued =
            self.encode(join_ref, event, payload).map_err(SendError::Encode).and_then(|frame| {
                self.commands.send(Command::Push { frame }).map_err(|_| SendError::Closed)
            });
        if queued.is_err() {
            self.outgoing.fetch_sub(1, Ordering::Relaxed);
        }
        queued
    }

    /// Writes the frame here, in the caller's task, so that the socket's task
    /// only copies bytes.
    fn encode<T: Serialize + ?Sized>(
        &self,
        join_ref: u64,
        event: &str,
        payload: &T,
    ) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        struct Envelope<'a, T: ?Sized> {
            r#type: &'a str,
            event: &'a str,
            payload: &'a T,
        }
        let envelope = Envelope { r#type: EVENT_BROADCAST, event, payload };
        let reference = self.refs.fetch_add(1, Ordering::Relaxed);
        Ok(Frame {
            topic: self.shared.topic.clone(),
            event: EVENT_BROADCAST.to_owned(),
            payload: to_raw(&envelope)?,
            reference: Some(worker::reference_text(reference)),
            join_ref: Some(worker::reference_text(join_ref)),
        }
        .encode(ProtocolVersion::V1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_keeps_the_path_and_hides_the_key() {
        for (base, url) in [
            (
                "http://127.0.0.1:54321",
                "ws://127.0.0.1:54321/realtime/v1/websocket?apikey=sb_k&vsn=1.0.0",
            ),
            (
                "https://x.supabase.co/",
                "wss://x.supabase.co/realtime/v1/websocket?apikey=sb_k&vsn=1.0.0",
            ),
            ("https://h/base?x=1#y", "wss://h/base/realtime/v1/websocket?apikey=sb_k&vsn=1.0.0"),
        ] {
            let endpoint = RealtimeEndpoint::new(&Url::parse(base).unwrap(), "sb_k").unwrap();
            assert_eq!(endpoint.url.as_str(), url);
            assert!(!format!("{endpoint:?}").contains("sb_k"));
        }
        let wrong = RealtimeEndpoint::new(&Url::parse("ftp://h").unwrap(), "k");
        assert!(wrong.unwrap_err().to_string().contains("https://"));
    }
}
