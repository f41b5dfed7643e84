//! Asks an OpenAI-compatible server itself, as a client without a market would, and
//! notes when each token came.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::market::Failure;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(120);

/// An answer that was streamed.
pub(crate) struct Answer {
    /// When each token was there, with how many bytes of output it ended.
    pub(crate) pieces: Vec<(Instant, usize)>,
}

/// Streams one answer over a new connection. Engines do not look at the key.
///
/// # Errors
/// The server refuses, breaks off or takes too long.
pub(crate) async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    model: &str,
    prompt: &str,
    max_tokens: u32,
    key: &str,
) -> Result<Answer, Failure> {
    let answer = stream_answer(stream, model, prompt, max_tokens, key);
    tokio::time::timeout(LIMIT, answer)
        .await
        .map_err(|_elapsed| "A direct answer took too long.")?
}

async fn stream_answer(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    model: &str,
    prompt: &str,
    max_tokens: u32,
    key: &str,
) -> Result<Answer, Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // What ends the connection badly also ends the answer that is read below.
        drop(connection.await);
    });
    let body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": prompt }],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": true,
    });
    let request = Request::post("/v1/chat/completions")
        .header(header::HOST, "localhost")
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(format!("The server answers {}.", response.status()).into());
    }
    let mut body = response.into_body();
    let (mut waiting, mut pieces, mut length) = (Vec::new(), Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let now = Instant::now();
        waiting.extend_from_slice(&data);
        while let Some(end) = waiting.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = waiting.drain(..end + 2).collect();
            let Some(data) = event.strip_prefix(b"data: ") else { continue };
            // The last event, [DONE], is no JSON.
            let Ok(chunk) = serde_json::from_slice::<Value>(data) else { continue };
            let text = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str);
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                length += text.len();
                pieces.push((now, length));
            }
        }
    }
    Ok(Answer { pieces })
}
