//! `infernet run`: asks, and prints the answer while it is written.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Context;
use super::prompt::PromptArgs;
use super::screen::{Interrupts, Screen, conclude, open_socket};
use crate::command_error::{CommandError, Kind};
use crate::control::job_stream::{JobStream, StreamTiming};

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
    /// Ask as the holder of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Runs the job and prints its answer.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let request = args.prompt.job()?;
    let mut interrupts = Interrupts::new()?;
    let rpc = context.user(args.key_file.as_ref()).await?;
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
