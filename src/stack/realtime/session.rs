//! The channels of one client: joins, answers, and the ends of channels.
//!
//! Everything about one topic happens in the order of its frames. What must ask
//! the database (a private join, a new token, a first message) runs beside the
//! rest of the socket, and frames of that topic wait for it meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::debug;

use super::Service;
use super::authorization::{Rights, rights};
use super::channel::{Body, Channel, Incoming, Join, Outcome, Settled, WriteRight};
use super::join::JoinRequest;
use super::limits::RateBucket;
use super::message::{Content, Message};
use super::outbox::{Outbox, Outgoing};
use super::socket::Opening;
use super::token::{self, Access};
use crate::control::realtime::frame::{
    EVENT_ACCESS_TOKEN, EVENT_BROADCAST, EVENT_CLOSE, EVENT_ERROR, EVENT_HEARTBEAT, EVENT_JOIN,
    EVENT_LEAVE, EVENT_REPLY, EVENT_SYSTEM, Frame, ProtocolVersion, Ref, TOPIC_PHOENIX,
    TOPIC_PREFIX, same_ref, to_raw,
};

/// Bytes of frames that may wait for the database, over all topics of a socket.
const WAITING_BYTES: usize = 8 * 1024 * 1024;

const UNMATCHED_TOPIC: &str = "unmatched topic";
const NO_PRESENCE: &str = "Presence is not served by this gateway";
const NO_CHANGES: &str = "Unable to subscribe to changes with given parameters. \
     This gateway does not serve postgres_changes; broadcast from the database instead";
const PRIVATE_ONLY: &str = "PrivateOnly: This project only allows private channels";

/// A client's channels.
pub(super) struct Session {
    service: Arc<Service>,
    version: ProtocolVersion,
    connection_token: String,
    pub(super) outbox: Arc<Outbox>,
    channels: HashMap<String, Channel>,
    pub(super) pending: FuturesUnordered<BoxFuture<'static, Settled>>,
    /// Topics with something pending, and the frames that wait for it.
    waiting: HashMap<String, VecDeque<Incoming>>,
    waiting_bytes: usize,
    bucket: RateBucket,
    /// When the next token ends.
    pub(super) expiry: Option<Instant>,
}

impl Session {
    /// Starts without a channel.
    pub(super) fn new(service: Arc<Service>, opening: Opening, outbox: Arc<Outbox>) -> Self {
        let bucket = RateBucket::new(&service.limits);
        Self {
            service,
            version: opening.version,
            connection_token: opening.token,
            outbox,
            channels: HashMap::new(),
            pending: FuturesUnordered::new(),
            waiting: HashMap::new(),
            waiting_bytes: 0,
            bucket,
            expiry: None,
        }
    }

    /// Returns the version that the client speaks.
    pub(super) fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// Handles a frame.
    pub(super) fn handle(&mut self, incoming: Incoming) {
        if let Some(queue) = self.waiting.get_mut(&incoming.topic) {
            let weight = incoming.weight();
            if self.waiting_bytes + weight <= WAITING_BYTES {
                self.waiting_bytes += weight;
                queue.push_back(incoming);
            } else {
                debug!(topic = %incoming.topic, "too much waits for the database, a frame is dropped");
            }
            return;
        }
        match incoming.event.as_str() {
            EVENT_HEARTBEAT if incoming.topic == TOPIC_PHOENIX => {
                self.reply(TOPIC_PHOENIX, None, incoming.reference, "ok", &json!({}));
            }
            EVENT_JOIN if incoming.topic.starts_with(TOPIC_PREFIX) => self.join(incoming),
            EVENT_LEAVE => self.leave(incoming),
            event => {
                if !self.channels.contains_key(&incoming.topic) {
                    let reason = json!({ "reason": UNMATCHED_TOPIC });
                    self.reply(&incoming.topic, None, incoming.reference, "error", &reason);
                    return;
                }
                match event {
                    EVENT_BROADCAST => self.broadcast(incoming),
                    EVENT_ACCESS_TOKEN => self.refresh(&incoming),
                    "presence" => {
                        let reason = json!({ "reason": NO_PRESENCE });
                        self.answer(&incoming, "error", &reason);
                    }
                    _ => {}
                }
            }
        }
    }

    // ------------------------------------------------------------------ join

    fn join(&mut self, incoming: Incoming) {
        // So that as little as can be of what is older reaches the channel.
        self.service.commits.tell();
        let Incoming { topic, reference, join_ref, body, .. } = incoming;
        // Joining again ends the older channel, whatever becomes of the new one.
        if let Some(older) = self.remove(&topic) {
            self.push(&topic, EVENT_CLOSE, &json!({}), older.join_ref.clone(), older.join_ref);
        }
        let checked = match &body {
            Body::Json(payload) => self.check_join(&topic[TOPIC_PREFIX.len()..], payload),
            // A binary frame is always a broadcast.
            Body::User { .. } => return,
        };
        match checked {
            Ok((request, token, access)) => {
                let join = Box::new(Join { request, reference, join_ref, token, access });
                if join.request.private {
                    self.ask_about_join(topic, join);
                } else {
                    self.joined(&topic, *join, Rights { read: true, write: true });
                }
            }
            Err(reason) => self.refuse_join(topic, reference, join_ref, reason),
        }
    }

    /// Checks all that needs no database. The error is the reason to give.
    fn check_join(
        &self,
        name: &str,
        payload: &RawValue,
    ) -> Result<(JoinRequest, String, Access), String> {
        let service = &self.service;
        if name.is_empty() {
            return Err("TopicNameRequired: You must provide a topic name".to_owned());
        }
        let request = JoinRequest::parse(name, payload).map_err(|error| error.to_string())?;
        if !request.private && !service.public_channels {
            return Err(PRIVATE_ONLY.to_owned());
        }
        if self.channels.len() + self.waiting.len() >= service.limits.channels_per_socket {
            return Err("ChannelRateLimitReached: Too many channels".to_owned());
        }
        let token = request.access_token.clone().unwrap_or_else(|| self.connection_token.clone());
        let access = token::verify(&service.verifier, &token)
            .map_err(|error| format!("{}: {error}", error.code()))?;
        if let Some(refusal) = request.replay_refusal() {
            return Err(refusal.to_owned());
        }
        Ok((request, token, access))
    }

    fn ask_about_join(&mut self, topic: String, join: Box<Join>) {
        let service = Arc::clone(&self.service);
        self.waiting.insert(topic.clone(), VecDeque::new());
        self.pending.push(Box::pin(async move {
            let rights = rights(&service, &join.access, &topic[TOPIC_PREFIX.len()..]).await;
            Settled { topic, outcome: Outcome::JoinAsked { join, rights } }
        }));
    }

    fn refuse_join(&mut self, topic: String, reference: Ref, join_ref: Ref, reason: String) {
        let delay = self.service.limits.refusal_delay;
        self.waiting.entry(topic.clone()).or_default();
        self.pending.push(Box::pin(async move {
            tokio::time::sleep(delay).await;
            Settled { topic, outcome: Outcome::JoinRefused { reference, join_ref, reason } }
        }));
    }

    fn joined(&mut self, topic: &str, join: Join, rights: Rights) {
        let Join { request, reference, join_ref, token, access } = join;
        let name = &topic[TOPIC_PREFIX.len()..];
        let epoch = *self.service.database_epoch.borrow();
        let id = self.service.channel_ids.fetch_add(1, Ordering::Relaxed);
        let channel = Channel {
            id,
            private: request.private,
            reply_ref: join_ref.clone().or_else(|| reference.clone()),
            join_ref,
            ack: request.ack,
            self_broadcast: request.self_broadcast,
            write: WriteRight::at_join(rights.write),
            access,
            token,
            told_epoch: request.replication_ready.then_some(0),
        };
        // The answer is queued first and sent after this returns, so no message
        // comes before it and none is missed after it.
        let response = json!({ "postgres_changes": request.postgres_changes });
        self.reply(topic, channel.join_ref.clone(), reference, "ok", &response);
        self.service.hub.listen(request.private, name, id, self.version, Arc::clone(&self.outbox));
        if !request.postgres_changes.is_empty() {
            self.system(topic, &channel.reply_ref, "postgres_changes", "error", NO_CHANGES);
        }
        if request.presence {
            self.system(topic, &channel.reply_ref, "presence", "error", NO_PRESENCE);
        }
        self.channels.insert(topic.to_owned(), channel);
        self.tell_epoch(epoch);
        self.schedule_expiry();
    }

    // ---------------------------------------------------- what ran beside us

    /// Goes on after something that ran beside the socket.
    pub(super) fn settle(&mut self, settled: Settled) {
        let Settled { topic, outcome } = settled;
        let queue = self.waiting.remove(&topic).unwrap_or_default();
        match outcome {
            Outcome::JoinRefused { reference, join_ref, reason } => {
                self.reply(&topic, join_ref, reference, "error", &json!({ "reason": reason }));
            }
            Outcome::JoinAsked { join, rights: Ok(rights) } if rights.read => {
                self.joined(&topic, *join, rights);
            }
            Outcome::JoinAsked { join, rights } => {
                let reason = match rights {
                    Ok(_) => format!("Unauthorized: {}", no_read(&topic)),
                    Err(error) => error.to_string(),
                };
                self.refuse_join(topic.clone(), join.reference, join.join_ref, reason);
            }
            Outcome::RefreshAsked { token, access, rights } => match rights {
                Ok(rights) if rights.read => {
                    if let Some(channel) = self.channels.get_mut(&topic) {
                        channel.token = token;
                        channel.access = *access;
                        channel.write = WriteRight::at_join(rights.write);
                    }
                    self.schedule_expiry();
                }
                Ok(_) => self.end(&topic, &no_read(&topic)),
                Err(error) => self.end(&topic, &error.to_string()),
            },
            Outcome::WriteAsked { incoming, rights } => match rights {
                Ok(rights) => {
                    if let Some(channel) = self.channels.get_mut(&topic) {
                        channel.write =
                            if rights.write { WriteRight::Granted } else { WriteRight::Denied };
                        self.broadcast(*incoming);
                    }
                }
                // The message is lost without a word, as on the real server, and
                // the next one asks again.
                Err(error) => debug!(%error, %topic, "the policies could not be asked"),
            },
        }
        for incoming in queue {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(incoming.weight());
            self.handle(incoming);
        }
    }

    // ------------------------------------------------- frames of a channel

    fn leave(&mut self, incoming: Incoming) {
        let Incoming { topic, reference, join_ref, .. } = incoming;
        match self.channels.get(&topic) {
            None => self.reply(&topic, join_ref, reference, "ok", &json!({})),
            // A leave of an older join is no leave of this one.
            Some(channel) if !same_ref(&channel.join_ref, &join_ref) => {}
            Some(_) => {
                if let Some(channel) = self.remove(&topic) {
                    self.reply(&topic, channel.reply_ref, reference, "ok", &json!({}));
                    let join_ref = channel.join_ref;
                    self.push(&topic, EVENT_CLOSE, &json!({}), join_ref.clone(), join_ref);
                }
                self.schedule_expiry();
            }
        }
    }

    fn broadcast(&mut self, incoming: Incoming) {
        if !self.bucket.take(Instant::now()) {
            self.end(&incoming.topic, "Too many messages per second");
            return;
        }
        let Some(channel) = self.channels.get(&incoming.topic) else { return };
        if let Body::Json(envelope) = &incoming.body
            && !envelope.get().starts_with('{')
        {
            // The real server's channel process crashes on it.
            if let Some(channel) = self.remove(&incoming.topic) {
                let join_ref = channel.join_ref;
                self.push(&incoming.topic, EVENT_ERROR, &json!({}), join_ref.clone(), join_ref);
            }
            return self.schedule_expiry();
        }
        if incoming.payload_len() > self.service.limits.max_payload_bytes {
            if channel.ack {
                self.answer(&incoming, "error", &json!("payload_size_exceeded"));
            }
            return;
        }
        if channel.private {
            match channel.write {
                WriteRight::Granted => {}
                WriteRight::Unasked => return self.ask_about_write(incoming),
                // Nothing is said, as on the real server.
                WriteRight::Denied => return,
            }
        }
        let Incoming { topic, reference, body, .. } = incoming;
        let content = match body {
            Body::Json(envelope) => Content::Envelope(envelope),
            Body::User { event, encoding, payload } => {
                Content::User { event, encoding, payload, id: None }
            }
        };
        let except = (!channel.self_broadcast).then_some(channel.id);
        let message = Message { topic: topic[TOPIC_PREFIX.len()..].to_owned(), content };
        self.service.hub.publish(channel.private, &message, except);
        if channel.ack {
            self.reply(&topic, channel.reply_ref.clone(), reference, "ok", &json!({}));
        }
    }

    fn ask_about_write(&mut self, incoming: Incoming) {
        let Some(channel) = self.channels.get(&incoming.topic) else { return };
        let access = channel.access.clone();
        let service = Arc::clone(&self.service);
        let topic = incoming.topic.clone();
        let incoming = Box::new(incoming);
        self.waiting.insert(topic.clone(), VecDeque::new());
        self.pending.push(Box::pin(async move {
            let rights = rights(&service, &access, &topic[TOPIC_PREFIX.len()..]).await;
            Settled { topic, outcome: Outcome::WriteAsked { incoming, rights } }
        }));
    }

    /// Takes a newer access token. A good one is not answered; a bad one ends
    /// the channel.
    fn refresh(&mut self, incoming: &Incoming) {
        #[derive(serde::Deserialize)]
        struct Payload {
            access_token: String,
        }
        let Body::Json(payload) = &incoming.body else { return };
        // Null, nothing and keys of the new style are no tokens.
        let Ok(Payload { access_token: token }) = serde_json::from_str(payload.get()) else {
            return;
        };
        let Some(channel) = self.channels.get_mut(&incoming.topic) else { return };
        if token == channel.token || token.starts_with("sb_") {
            return;
        }
        let access = match token::verify(&self.service.verifier, &token) {
            Ok(access) => access,
            Err(error) => return self.end(&incoming.topic, &error.refresh_text()),
        };
        if !channel.private {
            channel.token = token;
            channel.access = access;
            return self.schedule_expiry();
        }
        let service = Arc::clone(&self.service);
        let topic = incoming.topic.clone();
        self.waiting.insert(topic.clone(), VecDeque::new());
        self.pending.push(Box::pin(async move {
            let rights = rights(&service, &access, &topic[TOPIC_PREFIX.len()..]).await;
            let access = Box::new(access);
            Settled { topic, outcome: Outcome::RefreshAsked { token, access, rights } }
        }));
    }

    // -------------------------------------------------------------- the ends

    /// Ends a channel for a reason that the client is told. The socket stays.
    fn end(&mut self, topic: &str, reason: &str) {
        if let Some(channel) = self.remove(topic) {
            self.system(topic, &channel.reply_ref, "system", "error", reason);
            let join_ref = channel.join_ref;
            self.push(topic, EVENT_CLOSE, &json!({}), join_ref.clone(), join_ref);
        }
        self.schedule_expiry();
    }

    /// Ends the channels whose token is over.
    pub(super) fn expire(&mut self) {
        let now = token::now_secs();
        let over: Vec<(String, i64)> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.access.expires_at <= now)
            .map(|(topic, channel)| (topic.clone(), now - channel.access.expires_at))
            .collect();
        for (topic, seconds) in over {
            self.end(&topic, &token::TokenError::Expired { seconds }.to_string());
        }
        self.schedule_expiry();
    }

    /// Computes when the next token ends. The clock that tokens name is read
    /// again each time, because it may be set.
    fn schedule_expiry(&mut self) {
        let first = self.channels.values().map(|channel| channel.access.expires_at).min();
        self.expiry = first.map(|expires_at| {
            let millis = token::now_millis();
            let left = expires_at.saturating_mul(1000).saturating_sub(millis).max(0);
            // Far ends are looked at again, so that no sum overflows.
            let left = u64::try_from(left).unwrap_or(0).min(3_600_000);
            Instant::now() + Duration::from_millis(left)
        });
    }

    /// Tells the channels that asked for it that messages of the database flow,
    /// once for each connection.
    pub(super) fn tell_epoch(&mut self, epoch: u64) {
        if epoch == 0 {
            return;
        }
        let mut told = Vec::new();
        for (topic, channel) in &mut self.channels {
            if let Some(number) = &mut channel.told_epoch
                && *number != epoch
            {
                *number = epoch;
                told.push((topic.clone(), channel.reply_ref.clone()));
            }
        }
        for (topic, reply_ref) in told {
            self.system(&topic, &reply_ref, "system", "ok", "Replication connection established");
        }
    }

    fn remove(&mut self, topic: &str) -> Option<Channel> {
        let channel = self.channels.remove(topic)?;
        self.service.hub.forget(channel.private, &topic[TOPIC_PREFIX.len()..], channel.id);
        Some(channel)
    }

    // ---------------------------------------------------------------- frames

    /// Answers a frame of a joined channel.
    fn answer<T: Serialize>(&self, incoming: &Incoming, status: &str, response: &T) {
        let join_ref =
            self.channels.get(&incoming.topic).and_then(|channel| channel.reply_ref.clone());
        self.reply(&incoming.topic, join_ref, incoming.reference.clone(), status, response);
    }

    fn reply<T: Serialize>(
        &self,
        topic: &str,
        join_ref: Ref,
        reference: Ref,
        status: &str,
        response: &T,
    ) {
        #[derive(Serialize)]
        struct Reply<'a, T> {
            status: &'a str,
            response: &'a T,
        }
        self.push(topic, EVENT_REPLY, &Reply { status, response }, reference, join_ref);
    }

    fn system(&self, topic: &str, join_ref: &Ref, extension: &str, status: &str, message: &str) {
        let payload = json!({
            "extension": extension,
            "status": status,
            "message": message,
            "channel": topic[TOPIC_PREFIX.len()..],
        });
        self.push(topic, EVENT_SYSTEM, &payload, None, join_ref.clone());
    }

    fn push<T: Serialize>(
        &self,
        topic: &str,
        event: &str,
        payload: &T,
        reference: Ref,
        join_ref: Ref,
    ) {
        let frame = Frame {
            topic: topic.to_owned(),
            event: event.to_owned(),
            payload: to_raw(payload).expect("the protocol's own payloads always serialize"),
            reference,
            // The server never writes it on version 1.0.0.
            join_ref: join_ref.filter(|_| self.version == ProtocolVersion::V2),
        };
        self.outbox.push(Outgoing::text(frame.encode(self.version)));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for (topic, channel) in &self.channels {
            self.service.hub.forget(channel.private, &topic[TOPIC_PREFIX.len()..], channel.id);
        }
    }
}

/// Returns the text of a missing right to read.
fn no_read(topic: &str) -> String {
    format!(
        "You do not have permissions to read from this Channel topic: {}",
        &topic[TOPIC_PREFIX.len()..]
    )
}
