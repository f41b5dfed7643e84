//! A channel as the socket's task keeps it, and the payloads that it sends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use super::backoff::Backoff;
use super::{ChannelEvent, JoinOptions, Shared};

/// A connection or a join that held this long was a good one: the next pause
/// starts small again.
pub(super) const STEADY: Duration = Duration::from_secs(30);

/// The same for a connection on which a channel was joined: a server that lets
/// clients join is well, and what broke the connection was something else.
pub(super) const STEADY_JOINED: Duration = Duration::from_secs(2);

/// Where a channel stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// It is to be joined at that time, when the socket is open.
    Waiting { at: Instant },
    /// The join was sent and is unanswered.
    Joining { reference: u64, deadline: Instant, token: String },
    /// It is joined.
    Joined { reference: u64, since: Instant, token: String },
}

/// A channel as the task keeps it.
pub(super) struct Subscription {
    /// What the channel itself sees.
    pub(super) shared: Arc<Shared>,
    /// How it is joined.
    pub(super) options: JoinOptions,
    /// Where its events go.
    pub(super) events: mpsc::UnboundedSender<ChannelEvent>,
    /// Where it stands.
    pub(super) phase: Phase,
    /// Pauses after the server ended the channel.
    pub(super) ended: Backoff,
    /// Pauses after a refused join.
    pub(super) refused: Backoff,
}

impl Subscription {
    /// Tells the channel what happened.
    pub(super) fn emit(&self, event: ChannelEvent) {
        // The receiver may be gone already; its leave is on the way.
        let _ = self.events.send(event);
    }

    /// Gives up the current join, if there is one.
    pub(super) fn lose(&mut self, at: Instant) {
        let was_joined = matches!(self.phase, Phase::Joined { .. });
        self.shared.join_ref.store(0, Ordering::Release);
        self.phase = Phase::Waiting { at };
        if was_joined {
            self.emit(ChannelEvent::Lost);
        }
    }

    /// Gives up a join that the server ended, and sets the time of the next.
    pub(super) fn end(&mut self) {
        if let Phase::Joined { since, .. } = self.phase
            && since.elapsed() >= STEADY
        {
            self.ended.reset();
        }
        let pause = self.ended.pause();
        self.lose(Instant::now() + pause);
    }

    /// Returns the ref of the join that is under way or done.
    pub(super) fn reference(&self) -> Option<u64> {
        match self.phase {
            Phase::Waiting { .. } => None,
            Phase::Joining { reference, .. } | Phase::Joined { reference, .. } => Some(reference),
        }
    }
}

/// Tells a refusal for reasons of load from one for reasons of rights.
pub(super) fn is_crowded(reason: &str) -> bool {
    reason.contains("Too many connected users")
        || reason.starts_with("ConnectionRateLimitReached")
        || reason.starts_with("ClientJoinRateLimitReached")
}

/// An empty JSON object.
#[derive(Serialize)]
pub(super) struct Empty {}

/// The payload that hands over a newer access token.
#[derive(Serialize)]
pub(super) struct AccessToken<'a> {
    /// The token.
    pub(super) access_token: &'a str,
}

/// The payload of a join.
#[derive(Serialize)]
pub(super) struct Join<'a> {
    config: Config,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<&'a str>,
}

#[derive(Serialize)]
struct Config {
    private: bool,
    broadcast: Broadcast,
    presence: Presence,
    postgres_changes: [(); 0],
}

#[derive(Serialize)]
struct Broadcast {
    ack: bool,
    #[serde(rename = "self")]
    itself: bool,
}

#[derive(Serialize)]
struct Presence {
    enabled: bool,
    key: &'static str,
}

impl<'a> Join<'a> {
    /// Asks for broadcasts alone. Without a token the API key's rights hold.
    pub(super) fn new(options: JoinOptions, token: &'a str) -> Self {
        Self {
            config: Config {
                private: options.private,
                broadcast: Broadcast { ack: options.ack, itself: options.self_broadcast },
                presence: Presence { enabled: false, key: "" },
                postgres_changes: [],
            },
            access_token: Some(token).filter(|token| !token.is_empty()),
        }
    }
}
