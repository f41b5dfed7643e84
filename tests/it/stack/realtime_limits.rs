//! What the embedded Realtime refuses, and how it stands up to clients and
//! databases that misbehave. Frames are written by hand here, apart from the
//! codec.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use infernet::stack::realtime::Limits;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::support::realtime_server::{Database, PUBLISHABLE_KEY, Server, Settings};

const PATIENCE: Duration = Duration::from_secs(30);
const ALICE: &str = "11111111-1111-4111-8111-111111111111";

/// A websocket of version 2.0.0.
struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn open(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let url = format!(
            "ws://{}/realtime/v1/websocket?apikey={PUBLISHABLE_KEY}&vsn=2.0.0",
            server.address
        );
        Self(client_async(url, stream).await.unwrap().0)
    }

    async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// Waits for the next message that is not a frame of the socket itself.
    async fn next(&mut self) -> Message {
        timeout(PATIENCE, self.0.next()).await.expect("nothing comes").unwrap().unwrap()
    }

    async fn frame(&mut self) -> Value {
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("a text frame is expected, got {other:?}"),
        }
    }

    async fn join(&mut self, topic: &str, config: Value, token: &str) -> Value {
        let payload = json!({ "config": config, "access_token": token });
        self.send(json!(["1", "1", format!("realtime:{topic}"), "phx_join", payload])).await;
        self.frame().await
    }

    /// Waits for the close and returns its code; None when there was none.
    async fn closed(&mut self) -> Option<CloseCode> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("it stays open") {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code),
                Some(Ok(_)) => {}
                _ => return None,
            }
        }
    }
}

fn reason(frame: &Value) -> &str {
    assert_eq!(frame[4]["status"], "error", "{frame}");
    frame[4]["response"]["reason"].as_str().unwrap()
}

fn limits() -> Limits {
    Limits { authorization_timeout: PATIENCE, ..Limits::default() }
}

async fn database() -> (Database, String) {
    let database = Database::start().await;
    let connection = database.connect().await;
    connection
        .batch_execute(
            "create table public.writers (topic text);
             grant select on public.writers to authenticated;
             create policy test_read on realtime.messages for select to authenticated
               using (realtime.topic() like 'open:%' or realtime.topic() like 'late:%');
             create policy test_write on realtime.messages for insert to authenticated
               with check (realtime.topic() like 'open:%'
                 or realtime.topic() in (select w.topic from public.writers w));",
        )
        .await
        .unwrap();
    let token = database.token(&json!({ "role": "authenticated", "sub": ALICE }), 3600);
    (database, token)
}

#[tokio::test]
async fn what_is_not_served_is_refused_in_the_protocols_words() {
    let (database, token) = database().await;
    let server = database
        .serve(Settings { public_channels: true, limits: limits(), ..Settings::default() })
        .await;
    let mut socket = Socket::open(&server).await;

    // The join is ok, and a system message says that nothing will come.
    let changes = json!([{ "event": "*", "schema": "public", "table": "jobs" }]);
    let joined = socket.join("a", json!({ "postgres_changes": changes }), &token).await;
    let mut echoed = joined[4]["response"]["postgres_changes"][0].clone();
    assert!(echoed.as_object_mut().unwrap().remove("id").unwrap().is_u64());
    assert_eq!(echoed, changes[0]);
    let system = socket.frame().await;
    assert_eq!(system[3], "system");
    assert_eq!(system[4]["extension"], "postgres_changes");
    assert_eq!(system[4]["status"], "error");
    let message = system[4]["message"].as_str().unwrap();
    assert!(message.starts_with("Unable to subscribe to changes with given parameters."));

    let joined = socket.join("b", json!({ "presence": { "enabled": true } }), &token).await;
    assert_eq!(joined[4]["status"], "ok");
    let system = socket.frame().await;
    assert_eq!(
        system[4],
        json!({ "extension": "presence", "status": "error", "channel": "b",
                "message": "Presence is not served by this gateway" })
    );
    let track = json!({ "type": "presence", "event": "track", "payload": {} });
    socket.send(json!(["1", "2", "realtime:b", "presence", track])).await;
    assert_eq!(reason(&socket.frame().await), "Presence is not served by this gateway");

    let replay = json!({ "private": true, "broadcast": { "replay": { "since": 1, "limit": 5 } } });
    let refused = socket.join("open:c", replay, &token).await;
    assert_eq!(reason(&refused), "UnableToReplayMessages: Replay is not served by this gateway");
    server.stop().await;
}

#[tokio::test]
async fn a_right_to_write_that_comes_after_the_join_counts() {
    let (database, token) = database().await;
    let server = database.serve(Settings { limits: limits(), ..Settings::default() }).await;
    let private = json!({ "private": true, "broadcast": { "ack": true } });
    let mut socket = Socket::open(&server).await;
    let mut other = Socket::open(&server).await;
    for socket in [&mut socket, &mut other] {
        let joined = socket.join("late:x", private.clone(), &token).await;
        assert_eq!(joined[4]["status"], "ok", "{joined}");
    }
    // As a consumer, who joins before the job exists.
    let connection = database.connect().await;
    connection.batch_execute("insert into public.writers values ('late:x')").await.unwrap();
    let send = |n: u32| {
        let payload = json!({ "type": "broadcast", "event": "e", "payload": { "n": n } });
        json!(["1", n.to_string(), "realtime:late:x", "broadcast", payload])
    };
    for n in 2..5 {
        socket.send(send(n)).await;
    }
    for n in 2..5 {
        assert_eq!(socket.frame().await[1], json!(n.to_string()));
        assert_eq!(other.frame().await[4]["payload"]["n"], json!(n));
    }
    // A no at the first message stays a no.
    connection.batch_execute("delete from public.writers").await.unwrap();
    let mut denied = Socket::open(&server).await;
    denied.join("late:x", private, &token).await;
    denied.send(send(8)).await;
    denied.send(json!([null, "h", "phoenix", "heartbeat", {}])).await;
    assert_eq!(denied.frame().await[1], "h");
    // Other topics pass what waits for the database; this one does not, so that the
    // answer to anything on it says that the policies were asked.
    denied.send(json!(["1", "p", "realtime:late:x", "presence", {}])).await;
    assert_eq!(denied.frame().await[1], "p");
    connection.batch_execute("insert into public.writers values ('late:x')").await.unwrap();
    denied.send(send(9)).await;
    denied.send(json!([null, "i", "phoenix", "heartbeat", {}])).await;
    assert_eq!(denied.frame().await[1], "i");
    socket.send(json!([null, "j", "phoenix", "heartbeat", {}])).await;
    assert_eq!(socket.frame().await[1], "j");
    server.stop().await;
}

#[tokio::test]
async fn messages_of_the_database_flow_again_after_their_connection_is_lost() {
    let (database, token) = database().await;
    let server = database.serve(Settings { limits: limits(), ..Settings::default() }).await;
    let mut socket = Socket::open(&server).await;
    let config = json!({ "private": true, "broadcast": { "replication_ready": true } });
    assert_eq!(socket.join("open:r", config, &token).await[4]["status"], "ok");
    let connection = database.connect().await;
    for _ in 0..2 {
        let ready = socket.frame().await;
        assert_eq!(
            ready[4],
            json!({ "extension": "system", "status": "ok", "channel": "open:r",
                    "message": "Replication connection established" })
        );
        connection.batch_execute("select realtime.send('{}', 'e', 'open:r', true)").await.unwrap();
        assert!(matches!(socket.next().await, Message::Binary(_)));
        let killed = connection
            .execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where query like '%pg_current_snapshot%' and usename = 'authenticator'",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(killed, 1, "the reader's connection is found");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_silent_client_is_closed_and_a_slow_one_is_cut_off() {
    let (database, token) = database().await;
    let limits =
        Limits { idle_timeout: Duration::from_secs(3), outbox_bytes: 1024 * 1024, ..limits() };
    let server =
        database.serve(Settings { public_channels: true, limits, ..Settings::default() }).await;
    let mut silent = Socket::open(&server).await;
    assert_eq!(silent.closed().await, Some(CloseCode::Normal));

    // Joins and then reads nothing, while another sends far more than buffers hold.
    let mut slow = Socket::open(&server).await;
    slow.join("flood", json!({}), &token).await;
    let mut fast = Socket::open(&server).await;
    fast.join("flood", json!({ "broadcast": { "ack": true } }), &token).await;
    let text = "x".repeat(100_000);
    for n in 0..300 {
        let payload = json!({ "type": "broadcast", "event": "e", "payload": { "s": text } });
        fast.send(json!(["1", n.to_string(), "realtime:flood", "broadcast", payload])).await;
        assert_eq!(fast.frame().await[4]["status"], "ok");
    }
    let stream = slow.0.get_mut();
    let mut received = 0_usize;
    let mut buffer = vec![0; 65536];
    while let Ok(Ok(read @ 1..)) = timeout(PATIENCE, stream.read(&mut buffer)).await {
        received += read;
    }
    assert!(received < 25_000_000, "{received} bytes were kept for a client that does not read");
    server.stop().await;
}

#[tokio::test]
async fn a_loud_client_loses_its_channel_and_keeps_its_socket() {
    let (database, token) = database().await;
    let limits = Limits { messages_per_second: 1, message_burst: 20, ..limits() };
    let server =
        database.serve(Settings { public_channels: true, limits, ..Settings::default() }).await;
    let mut socket = Socket::open(&server).await;
    socket.join("loud", json!({}), &token).await;
    for n in 0..40 {
        let payload = json!({ "type": "broadcast", "event": "e", "payload": {} });
        socket.send(json!(["1", n.to_string(), "realtime:loud", "broadcast", payload])).await;
    }
    let system = socket.frame().await;
    assert_eq!(system[4]["message"], "Too many messages per second");
    let closed = socket.frame().await;
    assert_eq!((&closed[1], &closed[3]), (&json!("1"), &json!("phx_close")));
    assert_eq!(reason(&socket.frame().await), "unmatched topic");
    server.stop().await;
}

#[tokio::test]
async fn clients_that_go_away_in_the_middle_leave_the_database_in_order() {
    let (database, token) = database().await;
    let server = database.serve(Settings { limits: limits(), ..Settings::default() }).await;
    for round in 0..30 {
        let mut socket = Socket::open(&server).await;
        let payload = json!({ "config": { "private": true }, "access_token": token });
        for n in 0..5 {
            let topic = format!("realtime:open:{round}:{n}");
            socket.send(json!([n.to_string(), n.to_string(), topic, "phx_join", payload])).await;
        }
        drop(socket);
    }
    let mut socket = Socket::open(&server).await;
    let joined = socket.join("open:last", json!({ "private": true }), &token).await;
    assert_eq!(joined[4]["status"], "ok", "{joined}");
    let connection = database.connect().await;
    let mut open = 1;
    for _ in 0..100 {
        let row = connection
            .query_one(
                "select (select count(*) from pg_stat_activity where state like 'idle in%'),
                        (select count(*) from realtime.messages)",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, i64>(1), 0, "a probe was committed");
        open = row.get::<_, i64>(0);
        if open == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(open, 0, "transactions stay open");
    server.stop().await;
}
