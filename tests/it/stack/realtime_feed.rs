//! Messages of the database: each that was committed arrives, once, whatever the
//! transactions, the connection that reads them and the server do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use infernet::control::realtime::{Channel, ChannelEvent, JoinOptions, Realtime, RealtimeEndpoint};
use infernet::stack::commits::Commits;
use infernet::stack::postgres::{Connection, SUPERUSER};
use infernet::stack::realtime::Limits;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::control_plane::TestControlPlane;
use crate::support::realtime_server::{Database, PUBLISHABLE_KEY, Server, Settings};

/// The longest wait for anything in these tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing must come, where nothing may.
const SILENCE: Duration = Duration::from_millis(400);
/// Sends a message with a number.
const SEND: &str = "select realtime.send(jsonb_build_object('n', $1::int), 'n', 'feed', true)";

/// A server with one channel joined on it.
struct Feed {
    database: Database,
    server: Server,
    channel: Channel,
    _realtime: Realtime,
    _tokens: watch::Sender<String>,
    shutdown: CancellationToken,
}

impl Feed {
    async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    async fn start_with(settings: Settings) -> Self {
        let database = Database::start().await;
        let limits = Limits {
            authorization_timeout: PATIENCE,
            outbox_bytes: 256 * 1024 * 1024,
            ..Limits::default()
        };
        let server = database.serve(Settings { limits, ..settings }).await;
        // This role is above the policies.
        let (tokens, token) =
            watch::channel(database.token(&json!({ "role": "service_role" }), 3600));
        let shutdown = CancellationToken::new();
        let endpoint = RealtimeEndpoint::new(&server.url(), PUBLISHABLE_KEY).unwrap();
        let realtime = Realtime::spawn(endpoint, token, shutdown.clone());
        let mut channel = realtime.join("feed", JoinOptions::default());
        assert_eq!(channel.recv().await, Some(ChannelEvent::Joined));
        // Until the reader is there nothing flows.
        let connection = database.connect().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "messages do not flow");
            connection.execute(SEND, &[&-1]).await.unwrap();
            if received(&mut channel, Duration::from_millis(300)).await == Some(-1) {
                break;
            }
        }
        while received(&mut channel, SILENCE).await.is_some() {}
        Self { database, server, channel, _realtime: realtime, _tokens: tokens, shutdown }
    }

    /// Waits for the number of the next message.
    async fn next(&mut self) -> i64 {
        received(&mut self.channel, PATIENCE).await.expect("nothing comes")
    }

    /// Takes all numbers until nothing comes for a while, and counts each.
    async fn counted(&mut self, silence: Duration) -> BTreeMap<i64, u32> {
        let mut counted = BTreeMap::new();
        while let Some(number) = received(&mut self.channel, silence).await {
            *counted.entry(number).or_default() += 1;
        }
        assert_eq!(self.channel.dropped(), 0, "the client is too slow for this test");
        counted
    }

    async fn assert_silence(&mut self) {
        assert_eq!(received(&mut self.channel, SILENCE).await, None);
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.server.stop().await;
    }
}

/// Waits for the number of the next message; None when there is none in time.
async fn received(channel: &mut Channel, within: Duration) -> Option<i64> {
    match tokio::time::timeout(within, channel.recv()).await.ok()? {
        Some(ChannelEvent::Broadcast { payload, .. }) => Some(payload["n"].as_i64().unwrap()),
        other => panic!("a message is expected, got {other:?}"),
    }
}

/// The process of the reader's connection.
const READER: &str = "select pid from pg_stat_activity
    where query like '%pg_current_snapshot%' and usename = 'authenticator'";

async fn end_reader(connection: &Connection) {
    let sql = format!("select pg_terminate_backend(pid) from ({READER}) r");
    assert_eq!(connection.execute(&sql, &[]).await.unwrap(), 1, "the reader is found");
}

#[tokio::test]
async fn a_transaction_that_stays_open_delays_only_itself() {
    let mut feed = Feed::start().await;
    let slow = feed.database.connect().await;
    let quick = feed.database.connect().await;
    slow.batch_execute("begin").await.unwrap();
    slow.execute(SEND, &[&1]).await.unwrap();
    let began = Instant::now();
    let mut number = 100;
    let mut waits = Vec::new();
    while began.elapsed() < Duration::from_secs(3) {
        let sent = Instant::now();
        quick.execute(SEND, &[&number]).await.unwrap();
        assert_eq!(feed.next().await, i64::from(number));
        waits.push(sent.elapsed());
        number += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    waits.sort_unstable();
    assert!(waits[waits.len() / 2] < Duration::from_millis(500), "{waits:?}");
    slow.execute(SEND, &[&2]).await.unwrap();
    slow.batch_execute("commit").await.unwrap();
    assert_eq!((feed.next().await, feed.next().await), (1, 2));
    feed.assert_silence().await;
    feed.stop().await;
}

#[tokio::test]
async fn whoever_inserted_first_may_commit_last() {
    let mut feed = Feed::start().await;
    let mut open = Vec::new();
    for number in 0..8 {
        let connection = feed.database.connect().await;
        connection.batch_execute("begin").await.unwrap();
        connection.execute(SEND, &[&number]).await.unwrap();
        open.push((number, connection));
    }
    feed.assert_silence().await;
    while let Some((number, connection)) = open.pop() {
        connection.batch_execute("commit").await.unwrap();
        assert_eq!(feed.next().await, i64::from(number));
    }
    feed.assert_silence().await;
    feed.stop().await;
}

#[tokio::test]
async fn what_is_rolled_back_is_not_sent() {
    let mut feed = Feed::start().await;
    let connection = feed.database.connect().await;
    for sql in [
        "begin; select realtime.send('{\"n\": 1}', 'n', 'feed'); rollback",
        "begin; savepoint a; select realtime.send('{\"n\": 2}', 'n', 'feed');
         rollback to a; select realtime.send('{\"n\": 3}', 'n', 'feed'); commit",
    ] {
        connection.batch_execute(sql).await.unwrap();
    }
    // A transaction that fails at its end.
    connection
        .batch_execute(
            "create table public.late (a int references public.late (a) deferrable initially deferred);
             alter table public.late add primary key (a)",
        )
        .await
        .unwrap_err();
    connection
        .batch_execute(
            "create table public.late (a int primary key,
               b int references public.late (a) deferrable initially deferred)",
        )
        .await
        .unwrap();
    let failing = "begin; insert into public.late values (1, 2);
        select realtime.send('{\"n\": 4}', 'n', 'feed'); commit";
    connection.batch_execute(failing).await.unwrap_err();
    connection.batch_execute("select realtime.send('{\"n\": 5}', 'n', 'feed')").await.unwrap();
    assert_eq!((feed.next().await, feed.next().await), (3, 5));
    feed.assert_silence().await;
    feed.stop().await;
}

#[tokio::test]
async fn many_connections_send_and_each_message_comes_once() {
    const CONNECTIONS: i32 = 8;
    const EACH: i32 = 250;
    let mut feed = Feed::start().await;
    let mut senders = JoinSet::new();
    for sender in 0..CONNECTIONS {
        let connection = feed.database.connect().await;
        senders.spawn(async move {
            let statement = connection.prepare(SEND).await.unwrap();
            let mut sent = 0;
            while sent < EACH {
                // One to five in a transaction, which may then stay open for a moment.
                let together = fastrand::i32(1..=5).min(EACH - sent);
                connection.batch_execute("begin").await.unwrap();
                for _ in 0..together {
                    let number = sender * EACH + sent;
                    connection.execute(&statement, &[&number]).await.unwrap();
                    sent += 1;
                }
                if fastrand::u8(..) < 20 {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(..30))).await;
                }
                connection.batch_execute("commit").await.unwrap();
            }
        });
    }
    let total = usize::try_from(CONNECTIONS * EACH).unwrap();
    let mut last = BTreeMap::new();
    let mut seen = BTreeSet::new();
    while seen.len() < total {
        let number = feed.next().await;
        assert!(seen.insert(number), "{number} came twice");
        let before = last.insert(number / i64::from(EACH), number);
        assert!(before.is_none_or(|before| before < number), "{number} came after {before:?}");
    }
    senders.join_all().await;
    feed.assert_silence().await;
    feed.stop().await;
}

#[tokio::test]
async fn what_is_told_of_is_read_at_once() {
    let commits = Commits::default();
    let settings = Settings { commits: commits.clone(), ..Settings::default() };
    let mut feed = Feed::start_with(settings).await;
    let connection = feed.database.connect().await;
    for number in 0..20 {
        connection.execute(SEND, &[&number]).await.unwrap();
        commits.tell();
        assert_eq!(feed.next().await, i64::from(number));
    }
    feed.stop().await;
}

#[tokio::test]
async fn a_reader_that_is_cut_off_in_the_middle_goes_on_there() {
    const MESSAGES: i64 = 1200;
    let mut feed = Feed::start().await;
    let connection = feed.database.connect().await;
    let sender = feed.database.connect().await;
    let slow = feed.database.connect().await;
    slow.batch_execute("begin").await.unwrap();
    slow.execute(SEND, &[&-7]).await.unwrap();
    // So much that the reader needs a while for it.
    let all = format!(
        "select realtime.send(jsonb_build_object('n', n, 'text', repeat('x', 20000)), 'n', 'feed')
         from generate_series(1, {MESSAGES}) n"
    );
    sender.batch_execute(&all).await.unwrap();
    let mut counted = BTreeMap::new();
    for cut in 0..3 {
        for _ in 0..50 {
            *counted.entry(feed.next().await).or_default() += 1;
        }
        // It may be between two connections just now.
        let mut found = 0;
        while found == 0 {
            let sql = format!("select pg_terminate_backend(pid) from ({READER}) r");
            found = connection.execute(&sql, &[]).await.unwrap();
        }
        if cut == 1 {
            slow.batch_execute("commit").await.unwrap();
        }
    }
    for (number, count) in feed.counted(Duration::from_secs(2)).await {
        *counted.entry(number).or_default() += count;
    }
    let wanted = (1..=MESSAGES).chain([-7]).map(|number| (number, 1)).collect();
    assert_eq!(counted, wanted);
    feed.stop().await;
}

#[tokio::test]
async fn a_crash_of_the_database_loses_nothing_that_was_committed() {
    let mut feed = Feed::start().await;
    let config = feed
        .database
        .postgres
        .endpoint()
        .config(SUPERUSER, &feed.database.secrets.superuser_password);
    let mut acknowledged = BTreeSet::new();
    let mut tried = BTreeSet::new();
    let mut number = 0;
    for _ in 0..3 {
        let connection = feed.database.connect().await;
        for _ in 0..20 {
            number += 1;
            connection.execute(SEND, &[&number]).await.unwrap();
            acknowledged.insert(i64::from(number));
            tried.insert(i64::from(number));
        }
        // Leaves numbers of transactions behind that the crash gives to others.
        for _ in 0..20 {
            connection.batch_execute("begin; select pg_current_xact_id(); rollback").await.unwrap();
        }
        let row = connection.query_one("select pg_backend_pid()", &[]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // One killed process has the server throw away all of them and recover.
        kill(Pid::from_raw(row.get(0)), Signal::SIGKILL).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut sent = 0;
        while sent < 40 {
            assert!(Instant::now() < deadline, "the server does not recover");
            let Ok(connection) = Connection::open(&config).await else { continue };
            while sent < 40 {
                number += 1;
                tried.insert(i64::from(number));
                if connection.execute(SEND, &[&number]).await.is_err() {
                    break;
                }
                acknowledged.insert(i64::from(number));
                sent += 1;
            }
        }
    }
    let counted = feed.counted(Duration::from_secs(12)).await;
    assert!(counted.values().all(|count| *count == 1), "{counted:?}");
    let arrived: BTreeSet<i64> = counted.keys().copied().collect();
    assert!(arrived.is_subset(&tried));
    let lost: Vec<_> = acknowledged.difference(&arrived).collect();
    assert!(lost.is_empty(), "{lost:?} were lost");
    feed.stop().await;
}

#[tokio::test]
async fn messages_flow_again_after_the_connection_ends_at_rest() {
    let mut feed = Feed::start().await;
    let connection = feed.database.connect().await;
    end_reader(&connection).await;
    for number in 0..5 {
        connection.execute(SEND, &[&number]).await.unwrap();
    }
    for number in 0..5 {
        assert_eq!(feed.next().await, number);
    }
    feed.assert_silence().await;
    feed.stop().await;
}

#[tokio::test]
async fn data_of_an_older_release_are_taken_over() {
    let mut plane = TestControlPlane::start().await;
    let admin = plane.connect(SUPERUSER).await;
    // As before: told of by a trigger, and without the columns.
    admin
        .batch_execute(
            "drop index realtime.messages_txid_index;
             alter table realtime.messages drop column txid, drop column seq;
             drop sequence realtime.messages_seq;
             create function realtime.notify_message() returns trigger language plpgsql as
               $$ begin perform pg_notify('realtime_messages', new.id::text); return null; end $$;
             create trigger notify_message after insert on realtime.messages
               for each row execute function realtime.notify_message();
             select realtime.send('{\"n\": 1}', 'n', 'feed') from generate_series(1, 3);",
        )
        .await
        .unwrap();
    drop(admin);
    for _ in 0..2 {
        plane.restart().await;
        let admin = plane.connect(SUPERUSER).await;
        let row = admin
            .query_one(
                "select (select count(*) from pg_trigger where tgname = 'notify_message'),
                        to_regprocedure('realtime.notify_message()') is null,
                        (select count(*) from realtime.messages where txid is not null and seq = 0)",
                &[],
            )
            .await
            .unwrap();
        assert_eq!((row.get(0), row.get(1), row.get(2)), (0_i64, true, 3_i64));
        // Whatever else may insert there still may.
        for role in ["anon", "authenticated", "service_role", "postgres"] {
            let sql = format!(
                "begin; create policy anybody on realtime.messages for insert with check (true);
                 set local role {role};
                 insert into realtime.messages (topic, extension) values ('t', 'broadcast'); rollback"
            );
            admin.batch_execute(&sql).await.unwrap();
        }
        let row = admin
            .query_one(
                "with sent as (select realtime.send('{\"n\": 2}', 'n', 'feed'))
                 select (select count(*) from sent), pg_current_xact_id()::text",
                &[],
            )
            .await
            .unwrap();
        let (_, transaction): (i64, String) = (row.get(0), row.get(1));
        let stamped: Value = admin
            .query_one("select to_jsonb(m) from realtime.messages m order by seq desc limit 1", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(stamped["txid"], json!(transaction));
        assert!(stamped["seq"].as_i64().unwrap() > 0);
    }
    plane.stop().await;
}
