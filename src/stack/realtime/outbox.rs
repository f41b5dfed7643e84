//! The queue of frames to one client: never blocks the sender, bounded in
//! frames and bytes. A client that lets it overflow is cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::limits::Limits;

/// A frame to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A text frame; the bytes are UTF-8.
    Text(Bytes),
    /// A binary frame.
    Binary(Bytes),
    /// The answer to a ping.
    Pong(Bytes),
    /// The end, with its code. Nothing is sent after it.
    Close(u16),
}

impl Outgoing {
    /// Makes a text frame.
    pub(super) fn text(text: String) -> Self {
        Self::Text(Bytes::from(text))
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) | Self::Pong(bytes) => bytes.len(),
            Self::Close(_) => 2,
        }
    }
}

/// The sending end, shared by everybody who has something for the client.
#[derive(Debug)]
pub(super) struct Outbox {
    sender: mpsc::UnboundedSender<Outgoing>,
    frames: AtomicUsize,
    bytes: AtomicUsize,
    max_frames: usize,
    max_bytes: usize,
    overflowed: CancellationToken,
}

impl Outbox {
    /// Makes an empty queue and its receiving end.
    pub(super) fn new(limits: &Limits) -> (Arc<Self>, Inbox) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let outbox = Arc::new(Self {
            sender,
            frames: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            max_frames: limits.outbox_frames,
            max_bytes: limits.outbox_bytes,
            overflowed: CancellationToken::new(),
        });
        (Arc::clone(&outbox), Inbox { receiver, outbox })
    }

    /// Queues a frame. One too many is dropped and marks the client for its
    /// end.
    pub(super) fn push(&self, frame: Outgoing) {
        let length = frame.len();
        let frames = self.frames.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(length, Ordering::Relaxed) + length;
        if frames > self.max_frames || bytes > self.max_bytes {
            self.took(length);
            self.overflowed.cancel();
            return;
        }
        // The receiver is gone when the socket is; then nobody misses the frame.
        let _ = self.sender.send(frame);
    }

    /// Waits until the queue has overflowed.
    pub(super) async fn overflowed(&self) {
        self.overflowed.cancelled().await;
    }

    fn took(&self, length: usize) {
        self.frames.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(length, Ordering::Relaxed);
    }
}

/// The receiving end, held by the socket's writer.
#[derive(Debug)]
pub(super) struct Inbox {
    receiver: mpsc::UnboundedReceiver<Outgoing>,
    outbox: Arc<Outbox>,
}

impl Inbox {
    /// Waits for the next frame. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<Outgoing> {
        let frame = self.receiver.recv().await?;
        self.outbox.took(frame.len());
        Some(frame)
    }

    /// Returns the next frame if one is there.
    pub(super) fn try_next(&mut self) -> Option<Outgoing> {
        let frame = self.receiver.try_recv().ok()?;
        self.outbox.took(frame.len());
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_overflow_is_seen_and_what_fits_stays() {
        let limits = Limits { outbox_frames: 2, outbox_bytes: 10, ..Limits::default() };
        let (outbox, mut inbox) = Outbox::new(&limits);
        outbox.push(Outgoing::text("one".into()));
        outbox.push(Outgoing::text("two".into()));
        assert!(!outbox.overflowed.is_cancelled());
        outbox.push(Outgoing::text("three".into()));
        outbox.overflowed().await;
        assert_eq!(inbox.next().await, Some(Outgoing::text("one".into())));
        assert_eq!(inbox.try_next(), Some(Outgoing::text("two".into())));
        assert_eq!(inbox.try_next(), None);
        assert_eq!(outbox.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn bytes_count_too() {
        let limits = Limits { outbox_frames: 100, outbox_bytes: 10, ..Limits::default() };
        let (outbox, _inbox) = Outbox::new(&limits);
        outbox.push(Outgoing::text("12345678901".into()));
        assert!(outbox.overflowed.is_cancelled());
    }
}
