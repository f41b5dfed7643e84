//! Websocket frames on an upgraded connection, for a server.
//!
//! The library's own stream ends at the first text that is not UTF-8 and keeps
//! large buffers for each socket; the real server drops such a text and goes
//! on. So only the header is left to the library here, and the rest is bytes:
//! unmasking, fragments, limits and batched writes.
//!
//! Reading is safe to cancel: everything taken from the connection is kept.

use std::io::Cursor;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::outbox::{Inbox, Outgoing};

/// The close code of an orderly end.
pub(super) const CLOSE_NORMAL: u16 = 1000;
/// The close code of a server that goes away.
pub(super) const CLOSE_AWAY: u16 = 1001;
/// The close code of a client that breaks the protocol.
pub(super) const CLOSE_PROTOCOL: u16 = 1002;
/// The close code of a message that is too large.
pub(super) const CLOSE_TOO_LARGE: u16 = 1009;

/// What a read reserves at first: enough for a typical message, little enough
/// for a thousand idle sockets.
const READ_BYTES: usize = 2048;
/// The most that one read reserves.
const READ_BYTES_MAX: usize = 64 * 1024;
/// A buffer that grew beyond this is given back when it is empty.
const KEPT_BYTES: usize = 16 * 1024;
/// Payloads above this are written from where they are, without a copy.
const COPY_BYTES: usize = 8 * 1024;
/// Frames that go out in one write at most.
const BATCH: usize = 64;

/// A message from the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A text message; nobody has looked whether it is UTF-8.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
    /// A ping, to be answered with the same bytes.
    Ping(Bytes),
    /// A pong.
    Pong,
    /// The client closes; None without a code.
    Close(Option<u16>),
}

/// Why reading ended.
#[derive(Debug, Error)]
pub(super) enum WireError {
    /// The connection is gone.
    #[error("The connection is gone")]
    Gone,
    /// The client breaks the websocket protocol.
    #[error("The client breaks the websocket protocol: {0}")]
    Protocol(&'static str),
    /// A message is above the limit.
    #[error("The message is too large")]
    TooLarge,
}

impl WireError {
    /// Returns the code to close with; None when nobody is there to read it.
    pub(super) fn close_code(&self) -> Option<u16> {
        match self {
            Self::Gone => None,
            Self::Protocol(_) => Some(CLOSE_PROTOCOL),
            Self::TooLarge => Some(CLOSE_TOO_LARGE),
        }
    }
}

/// Reads messages.
pub(super) struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
    /// A message whose first fragments have come.
    partial: Option<(Data, BytesMut)>,
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `io` messages of at most `limit` bytes.
    pub(super) fn new(io: R, limit: usize) -> Self {
        Self { io, buffer: BytesMut::new(), partial: None, limit }
    }

    /// Waits for the next message. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Received, WireError> {
        loop {
            if let Some(received) = self.take()? {
                return Ok(received);
            }
            self.buffer.reserve(self.buffer.len().clamp(READ_BYTES, READ_BYTES_MAX));
            let read = self.io.read_buf(&mut self.buffer).await.map_err(|_| WireError::Gone)?;
            if read == 0 {
                return Err(WireError::Gone);
            }
        }
    }

    /// Reads and forgets until the client has closed its side.
    pub(super) async fn drain(&mut self) {
        loop {
            self.buffer.clear();
            self.buffer.reserve(READ_BYTES);
            if !matches!(self.io.read_buf(&mut self.buffer).await, Ok(1..)) {
                return;
            }
        }
    }

    /// Takes one whole message out of the buffer, if there is one.
    fn take(&mut self) -> Result<Option<Received>, WireError> {
        loop {
            let mut cursor = Cursor::new(&self.buffer[..]);
            let parsed = FrameHeader::parse(&mut cursor)
                .map_err(|_| WireError::Protocol("the frame's header is invalid"))?;
            let Some((header, length)) = parsed else { return Ok(None) };
            let header_length =
                usize::try_from(cursor.position()).map_err(|_| WireError::TooLarge)?;
            let length = usize::try_from(length).map_err(|_| WireError::TooLarge)?;
            let Some(mask) = header.mask else {
                return Err(WireError::Protocol("the frame is not masked"));
            };
            if header.rsv1 || header.rsv2 || header.rsv3 {
                return Err(WireError::Protocol("no extension was agreed on"));
            }
            let before = self.partial.as_ref().map_or(0, |(_, bytes)| bytes.len());
            if length > self.limit || before + length > self.limit {
                return Err(WireError::TooLarge);
            }
            if self.buffer.len() < header_length + length {
                return Ok(None);
            }
            self.buffer.advance(header_length);
            let mut payload = self.buffer.split_to(length);
            for (index, byte) in payload.iter_mut().enumerate() {
                *byte ^= mask[index & 3];
            }
            if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BYTES {
                self.buffer = BytesMut::new();
            }
            match header.opcode {
                OpCode::Control(control) => {
                    if !header.is_final || length > 125 {
                        return Err(WireError::Protocol("the control frame is too long"));
                    }
                    return Ok(Some(match control {
                        Control::Ping => Received::Ping(payload.freeze()),
                        Control::Pong => Received::Pong,
                        Control::Close => Received::Close((length >= 2).then(|| payload.get_u16())),
                        Control::Reserved(_) => {
                            return Err(WireError::Protocol("the frame is of an unknown kind"));
                        }
                    }));
                }
                OpCode::Data(data) => {
                    if let Some(received) = self.assemble(data, header.is_final, payload)? {
                        return Ok(Some(received));
                    }
                }
            }
        }
    }

    /// Adds a data frame to its message; returns the message when it is whole.
    fn assemble(
        &mut self,
        data: Data,
        is_final: bool,
        payload: BytesMut,
    ) -> Result<Option<Received>, WireError> {
        let (kind, whole) = match (data, self.partial.take()) {
            (Data::Continue, Some((kind, mut bytes))) => {
                bytes.unsplit(payload);
                (kind, bytes)
            }
            (Data::Text | Data::Binary, None) => (data, payload),
            (Data::Reserved(_), _) => {
                return Err(WireError::Protocol("the frame is of an unknown kind"));
            }
            (Data::Continue, None) | (Data::Text | Data::Binary, Some(_)) => {
                return Err(WireError::Protocol("the fragments are out of order"));
            }
        };
        if !is_final {
            self.partial = Some((kind, whole));
            return Ok(None);
        }
        Ok(Some(match kind {
            Data::Text => Received::Text(whole.freeze()),
            _ => Received::Binary(whole.freeze()),
        }))
    }
}

/// Writes what is queued until a close frame has gone out, the connection is
/// gone, or one write stalls for longer than `write_timeout`.
pub(super) async fn run_writer<W: AsyncWrite + Unpin>(
    mut io: W,
    mut inbox: Inbox,
    write_timeout: Duration,
) {
    let mut buffer = BytesMut::new();
    while let Some(first) = inbox.next().await {
        let batch = write_batch(&mut io, &mut buffer, first, &mut inbox);
        match tokio::time::timeout(write_timeout, batch).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                // Nothing follows; how the other side takes it is its own affair.
                let _ = tokio::time::timeout(write_timeout, io.shutdown()).await;
                return;
            }
            // Failed or stalled.
            _ => return,
        }
        if buffer.capacity() > KEPT_BYTES {
            buffer = BytesMut::new();
        }
    }
}

/// Writes a frame and what else waits. False when it ended with a close frame.
async fn write_batch<W: AsyncWrite + Unpin>(
    io: &mut W,
    buffer: &mut BytesMut,
    first: Outgoing,
    inbox: &mut Inbox,
) -> std::io::Result<bool> {
    let mut frame = first;
    let mut open = true;
    for written in 1.. {
        let (opcode, payload) = match frame {
            Outgoing::Text(bytes) => (OpCode::Data(Data::Text), bytes),
            Outgoing::Binary(bytes) => (OpCode::Data(Data::Binary), bytes),
            Outgoing::Pong(bytes) => (OpCode::Control(Control::Pong), bytes),
            Outgoing::Close(code) => {
                open = false;
                let code = Bytes::copy_from_slice(&code.to_be_bytes());
                (OpCode::Control(Control::Close), code)
            }
        };
        let header = FrameHeader { opcode, ..FrameHeader::default() };
        header
            .format(payload.len() as u64, &mut (&mut *buffer).writer())
            .expect("writing to memory never fails");
        if payload.len() > COPY_BYTES {
            io.write_all_buf(buffer).await?;
            io.write_all(&payload).await?;
        } else {
            buffer.put_slice(&payload);
        }
        if !open || written == BATCH || buffer.len() > READ_BYTES_MAX {
            break;
        }
        let Some(next) = inbox.try_next() else { break };
        frame = next;
    }
    io.write_all_buf(buffer).await?;
    io.flush().await?;
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a masked frame as a client does.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..=125 => frame.push(0x80 | length as u8),
            length => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    async fn read_all(bytes: Vec<u8>, limit: usize) -> (Vec<Received>, WireError) {
        let mut reader = FrameReader::new(&bytes[..], limit);
        let mut seen = Vec::new();
        loop {
            match reader.next().await {
                Ok(received) => seen.push(received),
                Err(error) => return (seen, error),
            }
        }
    }

    #[tokio::test]
    async fn whole_and_fragmented_messages_are_read() {
        let mut bytes = masked(0x81, b"one");
        bytes.extend(masked(0x01, b"t"));
        bytes.extend(masked(0x89, b"ping"));
        bytes.extend(masked(0x00, b"w"));
        bytes.extend(masked(0x80, b"o"));
        bytes.extend(masked(0x82, &[0xff; 300]));
        bytes.extend(masked(0x81, &[0xff, 0xfe]));
        bytes.extend(masked(0x88, &[0x03, 0xe8]));
        let (seen, _) = read_all(bytes, 1000).await;
        assert_eq!(
            seen,
            vec![
                Received::Text(Bytes::from_static(b"one")),
                Received::Ping(Bytes::from_static(b"ping")),
                Received::Text(Bytes::from_static(b"two")),
                Received::Binary(Bytes::from(vec![0xff; 300])),
                Received::Text(Bytes::from_static(&[0xff, 0xfe])),
                Received::Close(Some(1000)),
            ]
        );
    }

    #[tokio::test]
    async fn limits_hold_for_frames_and_for_sums_of_fragments() {
        let (_, error) = read_all(masked(0x81, &[b'x'; 200]), 100).await;
        assert!(matches!(error, WireError::TooLarge));
        let mut bytes = masked(0x01, &[b'x'; 60]);
        bytes.extend(masked(0x80, &[b'x'; 60]));
        let (_, error) = read_all(bytes, 100).await;
        assert!(matches!(error, WireError::TooLarge));
    }

    #[tokio::test]
    async fn breaches_of_the_protocol_end_the_connection() {
        let unmasked = vec![0x81, 0x01, b'x'];
        let continued = masked(0x80, b"x");
        let reserved = masked(0xc1, b"x");
        let unknown = masked(0x83, b"x");
        let long_ping = masked(0x89, &[0; 126]);
        let mut interrupted = masked(0x01, b"x");
        interrupted.extend(masked(0x81, b"y"));
        for bytes in [unmasked, continued, reserved, unknown, long_ping, interrupted] {
            let (_, error) = read_all(bytes.clone(), 1000).await;
            assert_eq!(error.close_code(), Some(CLOSE_PROTOCOL), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn the_writer_batches_and_ends_with_the_close_frame() {
        use crate::stack::realtime::limits::Limits;
        use crate::stack::realtime::outbox::Outbox;
        let (outbox, inbox) = Outbox::new(&Limits::default());
        outbox.push(Outgoing::text("a".into()));
        outbox.push(Outgoing::Binary(Bytes::from(vec![7; 9000])));
        outbox.push(Outgoing::Close(CLOSE_NORMAL));
        outbox.push(Outgoing::text("never".into()));
        let mut written = Vec::new();
        run_writer(&mut written, inbox, Duration::from_secs(1)).await;
        assert_eq!(&written[..3], &[0x81, 1, b'a']);
        assert_eq!(&written[3..7], &[0x82, 126, 0x23, 0x28]);
        assert_eq!(&written[written.len() - 4..], &[0x88, 2, 0x03, 0xe8]);
    }
}
