//! Messages that transactions leave behind: a trigger on `realtime.messages`
//! notifies with the commit, one connection listens, reads the rows and
//! publishes them in commit order.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Notification, Statement};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::Service;
use super::message::{Content, Message};
use crate::control::realtime::frame::Encoding;

/// The channel that the trigger notifies.
const CHANNEL: &str = "realtime_messages";
/// Rows that are read at once.
const BATCH: usize = 200;
/// The longest time for connecting, and for reading one batch.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The first and the longest pause before a new connection.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The rows of a batch in the order of their notifications. `inserted_at` finds
/// the partition.
const READ_ROWS: &str = "
    select m.id, m.topic, m.event, m.private, m.payload::text, m.binary_payload
    from unnest($1::uuid[], $2::text[]) with ordinality as n (id, inserted_at, place)
    join realtime.messages m on m.id = n.id and m.inserted_at = n.inserted_at::timestamp
    order by n.place";

/// Why the listener's connection ended.
#[derive(Debug, Error)]
enum ListenerError {
    /// PostgreSQL refused or went away.
    #[error("the database connection failed: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// It did not answer.
    #[error("the database did not answer in time")]
    Timeout,
    /// It closed the connection.
    #[error("the database closed the connection")]
    Closed,
}

/// What the trigger says about a row.
#[derive(Deserialize)]
struct Notice {
    id: Uuid,
    inserted_at: String,
}

/// Listens until shutdown; reconnects with backoff. `epoch` is 0 while messages
/// do not flow, else the number of the connection.
pub(super) async fn run_listener(service: Arc<Service>, config: Config, epoch: watch::Sender<u64>) {
    let mut connections = 0;
    let mut bound = RETRY.0;
    loop {
        connections += 1;
        let ended = tokio::select! {
            () = service.shutdown.cancelled() => return,
            ended = listen(&service, &config, &epoch, connections) => ended,
        };
        if epoch.send_replace(0) != 0 {
            bound = RETRY.0;
        }
        let pause = bound.mul_f64(0.1 + 0.9 * fastrand::f64());
        bound = (bound * 2).min(RETRY.1);
        if let Err(error) = ended {
            warn!(%error, ?pause, "messages of the database do not flow");
        }
        tokio::select! {
            () = service.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Serves one connection until it ends.
async fn listen(
    service: &Service,
    config: &Config,
    epoch: &watch::Sender<u64>,
    number: u64,
) -> Result<(), ListenerError> {
    let (client, mut connection) = tokio::time::timeout(TIMEOUT, config.connect(NoTls))
        .await
        .map_err(|_| ListenerError::Timeout)??;
    let (sender, notifications) = mpsc::unbounded_channel();
    let drive = async {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            match message? {
                AsyncMessage::Notification(notification) => {
                    // The receiver lives as long as this future.
                    let _ = sender.send(notification);
                }
                AsyncMessage::Notice(notice) => debug!(%notice, "notice of the database"),
                _ => {}
            }
        }
        Err(ListenerError::Closed)
    };
    let publish = async {
        let statement = tokio::time::timeout(TIMEOUT, prepare(&client))
            .await
            .map_err(|_| ListenerError::Timeout)??;
        epoch.send_replace(number);
        info!("messages of the database flow");
        publish_notified(service, &client, &statement, notifications).await
    };
    tokio::select! {
        ended = drive => ended,
        ended = publish => ended,
    }
}

/// Takes on the role that may read all messages, listens, and prepares.
async fn prepare(client: &Client) -> Result<Statement, tokio_postgres::Error> {
    client
        .batch_execute(&format!(
            "set role service_role; set timezone to 'UTC'; set jit to off; listen {CHANNEL}"
        ))
        .await?;
    client.prepare(READ_ROWS).await
}

/// Reads the rows of notifications and publishes them, a batch at a time.
async fn publish_notified(
    service: &Service,
    client: &Client,
    statement: &Statement,
    mut notifications: mpsc::UnboundedReceiver<Notification>,
) -> Result<(), ListenerError> {
    let mut batch = Vec::with_capacity(BATCH);
    while notifications.recv_many(&mut batch, BATCH).await > 0 {
        let (ids, times): (Vec<Uuid>, Vec<String>) = batch
            .drain(..)
            .filter(|notification| notification.channel() == CHANNEL)
            .filter_map(|notification| {
                serde_json::from_str::<Notice>(notification.payload())
                    .inspect_err(|error| warn!(%error, "a notification could not be read"))
                    .ok()
            })
            .map(|notice| (notice.id, notice.inserted_at))
            .unzip();
        if ids.is_empty() {
            continue;
        }
        let rows = tokio::time::timeout(TIMEOUT, client.query(statement, &[&ids, &times]))
            .await
            .map_err(|_| ListenerError::Timeout)??;
        for row in &rows {
            match message_of(row, service.limits.max_payload_bytes) {
                Ok(Some((private, message))) => {
                    service.hub.publish(private, &message, None);
                }
                Ok(None) => {}
                Err(error) => warn!(%error, "a message of the database could not be read"),
            }
        }
    }
    Err(ListenerError::Closed)
}

/// Reads a row; None when it is no message or too large.
fn message_of(
    row: &tokio_postgres::Row,
    max_payload_bytes: usize,
) -> Result<Option<(bool, Message)>, tokio_postgres::Error> {
    let id: Uuid = row.try_get(0)?;
    let topic: String = row.try_get(1)?;
    let event: Option<String> = row.try_get(2)?;
    let private: Option<bool> = row.try_get(3)?;
    let text: Option<String> = row.try_get(4)?;
    let binary: Option<Vec<u8>> = row.try_get(5)?;
    let (encoding, payload) = match (text, binary) {
        (Some(text), _) => (Encoding::Json, Bytes::from(text)),
        (None, Some(bytes)) => (Encoding::Raw, Bytes::from(bytes)),
        (None, None) => return Ok(None),
    };
    let (Some(event), Some(private)) = (event, private) else { return Ok(None) };
    if payload.len() > max_payload_bytes {
        warn!(%topic, bytes = payload.len(), "a message of the database is too large and is dropped");
        return Ok(None);
    }
    let content = Content::User { event, encoding, payload, id: Some(id.to_string()) };
    Ok(Some((private, Message { topic, content })))
}
