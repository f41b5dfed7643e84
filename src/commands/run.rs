//! `infernet run`: asks, and prints the answer while it is written.

use std::io;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::prompt::PromptArgs;
use super::{Context, Output};
use crate::command_error::{CommandError, Kind};
use crate::control::job_stream::{JobEvent, JobStream, StreamMeasure, StreamTiming, open_realtime};
use crate::control::rpc::{AttemptState, Job, JobState, Rpc};

/// How long a cancelled job may take to settle before the command gives up
/// waiting; the control plane's own limit for a node is 10 s.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// The arguments of `infernet run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Ctrl-C cancels the job: what was delivered until then is paid. Ctrl-C twice leaves at once.

Examples:
  infernet run smollm2-135m \"Why is the sky blue?\"
  git diff | infernet run llama3.2:3b --system \"Review this change.\"")]
pub(crate) struct Args {
    #[command(flatten)]
    prompt: PromptArgs,
    /// Print the answer only when it is whole
    #[arg(long)]
    no_stream: bool,
}

/// Runs the job and prints its answer.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let request = args.prompt.job()?;
    let mut interrupts = Interrupts::new()?;
    let rpc = context.user(args.prompt.key_file.as_ref()).await?;
    let shutdown = CancellationToken::new();
    let realtime = open_socket(&rpc, &shutdown);
    let submitting = JobStream::submit(&rpc, realtime.as_ref(), &request, StreamTiming::default());
    let mut stream = tokio::select! {
        biased;
        () = interrupts.next() => {
            // Nobody knows whether the job arrived; if so, nobody waits for it.
            drop(rpc.cancel_job(request.id).await);
            return Err(CommandError::new(Kind::Interrupted, "Cancelled before the job was taken."));
        }
        stream = Box::pin(submitting) => match stream {
            Ok(stream) => stream,
            Err(error) => {
                if error.is_passing() {
                    // The answer may be lost and the job there; nobody waits for it.
                    drop(rpc.cancel_job(request.id).await);
                }
                return Err(error.into());
            }
        },
    };
    let mut screen = Screen::new(context.output, args.no_stream);
    let outcome = Box::pin(read(&mut stream, &mut screen, &mut interrupts)).await;
    // A reader of our output that went away takes the job with it: nobody
    // reads it any more, and it would cost money.
    if outcome.is_err() && !stream.job().state.has_ended() {
        drop(stream.cancel().await);
    }
    shutdown.cancel();
    if let Some(realtime) = &realtime {
        // Lets the leave go out; the socket ends with the process anyway.
        drop(tokio::time::timeout(Duration::from_millis(300), realtime.closed()).await);
    }
    let interrupted = outcome?;
    conclude(&stream, &screen, interrupted)
}

/// Ctrl-C and the request to end.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Opens the socket; without one the job is polled.
fn open_socket(
    rpc: &Rpc,
    shutdown: &CancellationToken,
) -> Option<crate::control::realtime::Realtime> {
    let session = rpc.session()?;
    match open_realtime(session, shutdown.clone()) {
        Ok(realtime) => Some(realtime),
        Err(error) => {
            tracing::warn!(error = %error, "no realtime, the job is polled");
            None
        }
    }
}

/// Reads the job to its end; says whether Ctrl-C cut it short.
async fn read(
    stream: &mut JobStream,
    screen: &mut Screen,
    interrupts: &mut Interrupts,
) -> Result<bool, CommandError> {
    loop {
        tokio::select! {
            biased;
            () = interrupts.next() => break,
            event = stream.next() => match event? {
                Some(event) => screen.show(event)?,
                None => return Ok(false),
            },
        }
    }
    screen.output.talk("\nCancelling. Press Ctrl-C again to leave at once.");
    let settled = async {
        stream.cancel().await?;
        while let Some(event) = stream.next().await? {
            screen.show(event)?;
        }
        Ok::<(), CommandError>(())
    };
    tokio::select! {
        biased;
        () = interrupts.next() => {
            Err(CommandError::new(Kind::Interrupted, "Left before the job was settled.")
                .hint("See what it cost: infernet job ls"))
        }
        outcome = tokio::time::timeout(SETTLE_LIMIT, settled) => match outcome {
            Ok(outcome) => outcome.map(|()| true),
            Err(_elapsed) => Err(CommandError::new(
                Kind::Interrupted,
                "The job is cancelled, and not yet settled.",
            )
            .hint("See what it cost: infernet job ls")),
        },
    }
}

/// Says how the job ended.
fn conclude(stream: &JobStream, screen: &Screen, interrupted: bool) -> Result<(), CommandError> {
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
            let delivered = job.usage.unwrap_or_default().output_tokens;
            CommandError::new(
                Kind::Interrupted,
                format!(
                    "Cancelled. {delivered} tokens were delivered and {} was charged.",
                    job.cost.unwrap_or_default()
                ),
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
        parts.push(format!("{} tokens in, {} out", usage.input_tokens, usage.output_tokens));
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
struct Screen {
    output: Output,
    /// The answer is printed when it is whole.
    whole: bool,
    /// The last thing on stdout is not a newline.
    open_line: bool,
    /// Text is on stdout that a later attempt may make void.
    printed: bool,
}

impl Screen {
    fn new(output: Output, whole: bool) -> Self {
        Self { output, whole, open_line: false, printed: false }
    }

    fn show(&mut self, event: JobEvent) -> io::Result<()> {
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
        self.output.data(text)?;
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
