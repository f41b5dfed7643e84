//! The stream of an engine's answer, in OpenAI's protocol.
//!
//! [`EngineStream`] reads the answer's server-sent events one at a time and holds no
//! more than one of them, whatever the length of the answer. What was asked is
//! [`super::request`]'s.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::engine::container_job::JobStream;
use crate::engine::error::EngineError;
use crate::engine::request::RequestKind;
use crate::engine::supervised::InUse;
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

/// The longest answer that is read whole: as much as a job's output may have.
const DOCUMENT_LIMIT: usize = 1_000_000;

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
}
