//! A job on the screen while it is written: what `run` and `job logs` share.

use std::io;

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Output;
use crate::command_error::{CommandError, Kind};
use crate::control::job_stream::{JobEvent, JobStream, StreamMeasure, open_realtime};
use crate::control::realtime::Realtime;
use crate::control::rpc::{AttemptState, Job, JobState, Rpc};

/// Ctrl-C and the request to end.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Listens from now on.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one. Safe to cancel.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Opens the socket; without one the job is polled.
pub(super) fn open_socket(rpc: &Rpc, shutdown: &CancellationToken) -> Option<Realtime> {
    let session = rpc.session()?;
    match open_realtime(session, shutdown.clone()) {
        Ok(realtime) => Some(realtime),
        Err(error) => {
            tracing::warn!(error = %error, "no realtime, the job is polled");
            None
        }
    }
}

/// Says how the job ended.
pub(super) fn conclude(
    stream: &JobStream,
    screen: &Screen,
    interrupted: bool,
) -> Result<(), CommandError> {
    let job = stream.job();
    let measure = stream.measure();
    if screen.output.is_json() {
        screen.output.object(&json!({"event": "end", "job": job, "measure": measure}))?;
    } else {
        screen.output.talk(&summary(job, &measure));
    }
    outcome(job, interrupted)
}

/// Turns the end of a job into success or failure.
fn outcome(job: &Job, interrupted: bool) -> Result<(), CommandError> {
    let reason = |otherwise: &str| {
        job.error.as_ref().map_or_else(|| otherwise.to_owned(), |reason| reason.message.clone())
    };
    let failure = match job.state {
        JobState::Completed => return Ok(()),
        JobState::Cancelled if interrupted => {
            let usage = job.usage.unwrap_or_default();
            let cost = job.cost.unwrap_or_default();
            let delivered = match usage.seconds {
                Some(seconds) => format!("It ran for {seconds} s"),
                None => format!("{} tokens were delivered", usage.output_tokens),
            };
            CommandError::new(
                Kind::Interrupted,
                format!("Cancelled. {delivered} and {cost} was charged."),
            )
        }
        JobState::Cancelled => {
            CommandError::new(Kind::JobFailed, format!("The job was cancelled. {}", reason("")))
        }
        JobState::Expired => CommandError::new(
            Kind::JobFailed,
            format!("The job expired. {}", reason("Nothing was charged.")),
        )
        .hint("Give it more time with --deadline, or see what is online: infernet model ls"),
        _ => CommandError::new(
            Kind::JobFailed,
            format!("The job failed. {}", reason("No reason was given.")),
        )
        .hint(format!("See its attempts: infernet job show {}", job.id)),
    };
    let word = match &job.error {
        Some(reason) => reason.code.clone(),
        None => job.state.as_str().to_owned(),
    };
    Err(failure.word(word))
}

/// Returns one line on who answered, how fast and at what cost.
fn summary(job: &Job, measure: &StreamMeasure) -> String {
    let mut parts = Vec::new();
    if let Some(attempt) = &job.attempt {
        parts.push(attempt.node.name.clone());
    }
    if let Some(usage) = job.usage {
        parts.push(usage.to_string());
        if measure.streamed
            && let Some(first) = measure.first_text_ms
        {
            parts.push(format!("first after {:.2} s", first / 1000.0));
        }
        if let Some(speed) = measure.tokens_per_second(usage.output_tokens) {
            parts.push(format!("{speed:.1} tokens/s"));
        }
    }
    if let Some(cost) = job.cost {
        parts.push(format!("cost {cost}"));
    }
    parts.push(format!("job {}", job.id));
    parts.join(", ")
}

/// Where a job's events are shown.
pub(super) struct Screen {
    pub(super) output: Output,
    /// The answer is printed when it is whole.
    whole: bool,
    /// The last thing on stdout is not a newline.
    open_line: bool,
    /// Text is on stdout that a later attempt may make void.
    printed: bool,
}

impl Screen {
    /// Shows events as they come, or with `whole` the answer at its end.
    pub(super) fn new(output: Output, whole: bool) -> Self {
        Self { output, whole, open_line: false, printed: false }
    }

    /// Shows an event.
    pub(super) fn show(&mut self, event: JobEvent) -> io::Result<()> {
        if self.output.is_json() {
            return self.show_object(event);
        }
        match event {
            JobEvent::Text(text) if !self.whole => self.print(&text),
            JobEvent::Instead(text) if !self.whole => {
                if self.printed {
                    self.close_line()?;
                    self.output.talk("What stands above is void: the answer starts anew.");
                }
                self.print(&text)
            }
            JobEvent::Text(_) | JobEvent::Instead(_) => Ok(()),
            JobEvent::Changed(job) => {
                if let Some(line) = talk(&job) {
                    self.close_line()?;
                    self.output.talk(&line);
                }
                Ok(())
            }
            JobEvent::Away(reason) => {
                self.close_line()?;
                self.output.talk(&format!("{reason} Still waiting."));
                Ok(())
            }
            JobEvent::Ended(job) => {
                if self.whole
                    && let Some(text) = &job.output
                {
                    self.print(text)?;
                }
                self.close_line()
            }
        }
    }

    fn show_object(&mut self, event: JobEvent) -> io::Result<()> {
        match event {
            JobEvent::Text(text) if !self.whole => {
                self.output.object(&json!({"event": "text", "text": text}))
            }
            JobEvent::Instead(text) if !self.whole => {
                self.output.object(&json!({"event": "instead", "text": text}))
            }
            JobEvent::Changed(job) => self.output.object(&json!({"event": "state", "job": job})),
            JobEvent::Away(reason) => {
                self.output.object(&json!({"event": "away", "message": reason}))
            }
            // The end is told with its measures.
            JobEvent::Text(_) | JobEvent::Instead(_) | JobEvent::Ended(_) => Ok(()),
        }
    }

    fn print(&mut self, text: &str) -> io::Result<()> {
        self.output.answer(text)?;
        if !text.is_empty() {
            self.open_line = !text.ends_with('\n');
            self.printed = true;
        }
        Ok(())
    }

    /// Ends the line on stdout, so that talk does not follow text on it.
    fn close_line(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.open_line) {
            self.output.data("\n")?;
        }
        Ok(())
    }
}

/// Says what a change means to somebody who waits.
fn talk(job: &Job) -> Option<String> {
    if let Some(waiting) = &job.waiting {
        return Some(format!("Queued: {}", waiting.message));
    }
    match job.state {
        JobState::Unpaid => Some("The job waits for its payment.".to_owned()),
        JobState::Assigned | JobState::Running => {
            let attempt = job.attempt.as_ref()?;
            // A first attempt that runs as it should needs no words.
            (attempt.number > 1
                && matches!(attempt.state, AttemptState::Offered | AttemptState::Running))
            .then(|| {
                format!(
                    "{} takes over (attempt {} of {}).",
                    attempt.node.name, attempt.number, job.max_attempts
                )
            })
        }
        _ => None,
    }
}
