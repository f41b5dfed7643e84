//! The client of Realtime against the embedded server: joins, refusals, tokens,
//! reconnects, and how long a message takes.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use infernet::control::realtime::{
    Channel, ChannelEvent, JoinOptions, Realtime, RealtimeEndpoint, SendError, SocketState, Timing,
};
use infernet::stack::realtime::Limits;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::support::lossy_proxy::LossyProxy;
use crate::support::realtime_server::{Database, PUBLISHABLE_KEY, Server, Settings};

const ALICE: &str = "11111111-1111-4111-8111-111111111111";
/// The longest wait for anything in these tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Short pauses, so that tests are quick.
fn timing() -> Timing {
    Timing {
        connect_timeout: PATIENCE / 2,
        heartbeat: Duration::from_secs(2),
        join_timeout: PATIENCE / 2,
        write_timeout: PATIENCE / 2,
        retry: (Duration::from_millis(50), Duration::from_millis(300)),
        refused: (Duration::from_millis(200), Duration::from_millis(500)),
        crowded: (Duration::from_secs(120), Duration::from_secs(600)),
    }
}

/// Policies: everybody signed in may use `open:`, the bearer of a claim `desk:`.
async fn database() -> Database {
    let database = Database::start().await;
    database
        .connect()
        .await
        .batch_execute(
            "create policy test_read on realtime.messages for select to authenticated using (
               realtime.topic() like 'open:%'
               or (realtime.topic() like 'desk:%' and (auth.jwt() ->> 'desk') is not null));
             create policy test_write on realtime.messages for insert to authenticated with check (
               realtime.topic() like 'open:%');",
        )
        .await
        .unwrap();
    database
}

fn token(database: &Database, extra: Value, lifetime_secs: i64) -> String {
    let mut claims = json!({ "role": "authenticated", "sub": ALICE });
    claims.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    database.token(&claims, lifetime_secs)
}

/// A client with what steers it.
struct Client {
    realtime: Realtime,
    tokens: watch::Sender<String>,
    shutdown: CancellationToken,
}

impl Client {
    fn start(base: &Url, token: String) -> Self {
        Self::start_with(base, token, PUBLISHABLE_KEY, timing())
    }

    fn start_with(base: &Url, token: String, key: &str, timing: Timing) -> Self {
        let (tokens, receiver) = watch::channel(token);
        let shutdown = CancellationToken::new();
        let endpoint = RealtimeEndpoint::new(base, key).unwrap();
        let realtime = Realtime::spawn_with(endpoint, receiver, shutdown.clone(), timing);
        Self { realtime, tokens, shutdown }
    }

    fn join(&self, topic: &str) -> Channel {
        self.realtime.join(topic, JoinOptions::default())
    }
}

async fn next(channel: &mut Channel) -> ChannelEvent {
    tokio::time::timeout(PATIENCE, channel.recv())
        .await
        .unwrap_or_else(|_| panic!("nothing happens on {}", channel.topic()))
        .unwrap_or_else(|| panic!("{} is over", channel.topic()))
}

/// Waits for an event, past others.
async fn until(channel: &mut Channel, wanted: impl Fn(&ChannelEvent) -> bool) -> ChannelEvent {
    loop {
        let event = next(channel).await;
        if wanted(&event) {
            return event;
        }
    }
}

async fn joined(channel: &mut Channel) {
    assert_eq!(next(channel).await, ChannelEvent::Joined);
}

fn is_refusal(event: &ChannelEvent) -> bool {
    matches!(event, ChannelEvent::Refused { .. })
}

/// A server that is as patient with a busy machine as these tests are.
async fn serve(database: &Database) -> Server {
    let limits = Limits { authorization_timeout: PATIENCE / 2, ..Limits::default() };
    database.serve(Settings { limits, ..Settings::default() }).await
}

#[tokio::test]
async fn broadcasts_and_messages_of_the_database_arrive_in_order() {
    let database = database().await;
    let server = serve(&database).await;
    let node = Client::start(&server.url(), token(&database, json!({}), 3600));
    let consumer = Client::start(&server.url(), token(&database, json!({}), 3600));
    let mut sending = node.join("open:order");
    let mut receiving = consumer.join("open:order");
    joined(&mut sending).await;
    joined(&mut receiving).await;
    for number in 0..200 {
        sending.send("delta", &json!({ "n": number })).unwrap();
    }
    for number in 0..200 {
        let wanted = json!({ "n": number });
        assert_eq!(
            next(&mut receiving).await,
            ChannelEvent::Broadcast { event: "delta".into(), payload: wanted, id: None }
        );
    }
    let client = database.connect().await;
    for number in 0..20 {
        client
            .execute(
                "select realtime.send(jsonb_build_object('n', $1::int), 'row', 'open:order', true)",
                &[&number],
            )
            .await
            .unwrap();
    }
    for number in 0..20 {
        let ChannelEvent::Broadcast { event, payload, id } = next(&mut receiving).await else {
            panic!("a broadcast is expected");
        };
        assert_eq!((event.as_str(), &payload["n"]), ("row", &json!(number)));
        assert_eq!(payload["id"], json!(id.unwrap()));
    }
    // What was sent before a channel is dropped goes out before the leave.
    let late = sending.sender();
    sending.send("end", &json!({})).unwrap();
    drop(sending);
    let ended = until(
        &mut receiving,
        |event| matches!(event, ChannelEvent::Broadcast { event, .. } if event == "end"),
    );
    ended.await;
    while late.is_joined() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(late.send("x", &json!({})), Err(SendError::NotJoined)));

    consumer.shutdown.cancel();
    tokio::time::timeout(PATIENCE, consumer.realtime.closed()).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, receiving.recv()).await.unwrap(), None);
    server.stop().await;
}

#[tokio::test]
async fn a_refused_join_says_why_and_a_better_token_joins_at_once() {
    let database = database().await;
    let server = serve(&database).await;
    let slow = Timing { refused: (PATIENCE, PATIENCE), ..timing() };
    let url = server.url();
    let client = Client::start_with(&url, token(&database, json!({}), 3600), PUBLISHABLE_KEY, slow);
    let mut channel = client.join("desk:one");
    let ChannelEvent::Refused { reason } = next(&mut channel).await else {
        panic!("a refusal is expected");
    };
    assert_eq!(
        reason,
        "Unauthorized: You do not have permissions to read from this Channel topic: desk:one"
    );
    assert!(matches!(channel.send("x", &json!({})), Err(SendError::NotJoined)));
    let began = Instant::now();
    client.tokens.send(token(&database, json!({ "desk": true }), 3600)).unwrap();
    joined(&mut channel).await;
    assert!(began.elapsed() < PATIENCE / 10, "the pause of the refusal was waited for");

    // A public channel is refused by default.
    let mut public =
        client.realtime.join("open:x", JoinOptions { private: false, ..JoinOptions::default() });
    assert_eq!(
        next(&mut public).await,
        ChannelEvent::Refused {
            reason: "PrivateOnly: This project only allows private channels".into()
        }
    );
    server.stop().await;
}

#[tokio::test]
async fn a_newer_token_is_pushed_and_an_old_one_ends_the_channel() {
    let database = database().await;
    let server = serve(&database).await;
    let client = Client::start(&server.url(), token(&database, json!({}), 8));
    let mut kept = client.join("open:kept");
    joined(&mut kept).await;
    client.tokens.send(token(&database, json!({ "n": 2 }), 3600)).unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(kept.try_recv(), None);
    assert!(kept.is_joined());

    // A token that ends while it is joined: lost, refused, and back with the next.
    client.tokens.send(token(&database, json!({ "n": 3 }), 4)).unwrap();
    assert_eq!(next(&mut kept).await, ChannelEvent::Lost);
    let ChannelEvent::Refused { reason } = until(&mut kept, is_refusal).await else {
        unreachable!();
    };
    assert!(reason.starts_with("InvalidJWTToken: Token has expired"), "{reason}");
    client.tokens.send(token(&database, json!({ "n": 4 }), 3600)).unwrap();
    until(&mut kept, |event| *event == ChannelEvent::Joined).await;
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_comes_back_finds_its_channels_again() {
    let database = database().await;
    let server = serve(&database).await;
    let address = server.address;
    let url = server.url();
    let client = Client::start(&url, token(&database, json!({}), 3600));
    let mut channels: Vec<Channel> =
        (0..20).map(|number| client.join(&format!("open:{number}"))).collect();
    for channel in &mut channels {
        joined(channel).await;
    }
    server.stop().await;
    for channel in &mut channels {
        assert_eq!(next(channel).await, ChannelEvent::Lost);
        assert!(matches!(channel.send("x", &json!({})), Err(SendError::NotJoined)));
    }
    assert!(!client.realtime.is_open());
    // A join asked for meanwhile goes out with the others.
    channels.push(client.join("open:late"));
    let server = database.serve(Settings { address: Some(address), ..Settings::default() }).await;
    for channel in &mut channels {
        joined(channel).await;
    }
    let other = Client::start(&url, token(&database, json!({}), 3600));
    let mut sending = other.join("open:late");
    joined(&mut sending).await;
    sending.send("again", &json!({ "n": 1 })).unwrap();
    let late = channels.last_mut().unwrap();
    assert!(matches!(next(late).await, ChannelEvent::Broadcast { event, .. } if event == "again"));
    server.stop().await;
}

/// Takes the next socket, lets a channel join it, and breaks it after that time.
async fn take_and_break(listener: &TcpListener, after: Duration) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let join = socket.next().await.unwrap().unwrap();
    let join: Value = serde_json::from_str(join.to_text().unwrap()).unwrap();
    assert_eq!(join["event"], "phx_join");
    let reply = json!({
        "topic": join["topic"], "event": "phx_reply", "ref": join["ref"],
        "payload": { "status": "ok", "response": {} },
    });
    socket.send(Message::text(reply.to_string())).await.unwrap();
    tokio::time::sleep(after).await;
}

#[tokio::test]
async fn what_was_joined_steadily_is_tried_again_soon() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let first = Duration::from_millis(200);
    // No heartbeat meanwhile, which this server would not answer.
    let heartbeat = PATIENCE;
    let timing = Timing { retry: (first, PATIENCE), heartbeat, ..timing() };
    let client = Client::start_with(&url, String::new(), PUBLISHABLE_KEY, timing);
    let mut channel = client.join("open:steady");
    let mut state = client.realtime.state();
    let mut pause_after = async |held: Duration| {
        take_and_break(&listener, held).await;
        joined(&mut channel).await;
        assert_eq!(next(&mut channel).await, ChannelEvent::Lost);
        let down = state.wait_for(|state| matches!(state, SocketState::Waiting { .. }));
        match tokio::time::timeout(PATIENCE, down).await.unwrap().unwrap().clone() {
            SocketState::Waiting { retry_in, .. } => retry_in,
            _ => unreachable!(),
        }
    };
    // A server that lets clients join and drops them at once is left alone longer and
    // longer: the least that the fifth pause can be is more than the most of the first.
    for _ in 0..4 {
        pause_after(Duration::ZERO).await;
    }
    let pause = pause_after(Duration::ZERO).await;
    assert!(pause > first, "{pause:?}");
    // One that kept them for a while is well.
    let pause = pause_after(Duration::from_millis(2200)).await;
    assert!(pause <= first, "{pause:?}");
    client.shutdown.cancel();
}

#[tokio::test]
async fn a_silent_server_is_noticed_by_the_heartbeat() {
    let database = database().await;
    let server = serve(&database).await;
    let proxy = LossyProxy::start(server.address).await;
    let url = Url::parse(&format!("http://{}", proxy.address)).unwrap();
    let client = Client::start(&url, token(&database, json!({}), 3600));
    let mut channel = client.join("open:silent");
    joined(&mut channel).await;
    proxy.silence(true);
    let began = Instant::now();
    assert_eq!(next(&mut channel).await, ChannelEvent::Lost);
    let heartbeat = timing().heartbeat;
    assert!(began.elapsed() < heartbeat * 4, "noticed after {:?}", began.elapsed());
    proxy.silence(false);
    until(&mut channel, |event| *event == ChannelEvent::Joined).await;
    server.stop().await;
}

#[tokio::test]
async fn lost_frames_leave_gaps_but_no_disorder() {
    let database = database().await;
    let server = serve(&database).await;
    let proxy = LossyProxy::start(server.address).await;
    let url = Url::parse(&format!("http://{}", proxy.address)).unwrap();
    let node = Client::start(&server.url(), token(&database, json!({}), 3600));
    let consumer = Client::start(&url, token(&database, json!({}), 3600));
    let mut sending = node.join("open:gaps");
    let mut receiving = consumer.join("open:gaps");
    joined(&mut sending).await;
    joined(&mut receiving).await;
    proxy.lose(0.2);
    for number in 0..500 {
        sending.send("delta", &number).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.lose(0.0);
    sending.send("delta", &1000).unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&1000) {
        if let ChannelEvent::Broadcast { payload, .. } = next(&mut receiving).await {
            seen.push(payload.as_u64().unwrap());
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "out of order");
    assert_eq!(seen.len() as u64 + proxy.dropped(), 501);
    assert!((50..200).contains(&proxy.dropped()), "{} dropped", proxy.dropped());
    server.stop().await;
}

#[tokio::test]
async fn refused_handshakes_show_in_the_state_and_a_full_server_is_left_alone() {
    let database = database().await;
    let limits = Limits { max_sockets: 1, ..Limits::default() };
    let server = database.serve(Settings { limits, ..Settings::default() }).await;
    let good = token(&database, json!({}), 3600);
    let refused = async |client: &Client| {
        let mut state = client.realtime.state();
        let state = tokio::time::timeout(
            PATIENCE,
            state.wait_for(|state| matches!(state, SocketState::Refused { .. })),
        )
        .await
        .unwrap()
        .unwrap()
        .clone();
        match state {
            SocketState::Refused { status, reason, retry_in } => (status, reason, retry_in),
            _ => unreachable!(),
        }
    };
    let url = server.url();
    let wrong = Client::start_with(&url, good.clone(), "wrong", timing());
    let (status, reason, _) = refused(&wrong).await;
    assert_eq!((status, reason.as_str()), (401, "The token provided is not a valid JWT"));
    wrong.shutdown.cancel();

    let first = Client::start(&server.url(), good.clone());
    let mut channel = first.join("open:first");
    joined(&mut channel).await;
    let second = Client::start(&server.url(), good);
    let mut waiting = second.join("open:second");
    let (status, reason, retry_in) = refused(&second).await;
    assert_eq!((status, reason.as_str()), (429, "Too many connected users"));
    assert!(retry_in >= Duration::from_secs(10), "{retry_in:?}");
    assert_eq!(waiting.try_recv(), None);
    server.stop().await;
}

#[tokio::test]
async fn joining_a_topic_again_ends_the_older_channel() {
    let database = database().await;
    let server = serve(&database).await;
    let client = Client::start(&server.url(), token(&database, json!({}), 3600));
    let mut older = client.join("open:twice");
    joined(&mut older).await;
    let mut newer = client.join("open:twice");
    joined(&mut newer).await;
    assert_eq!(tokio::time::timeout(PATIENCE, older.recv()).await.unwrap(), None);
    drop(older);
    // The leave of the older one does not touch the newer.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(newer.is_joined());
    assert_eq!(newer.try_recv(), None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_takes_little_time() {
    let database = database().await;
    let server = serve(&database).await;
    let node = Client::start(&server.url(), token(&database, json!({}), 3600));
    let consumer = Client::start(&server.url(), token(&database, json!({}), 3600));
    let mut sending = node.join("open:fast");
    let mut receiving = consumer.join("open:fast");
    joined(&mut sending).await;
    joined(&mut receiving).await;
    let mut hops = Vec::new();
    for number in 0..300 {
        let began = Instant::now();
        sending.send("delta", &json!({ "offset": number, "text": "word " })).unwrap();
        next(&mut receiving).await;
        hops.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let connection = database.connect().await;
    let send = connection
        .prepare("select realtime.send('{\"attempt\":1}', 'attempt', 'open:fast', true)")
        .await
        .unwrap();
    let mut sends = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        connection.execute(&send, &[]).await.unwrap();
        let committed = Instant::now();
        next(&mut receiving).await;
        sends.push((began.elapsed(), committed.elapsed()));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let [hop_p10, hop_p50, hop_p99] = percentiles(hops);
    let [send_p10, send_p50, send_p99] = percentiles(sends.iter().map(|(all, _)| *all).collect());
    let [_, after_p50, _] = percentiles(sends.into_iter().map(|(_, after)| after).collect());
    println!("hop p10 {hop_p10:?} p50 {hop_p50:?} p99 {hop_p99:?}");
    println!("send p10 {send_p10:?} p50 {send_p50:?} p99 {send_p99:?}");
    println!("after the commit was answered p50 {after_p50:?}");
    // The quick ones say what the code needs; the others, what else the machine does.
    assert!(hop_p10 < Duration::from_millis(5), "{hop_p10:?}");
    assert!(send_p10 < Duration::from_millis(20), "{send_p10:?}");
    server.stop().await;
}

fn percentiles(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort();
    [10, 50, 99].map(|percent| times[times.len() * percent / 100])
}
