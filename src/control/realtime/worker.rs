//! The task that owns the socket: connects, serves, loses, reconnects.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace, warn};

use super::backoff::Backoff;
use super::connection::{ConnectError, Socket, connect};
use super::frame::{
    EVENT_ACCESS_TOKEN, EVENT_BROADCAST, EVENT_CLOSE, EVENT_ERROR, EVENT_HEARTBEAT, EVENT_JOIN,
    EVENT_LEAVE, EVENT_REPLY, EVENT_SYSTEM, Frame, ProtocolVersion, Ref, TOPIC_PHOENIX, to_raw,
};
use super::subscription::{
    AccessToken, Empty, Join, Phase, STEADY, STEADY_JOINED, Subscription, is_crowded,
};
use super::{
    ChannelEvent, JoinOptions, MAX_INCOMING, RealtimeEndpoint, Shared, SocketState, Timing,
};

/// The longest wait for the server's close frame at shutdown.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How many queued commands are handled before the socket is flushed.
const BATCH: usize = 256;
/// The refusal of a push to a topic that the server does not know.
const UNMATCHED_TOPIC: &str = "unmatched topic";

/// What handles ask of the task.
#[derive(Debug)]
pub(super) enum Command {
    /// Join a topic.
    Join {
        /// The channel.
        shared: Arc<Shared>,
        /// How.
        options: JoinOptions,
        /// Where its events go.
        events: mpsc::UnboundedSender<ChannelEvent>,
    },
    /// Send a frame that is already written.
    Push {
        /// The text frame.
        frame: String,
    },
    /// Leave the topic of a channel.
    Leave {
        /// The channel.
        id: u64,
    },
}

/// Writes a ref as the JSON string that Phoenix clients use.
pub(super) fn reference_text(reference: u64) -> Box<RawValue> {
    RawValue::from_string(format!("\"{reference}\"")).expect("a number in quotes is valid JSON")
}

/// Reads a ref that this client wrote.
fn reference_number(reference: &Ref) -> Option<u64> {
    reference.as_deref()?.get().trim_matches('"').parse().ok()
}

/// Why serving a socket ended.
enum Ended {
    /// Shutdown, or nobody holds a handle any more.
    Finished,
    /// The socket is gone.
    Lost(String),
}

/// The task's whole state.
pub(super) struct Worker {
    endpoint: RealtimeEndpoint,
    timing: Timing,
    tokens: watch::Receiver<String>,
    /// False once the sender of tokens is gone.
    tokens_live: bool,
    shutdown: CancellationToken,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Broadcasts in `commands`, counted by the senders.
    outgoing: Arc<AtomicUsize>,
    refs: Arc<AtomicU64>,
    state: watch::Sender<SocketState>,
    subscriptions: HashMap<String, Subscription>,
    /// Frames to be written before the next wait.
    outbox: Vec<Utf8Bytes>,
    /// When the next join is due or overdue.
    deadline: Option<Instant>,
    /// The ref of a heartbeat that is unanswered.
    heartbeat: Option<u64>,
}

impl Worker {
    #[expect(clippy::too_many_arguments, reason = "the one caller hands over its own fields")]
    pub(super) fn new(
        endpoint: RealtimeEndpoint,
        timing: Timing,
        tokens: watch::Receiver<String>,
        shutdown: CancellationToken,
        commands: mpsc::UnboundedReceiver<Command>,
        outgoing: Arc<AtomicUsize>,
        refs: Arc<AtomicU64>,
        state: watch::Sender<SocketState>,
    ) -> Self {
        Self {
            endpoint,
            timing,
            tokens,
            tokens_live: true,
            shutdown,
            commands,
            outgoing,
            refs,
            state,
            subscriptions: HashMap::new(),
            outbox: Vec::new(),
            deadline: None,
            heartbeat: None,
        }
    }

    /// Runs until shutdown or until the last handle is gone.
    pub(super) async fn run(mut self) {
        let mut retry = Backoff::new(self.timing.retry);
        let mut refused = Backoff::new(self.timing.refused);
        let mut crowded = Backoff::new(self.timing.crowded);
        loop {
            self.state.send_replace(SocketState::Connecting);
            let (endpoint, timing) = (self.endpoint.clone(), self.timing);
            let Some(connected) =
                self.meanwhile(async move { connect(&endpoint, &timing).await }).await
            else {
                break;
            };
            let state = match connected {
                Ok(socket) => {
                    let opened = Instant::now();
                    self.state.send_replace(SocketState::Open);
                    refused.reset();
                    crowded.reset();
                    match Box::pin(self.serve(socket)).await {
                        Ended::Finished => break,
                        Ended::Lost(reason) => {
                            if self.was_good(opened) {
                                retry.reset();
                            }
                            self.lose_all();
                            SocketState::Waiting { reason, retry_in: retry.pause() }
                        }
                    }
                }
                Err(ConnectError::Refused { status, reason }) => {
                    let pauses = if status == 429 { &mut crowded } else { &mut refused };
                    SocketState::Refused { status, reason, retry_in: pauses.pause() }
                }
                Err(error) => {
                    SocketState::Waiting { reason: error.to_string(), retry_in: retry.pause() }
                }
            };
            let pause = match &state {
                SocketState::Waiting { reason, retry_in } => {
                    debug!(%reason, ?retry_in, "realtime socket is down");
                    *retry_in
                }
                SocketState::Refused { status, reason, retry_in } => {
                    warn!(status, %reason, ?retry_in, "realtime server refused the socket");
                    *retry_in
                }
                _ => Duration::ZERO,
            };
            self.state.send_replace(state);
            if self.meanwhile(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        self.state.send_replace(SocketState::Closed);
    }

    /// Says whether the socket that has just been lost was a good one, so that the
    /// server is there and can be asked again soon.
    fn was_good(&self, opened: Instant) -> bool {
        let joined = |s: &Subscription| matches!(s.phase, Phase::Joined { .. });
        opened.elapsed() >= STEADY
            || opened.elapsed() >= STEADY_JOINED && self.subscriptions.values().any(joined)
    }

    /// Waits for something while there is no socket, and takes joins and leaves
    /// meanwhile. None means that it is time to end.
    async fn meanwhile<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let shutdown = self.shutdown.clone();
        let mut future = pin!(future);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return None,
                command = self.commands.recv() => match command {
                    Some(command) => self.handle(command, false),
                    None => return None,
                },
                output = &mut future => return Some(output),
            }
        }
    }

    /// Serves an open socket until it is lost or the end has come.
    async fn serve(&mut self, socket: Socket) -> Ended {
        let (mut sink, mut stream) = socket.split();
        let shutdown = self.shutdown.clone();
        let period = self.timing.heartbeat;
        let mut heartbeat = tokio::time::interval_at(Instant::now() + period, period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.heartbeat = None;
        self.outbox.clear();
        self.run_timers();
        let ended = loop {
            if !self.outbox.is_empty() {
                let frames = self.outbox.drain(..);
                let write = async {
                    for frame in frames {
                        sink.feed(Message::Text(frame)).await?;
                    }
                    sink.flush().await
                };
                match tokio::time::timeout(self.timing.write_timeout, write).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break Ended::Lost(error.to_string()),
                    Err(_) => break Ended::Lost("Writing to the socket timed out".to_owned()),
                }
            }
            let deadline = self.deadline;
            tokio::select! {
                message = stream.next() => match message {
                    Some(Ok(message)) => {
                        if let Some(reason) = self.receive(message) {
                            break Ended::Lost(reason);
                        }
                    }
                    Some(Err(error)) => break Ended::Lost(error.to_string()),
                    None => break Ended::Lost("The server ended the connection".to_owned()),
                },
                command = self.commands.recv() => {
                    let Some(command) = command else { break Ended::Finished };
                    self.handle(command, true);
                    self.drain();
                }
                () = shutdown.cancelled() => {
                    self.drain();
                    break Ended::Finished;
                }
                _ = heartbeat.tick() => {
                    if self.heartbeat.is_some() {
                        break Ended::Lost("A heartbeat was not answered".to_owned());
                    }
                    let reference = self.next_ref();
                    self.heartbeat = Some(reference);
                    self.push(TOPIC_PHOENIX, EVENT_HEARTBEAT, &Empty {}, reference, None);
                }
                changed = self.tokens.changed(), if self.tokens_live => match changed {
                    Ok(()) => self.push_token(),
                    Err(_) => self.tokens_live = false,
                },
                () = sleep_until(deadline), if deadline.is_some() => self.run_timers(),
            }
        };
        if let Ended::Finished = ended {
            let frames = std::mem::take(&mut self.outbox);
            let close = async {
                for frame in frames {
                    sink.feed(Message::Text(frame)).await?;
                }
                sink.send(Message::Close(None)).await?;
                // The server's close frame says that it has read everything.
                while let Some(Ok(_)) = stream.next().await {}
                Ok::<(), tokio_tungstenite::tungstenite::Error>(())
            };
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
        }
        ended
    }

    /// Takes what else is queued, up to a bound, so that one flush covers it.
    fn drain(&mut self) {
        for _ in 0..BATCH {
            let Ok(command) = self.commands.try_recv() else { break };
            self.handle(command, true);
        }
    }

    fn handle(&mut self, command: Command, open: bool) {
        match command {
            Command::Join { shared, options, events } => {
                let topic = shared.topic.clone();
                let subscription = Subscription {
                    shared,
                    options,
                    events,
                    phase: Phase::Waiting { at: Instant::now() },
                    ended: Backoff::new(self.timing.retry),
                    refused: Backoff::new(self.timing.refused),
                };
                if let Some(older) = self.subscriptions.insert(topic, subscription) {
                    // Its event sender goes with it, which ends the channel.
                    older.shared.join_ref.store(0, Ordering::Release);
                }
                if open {
                    self.run_timers();
                }
            }
            Command::Push { frame } => {
                self.outgoing.fetch_sub(1, Ordering::Relaxed);
                if open {
                    self.outbox.push(frame.into());
                }
            }
            Command::Leave { id } => {
                let Some(topic) = self
                    .subscriptions
                    .iter()
                    .find(|(_, subscription)| subscription.shared.id == id)
                    .map(|(topic, _)| topic.clone())
                else {
                    return;
                };
                if let Some(subscription) = self.subscriptions.remove(&topic) {
                    subscription.shared.join_ref.store(0, Ordering::Release);
                    if let (true, Some(join_ref)) = (open, subscription.reference()) {
                        let reference = self.next_ref();
                        self.push(&topic, EVENT_LEAVE, &Empty {}, reference, Some(join_ref));
                    }
                }
                self.reschedule();
            }
        }
    }

    /// Handles one message of the server. Some(reason) ends the connection.
    fn receive(&mut self, message: Message) -> Option<String> {
        let text = match message {
            Message::Text(text) => text,
            Message::Close(frame) => {
                return Some(frame.map_or_else(
                    || "The server closed the connection".to_owned(),
                    |frame| format!("The server closed the connection with code {}", frame.code),
                ));
            }
            // Pings are answered by the library; version 1.0.0 has no binary frames.
            _ => return None,
        };
        match Frame::decode(ProtocolVersion::V1, &text) {
            Ok(frame) => self.dispatch(&frame),
            Err(error) => debug!(%error, "realtime server sent a malformed frame"),
        }
        None
    }

    fn dispatch(&mut self, frame: &Frame) {
        if frame.topic == TOPIC_PHOENIX {
            if reference_number(&frame.reference) == self.heartbeat {
                self.heartbeat = None;
            }
            return;
        }
        match frame.event.as_str() {
            EVENT_BROADCAST => self.deliver(frame),
            EVENT_REPLY => self.answered(frame),
            EVENT_CLOSE | EVENT_ERROR => {
                let reference = reference_number(&frame.reference);
                let Some(subscription) = self.subscriptions.get_mut(&frame.topic) else { return };
                // A close of an older join of this topic is no news.
                if reference.is_some() && subscription.reference() == reference {
                    subscription.end();
                    self.reschedule();
                }
            }
            EVENT_SYSTEM => {
                debug!(topic = %frame.topic, message = %frame.payload.get(), "realtime system message");
            }
            other => trace!(topic = %frame.topic, event = other, "realtime event ignored"),
        }
    }

    fn deliver(&self, frame: &Frame) {
        #[derive(Deserialize)]
        struct Envelope {
            event: String,
            #[serde(default)]
            payload: Value,
            #[serde(default)]
            meta: Option<Meta>,
        }
        #[derive(Deserialize)]
        struct Meta {
            #[serde(default)]
            id: Option<String>,
        }
        let Some(subscription) = self.subscriptions.get(&frame.topic) else { return };
        let Ok(envelope) = serde_json::from_str::<Envelope>(frame.payload.get()) else {
            debug!(topic = %frame.topic, "realtime broadcast without an event ignored");
            return;
        };
        let shared = &subscription.shared;
        if shared.incoming.fetch_add(1, Ordering::Relaxed) >= MAX_INCOMING {
            shared.incoming.fetch_sub(1, Ordering::Relaxed);
            if shared.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
                warn!(topic = %frame.topic, "a realtime channel is read too slowly, messages are dropped");
            }
            return;
        }
        subscription.emit(ChannelEvent::Broadcast {
            event: envelope.event,
            payload: envelope.payload,
            id: envelope.meta.and_then(|meta| meta.id),
        });
    }

    fn answered(&mut self, frame: &Frame) {
        #[derive(Deserialize)]
        struct Reply {
            status: String,
            #[serde(default)]
            response: Value,
        }
        let Some(subscription) = self.subscriptions.get_mut(&frame.topic) else { return };
        let Ok(reply) = serde_json::from_str::<Reply>(frame.payload.get()) else { return };
        let reference = reference_number(&frame.reference);
        let reason = || match &reply.response {
            // A refusal may be a bare string.
            Value::String(text) => text.clone(),
            response => response
                .get("reason")
                .and_then(Value::as_str)
                .map_or_else(|| response.to_string(), str::to_owned),
        };
        match &mut subscription.phase {
            Phase::Joining { reference: join_ref, token, .. } if reference == Some(*join_ref) => {
                if reply.status == "ok" {
                    let (join_ref, token) = (*join_ref, std::mem::take(token));
                    subscription.phase =
                        Phase::Joined { reference: join_ref, since: Instant::now(), token };
                    subscription.refused.reset();
                    subscription.shared.join_ref.store(join_ref, Ordering::Release);
                    subscription.emit(ChannelEvent::Joined);
                    // A token may have come while the join was under way.
                    self.push_token();
                } else {
                    let reason = reason();
                    debug!(topic = %frame.topic, %reason, "realtime join refused");
                    let pause = if is_crowded(&reason) {
                        Backoff::new(self.timing.crowded).pause()
                    } else {
                        subscription.refused.pause()
                    };
                    subscription.phase = Phase::Waiting { at: Instant::now() + pause };
                    subscription.emit(ChannelEvent::Refused { reason });
                }
                self.reschedule();
            }
            // The server does not know a channel that we hold for joined.
            Phase::Joined { reference: join_ref, .. }
                if reply.status == "error"
                    && reference.is_some_and(|reference| reference > *join_ref)
                    && reason() == UNMATCHED_TOPIC =>
            {
                subscription.end();
                self.reschedule();
            }
            _ => {}
        }
    }

    /// Hands the newest token to every joined channel that has an older one,
    /// and joins refused channels at once.
    fn push_token(&mut self) {
        let newest = self.tokens.borrow_and_update().clone();
        let now = Instant::now();
        let mut pushes = Vec::new();
        for (topic, subscription) in &mut self.subscriptions {
            match &mut subscription.phase {
                Phase::Joined { reference, token, .. }
                    if *token != newest && !newest.is_empty() =>
                {
                    token.clone_from(&newest);
                    pushes.push((topic.clone(), *reference));
                }
                Phase::Waiting { at } => *at = (*at).min(now),
                _ => {}
            }
        }
        for (topic, join_ref) in pushes {
            let reference = self.next_ref();
            let payload = AccessToken { access_token: &newest };
            self.push(&topic, EVENT_ACCESS_TOKEN, &payload, reference, Some(join_ref));
        }
        self.run_timers();
    }

    /// Sends the joins that are due and gives up those that are overdue.
    fn run_timers(&mut self) {
        let now = Instant::now();
        let mut joins = Vec::new();
        for (topic, subscription) in &mut self.subscriptions {
            match subscription.phase {
                Phase::Waiting { at } if at <= now => joins.push(topic.clone()),
                Phase::Joining { deadline, .. } if deadline <= now => {
                    let pause = subscription.refused.pause();
                    subscription.phase = Phase::Waiting { at: now + pause };
                    subscription.emit(ChannelEvent::Refused {
                        reason: "The server did not answer the join".to_owned(),
                    });
                }
                _ => {}
            }
        }
        for topic in joins {
            self.send_join(&topic, now);
        }
        self.reschedule();
    }

    fn send_join(&mut self, topic: &str, now: Instant) {
        let reference = self.next_ref();
        let token = self.tokens.borrow().clone();
        let deadline = now + self.timing.join_timeout;
        let Some(subscription) = self.subscriptions.get_mut(topic) else { return };
        let options = subscription.options;
        subscription.phase = Phase::Joining { reference, deadline, token: token.clone() };
        let payload = Join::new(options, &token);
        self.push(topic, EVENT_JOIN, &payload, reference, Some(reference));
    }

    /// Forgets every join, because the socket is gone. They go out again, in no
    /// hurry of their own, when the next one is open.
    fn lose_all(&mut self) {
        let now = Instant::now();
        for subscription in self.subscriptions.values_mut() {
            // Times of refusals stay; a new socket is no new right.
            if subscription.reference().is_some() {
                subscription.lose(now);
            }
        }
        self.deadline = None;
    }

    /// Computes when the next join is due or overdue.
    fn reschedule(&mut self) {
        self.deadline = self
            .subscriptions
            .values()
            .filter_map(|subscription| match subscription.phase {
                Phase::Waiting { at } => Some(at),
                Phase::Joining { deadline, .. } => Some(deadline),
                Phase::Joined { .. } => None,
            })
            .min();
    }

    fn next_ref(&self) -> u64 {
        self.refs.fetch_add(1, Ordering::Relaxed)
    }

    fn push<T: Serialize>(
        &mut self,
        topic: &str,
        event: &str,
        payload: &T,
        reference: u64,
        join_ref: Option<u64>,
    ) {
        let frame = Frame {
            topic: topic.to_owned(),
            event: event.to_owned(),
            payload: to_raw(payload).expect("the protocol's own payloads always serialize"),
            reference: Some(reference_text(reference)),
            join_ref: join_ref.map(reference_text),
        };
        self.outbox.push(frame.encode(ProtocolVersion::V1).into());
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
