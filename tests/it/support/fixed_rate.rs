//! An OpenAI-compatible server that writes tokens at exact times and remembers when
//! it did.
//!
//! It is a real HTTP server, on the loopback interface or on a unix socket, and
//! stands where llama.cpp would: in the end-to-end tests, in the benchmarks (what
//! the project adds on the way is what is left when its own, known times are taken
//! away), and, as the program `bench/fixed_rate_engine.rs`, in a container.
//!
//! A token is due one interval after the one before, counted from the arrival of the
//! request, so that a late one does not delay those after it.

#![allow(dead_code, reason = "tests and benchmarks each use their own part")]

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;

/// The name of the model that the engine says it serves; it answers to every name.
pub(crate) const MODEL: &str = "fixed-rate";

/// Tokens of an answer whose request names no limit.
const DEFAULT_TOKENS: u64 = 16;

/// Numbers in an embedding.
pub(crate) const DIMENSIONS: usize = 8;

/// What the engine does, changed by tests while it runs.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    /// Milliseconds from one token to the next; the first comes one such time after
    /// the request.
    pub(crate) pause_ms: AtomicU64,
    /// The answers that break off after three tokens, counted down.
    pub(crate) broken_answers: AtomicU64,
    /// Answers that were begun.
    pub(crate) begun: AtomicU64,
    /// Answers that were written to the end.
    pub(crate) ended: AtomicU64,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// When it arrived, for differences within this process.
    pub(crate) at: Instant,
    /// The same, for differences to times of the database.
    pub(crate) wall: SystemTime,
    /// When each token was handed to the socket.
    pub(crate) writes: Vec<Instant>,
    /// The body of the request.
    pub(crate) body: Value,
}

/// A running engine; it ends when it is dropped.
pub(crate) struct FixedRateEngine {
    /// Where it listens, when not on a unix socket.
    pub(crate) address: SocketAddr,
    pub(crate) behaviour: Arc<Behaviour>,
    records: Records,
    server: JoinHandle<()>,
}

/// Requests by their last message or prompt.
type Records = Arc<Mutex<HashMap<String, Record>>>;

#[derive(Clone)]
struct Shared {
    behaviour: Arc<Behaviour>,
    records: Records,
}

impl Shared {
    fn records(&self) -> MutexGuard<'_, HashMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a token of a request is written now.
    fn note_write(&self, prompt: &str) {
        if let Some(record) = self.records().get_mut(prompt) {
            record.writes.push(Instant::now());
        }
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(self.behaviour.pause_ms.load(Ordering::Relaxed))
    }
}

impl Drop for FixedRateEngine {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FixedRateEngine {
    /// Starts an engine on a free port of the loopback interface that pauses between
    /// tokens.
    pub(crate) async fn start(pause: Duration) -> Self {
        Self::start_at(pause, 0).await.expect("a free port of the loopback interface")
    }

    /// The same on a given port.
    ///
    /// # Errors
    /// The port is taken.
    pub(crate) async fn start_at(pause: Duration, port: u16) -> io::Result<Self> {
        let (shared, router) = routes(pause);
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                // A token is a small write; Nagle would measure itself.
                drop(stream.set_nodelay(true));
            });
            drop(axum::serve(listener, router).await);
        });
        let Shared { behaviour, records } = shared;
        Ok(Self { address, behaviour, records, server })
    }

    /// Starts an engine on a unix socket, which must not be there yet.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn start_on_socket(pause: Duration, path: &Path) -> io::Result<Self> {
        let (shared, router) = routes(pause);
        let listener = UnixListener::bind(path)?;
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        let Shared { behaviour, records } = shared;
        Ok(Self { address: ([0, 0, 0, 0], 0).into(), behaviour, records, server })
    }

    /// Returns the base URL for a node's configuration.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Returns the lines of its table in a node's `config.toml`.
    pub(crate) fn config(&self, slots: u32) -> String {
        format!(
            "name = \"{MODEL}\"\nengine = \"external\"\nendpoint = \"{}\"\nslots = {slots}\n\
             context_length = 4096\nprice_input = \"0.05\"\nprice_output = \"0.10\"\n",
            self.url()
        )
    }

    /// Returns the whole answer of so many tokens.
    pub(crate) fn answer(tokens: u64) -> String {
        (0..tokens).map(token).collect()
    }

    /// Takes what is known of the request whose last message, or prompt, was this.
    pub(crate) fn take_record(&self, prompt: &str) -> Option<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).remove(prompt)
    }

    /// Waits until so many answers have begun.
    pub(crate) async fn wait_until_begun(&self, answers: u64) {
        wait_for(&self.behaviour.begun, answers).await;
    }

    /// Waits until so many answers were written to their end.
    pub(crate) async fn wait_until_ended(&self, answers: u64) {
        wait_for(&self.behaviour.ended, answers).await;
    }
}

async fn wait_for(count: &AtomicU64, wanted: u64) {
    tokio::time::timeout(Duration::from_secs(30), async {
        while count.load(Ordering::Relaxed) < wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the engine did not get that far in time");
}

/// The text of one token: short, with its number, so that a lost one shows.
pub(crate) fn token(index: u64) -> String {
    format!("word{index} ")
}

/// The embedding of a text: the same numbers for the same text.
pub(crate) fn embedding(text: &str) -> Vec<f64> {
    let mut numbers = vec![0.0; DIMENSIONS];
    for (index, byte) in text.bytes().enumerate() {
        numbers[index % DIMENSIONS] += f64::from(byte) / 128.0;
    }
    numbers
}

fn routes(pause: Duration) -> (Shared, Router) {
    let behaviour = Arc::new(Behaviour::default());
    let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    behaviour.pause_ms.store(pause, Ordering::Relaxed);
    let shared = Shared { behaviour, records: Records::default() };
    let router = Router::new()
        .route("/health", get(async || "ok"))
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(complete))
        .route("/v1/completions", post(complete))
        .route("/v1/embeddings", post(embed))
        .route("/record", get(record))
        .with_state(shared.clone());
    (shared, router)
}

async fn models() -> Response {
    as_json(&json!({ "object": "list", "data": [{ "id": MODEL, "object": "model" }] }))
}

/// Every request and the times of its writes, in microseconds since 1970, for other
/// processes.
async fn record(State(shared): State<Shared>) -> Response {
    let micros =
        |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let records: HashMap<String, Value> = shared
        .records()
        .iter()
        .map(|(prompt, record)| {
            let wall = |at: &Instant| micros(record.wall + at.duration_since(record.at));
            let writes: Vec<_> = record.writes.iter().map(wall).collect();
            (prompt.clone(), json!({ "at": micros(record.wall), "writes": writes }))
        })
        .collect();
    as_json(&json!(records))
}

fn as_json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn embed(State(shared): State<Shared>, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, "the body is not JSON").into_response();
    };
    shared.behaviour.begun.fetch_add(1, Ordering::Relaxed);
    let texts: Vec<&str> = match &request["input"] {
        Value::String(text) => vec![text],
        Value::Array(texts) => texts.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let data: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            json!({ "object": "embedding", "index": index, "embedding": embedding(text) })
        })
        .collect();
    let tokens: usize = texts.iter().map(|text| text.split_whitespace().count()).sum();
    shared.behaviour.ended.fetch_add(1, Ordering::Relaxed);
    as_json(&json!({
        "object": "list", "model": request["model"], "data": data,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    }))
}

/// One answer while it is written.
struct Writing {
    shared: Shared,
    prompt: String,
    model: Value,
    chat: bool,
    /// The name of the tool that is called instead of writing text.
    tool: Option<Value>,
    tokens: u64,
    input_tokens: u64,
    breaks: bool,
    due: tokio::time::Instant,
    next: u64,
}

async fn complete(State(shared): State<Shared>, body: Bytes) -> Response {
    let at = Instant::now();
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, "the body is not JSON").into_response();
    };
    shared.behaviour.begun.fetch_add(1, Ordering::Relaxed);
    let chat = request.get("messages").is_some();
    let prompt = request
        .get("messages")
        .and_then(|messages| messages.as_array()?.last()?.get("content")?.as_str())
        .or_else(|| request.get("prompt")?.as_str())
        .unwrap_or_default()
        .to_owned();
    let tokens = ["max_tokens", "max_completion_tokens", "n_predict"]
        .iter()
        .find_map(|name| request.get(name)?.as_u64())
        .unwrap_or(DEFAULT_TOKENS);
    let words = request["messages"].to_string().split(' ').count();
    let breaks = shared
        .behaviour
        .broken_answers
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok();
    let tool = request.pointer("/tools/0/function/name").cloned();
    let streams = request.get("stream").and_then(Value::as_bool) == Some(true);
    let record = Record { at, wall: SystemTime::now(), writes: Vec::new(), body: request.clone() };
    shared.records().insert(prompt.clone(), record);
    let mut writing = Writing {
        shared,
        prompt,
        model: request["model"].clone(),
        chat,
        tool: tool.filter(|_| chat),
        tokens,
        input_tokens: u64::try_from(words).unwrap_or(u64::MAX),
        breaks,
        due: at.into(),
        next: 0,
    };
    if streams {
        let events = futures_util::stream::unfold(writing, |mut writing| async move {
            let event = writing.next_event().await?;
            Some((event, writing))
        });
        let body = Body::from_stream(events);
        return ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response();
    }
    let mut text = String::new();
    for index in 0..tokens {
        writing.wait().await;
        writing.shared.note_write(&writing.prompt);
        text.push_str(&token(index));
    }
    writing.shared.behaviour.ended.fetch_add(1, Ordering::Relaxed);
    let choice = if chat {
        json!({ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" })
    } else {
        json!({ "index": 0, "text": text, "finish_reason": "stop" })
    };
    as_json(&json!({ "model": writing.model, "choices": [choice], "usage": writing.usage() }))
}

impl Writing {
    /// Waits until the next token is due.
    async fn wait(&mut self) {
        self.due += self.shared.pause();
        tokio::time::sleep_until(self.due).await;
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.input_tokens + self.tokens,
        })
    }

    /// Returns the next event of a streamed answer, at its time.
    async fn next_event(&mut self) -> Option<io::Result<Bytes>> {
        let part = self.next;
        self.next += 1;
        if self.breaks && part == 3 {
            // The body ends here with an error: the connection breaks.
            return Some(Err(io::Error::other("the engine died")));
        }
        let chunk = if part < self.tokens {
            self.wait().await;
            self.shared.note_write(&self.prompt);
            self.token_chunk(part)
        } else if part == self.tokens {
            let finish = if self.tool.is_some() { "tool_calls" } else { "stop" };
            self.chunk(if self.chat {
                json!({ "index": 0, "delta": {}, "finish_reason": finish })
            } else {
                json!({ "index": 0, "text": "", "finish_reason": finish })
            })
        } else if part == self.tokens + 1 {
            json!({
                "id": "c", "object": "chat.completion.chunk", "model": self.model,
                "choices": [], "usage": self.usage(),
            })
        } else if part == self.tokens + 2 {
            self.shared.behaviour.ended.fetch_add(1, Ordering::Relaxed);
            return Some(Ok(Bytes::from_static(b"data: [DONE]\n\n")));
        } else {
            return None;
        };
        Some(Ok(Bytes::from(format!("data: {chunk}\n\n"))))
    }

    /// The event of one token: text, or a piece of the arguments of a tool's call.
    fn token_chunk(&self, part: u64) -> Value {
        let choice = match (&self.tool, self.chat) {
            (None, true) => {
                json!({ "index": 0, "delta": { "content": token(part) }, "finish_reason": null })
            }
            (None, false) => json!({ "index": 0, "text": token(part), "finish_reason": null }),
            (Some(name), _) => {
                // The arguments count the tokens: {"words":"w w w"}.
                let last = part + 1 == self.tokens;
                let arguments = match (part, last) {
                    (0, true) => "{\"words\":\"w\"}",
                    (0, false) => "{\"words\":\"w",
                    (_, true) => " w\"}",
                    (_, false) => " w",
                };
                let mut call = json!({ "index": 0, "function": { "arguments": arguments } });
                if part == 0 {
                    call["id"] = "call_fixed".into();
                    call["type"] = "function".into();
                    call["function"]["name"] = name.clone();
                }
                json!({ "index": 0, "delta": { "tool_calls": [call] }, "finish_reason": null })
            }
        };
        self.chunk(choice)
    }

    fn chunk(&self, choice: Value) -> Value {
        json!({
            "id": "c", "object": "chat.completion.chunk", "model": self.model,
            "choices": [choice],
        })
    }
}
