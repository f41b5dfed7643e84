//! A small OpenAI-compatible server that speaks at a fixed rate.
//!
//! It is a real HTTP server on the loopback interface and stands where llama.cpp
//! would: what the project adds on the way to it and back is what is left when its
//! own, known times are taken away. It notes when each request arrived.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The name of the model that the engine serves.
pub(crate) const MODEL: &str = "fixed-rate";

/// When a request arrived, in both clocks of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receipt {
    /// For differences within this process.
    pub(crate) at: Instant,
    /// For differences to times of the database.
    pub(crate) wall: SystemTime,
}

/// How the engine answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Tokens of an answer.
    pub(crate) tokens: u32,
    /// Time from one token to the next; the first comes one interval after the
    /// request.
    pub(crate) interval: Duration,
}

struct Shared {
    pace: Pace,
    receipts: Mutex<HashMap<String, Receipt>>,
}

/// A running engine; dropping it stops the server.
pub(crate) struct Engine {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Engine {
    /// Starts an engine on a free port of the loopback interface.
    ///
    /// # Errors
    /// No port can be bound.
    pub(crate) async fn start(pace: Pace) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { pace, receipts: Mutex::new(HashMap::new()) });
        let routes = Router::new()
            .route("/health", get(async || as_json(&json!({ "status": "ok" }))))
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(complete))
            .route("/v1/completions", post(complete))
            .with_state(Arc::clone(&shared));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                // A token is a small write; Nagle would measure itself.
                drop(stream.set_nodelay(true));
            });
            drop(axum::serve(listener, routes).await);
        });
        Ok(Self { address, shared, server })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base of its URLs.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The lines of its table in a node's `config.toml`.
    pub(crate) fn config(&self) -> String {
        format!(
            "name = \"{MODEL}\"\nengine = \"external\"\nendpoint = \"{}/v1\"\nslots = 1\ncontext_length = 4096\nprice_input = \"0.05\"\nprice_output = \"0.10\"\n",
            self.url()
        )
    }

    /// Takes the receipt of the request whose last message, or prompt, was this.
    pub(crate) fn take_receipt(&self, prompt: &str) -> Option<Receipt> {
        self.shared.receipts.lock().expect("no holder panics").remove(prompt)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn models() -> Response {
    as_json(&json!({ "object": "list", "data": [{ "id": MODEL, "object": "model" }] }))
}

fn as_json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn complete(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let receipt = Receipt { at: Instant::now(), wall: SystemTime::now() };
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, "the body is not JSON").into_response();
    };
    let chat = request.get("messages").is_some();
    let prompt = request
        .get("messages")
        .and_then(|messages| messages.as_array()?.last()?.get("content")?.as_str())
        .or_else(|| request.get("prompt")?.as_str())
        .unwrap_or_default()
        .to_owned();
    shared.receipts.lock().expect("no holder panics").insert(prompt, receipt);

    let limit = ["max_tokens", "max_completion_tokens", "n_predict"]
        .iter()
        .find_map(|name| request.get(name)?.as_u64())
        .and_then(|tokens| u32::try_from(tokens).ok())
        .unwrap_or(shared.pace.tokens);
    let tokens = shared.pace.tokens.min(limit);
    if request.get("stream").and_then(Value::as_bool) == Some(true) {
        let stream = events(receipt.at, shared.pace.interval, tokens, chat);
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
    } else {
        tokio::time::sleep_until((receipt.at + shared.pace.interval * tokens).into()).await;
        let text: String = (0..tokens).map(token).collect();
        let choice = if chat {
            json!({ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" })
        } else {
            json!({ "index": 0, "text": text, "finish_reason": "stop" })
        };
        as_json(&json!({ "model": MODEL, "choices": [choice], "usage": usage(tokens) }))
    }
}

/// The text of one token: short, with its number, so that a lost one shows.
pub(crate) fn token(index: u32) -> String {
    format!("t{index} ")
}

fn usage(tokens: u32) -> Value {
    json!({ "prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": tokens + 8 })
}

/// The events of a streamed answer, each at its own time counted from the request,
/// so that a late one does not delay those after it.
fn events(
    start: Instant,
    interval: Duration,
    tokens: u32,
    chat: bool,
) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    futures_util::stream::unfold(0, move |index| async move {
        if index > tokens {
            return None;
        }
        if index == tokens {
            let choice = if chat {
                json!({ "index": 0, "delta": {}, "finish_reason": "stop" })
            } else {
                json!({ "index": 0, "text": "", "finish_reason": "stop" })
            };
            let end = json!({ "object": "chat.completion.chunk", "model": MODEL, "choices": [choice], "usage": usage(tokens) });
            return Some((Ok(Bytes::from(format!("data: {end}\n\ndata: [DONE]\n\n"))), index + 1));
        }
        tokio::time::sleep_until((start + interval * (index + 1)).into()).await;
        let choice = if chat {
            json!({ "index": 0, "delta": { "content": token(index) }, "finish_reason": null })
        } else {
            json!({ "index": 0, "text": token(index), "finish_reason": null })
        };
        let chunk =
            json!({ "object": "chat.completion.chunk", "model": MODEL, "choices": [choice] });
        Some((Ok(Bytes::from(format!("data: {chunk}\n\n"))), index + 1))
    })
}
