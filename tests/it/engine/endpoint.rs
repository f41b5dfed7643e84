//! Streams from a server that is already on the machine: order, usage, endings,
//! cancelling, kept connections and bounded memory. The server here is a small real
//! one on a unix socket and does what the prompt says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use infernet::engine::{
    Budget, Catalogue, EngineConfig, EngineError, EngineEvent, EnginePool, EngineRequest,
    EngineStream, Finish, RequestKind, ServedModel,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

/// What the server saw.
#[derive(Debug, Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Connections whose other end closed while an answer was being written.
    hung_up: AtomicUsize,
    bytes: AtomicUsize,
    last: std::sync::Mutex<Option<(Value, Instant)>>,
}

/// A server on a unix socket; it ends with the test's runtime.
struct Server {
    seen: Arc<Seen>,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("e.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&seen)));
        Self { seen, socket, _folder: folder, _tasks: tasks }
    }

    fn pool(&self, slots: u32) -> EnginePool {
        pool_at(&self.socket, slots)
    }
}

fn pool_at(socket: &Path, slots: u32) -> EnginePool {
    let model = ServedModel::endpoint("m", format!("unix:{}", socket.display()), slots);
    EnginePool::new(EngineConfig {
        node: "test".to_owned(),
        catalogue: Catalogue::built_in(),
        images: Vec::new(),
        budget: Budget::default(),
        relay_program: None,
        models: vec![model],
        runtime_dir: PathBuf::from("/nonexistent"),
        cache_dir: None,
        keep_alive: None,
        docker_host: None,
    })
    .unwrap()
}

async fn accept(listener: UnixListener, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        seen.connections.fetch_add(1, Ordering::SeqCst);
        connections.spawn(serve(stream, Arc::clone(&seen)));
    }
}

/// Answers the requests of one connection; the prompt is a list of words to obey.
async fn serve(stream: UnixStream, seen: Arc<Seen>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut first = String::new();
        if stream.read_line(&mut first).await.unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let arrived = Instant::now();
        seen.requests.fetch_add(1, Ordering::SeqCst);
        let body: Value = serde_json::from_slice(&body).unwrap();
        let prompt = body["prompt"].as_str().unwrap_or_default().to_owned();
        *seen.last.lock().unwrap() = Some((body, arrived));
        if answer(&mut stream, &prompt, &seen).await.is_err() {
            seen.hung_up.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if prompt.contains("then-close") || prompt.contains("die") {
            return;
        }
    }
}

async fn answer(
    stream: &mut BufReader<UnixStream>,
    prompt: &str,
    seen: &Seen,
) -> std::io::Result<()> {
    let mut words = prompt.split(' ');
    match words.next().unwrap_or_default() {
        "refuse" => {
            let status = words.next().unwrap();
            let body = json!({"error": {"message": "no such luck", "code": status.parse::<u16>().unwrap()}});
            let body = body.to_string();
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await
        }
        "hang" => {
            // Ends when the other side closes.
            stream.read_u8().await.map(|_| ())
        }
        kind => {
            let count: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or(3);
            let size: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            for index in 0..count {
                let text = if size == 1 { format!("t{index} ") } else { "x".repeat(size) };
                let event = json!({"choices": [{"index": 0, "text": text, "finish_reason": null}]});
                write_chunk(stream, &format!("data: {event}\n\n")).await?;
                seen.bytes.fetch_add(size, Ordering::SeqCst);
                if kind == "slow" {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            if kind == "die" {
                return Ok(());
            }
            let end = json!({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]});
            let usage =
                json!({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": count}});
            write_chunk(stream, &format!("data: {end}\n\ndata: {usage}\n\ndata: [DONE]\n\n"))
                .await?;
            stream.write_all(b"0\r\n\r\n").await
        }
    }
}

async fn write_chunk(stream: &mut BufReader<UnixStream>, text: &str) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
}

fn request(prompt: &str) -> EngineRequest {
    EngineRequest {
        kind: RequestKind::Completion,
        body: json!({ "prompt": prompt }),
        max_tokens: 1000,
        consumer: None,
    }
}

async fn ask(pool: &EnginePool, prompt: &str) -> Result<EngineStream, EngineError> {
    tokio::time::timeout(LIMIT, pool.chat("m", request(prompt), CancellationToken::new()))
        .await
        .unwrap()
}

/// Reads a stream to its end: the text and the last event, or the error.
async fn read(stream: &mut EngineStream) -> (String, Result<EngineEvent, EngineError>) {
    let mut text = String::new();
    loop {
        match tokio::time::timeout(LIMIT, stream.next()).await.unwrap().unwrap() {
            Ok(EngineEvent::Delta { text: delta }) => text.push_str(&delta),
            last => {
                assert!(stream.next().await.is_none(), "something follows the end");
                return (text, last);
            }
        }
    }
}

#[tokio::test]
async fn a_stream_has_its_text_in_order_and_the_engines_own_counts() {
    let server = Server::start();
    let pool = server.pool(1);
    let (text, last) = read(&mut ask(&pool, "say 4").await.unwrap()).await;
    assert_eq!(text, "t0 t1 t2 t3 ");
    assert_eq!(
        last.unwrap(),
        EngineEvent::Done { finish: Finish::Stop, input_tokens: 11, output_tokens: 4 }
    );
    let (body, _) = server.seen.last.lock().unwrap().clone().unwrap();
    assert_eq!(body["stream"], true);
    assert_eq!(body["max_tokens"], 1000);
    assert_eq!(body["stream_options"]["include_usage"], true);
}

#[tokio::test]
async fn connections_are_kept_and_a_closed_one_is_replaced() {
    let server = Server::start();
    let pool = server.pool(1);
    for _ in 0..5 {
        read(&mut ask(&pool, "say 2").await.unwrap()).await.1.unwrap();
    }
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 1);
    // The server closes this one after its answer; the next request must not suffer.
    read(&mut ask(&pool, "say 2 1 then-close").await.unwrap()).await.1.unwrap();
    read(&mut ask(&pool, "say 2").await.unwrap()).await.1.unwrap();
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 2);
    assert_eq!(server.seen.requests.load(Ordering::SeqCst), 7);
}

#[tokio::test]
async fn the_engine_has_the_request_within_milliseconds_of_the_call() {
    let server = Server::start();
    let pool = server.pool(1);
    let mut delays = Vec::new();
    for _ in 0..100 {
        let called = Instant::now();
        let mut stream = ask(&pool, "say 1").await.unwrap();
        let (_, arrived) = server.seen.last.lock().unwrap().clone().unwrap();
        delays.push(arrived.duration_since(called));
        read(&mut stream).await.1.unwrap();
    }
    delays.sort();
    println!("call to receipt: median {:?}, 99th {:?}", delays[50], delays[98]);
    // Far above what is measured on an idle machine (about 0.1 ms): others may be busy.
    assert!(delays[50] < Duration::from_millis(5), "{:?}", delays[50]);
}

#[tokio::test]
async fn cancelling_closes_the_connection_and_says_what_was_delivered() {
    let server = Server::start();
    let pool = server.pool(1);
    let cancel = CancellationToken::new();
    let mut stream = pool.chat("m", request("slow 1000"), cancel.clone()).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(stream.next().await, Some(Ok(EngineEvent::Delta { .. }))));
    }
    cancel.cancel();
    let (_, last) = read(&mut stream).await;
    let EngineEvent::Done { finish, input_tokens, output_tokens } = last.unwrap() else {
        panic!("no end")
    };
    assert_eq!(finish, Finish::Cancelled);
    assert_eq!(output_tokens, 3);
    assert_eq!(input_tokens, 3, "estimated from nine bytes");
    wait_for(|| server.seen.hung_up.load(Ordering::SeqCst) == 1).await;
    // The slot is free again.
    read(&mut ask(&pool, "say 1").await.unwrap()).await.1.unwrap();
}

#[tokio::test]
async fn cancelling_before_the_answer_begins_ends_the_stream() {
    let server = Server::start();
    let pool = server.pool(1);
    let cancel = CancellationToken::new();
    let asking = pool.chat("m", request("hang"), cancel.clone());
    let cancelling = async {
        wait_for(|| server.seen.requests.load(Ordering::SeqCst) == 1).await;
        cancel.cancel();
    };
    let (stream, ()) = tokio::join!(asking, cancelling);
    let (text, last) = read(&mut stream.unwrap()).await;
    assert_eq!(text, "");
    assert!(matches!(last.unwrap(), EngineEvent::Done { finish: Finish::Cancelled, .. }));
    wait_for(|| server.seen.hung_up.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn dropping_a_stream_closes_its_connection() {
    let server = Server::start();
    let pool = server.pool(1);
    let mut stream = ask(&pool, "slow 1000").await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    wait_for(|| server.seen.hung_up.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn an_engine_that_dies_in_the_middle_is_a_typed_error() {
    let server = Server::start();
    let pool = server.pool(1);
    let (text, last) = read(&mut ask(&pool, "die 2").await.unwrap()).await;
    assert_eq!(text, "t0 t1 ");
    let error = last.unwrap_err();
    assert!(matches!(error, EngineError::DiedMidStream { .. }), "{error}");
    assert_eq!(error.attempt_code(), "engine_failed");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn refusals_are_the_consumers_or_the_engines_fault() {
    let server = Server::start();
    let pool = server.pool(1);
    for (prompt, code) in [
        ("refuse 400", "bad_request"),
        ("refuse 413", "bad_request"),
        ("refuse 404", "engine_failed"),
        ("refuse 429", "engine_failed"),
        ("refuse 500", "engine_failed"),
        ("refuse 503", "engine_failed"),
    ] {
        let error = ask(&pool, prompt).await.unwrap_err();
        assert_eq!(error.attempt_code(), code, "{prompt}: {error}");
        assert!(error.to_string().contains("no such luck"), "{error}");
    }
}

#[tokio::test]
async fn no_more_requests_than_slots_are_sent() {
    let server = Server::start();
    let pool = server.pool(2);
    let mut first = ask(&pool, "slow 30").await.unwrap();
    let second = ask(&pool, "slow 1000").await.unwrap();
    let third = ask(&pool, "say 1");
    let mut third = std::pin::pin!(third);
    assert!(tokio::time::timeout(Duration::from_millis(300), third.as_mut()).await.is_err());
    assert_eq!(server.seen.requests.load(Ordering::SeqCst), 2);
    read(&mut first).await.1.unwrap();
    drop(first);
    read(&mut third.await.unwrap()).await.1.unwrap();
    drop(second);
}

#[tokio::test]
async fn a_reader_that_stops_slows_the_engine_down() {
    let server = Server::start();
    let pool = server.pool(1);
    // 16 MiB in pieces of 64 KiB, of which one is read.
    let mut stream = ask(&pool, "say 256 65536").await.unwrap();
    stream.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let written = server.seen.bytes.load(Ordering::SeqCst);
    assert!(written < 4 << 20, "{written} bytes were taken without being asked for");
    let mut total = 65_536;
    while let Some(event) = stream.next().await {
        if let EngineEvent::Delta { text } = event.unwrap() {
            total += text.len();
        }
    }
    assert_eq!(total, 16 << 20);
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool_at(&folder.path().join("none.sock"), 1);
    let error = ask(&pool, "say 1").await.unwrap_err();
    assert!(matches!(error, EngineError::Unreachable { .. }), "{error}");
    assert_eq!(error.attempt_code(), "engine_unavailable");
}

/// Waits until something holds, and fails when it never does.
async fn wait_for(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "it never came true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
