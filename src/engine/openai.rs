//! Requests to an engine and the stream of its answer, in OpenAI's protocol.
//!
//! [`shape`] makes the body of a request from what the consumer sent: listed keys
//! only, the rest set here. [`EngineStream`] reads the answer's server-sent events one
//! at a time and holds no more than one of them, whatever the length of the answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::engine::catalogue::{EngineEntry, PrefixCache};
use crate::engine::container_job::JobStream;
use crate::engine::error::EngineError;
use crate::engine::pool::InUse;
use crate::engine::slots::{Asker, TakenSlot};
use crate::engine::tool_calls::{CallDelta, TOOL_CALLS_MARK, ToolCalls};
use crate::engine::transport::{Answer, TransportError};

/// How long an engine may take to the first token: reading a long prompt without a
/// GPU takes minutes. The deadline of the attempt is the agent's.
pub(super) const FIRST_TOKEN_TIMEOUT: Duration = Duration::from_secs(600);

/// How long an engine may be silent between two tokens.
const NEXT_TOKEN_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest event that is read. A token is some hundred bytes.
const EVENT_LIMIT: usize = 1 << 20;

/// The longest message of an engine that is repeated.
const MESSAGE_LIMIT: usize = 300;

/// Keys that every engine knows, besides the messages or the prompt.
const COMMON_KEYS: [&str; 8] = [
    "frequency_penalty",
    "logit_bias",
    "presence_penalty",
    "response_format",
    "seed",
    "stop",
    "temperature",
    "top_p",
];

/// Keys of a conversation that may call tools.
const TOOL_KEYS: [&str; 3] = ["parallel_tool_calls", "tool_choice", "tools"];

/// Keys that OpenAI's clients send and that say nothing to an engine, or that are set
/// here in any case.
const SET_OR_DROPPED_KEYS: [&str; 11] = [
    "encoding_format",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "model",
    "n",
    SHARE_KEY,
    "store",
    "stream",
    "stream_options",
    "user",
];

/// The key by which a consumer allows that others who allow it, too, share what the
/// engine remembers of prompts.
const SHARE_KEY: &str = "share_prefix_cache";

/// The most texts of one request for vectors.
const TEXTS_LIMIT: usize = 2048;

/// The longest answer that is read whole: as much as a job's output may have.
const DOCUMENT_LIMIT: usize = 1_000_000;

/// The kinds of request that a model's server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// A conversation: `messages`.
    Chat,
    /// A text to go on with: `prompt`.
    Completion,
    /// Texts to turn into vectors: `input`.
    Embedding,
}

impl RequestKind {
    /// Returns the path that such requests are made to.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
            Self::Embedding => "/v1/embeddings",
        }
    }

    /// Returns the key of what is asked.
    fn content_key(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completion => "prompt",
            Self::Embedding => "input",
        }
    }
}

/// A request as the agent has it.
#[derive(Debug, Clone)]
pub struct EngineRequest {
    /// What it asks for.
    pub kind: RequestKind,
    /// The consumer's own request: `messages`, `prompt` or `input`, and options.
    pub body: Value,
    /// The most tokens to produce; what the body says of that is not looked at.
    pub max_tokens: u32,
    /// Who asks, where that is known: what an engine remembers of a prompt is used for
    /// the same consumer only.
    pub consumer: Option<String>,
}

impl EngineRequest {
    /// Returns who asks, and whether they share what engines remember.
    pub(super) fn asker(&self) -> Asker {
        let shares = self.body.get(SHARE_KEY).and_then(Value::as_bool).unwrap_or(false);
        Asker { consumer: self.consumer.clone(), shares }
    }
}

/// Tokens counted by the engine, or the seconds of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens produced.
    pub output_tokens: u64,
    /// Tokens of the prompt that the engine still knew, where it says so.
    pub cached_tokens: u64,
    /// Seconds that a container ran; no other kind of work has them.
    pub seconds: Option<u64>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model was done, or produced a stop word.
    Stop,
    /// The most tokens or the end of the context were reached.
    Length,
    /// The caller cancelled.
    Cancelled,
}

impl Finish {
    /// Returns the word that `complete_attempt` knows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One thing that happened in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// More text, never empty.
    Delta {
        /// The text.
        text: String,
    },
    /// The end. Nothing follows.
    Done {
        /// Why it ended.
        finish: Finish,
        /// Tokens of the prompt; estimated when the answer was cut before the engine
        /// said.
        input_tokens: u64,
        /// Tokens produced; the deltas when the engine did not say.
        output_tokens: u64,
    },
}

/// Makes the body of a request to an engine. `model` is the name that the engine knows.
///
/// # Errors
/// [`EngineError::BadRequest`] for what no engine would take: no messages, a key that
/// is not on the list, more than one choice.
pub(super) fn shape(
    request: &EngineRequest,
    model: &str,
    entry: Option<&EngineEntry>,
    slot: Option<&TakenSlot>,
) -> Result<Bytes, EngineError> {
    let bad = |message: String| EngineError::BadRequest { message };
    let Value::Object(given) = &request.body else {
        return Err(bad("The request must be a JSON object.".to_owned()));
    };
    let content_key = request.kind.content_key();
    let content =
        given.get(content_key).ok_or_else(|| bad(format!("The request needs `{content_key}`.")))?;
    check_content(request.kind, content).map_err(bad)?;
    if given.get("n").is_some_and(|n| !n.is_null() && n != 1) {
        return Err(bad("Only one choice can be asked for: `n` must be 1.".to_owned()));
    }
    let none = BTreeSet::new();
    let own_keys = entry.map_or(&none, |entry| &entry.request_keys);
    let mut body = Map::new();
    body.insert(content_key.to_owned(), content.clone());
    for (key, value) in given {
        let for_tools = request.kind == RequestKind::Chat && TOOL_KEYS.contains(&key.as_str());
        if for_tools || COMMON_KEYS.contains(&key.as_str()) || own_keys.contains(key) {
            body.insert(key.clone(), value.clone());
        } else if key != content_key && !SET_OR_DROPPED_KEYS.contains(&key.as_str()) {
            return Err(bad(format!("The request's key `{key}` is not supported.")));
        }
    }
    if let Some(entry) = entry {
        body.extend(entry.request.clone());
    }
    body.insert("model".to_owned(), json!(model));
    if request.kind == RequestKind::Embedding {
        body.retain(|key, _| key == content_key || key == "model" || key == "dimensions");
        body.insert("encoding_format".to_owned(), json!("float"));
        return to_bytes(&body);
    }
    body.insert("max_tokens".to_owned(), json!(request.max_tokens));
    body.insert("stream".to_owned(), json!(true));
    body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
    if let Some(entry) = entry {
        match (entry.prefix_cache, slot) {
            (PrefixCache::Slots, Some(slot)) => {
                body.insert("id_slot".to_owned(), json!(slot.index));
                body.insert("cache_prompt".to_owned(), json!(slot.may_reuse));
            }
            // A server that somebody else started, with slots that are not ours to count.
            (PrefixCache::Slots, None) => {
                body.insert("cache_prompt".to_owned(), json!(false));
            }
            (PrefixCache::Salt, _) => {
                body.insert("cache_salt".to_owned(), json!(salt(&request.asker())));
            }
            (PrefixCache::Off | PrefixCache::Shared, _) => {}
        }
    }
    to_bytes(&body)
}

fn to_bytes(body: &Map<String, Value>) -> Result<Bytes, EngineError> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|error| EngineError::BadRequest { message: error.to_string() })
}

/// Returns the word under which an engine remembers a prompt: one for all who share,
/// else the consumer's own, else one that is never used again.
fn salt(asker: &Asker) -> String {
    match asker {
        Asker { shares: true, .. } => "shared".to_owned(),
        Asker { consumer: Some(consumer), .. } => format!("consumer:{consumer}"),
        Asker { consumer: None, .. } => format!("once:{:016x}", fastrand::u64(..)),
    }
}

/// Says what is wrong with the messages or the prompt. Only text is taken: anything
/// else would be fetched or decoded by the engine.
fn check_content(kind: RequestKind, content: &Value) -> Result<(), String> {
    if kind == RequestKind::Embedding {
        let is_text = |text: &Value| text.as_str().is_some_and(|text| !text.is_empty());
        return match content {
            text if is_text(text) => Ok(()),
            Value::Array(texts)
                if (1..=TEXTS_LIMIT).contains(&texts.len()) && texts.iter().all(is_text) =>
            {
                Ok(())
            }
            _ => Err(format!(
                "`input` must be a text that is not empty, or a list of at most {TEXTS_LIMIT}."
            )),
        };
    }
    if kind == RequestKind::Completion {
        return match content {
            Value::String(prompt) if !prompt.is_empty() => Ok(()),
            _ => Err("`prompt` must be a text that is not empty.".to_owned()),
        };
    }
    let Some(messages) = content.as_array().filter(|messages| !messages.is_empty()) else {
        return Err("`messages` must be a list that is not empty.".to_owned());
    };
    for message in messages {
        let role = message.get("role").and_then(Value::as_str);
        if !matches!(role, Some("system" | "developer" | "user" | "assistant" | "tool")) {
            let words = "The `role` of a message must be system, user, assistant or tool.";
            return Err(words.to_owned());
        }
        // A model that called tools may have said nothing else.
        let called = role == Some("assistant") && message.get("tool_calls").is_some();
        let is_text = match message.get("content") {
            Some(Value::String(_)) => true,
            Some(Value::Array(parts)) => {
                parts.iter().all(|part| part.get("type").is_some_and(|kind| kind == "text"))
            }
            None | Some(Value::Null) => called,
            _ => false,
        };
        if !is_text {
            return Err("The `content` of a message must be text.".to_owned());
        }
    }
    Ok(())
}

/// Estimates the tokens of a prompt from its bytes, for answers that were cut before
/// the engine counted them.
pub(super) fn estimate_input_tokens(request: &EngineRequest) -> u64 {
    fn text_bytes(value: &Value) -> usize {
        match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(text_bytes).sum(),
            Value::Object(map) => {
                ["content", "text"].iter().filter_map(|&key| map.get(key)).map(text_bytes).sum()
            }
            _ => 0,
        }
    }
    let bytes = request.body.get(request.kind.content_key()).map_or(0, text_bytes);
    u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX)
}

/// One event of the stream, of either kind of request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chunk {
    choices: Vec<Choice>,
    usage: Option<ChunkUsage>,
    timings: Option<Timings>,
    error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Choice {
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Delta {
    content: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct ChunkUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: u64,
}

/// llama.cpp's counts so far, with every token.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Timings {
    cache_n: u64,
    prompt_n: u64,
    predicted_n: u64,
}

/// The answer of an engine as it is produced. Dropping it closes the connection, by
/// which the engine stops.
#[derive(Debug)]
pub struct EngineStream {
    model: Arc<str>,
    /// Gone once the stream has ended.
    source: Option<Source>,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no end of line.
    searched: usize,
    cancel: CancellationToken,
    usage: Option<Usage>,
    estimated_input: u64,
    deltas: u64,
    calls: ToolCalls,
    finish: Option<Finish>,
}

/// What an unfinished stream holds on to.
#[derive(Debug)]
enum Source {
    /// An answer that comes as events.
    Events { answer: Answer, in_use: InUse },
    /// An answer that comes whole.
    Document { answer: Answer, in_use: InUse },
    /// A container that works for this request alone.
    Job(JobStream),
}

/// The answer to a request for vectors, as far as it is used.
#[derive(Debug, Deserialize)]
struct Vectors {
    data: Vec<Vector>,
    #[serde(default)]
    usage: Option<ChunkUsage>,
}

#[derive(Debug, Deserialize)]
struct Vector {
    index: u64,
    embedding: Vec<f64>,
}

impl EngineStream {
    /// Begins to read an answer whose head has arrived with status 200.
    pub(super) fn new(
        in_use: InUse,
        answer: Answer,
        kind: RequestKind,
        cancel: CancellationToken,
        estimated_input: u64,
    ) -> Self {
        let model = in_use.model_name();
        let source = match kind {
            RequestKind::Chat | RequestKind::Completion => Source::Events { answer, in_use },
            RequestKind::Embedding => Source::Document { answer, in_use },
        };
        Self { source: Some(source), ..Self::empty(model, cancel, estimated_input) }
    }

    /// Begins to read what a container writes.
    pub(super) fn job(image: &str, job: JobStream) -> Self {
        let empty = Self::empty(image.into(), CancellationToken::new(), 0);
        Self { source: Some(Source::Job(job)), ..empty }
    }

    /// Makes the stream of a request that was cancelled before its answer began.
    pub(super) fn cancelled(model: Arc<str>) -> Self {
        let cancel = CancellationToken::new();
        cancel.cancel();
        Self { finish: Some(Finish::Cancelled), ..Self::empty(model, cancel, 0) }
    }

    fn empty(model: Arc<str>, cancel: CancellationToken, estimated_input: u64) -> Self {
        Self {
            model,
            source: None,
            buffer: BytesMut::new(),
            searched: 0,
            cancel,
            usage: None,
            estimated_input,
            deltas: 0,
            calls: ToolCalls::default(),
            finish: None,
        }
    }

    /// Returns the tokens so far: the engine's own count, or what can be seen.
    #[must_use]
    pub fn usage(&self) -> Usage {
        if let Some(Source::Job(job)) = &self.source {
            return job.usage();
        }
        match self.usage {
            Some(usage) if usage.seconds.is_some() => usage,
            Some(usage) => Usage { output_tokens: usage.output_tokens.max(self.deltas), ..usage },
            None => Usage {
                input_tokens: self.estimated_input,
                output_tokens: self.deltas,
                ..Usage::default()
            },
        }
    }

    /// Returns the next event; `None` after [`EngineEvent::Done`] or an error.
    ///
    /// May be dropped and called again: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<EngineEvent, EngineError>> {
        if self.source.is_none() {
            // Only the end of a stream that never began is still to be told.
            return self.finish.take().map(|finish| Ok(self.done(finish)));
        }
        let event = match &mut self.source {
            Some(Source::Job(job)) => {
                let event = job.next().await?;
                if !matches!(event, Ok(EngineEvent::Delta { .. })) {
                    self.usage = Some(job.usage());
                }
                event
            }
            Some(Source::Document { .. }) => self.read_document().await,
            _ => self.read_event().await,
        };
        if !matches!(event, Ok(EngineEvent::Delta { .. })) {
            self.close(event.is_ok());
        }
        Some(event)
    }

    async fn read_event(&mut self) -> Result<EngineEvent, EngineError> {
        loop {
            // A cancelled answer ends here even when more of it has already arrived.
            if self.cancel.is_cancelled() {
                return Ok(self.done(Finish::Cancelled));
            }
            while let Some(line) = self.take_line()? {
                if let Some(event) = self.read_line(&line)? {
                    return Ok(event);
                }
            }
            let waited = if self.deltas == 0 { FIRST_TOKEN_TIMEOUT } else { NEXT_TOKEN_TIMEOUT };
            let Some(Source::Events { answer, .. }) = &mut self.source else {
                unreachable!("events are read of answers that come as events");
            };
            let received = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Ok(self.done(Finish::Cancelled)),
                received = tokio::time::timeout(waited, answer.next()) => received,
            };
            match received {
                Ok(Ok(Some(data))) => self.buffer.extend_from_slice(&data),
                // Some servers end after the last event without saying so.
                Ok(Ok(None)) => {
                    return match self.finish {
                        Some(finish) => Ok(self.done(finish)),
                        None => Err(self.died(&TransportError::Closed).await),
                    };
                }
                Ok(Err(error)) => return Err(self.died(&error).await),
                Err(_) => return Err(EngineError::Stalled { model: self.name(), waited }),
            }
        }
    }

    /// Reads an answer that comes whole, as one delta and then the end. May be dropped
    /// and called again.
    async fn read_document(&mut self) -> Result<EngineEvent, EngineError> {
        if let Some(finish) = self.finish {
            return Ok(self.done(finish));
        }
        loop {
            let Some(Source::Document { answer, .. }) = &mut self.source else {
                unreachable!("documents are read of answers that come whole");
            };
            let received = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Ok(self.done(Finish::Cancelled)),
                received = tokio::time::timeout(FIRST_TOKEN_TIMEOUT, answer.next()) => received,
            };
            match received {
                Ok(Ok(Some(data))) => self.buffer.extend_from_slice(&data),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(self.died(&error).await),
                Err(_) => {
                    let waited = FIRST_TOKEN_TIMEOUT;
                    return Err(EngineError::Stalled { model: self.name(), waited });
                }
            }
            if self.buffer.len() > DOCUMENT_LIMIT {
                return Err(EngineError::OutputRefused {
                    reason: format!(
                        "The vectors are larger than {DOCUMENT_LIMIT} bytes. Ask for fewer texts \
                         at once."
                    ),
                });
            }
        }
        let vectors: Vectors = serde_json::from_slice(&self.buffer)
            .map_err(|_| self.protocol("it sent vectors of no known shape"))?;
        let mut data = vectors.data;
        data.sort_by_key(|vector| vector.index);
        if data.is_empty() || data.iter().any(|vector| vector.embedding.is_empty()) {
            return Err(self.protocol("it sent no vector"));
        }
        let data: Vec<&[f64]> = data.iter().map(|vector| vector.embedding.as_slice()).collect();
        let text = json!(data).to_string();
        if let Some(usage) = vectors.usage {
            self.usage = Some(Usage { input_tokens: usage.prompt_tokens, ..Usage::default() });
        }
        self.finish = Some(Finish::Stop);
        Ok(EngineEvent::Delta { text })
    }

    /// Takes one whole line out of the buffer.
    fn take_line(&mut self) -> Result<Option<Bytes>, EngineError> {
        let end = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
        let Some(end) = end.map(|end| self.searched + end) else {
            self.searched = self.buffer.len();
            if self.searched > EVENT_LIMIT {
                return Err(self.protocol("it sent an event that is too long"));
            }
            return Ok(None);
        };
        let line = self.buffer.split_to(end).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        Ok(Some(line))
    }

    /// Reads one line of the stream; `None` when it says nothing to the caller.
    fn read_line(&mut self, line: &[u8]) -> Result<Option<EngineEvent>, EngineError> {
        let line = line.trim_ascii();
        let data = match line.split_at_checked(5) {
            Some((b"data:", data)) => data.trim_ascii_start(),
            // llama.cpp gives errors of a started stream a field of their own.
            Some((b"error", rest)) => {
                let message = rest.strip_prefix(b":").unwrap_or(rest);
                return Err(self.failed(&serde_json::from_slice(message).unwrap_or(Value::Null)));
            }
            // Comments and empty lines.
            _ => return Ok(None),
        };
        if data == b"[DONE]" {
            let finish = self.finish.unwrap_or(Finish::Stop);
            return Ok(Some(self.done(finish)));
        }
        let chunk: Chunk = serde_json::from_slice(data)
            .map_err(|_| self.protocol("it sent an event that is not JSON of a known shape"))?;
        if let Some(error) = &chunk.error {
            return Err(self.failed(error));
        }
        if let Some(timings) = chunk.timings {
            self.usage = Some(Usage {
                input_tokens: timings.cache_n + timings.prompt_n,
                output_tokens: timings.predicted_n,
                cached_tokens: timings.cache_n,
                seconds: None,
            });
        }
        if let Some(usage) = chunk.usage {
            let known = self.usage.map_or(0, |known| known.cached_tokens);
            self.usage = Some(Usage {
                input_tokens: usage.prompt_tokens,
                output_tokens: usage.completion_tokens,
                cached_tokens: known.max(usage.prompt_tokens_details.cached_tokens),
                seconds: None,
            });
        }
        let Some(mut choice) = chunk.choices.into_iter().next() else { return Ok(None) };
        let calls = choice.delta.as_mut().and_then(|delta| delta.tool_calls.take());
        if !self.calls.add(calls.unwrap_or_default()) {
            return Err(self.protocol("it calls more tools than an answer may"));
        }
        match choice.finish_reason.as_deref() {
            None | Some("") => {}
            Some("length") => self.finish = Some(Finish::Length),
            Some(_) => self.finish = Some(Finish::Stop),
        }
        let ended = choice.finish_reason.is_some_and(|reason| !reason.is_empty());
        let mut text = choice.delta.and_then(|delta| delta.content).or(choice.text);
        if let Some(text) = &mut text
            && text.contains(TOOL_CALLS_MARK)
        {
            text.retain(|character| character != TOOL_CALLS_MARK);
        }
        if ended && let Some(calls) = self.calls.take() {
            text.get_or_insert_default().push_str(&calls);
        }
        match text {
            Some(text) if !text.is_empty() => {
                self.deltas += 1;
                Ok(Some(EngineEvent::Delta { text }))
            }
            _ => Ok(None),
        }
    }

    fn done(&self, finish: Finish) -> EngineEvent {
        let Usage { input_tokens, output_tokens, .. } = self.usage();
        EngineEvent::Done { finish, input_tokens, output_tokens }
    }

    /// Ends the stream. A connection whose answer was read to its end is kept; any
    /// other is closed by dropping it.
    fn close(&mut self, complete: bool) {
        self.finish = None;
        match self.source.take() {
            Some(Source::Events { answer, in_use } | Source::Document { answer, in_use })
                if complete && !self.cancel.is_cancelled() =>
            {
                in_use.recycle(answer);
            }
            _ => {}
        }
    }

    /// Finds out why a connection ended in the middle of an answer.
    async fn died(&self, error: &TransportError) -> EngineError {
        match &self.source {
            Some(Source::Events { in_use, .. } | Source::Document { in_use, .. }) => {
                in_use.explain_death(error).await
            }
            Some(Source::Job(_)) | None => {
                EngineError::Unreachable { model: self.name(), reason: error.to_string() }
            }
        }
    }

    fn failed(&self, error: &Value) -> EngineError {
        failure(&self.model, 500, error)
    }

    fn protocol(&self, reason: &str) -> EngineError {
        EngineError::Protocol { model: self.name(), reason: reason.to_owned() }
    }

    fn name(&self) -> String {
        self.model.as_ref().to_owned()
    }
}

/// Makes an error of what an engine said instead of an answer.
pub(super) fn failure(model: &str, status: u16, body: &Value) -> EngineError {
    let error = body.get("error").unwrap_or(body);
    let message = error.get("message").and_then(Value::as_str).unwrap_or("it gave no reason");
    let message: String = message.chars().take(MESSAGE_LIMIT).collect();
    let status = error
        .get("code")
        .and_then(Value::as_u64)
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..600).contains(code))
        .unwrap_or(status);
    if (400..500).contains(&status) && !matches!(status, 401 | 403 | 404 | 408 | 429) {
        return EngineError::BadRequest {
            message: format!("The engine refused the request: {message}"),
        };
    }
    EngineError::Failed { model: model.to_owned(), status, message }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::engine::catalogue::Catalogue;

    fn chat(body: Value) -> EngineRequest {
        EngineRequest { kind: RequestKind::Chat, body, max_tokens: 7, consumer: None }
    }

    fn stream() -> EngineStream {
        EngineStream::empty("m".into(), CancellationToken::new(), 3)
    }

    fn events(input: &str) -> Vec<Result<EngineEvent, EngineError>> {
        let mut stream = stream();
        let mut events = Vec::new();
        stream.buffer.extend_from_slice(input.as_bytes());
        while let Some(line) = stream.take_line().unwrap() {
            if let Some(event) = stream.read_line(&line).transpose() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn requests_carry_listed_keys_and_ours() {
        let catalogue = Catalogue::built_in();
        let request = chat(json!({
            "messages": [{"role": "user", "content": "hi"}],
            "model": "other", "max_tokens": 9999, "stream": false, "user": "x",
            "temperature": 0.5, "top_k": 3,
        }));
        let body = shape(&request, "smollm2:135m", catalogue.get("llama.cpp"), None).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["model"], "smollm2:135m");
        assert_eq!(body["max_tokens"], 7);
        assert_eq!(body["stream"], true);
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
        assert_eq!(body["temperature"], 0.5);
        assert_eq!(body["top_k"], 3);
        assert_eq!(body["timings_per_token"], true);
        assert!(body.get("user").is_none());
    }

    #[test]
    fn requests_that_no_engine_would_take_are_the_consumers_fault() {
        let hello = json!([{"role": "user", "content": "hi"}]);
        for (body, wanted) in [
            (json!([]), "must be a JSON object"),
            (json!({}), "needs `messages`"),
            (json!({"messages": []}), "list that is not empty"),
            (json!({"messages": [{"role": "function", "content": "x"}]}), "`role`"),
            (json!({"messages": [{"role": "user", "content": null}]}), "text"),
            (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "text"),
            (json!({"messages": hello, "n": 2}), "`n` must be 1"),
            (json!({"messages": hello, "id_slot": 1}), "`id_slot` is not supported"),
            (json!({"messages": hello, "cache_prompt": true}), "`cache_prompt` is not supported"),
            (json!({"messages": hello, "cache_salt": "x"}), "`cache_salt` is not supported"),
            (json!({"messages": hello, "top_k": 1}), "`top_k` is not supported"),
        ] {
            let error = shape(&chat(body), "m", None, None).unwrap_err();
            assert_eq!(error.attempt_code(), "bad_request");
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }

    #[test]
    fn events_become_text_and_an_end() {
        let input = concat!(
            ": comment\n\n",
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\r\n\r\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"Hé\"}}]}\n\n",
            "data:{\"choices\":[{\"text\":\"!\"}]}\n\n",
            "data: {\"choices\":[{\"finish_reason\":\"length\",\"delta\":{}}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2}}\n\n",
            "data: [DONE]\n\n",
        );
        let found: Vec<_> = events(input).into_iter().map(Result::unwrap).collect();
        assert_eq!(
            found,
            [
                EngineEvent::Delta { text: "Hé".to_owned() },
                EngineEvent::Delta { text: "!".to_owned() },
                EngineEvent::Done { finish: Finish::Length, input_tokens: 4, output_tokens: 2 },
            ]
        );
    }

    #[test]
    fn calls_of_tools_follow_the_text_behind_their_mark() {
        let input = concat!(
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\\u001eb\"}}]}\n",
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"x\",\"function\":",
            "{\"name\":\"f\",\"arguments\":\"{\"}}]}}]}\n",
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":",
            "{\"arguments\":\"}\"}}]}}]}\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n",
        );
        let found: Vec<_> = events(input).into_iter().map(Result::unwrap).collect();
        let text = |text: &str| EngineEvent::Delta { text: text.to_owned() };
        let call = r#"[{"function":{"arguments":"{}","name":"f"},"id":"x","type":"function"}]"#;
        assert_eq!(found, [text("ab"), text(&format!("{TOOL_CALLS_MARK}{call}"))]);
    }

    #[test]
    fn lines_may_arrive_in_any_pieces() {
        let line = "data: {\"choices\":[{\"text\":\"abc\"}]}\n";
        for cut in 0..line.len() {
            let mut stream = stream();
            stream.buffer.extend_from_slice(&line.as_bytes()[..cut]);
            assert!(stream.take_line().unwrap().is_none());
            stream.buffer.extend_from_slice(&line.as_bytes()[cut..]);
            let line = stream.take_line().unwrap().unwrap();
            assert!(matches!(stream.read_line(&line), Ok(Some(EngineEvent::Delta { .. }))));
            assert!(stream.buffer.is_empty());
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut stream = stream();
        stream.buffer.resize(EVENT_LIMIT + 1, b'x');
        assert!(matches!(stream.take_line(), Err(EngineError::Protocol { .. })));
    }

    #[test]
    fn errors_inside_a_stream_are_told() {
        let input = "data: {\"error\":{\"code\":500,\"message\":\"broken\"}}\n";
        let error = events(input).remove(0).unwrap_err();
        assert!(
            matches!(&error, EngineError::Failed { status: 500, message, .. } if message == "broken")
        );
        let error =
            events("error: {\"code\":400,\"message\":\"too long\"}\n").remove(0).unwrap_err();
        assert_eq!(error.attempt_code(), "bad_request");
    }

    #[test]
    fn vectors_are_asked_for_alone() {
        let catalogue = Catalogue::built_in();
        let ask = |input: Value| EngineRequest {
            kind: RequestKind::Embedding,
            body: json!({"input": input, "temperature": 1, "model": "x"}),
            max_tokens: 0,
            consumer: None,
        };
        let entry = catalogue.get("llama.cpp-embedding");
        let body = shape(&ask(json!(["a", "b"])), "m", entry, None).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let wanted = json!({"input": ["a", "b"], "model": "m", "encoding_format": "float"});
        assert_eq!(body, wanted);
        for bad in
            [json!(""), json!([]), json!([""]), json!([1]), json!({}), json!(vec!["x"; 2049])]
        {
            let error = shape(&ask(bad), "m", entry, None).unwrap_err();
            assert!(error.to_string().contains("`input`"), "{error}");
        }
    }

    #[test]
    fn engines_are_told_whose_prompts_they_may_remember() {
        let catalogue = Catalogue::built_in();
        let asked = |consumer: Option<&str>, shares: bool, engine: &str| -> Value {
            let mut request = chat(json!({"messages": [{"role": "user", "content": "hi"}]}));
            request.consumer = consumer.map(str::to_owned);
            request.body["share_prefix_cache"] = json!(shares);
            let body = shape(&request, "m", catalogue.get(engine), None).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert!(body.get("share_prefix_cache").is_none());
            body
        };
        assert_eq!(asked(Some("a"), true, "llama.cpp")["cache_prompt"], false);
        let salt = |consumer, shares| asked(consumer, shares, "vllm")["cache_salt"].clone();
        assert_eq!(salt(Some("a"), false), salt(Some("a"), false));
        assert_ne!(salt(Some("a"), false), salt(Some("b"), false));
        assert_ne!(salt(Some("a"), false), salt(Some("a"), true));
        assert_eq!(salt(Some("a"), true), salt(Some("b"), true));
        assert_ne!(salt(None, false), salt(None, false));
        assert!(asked(Some("a"), false, "sglang").get("cache_salt").is_none());
    }

    #[test]
    fn prompts_are_estimated_from_their_text() {
        let request = chat(json!({"messages": [{"role": "user", "content": "12345678"}]}));
        assert_eq!(estimate_input_tokens(&request), 2);
    }
}
