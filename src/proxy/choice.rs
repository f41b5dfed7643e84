//! One choice of an answer: a job that is read while it is written.
//!
//! Whoever stops reading (a client that hangs up, a sibling that failed) drops the
//! [`Choice`], and with it goes the order to cancel its job: nobody waits for it any
//! more, and it would cost money.

use serde_json::Value;
use tokio::sync::mpsc;

use super::error::ApiError;
use super::market::Market;
use crate::control::job_stream::{JobEvent, JobStream, StreamTiming};
use crate::control::rpc::{Job, JobState, SubmitJob, Usage};
use crate::engine::TOOL_CALLS_MARK;
use crate::id::JobId;

/// A piece of a choice.
#[derive(Debug)]
pub(super) enum Part {
    /// More text, never empty.
    Text(String),
    /// The end.
    End {
        /// Why it ended, in OpenAI's words.
        finish: &'static str,
        /// The tools that the model calls.
        calls: Vec<Value>,
        /// What it used.
        usage: Usage,
    },
}

/// A job that somebody waits for.
#[derive(Debug)]
pub(super) struct Choice {
    stream: JobStream,
    guard: CancelGuard,
    /// The model may call tools.
    tools: bool,
    /// What came after the mark of the calls of tools.
    calls: Option<String>,
}

/// Cancels a job when it is dropped before the job has ended.
#[derive(Debug)]
struct CancelGuard {
    job: Option<JobId>,
    orders: mpsc::UnboundedSender<JobId>,
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            // Without a receiver the proxy has ended, and the job's deadline remains.
            let _gone = self.orders.send(job);
        }
    }
}

impl Choice {
    /// Submits a job.
    ///
    /// # Errors
    /// The control plane refuses it, or is away.
    pub(super) async fn open(
        market: &Market,
        job: &SubmitJob,
        tools: bool,
    ) -> Result<Self, ApiError> {
        // From before it is sent: whether it arrived is not known until it is answered.
        let mut guard = CancelGuard { job: Some(job.id), orders: market.orders.clone() };
        let timing = StreamTiming::default();
        match JobStream::submit(&market.rpc, market.realtime.as_ref(), job, timing).await {
            Ok(stream) => Ok(Self { stream, guard, tools, calls: None }),
            Err(error) => {
                if !error.is_passing() {
                    // There is no job.
                    guard.job = None;
                }
                Err(error.into())
            }
        }
    }

    /// Returns the next piece; nothing follows [`Part::End`] or an error. Safe to
    /// cancel.
    ///
    /// # Errors
    /// The job fails, or starts anew after a part of it was given out.
    pub(super) async fn next(&mut self) -> Result<Part, ApiError> {
        loop {
            match self.stream.next().await? {
                Some(JobEvent::Text(text)) => {
                    if let Some(text) = self.take_text(text) {
                        return Ok(Part::Text(text));
                    }
                }
                // What was sent cannot be taken back.
                Some(JobEvent::Instead(_text)) => return Err(ApiError::restarted()),
                Some(JobEvent::Changed(_)) => {}
                Some(JobEvent::Away(reason)) => {
                    tracing::warn!(job = %self.stream.job().id, reason, "still waiting");
                }
                Some(JobEvent::Ended(job)) => {
                    self.guard.job = None;
                    return self.end(&job);
                }
                None => return Err(ApiError::stopping()),
            }
        }
    }

    /// Reads to the end and returns the whole text with its end.
    ///
    /// # Errors
    /// The job fails.
    pub(super) async fn finish(&mut self) -> Result<(String, Part), ApiError> {
        let job = self.stream.finish().await?;
        self.guard.job = None;
        self.calls = None;
        let whole = job.output.clone().unwrap_or_default();
        let text = self.take_text(whole).unwrap_or_default();
        Ok((text, self.end(&job)?))
    }

    /// Keeps what follows the mark of calls, and returns what is text.
    fn take_text(&mut self, mut text: String) -> Option<String> {
        if !self.tools {
            return Some(text);
        }
        if let Some(calls) = &mut self.calls {
            calls.push_str(&text);
            return None;
        }
        if let Some(at) = text.find(TOOL_CALLS_MARK) {
            self.calls = Some(text[at + TOOL_CALLS_MARK.len_utf8()..].to_owned());
            text.truncate(at);
        }
        (!text.is_empty()).then_some(text)
    }

    fn end(&self, job: &Job) -> Result<Part, ApiError> {
        if job.state != JobState::Completed {
            return Err(ApiError::of_job(job));
        }
        let calls = match &self.calls {
            Some(calls) => serde_json::from_str::<Vec<Value>>(calls).map_err(|_not_json| {
                ApiError::strange_answer("The node's calls of tools cannot be read.")
            })?,
            None => Vec::new(),
        };
        let finish = match job.finish.as_deref() {
            Some("length") => "length",
            _ if !calls.is_empty() => "tool_calls",
            _ => "stop",
        };
        Ok(Part::End { finish, calls, usage: job.usage.unwrap_or_default() })
    }
}
