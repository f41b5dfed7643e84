//! One client: reads its frames and ends it when it is silent, too slow or gone.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::debug;

use super::Service;
use super::outbox::{Outbox, Outgoing};
use super::session::Session;
use super::wire::{self, CLOSE_AWAY, CLOSE_NORMAL, FrameReader, Received};
use crate::control::realtime::frame::{Frame, ProtocolVersion, UserPush};

/// The longest wait for the close frame to go out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the handshake found out.
pub(super) struct Opening {
    /// The version that the client speaks.
    pub(super) version: ProtocolVersion,
    /// The connection's key as a token; channels that bring none use it.
    pub(super) token: String,
}

/// Serves a client until either side ends it.
pub(super) async fn run<S>(service: Arc<Service>, io: S, opening: Opening)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = service.limits;
    let (reader, writer) = tokio::io::split(io);
    let mut reader = FrameReader::new(reader, limits.max_frame_bytes);
    let (outbox, inbox) = Outbox::new(&limits);
    let mut session = Session::new(Arc::clone(&service), opening, Arc::clone(&outbox));
    let mut writing = pin!(wire::run_writer(writer, inbox, limits.write_timeout));
    let code = tokio::select! {
        () = &mut writing => return,
        () = outbox.overflowed() => {
            debug!("a realtime client reads too slowly and is cut off");
            return;
        }
        code = serve(&service, &mut session, &mut reader) => code,
    };
    drop(session);
    if let Some(code) = code {
        outbox.push(Outgoing::Close(code));
        // The close frame would be lost if unread bytes were left behind.
        let closing = async { tokio::join!(writing, reader.drain()) };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }
}

/// Reads and answers until the end; returns the code to close with, None when
/// the connection is gone.
async fn serve<R: AsyncRead + Unpin>(
    service: &Service,
    session: &mut Session,
    reader: &mut FrameReader<R>,
) -> Option<u16> {
    let idle_timeout = service.limits.idle_timeout;
    let mut epoch = service.database_epoch.clone();
    let mut epoch_lives = true;
    let mut heard = Instant::now();
    let mut idle = pin!(tokio::time::sleep_until(heard + idle_timeout));
    loop {
        let expiry = session.expiry;
        tokio::select! {
            received = reader.next() => {
                heard = Instant::now();
                match received {
                    Ok(Received::Text(bytes)) => text(session, &bytes),
                    Ok(Received::Binary(bytes)) => binary(session, &bytes),
                    Ok(Received::Ping(bytes)) => session.outbox.push(Outgoing::Pong(bytes)),
                    Ok(Received::Pong) => {}
                    Ok(Received::Close(code)) => {
                        return Some(answer_to_close(code));
                    }
                    Err(error) => {
                        debug!(%error, "a realtime client is gone");
                        return error.close_code();
                    }
                }
            }
            Some(settled) = session.pending.next(), if !session.pending.is_empty() => {
                session.settle(settled);
            }
            () = sleep_until(expiry), if expiry.is_some() => session.expire(),
            changed = epoch.changed(), if epoch_lives => match changed {
                Ok(()) => {
                    let number = *epoch.borrow_and_update();
                    session.tell_epoch(number);
                }
                Err(_) => epoch_lives = false,
            },
            () = &mut idle => {
                let end = heard + idle_timeout;
                if end <= Instant::now() {
                    return Some(CLOSE_NORMAL);
                }
                idle.as_mut().reset(end);
            }
            () = service.shutdown.cancelled() => return Some(CLOSE_AWAY),
        }
    }
}

/// Takes a text message. What is malformed is dropped, and the socket lives on.
fn text(session: &mut Session, bytes: &Bytes) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Frame::decode(session.version(), text) {
        Ok(frame) => session.handle(frame.into()),
        Err(error) => debug!(%error, "a malformed frame is dropped"),
    }
}

fn binary(session: &mut Session, bytes: &Bytes) {
    if session.version() == ProtocolVersion::V1 {
        return;
    }
    match UserPush::decode(bytes) {
        Ok(push) => session.handle(push.into()),
        Err(error) => debug!(%error, "a malformed frame is dropped"),
    }
}

/// Returns the code that answers a close: an application's own code comes back.
fn answer_to_close(code: Option<u16>) -> u16 {
    code.filter(|code| (3000..5000).contains(code)).unwrap_or(CLOSE_NORMAL)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
