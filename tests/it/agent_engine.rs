//! A small real OpenAI-compatible server that writes tokens at a fixed rate:
//! the engine of the agent's end-to-end tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What the engine does, changed by tests while it runs.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    /// Milliseconds between two tokens.
    pub(crate) pause_ms: AtomicU64,
    /// The answers that break off, counted down.
    pub(crate) broken_answers: AtomicU64,
    /// Answers that were begun.
    pub(crate) begun: AtomicU64,
    /// Answers that were written to the end.
    pub(crate) ended: AtomicU64,
}

/// A running engine; it ends when it is dropped.
pub(crate) struct FixedRateEngine {
    pub(crate) address: SocketAddr,
    pub(crate) behaviour: Arc<Behaviour>,
    server: JoinHandle<()>,
}

impl Drop for FixedRateEngine {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FixedRateEngine {
    /// Starts an engine that pauses between tokens.
    pub(crate) async fn start(pause: Duration) -> Self {
        let behaviour = Arc::new(Behaviour::default());
        behaviour.pause_ms.store(pause.as_millis() as u64, Ordering::Relaxed);
        let router = Router::new()
            .route("/health", get(|| async { "ok" }))
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(chat))
            .with_state(Arc::clone(&behaviour));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, behaviour, server }
    }

    /// Returns the base URL for a node's configuration.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Returns the whole answer of so many tokens.
    pub(crate) fn answer(tokens: u64) -> String {
        (0..tokens).map(token).collect()
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

fn token(index: u64) -> String {
    format!("word{index} ")
}

async fn models() -> String {
    json!({"object": "list", "data": [{"id": "fixed", "object": "model"}]}).to_string()
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn chunk(delta: Value, finish: Value) -> Value {
    json!({"id": "c", "object": "chat.completion.chunk", "model": "fixed",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
}

async fn chat(State(behaviour): State<Arc<Behaviour>>, request: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&request).unwrap();
    behaviour.begun.fetch_add(1, Ordering::Relaxed);
    let tokens = request["max_tokens"].as_u64().unwrap_or(16);
    let words = request["messages"].to_string().split(' ').count() as u64;
    let breaks = behaviour
        .broken_answers
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok();
    let parts = stream::unfold(0, move |part: u64| {
        let behaviour = Arc::clone(&behaviour);
        async move {
            if breaks && part == 3 {
                // The body ends here with an error: the connection breaks.
                return Some((Err(std::io::Error::other("the engine died")), part + 1));
            }
            let bytes = if part < tokens {
                let pause = behaviour.pause_ms.load(Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                event(&chunk(json!({"content": token(part)}), Value::Null))
            } else if part == tokens {
                event(&chunk(json!({}), json!("stop")))
            } else if part == tokens + 1 {
                event(&json!({"id": "c", "object": "chat.completion.chunk", "choices": [],
                    "usage": {"prompt_tokens": words, "completion_tokens": tokens,
                        "total_tokens": words + tokens}}))
            } else if part == tokens + 2 {
                behaviour.ended.fetch_add(1, Ordering::Relaxed);
                Bytes::from_static(b"data: [DONE]\n\n")
            } else {
                return None;
            };
            Some((Ok::<_, std::io::Error>(bytes), part + 1))
        }
    });
    let body = Body::from_stream(parts);
    ([("content-type", "text/event-stream")], body).into_response()
}
