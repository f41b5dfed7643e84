//! `/v1/chat/completions` and `/v1/completions`: whole, or as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use futures_util::stream::{BoxStream, SelectAll, StreamExt as _, select_all, unfold};
use serde_json::{Value, json};

use super::choice::{Choice, Part};
use super::error::ApiError;
use super::market::Market;
use super::request::{Form, TextRequest};
use super::{JSON, now, with_job};
use crate::control::rpc::Usage;
use crate::id::JobId;

/// How long a stream's head waits for the first piece, so that a job that fails at
/// once is answered with the status that fits.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// How long a stream says nothing before a comment shows that it lives, and whether
/// the client does.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What every object of one answer says.
struct Heading {
    id: String,
    created: i64,
    model: String,
    form: Form,
}

impl Heading {
    fn new(request: &TextRequest, job: JobId) -> Self {
        let prefix = match request.form {
            Form::Chat => "chatcmpl",
            Form::Completion => "cmpl",
        };
        Self {
            id: format!("{prefix}-{job}"),
            created: now(),
            model: request.model.clone(),
            form: request.form,
        }
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }
}

/// Answers a request for text.
///
/// # Errors
/// It is refused, or fails before anything was sent.
pub(super) async fn answer(market: &Market, request: TextRequest) -> Result<Response, ApiError> {
    let first = request.jobs.first().map(|job| job.id).ok_or_else(ApiError::stopping)?;
    let opening = request.jobs.iter().map(|job| Choice::open(market, job, request.tools));
    // One that is refused drops the others, which cancels them.
    let choices = try_join_all(opening).await?;
    let heading = Heading::new(&request, first);
    let response = if request.stream {
        stream(heading, choices, request.include_usage).await?
    } else {
        whole(&heading, choices).await?
    };
    Ok(with_job(response, first))
}

/// Waits for all choices.
async fn whole(heading: &Heading, mut choices: Vec<Choice>) -> Result<Response, ApiError> {
    let finished = try_join_all(choices.iter_mut().map(Choice::finish)).await?;
    let mut total = Usage::default();
    let mut objects = Vec::with_capacity(finished.len());
    for (index, (text, end)) in finished.into_iter().enumerate() {
        let Part::End { finish, calls, usage } = end else {
            unreachable!("a finished choice ends with its end");
        };
        add(&mut total, usage);
        objects.push(match heading.form {
            Form::Chat => {
                let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
                if !calls.is_empty() {
                    message["tool_calls"] = json!(calls);
                    if text.is_empty() {
                        message["content"] = Value::Null;
                    }
                }
                json!({
                    "index": index, "message": message, "logprobs": null, "finish_reason": finish,
                })
            }
            Form::Completion => {
                json!({ "index": index, "text": text, "logprobs": null, "finish_reason": finish })
            }
        });
    }
    let object = match heading.form {
        Form::Chat => "chat.completion",
        Form::Completion => "text_completion",
    };
    let mut body = heading.object(object, json!(objects));
    body["usage"] = usage_object(total);
    Ok(([(header::CONTENT_TYPE, JSON)], body.to_string()).into_response())
}

/// A choice's piece with its number.
type Numbered = (usize, Result<Part, ApiError>);

/// An answer while it is streamed.
struct Events {
    heading: Heading,
    parts: SelectAll<BoxStream<'static, Numbered>>,
    /// Events that are due.
    ready: VecDeque<Bytes>,
    include_usage: bool,
    usage: Usage,
    over: bool,
}

async fn stream(
    heading: Heading,
    choices: Vec<Choice>,
    include_usage: bool,
) -> Result<Response, ApiError> {
    let count = choices.len();
    let parts = select_all(choices.into_iter().enumerate().map(numbered));
    let mut events = Events {
        heading,
        parts,
        ready: VecDeque::new(),
        include_usage,
        usage: Usage::default(),
        over: false,
    };
    if events.heading.form == Form::Chat {
        for index in 0..count {
            events.push_choice(index, json!({ "role": "assistant", "content": "" }), None);
        }
    }
    match tokio::time::timeout(HEAD_PATIENCE, events.parts.next()).await {
        Ok(Some((_index, Err(error)))) => return Err(error),
        Ok(Some((index, Ok(part)))) => events.take(index, part),
        Ok(None) => events.finish(),
        Err(_elapsed) => {}
    }
    let body = unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        Some((Ok::<_, Infallible>(bytes), events))
    });
    let mut response = Body::from_stream(body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Turns a choice into the stream of its pieces, which ends after its end or an
/// error.
fn numbered((index, choice): (usize, Choice)) -> BoxStream<'static, Numbered> {
    unfold(Some(choice), move |choice| async move {
        let mut choice = choice?;
        let part = choice.next().await;
        let goes_on = matches!(part, Ok(Part::Text(_)));
        Some(((index, part), goes_on.then_some(choice)))
    })
    .boxed()
}

impl Events {
    /// Returns the next event; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            match tokio::time::timeout(KEEP_ALIVE, self.parts.next()).await {
                Ok(Some((index, Ok(part)))) => self.take(index, part),
                Ok(Some((_index, Err(error)))) => {
                    self.over = true;
                    // Nobody reads the other choices any more.
                    self.parts.clear();
                    self.push(&error.body());
                }
                Ok(None) => self.finish(),
                Err(_elapsed) => return Some(Bytes::from_static(b": waiting\n\n")),
            }
        }
    }

    fn take(&mut self, index: usize, part: Part) {
        match part {
            Part::Text(text) => match self.heading.form {
                Form::Chat => self.push_choice(index, json!({ "content": text }), None),
                Form::Completion => self.push_choice(index, json!(text), None),
            },
            Part::End { finish, calls, usage } => {
                add(&mut self.usage, usage);
                if !calls.is_empty() {
                    let calls: Vec<Value> = calls
                        .into_iter()
                        .enumerate()
                        .map(|(number, mut call)| {
                            if let Value::Object(call) = &mut call {
                                call.insert("index".to_owned(), json!(number));
                            }
                            call
                        })
                        .collect();
                    self.push_choice(index, json!({ "tool_calls": calls }), None);
                }
                let nothing = match self.heading.form {
                    Form::Chat => json!({}),
                    Form::Completion => json!(""),
                };
                self.push_choice(index, nothing, Some(finish));
            }
        }
    }

    /// Adds what follows the last choice.
    fn finish(&mut self) {
        self.over = true;
        if self.include_usage {
            let mut chunk = self.heading.object(self.object(), json!([]));
            chunk["usage"] = usage_object(self.usage);
            self.push(&chunk);
        }
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
    }

    fn push_choice(&mut self, index: usize, content: Value, finish: Option<&str>) {
        let key = match self.heading.form {
            Form::Chat => "delta",
            Form::Completion => "text",
        };
        let choice =
            json!({ "index": index, key: content, "logprobs": null, "finish_reason": finish });
        let mut chunk = self.heading.object(self.object(), json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        self.push(&chunk);
    }

    fn object(&self) -> &'static str {
        match self.heading.form {
            Form::Chat => "chat.completion.chunk",
            Form::Completion => "text_completion",
        }
    }

    fn push(&mut self, event: &Value) {
        self.ready.push_back(Bytes::from(format!("data: {event}\n\n")));
    }
}

fn add(total: &mut Usage, usage: Usage) {
    total.input_tokens = total.input_tokens.saturating_add(usage.input_tokens);
    total.output_tokens = total.output_tokens.saturating_add(usage.output_tokens);
}

fn usage_object(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens.saturating_add(usage.output_tokens),
    })
}
