//! Every number that bounds a client.

use std::time::Duration;

/// Bounds of the embedded server. The defaults are the real server's where they
/// show on the wire; its rates, which exist to share a cluster between tenants,
/// are wider here.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open sockets; further ones are refused with 429.
    pub max_sockets: usize,
    /// Bytes of a websocket message; a larger one closes the socket with 1009.
    pub max_frame_bytes: usize,
    /// Bytes of a broadcast's payload; a larger one is dropped, and refused
    /// where the protocol has words for it.
    pub max_payload_bytes: usize,
    /// Bytes of a request to `/api/broadcast`.
    pub max_body_bytes: usize,
    /// Channels of one socket.
    pub channels_per_socket: usize,
    /// Messages a second that one socket may send in the long run; beyond it
    /// the channel is closed.
    pub messages_per_second: u32,
    /// Messages that one socket may send at once.
    pub message_burst: u32,
    /// Messages of one HTTP batch.
    pub batch_messages: usize,
    /// Frames that may wait for one client; beyond it the client is cut off.
    pub outbox_frames: usize,
    /// Bytes that may wait for one client.
    pub outbox_bytes: usize,
    /// The longest time that one write to a client may stall.
    pub write_timeout: Duration,
    /// A socket on which the client sends nothing for this long is closed.
    pub idle_timeout: Duration,
    /// The pause before a refused handshake or join is answered. It slows down
    /// guessing, and never holds up anything else on the socket.
    pub refusal_delay: Duration,
    /// The longest time that asking the policies may take.
    pub authorization_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_sockets: 10_000,
            max_frame_bytes: 5_000_000,
            // As the real server: 3000 KB and half a kilobyte for the envelope.
            max_payload_bytes: 3_000_500,
            max_body_bytes: 8_000_000,
            channels_per_socket: 100,
            // The share of all streams may be one node's: 0.3 of what the gateway
            // is said to deliver.
            messages_per_second: 4_000,
            message_burst: 10_000,
            batch_messages: 100,
            outbox_frames: 4_096,
            outbox_bytes: 16 * 1024 * 1024,
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            refusal_delay: Duration::from_millis(100),
            authorization_timeout: Duration::from_secs(5),
        }
    }
}

/// Counts what a client sends against a rate with a burst.
#[derive(Debug)]
pub(super) struct RateBucket {
    per_second: f64,
    burst: f64,
    level: f64,
    at: tokio::time::Instant,
}

impl RateBucket {
    /// Starts with the whole burst free.
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            per_second: f64::from(limits.messages_per_second),
            burst: f64::from(limits.message_burst),
            level: 0.0,
            at: tokio::time::Instant::now(),
        }
    }

    /// Counts one message; false means that it is one too many.
    pub(super) fn take(&mut self, now: tokio::time::Instant) -> bool {
        let passed = now.duration_since(self.at).as_secs_f64();
        self.at = now;
        self.level = (self.level - passed * self.per_second).max(0.0);
        if self.level + 1.0 > self.burst {
            return false;
        }
        self.level += 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_only_the_rate() {
        let limits = Limits { messages_per_second: 10, message_burst: 3, ..Limits::default() };
        let mut bucket = RateBucket::new(&limits);
        let start = tokio::time::Instant::now();
        assert!((0..3).all(|_| bucket.take(start)));
        assert!(!bucket.take(start));
        assert!(bucket.take(start + Duration::from_millis(150)));
        assert!(!bucket.take(start + Duration::from_millis(160)));
    }
}
