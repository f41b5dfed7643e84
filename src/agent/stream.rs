//! The stream of one attempt on its private topic `job:UID:JOB`.
//!
//! Joining runs beside the engine's first work. While the topic is not joined,
//! and when it cannot be, nothing is lost: the output is collected anyway and
//! arrives whole with the completion.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::debug;

use super::output::Output;
use crate::control::realtime::{Channel, ChannelEvent, JoinOptions, Realtime};
use crate::id::AttemptId;

/// A piece of the answer.
#[derive(Serialize)]
struct Delta<'a> {
    attempt: AttemptId,
    offset: usize,
    text: &'a str,
}

/// Nothing follows.
#[derive(Serialize)]
struct End<'a> {
    attempt: AttemptId,
    length: usize,
    finish: &'a str,
}

/// A consumer asks to hear again.
#[derive(Deserialize)]
struct Resend {
    attempt: AttemptId,
    from: usize,
}

/// Publishes an output as it grows. Dropping it leaves the topic.
pub(super) struct Stream<'a> {
    realtime: &'a Realtime,
    attempt: AttemptId,
    topic: &'a str,
    channel: Option<Channel>,
    over: bool,
}

impl<'a> Stream<'a> {
    /// Names the stream; the topic is joined when something may be published.
    pub(super) fn new(realtime: &'a Realtime, attempt: AttemptId, topic: &'a str) -> Self {
        Self { realtime, attempt, topic, channel: None, over: false }
    }

    /// Says when the next piece may go out, not before `now`; `None` when there is none or the
    /// topic is not joined.
    pub(super) fn due(&self, output: &Output, now: Instant) -> Option<Instant> {
        let channel = self.channel.as_ref()?;
        if channel.is_joined() { output.due(now) } else { None }
    }

    /// Publishes what is due now, and joins the topic the first time that
    /// anything may be published.
    pub(super) fn publish_due(&mut self, output: &mut Output) {
        if self.channel.is_none() && !self.over && output.may_publish() {
            self.channel = Some(self.realtime.join(self.topic, JoinOptions::default()));
        }
        let now = Instant::now();
        while self.due(output, now).is_some_and(|at| at <= now) {
            if !self.publish(output, now) {
                break;
            }
        }
    }

    /// Waits for what arrives on the topic; safe to cancel. Never ends while
    /// there is nothing to listen to.
    pub(super) async fn listen(&mut self, output: &mut Output) {
        let event = match &mut self.channel {
            Some(channel) => channel.recv().await,
            None => std::future::pending().await,
        };
        match event {
            Some(ChannelEvent::Broadcast { event, payload, .. }) if event == "resend" => {
                match serde_json::from_value::<Resend>(payload) {
                    Ok(resend) if resend.attempt == self.attempt => output.rewind(resend.from),
                    Ok(_other_attempt) => {}
                    Err(error) => debug!(error = %error, "a request to resend that is none"),
                }
            }
            Some(ChannelEvent::Refused { reason }) => {
                debug!(attempt = %self.attempt, reason, "the stream's topic was refused");
            }
            Some(event) => debug!(attempt = %self.attempt, ?event, "the stream's topic"),
            None => {
                self.channel = None;
                self.over = true;
            }
        }
    }

    /// Publishes the rest, whatever the pace, and says that nothing follows.
    pub(super) fn finish(&mut self, output: &mut Output, finish: &str) {
        let now = Instant::now();
        while self.due(output, now).is_some() {
            if !self.publish(output, now) {
                return;
            }
        }
        let end = End { attempt: self.attempt, length: output.text().len(), finish };
        if let Some(channel) = self.channel.as_ref().filter(|_| output.may_publish())
            && let Err(error) = channel.send("end", &end)
        {
            debug!(attempt = %self.attempt, error = %error, "the end was not said");
        }
    }

    /// Publishes one piece. Answers false when it could not be sent; it then
    /// is sent again later.
    fn publish(&self, output: &mut Output, now: Instant) -> bool {
        let Some(channel) = &self.channel else { return false };
        let Some(piece) = output.take(now) else { return false };
        let offset = piece.offset;
        let delta = Delta { attempt: self.attempt, offset, text: piece.text };
        match channel.send("delta", &delta) {
            Ok(()) => true,
            Err(error) => {
                debug!(attempt = %self.attempt, error = %error, "a piece was not sent");
                output.rewind(offset);
                false
            }
        }
    }
}
