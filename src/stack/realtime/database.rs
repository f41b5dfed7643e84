//! Messages that transactions leave behind in `realtime.messages`, read by one
//! connection and published.
//!
//! Each look takes a snapshot of the database and reads the rows that are visible
//! in it and were not in the one before. A row carries the number of the
//! transaction that wrote it, and a snapshot knows which transactions it sees, so
//! that every row is read exactly once, however transactions overlap, and one that
//! stays open delays nobody else's. The writers do nothing for it: NOTIFY, the
//! obvious way, has them commit one after the other.
//!
//! The rows of one look come in the order in which they were inserted (`seq`). So
//! messages of one transaction, and of transactions that did not overlap, keep
//! their order; of two that did, the one that inserted first is first, unless it
//! committed so much later that another look came in between.
//!
//! Rows are published as they arrive, so that the memory needed does not depend on
//! how many there are. The place is kept when the connection is lost, in the
//! middle of a look as well, and the next connection goes on from there.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, TryStreamExt as _};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Row, Statement};
use tracing::{debug, info, warn};

use super::Service;
use super::message::{Content, Message};
use super::pace::{Cause, Pace};
use crate::control::realtime::frame::Encoding;

/// The longest time for connecting, and for the next row of a look.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The first and the longest pause before a new connection.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How much older than the last look a row may be that [`read_again`] finds by its
/// number.
const MARGIN_SECS: f64 = 10.0;

/// Takes on the role that may read all messages. The one plan of each statement is
/// the index on `txid`, whatever the statistics say.
const PREPARE: &str = "
    set role service_role; set timezone to 'UTC'; set jit to off; set enable_seqscan to off;
    set plan_cache_mode to force_generic_plan; set statement_timeout to '5min'";

/// Where reading begins: which cluster this is, what it shows now, and the newest
/// number given to a row.
const READ_START: &str = "
    select (select system_identifier::text from pg_catalog.pg_control_system()),
           pg_current_snapshot()::text,
           (select case when is_called then last_value else 0 end from realtime.messages_seq)";

/// The current snapshot: while it is the same, nothing was committed.
const READ_SNAPSHOT: &str = "select pg_current_snapshot()::text";

/// Reads the rows that the current snapshot shows and snapshot $1 does not.
fn read() -> String {
    statement("true", "")
}

/// Reads the same, and as well what a lost connection or server leaves to be done.
///
/// $2 and $3 are looks that broke off, each with its snapshot and the last row that
/// was published: what they published is left out. $4 is the newest number of a
/// row that was published, and $5 the seconds since the last look. Numbers above
/// $4 are new whatever $1 says: a server that crashed gives the numbers of
/// transactions that had left nothing durable to others, but not those of rows.
fn read_again() -> String {
    statement(
        "not exists (
           select from unnest($2::text[], $3::bigint[]) b (snapshot, seq)
           where n.seq <= b.seq and pg_visible_in_snapshot(n.txid, b.snapshot::pg_snapshot))",
        "union all
         select * from realtime.messages n
         where n.seq > $4
           and n.inserted_at >= localtimestamp - make_interval(secs => $5)
           and pg_visible_in_snapshot(n.txid, $1::text::pg_snapshot)",
    )
}

/// Makes the text of both. A row begins with the current snapshot, and without
/// rows there is one with that alone.
///
/// What $1 does not show are the transactions that were open in it and those that
/// began later, so the work does not depend on how long one stays open. The upper
/// bound is for rows whose `txid` is none of this cluster. A row without an event, a
/// payload or a bus is no message: it is stored and not delivered, as on Realtime.
fn statement(only: &str, more: &str) -> String {
    format!(
        "with this as materialized (select pg_current_snapshot() as snapshot)
         select this.snapshot::text, m.seq, m.id::text, m.topic, m.event, m.private,
                m.payload::text, m.binary_payload
         from this left join lateral (
           select * from realtime.messages n
           where n.txid >= pg_snapshot_xmax($1::text::pg_snapshot)
             and n.txid < pg_snapshot_xmax((select t.snapshot from this t))
             and {only}
           union all
           select * from realtime.messages n
           where n.txid = any (array(select pg_snapshot_xip($1::text::pg_snapshot)))
             and {only}
           {more}
         ) m on m.extension = 'broadcast' and m.event is not null and m.private is not null
            and (m.payload is not null or m.binary_payload is not null)
            and pg_visible_in_snapshot(m.txid, this.snapshot)
         order by m.seq"
    )
}

/// Why the connection ended.
#[derive(Debug, Error)]
enum ReaderError {
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

/// How far the messages of a cluster have been published.
struct Place {
    /// The cluster, as its system identifier.
    cluster: String,
    /// Everything that this snapshot shows is published.
    seen: String,
    /// The newest number of a row that is published, or that was there before.
    newest: i64,
    /// Looks since then that broke off: the snapshot of each, and the last row of
    /// it that is published.
    broken: Vec<(String, i64)>,
    /// When `seen` was taken.
    at: Instant,
}

/// Reads until shutdown; reconnects with backoff. `epoch` is 0 while messages do
/// not flow, else the number of the connection.
pub(super) async fn run_reader(service: Arc<Service>, config: Config, epoch: watch::Sender<u64>) {
    let mut place = None;
    let mut connections = 0;
    let mut bound = RETRY.0;
    loop {
        connections += 1;
        let ended = tokio::select! {
            () = service.shutdown.cancelled() => return,
            ended = connect_and_read(&service, &config, &mut place, &epoch, connections) => ended,
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
async fn connect_and_read(
    service: &Service,
    config: &Config,
    place: &mut Option<Place>,
    epoch: &watch::Sender<u64>,
    number: u64,
) -> Result<(), ReaderError> {
    let (client, mut connection) = tokio::time::timeout(TIMEOUT, config.connect(NoTls))
        .await
        .map_err(|_| ReaderError::Timeout)??;
    // Here and not in a task of its own, so that it ends with the reader.
    let drive = async {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message? {
                debug!(%notice, "notice of the database");
            }
        }
        Err(ReaderError::Closed)
    };
    let read = async {
        let reader = Reader::start(service, &client, place).await?;
        epoch.send_replace(number);
        info!("messages of the database flow");
        reader.run().await
    };
    tokio::select! {
        ended = drive => ended,
        ended = read => ended,
    }
}

/// A connection that is ready to read.
struct Reader<'a> {
    service: &'a Service,
    client: &'a Client,
    read: Statement,
    read_snapshot: Statement,
    place: &'a mut Place,
}

impl<'a> Reader<'a> {
    /// Takes on the role, prepares, and finds the place: that of the connection
    /// before, if the cluster is the same, and else from now on.
    async fn start(
        service: &'a Service,
        client: &'a Client,
        place: &'a mut Option<Place>,
    ) -> Result<Self, ReaderError> {
        let start = async {
            client.batch_execute(PREPARE).await?;
            let read = client.prepare(&read()).await?;
            let read_snapshot = client.prepare(READ_SNAPSHOT).await?;
            let row = client.query_one(READ_START, &[]).await?;
            Ok::<_, tokio_postgres::Error>((read, read_snapshot, row))
        };
        let (read, read_snapshot, row) =
            tokio::time::timeout(TIMEOUT, start).await.map_err(|_| ReaderError::Timeout)??;
        let cluster: String = row.try_get(0)?;
        let known = place.take().filter(|known| known.cluster == cluster);
        let is_known = known.is_some();
        let place = place.insert(match known {
            Some(known) => known,
            None => Place {
                cluster,
                seen: row.try_get(1)?,
                newest: row.try_get(2)?,
                broken: Vec::new(),
                at: Instant::now(),
            },
        });
        let mut reader = Self { service, client, read, read_snapshot, place };
        if is_known {
            reader.look_again().await?;
        }
        Ok(reader)
    }

    /// Looks again and again.
    async fn run(mut self) -> Result<(), ReaderError> {
        let commits = &self.service.commits;
        let mut pace = Pace::new(Instant::now());
        loop {
            let cause = tokio::select! {
                () = commits.told() => Cause::Told,
                () = tokio::time::sleep_until(pace.due) => Cause::Interval,
            };
            if pace.earliest > Instant::now() {
                tokio::time::sleep_until(pace.earliest).await;
                // What was told of meanwhile is seen by this look as well.
                commits.told().now_or_never();
            }
            let began = Instant::now();
            // While nothing happens, which is most of the time, a look is much work
            // for nothing.
            let is_quiet = cause == Cause::Interval && !pace.is_busy();
            let found =
                if is_quiet && !self.has_moved().await? { false } else { self.look().await? };
            let heard = !self.service.hub.is_empty();
            pace.looked(cause, (found, heard), began, Instant::now());
        }
    }

    /// Says whether anything was committed since the last look.
    async fn has_moved(&self) -> Result<bool, ReaderError> {
        let asked = self.client.query_one(&self.read_snapshot, &[]);
        let row =
            tokio::time::timeout(TIMEOUT, asked).await.map_err(|_| ReaderError::Timeout)??;
        Ok(row.try_get::<_, &str>(0)? != self.place.seen)
    }

    /// Publishes what is new. Returns whether there was anything.
    async fn look(&mut self) -> Result<bool, ReaderError> {
        let (seen, read) = (self.place.seen.clone(), self.read.clone());
        self.publish_rows(&read, &[&seen]).await
    }

    /// Publishes what is new since another connection was lost.
    async fn look_again(&mut self) -> Result<bool, ReaderError> {
        let statement = tokio::time::timeout(TIMEOUT, self.client.prepare(&read_again()))
            .await
            .map_err(|_| ReaderError::Timeout)??;
        let (seen, newest) = (self.place.seen.clone(), self.place.newest);
        let (snapshots, numbers): (Vec<String>, Vec<i64>) =
            self.place.broken.iter().cloned().unzip();
        let secs = self.place.at.elapsed().as_secs_f64() + MARGIN_SECS;
        self.publish_rows(&statement, &[&seen, &snapshots, &numbers, &newest, &secs]).await
    }

    /// Runs a statement and publishes its rows, keeping the place after each.
    /// Returns whether there were any.
    async fn publish_rows(
        &mut self,
        statement: &Statement,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<bool, ReaderError> {
        let began = Instant::now();
        let rows = self.client.query_raw(statement, values.iter().copied());
        let rows =
            tokio::time::timeout(TIMEOUT, rows).await.map_err(|_| ReaderError::Timeout)??;
        let mut rows = pin!(rows);
        let broken_before = self.place.broken.len();
        let mut snapshot = None;
        let mut found = false;
        while let Some(row) = tokio::time::timeout(TIMEOUT, rows.try_next())
            .await
            .map_err(|_| ReaderError::Timeout)??
        {
            if snapshot.is_none() {
                snapshot = Some(row.try_get::<_, String>(0)?);
            }
            let Some(seq) = row.try_get::<_, Option<i64>>(1)? else { continue };
            match message_of(&row, self.service.limits.max_payload_bytes) {
                Ok(Some((private, message))) => {
                    self.service.hub.publish(private, &message, None);
                }
                Ok(None) => {}
                Err(error) => warn!(%error, "a message of the database could not be read"),
            }
            found = true;
            self.place.newest = self.place.newest.max(seq);
            match self.place.broken.get_mut(broken_before) {
                Some((_, last)) => *last = seq,
                None => self.place.broken.extend(snapshot.clone().map(|snapshot| (snapshot, seq))),
            }
        }
        let seen = snapshot.ok_or(ReaderError::Closed)?;
        self.place.seen = seen;
        self.place.broken.clear();
        self.place.at = began;
        Ok(found)
    }
}

/// Reads a row; None when it is no message or too large.
fn message_of(
    row: &Row,
    max_payload_bytes: usize,
) -> Result<Option<(bool, Message)>, tokio_postgres::Error> {
    let id: String = row.try_get(2)?;
    let topic: String = row.try_get(3)?;
    let event: Option<String> = row.try_get(4)?;
    let private: Option<bool> = row.try_get(5)?;
    let text: Option<String> = row.try_get(6)?;
    let binary: Option<Vec<u8>> = row.try_get(7)?;
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
    let content = Content::User { event, encoding, payload, id: Some(id) };
    Ok(Some((private, Message { topic, content })))
}
