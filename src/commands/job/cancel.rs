//! `infernet job cancel`.

use std::path::PathBuf;
use std::time::Duration;

use crate::command_error::{CommandError, Kind};
use crate::commands::Context;
use crate::control::job_stream::{JobStream, StreamTiming};
use crate::control::rpc::{Job, JobState};
use crate::id::JobId;

/// How long the node may take to say what it delivered.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// The arguments of `infernet job cancel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job's id
    job: JobId,
    /// Cancel a job of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Cancels the job and waits until it is settled.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let before = rpc.get_job(args.job).await?;
    let job = if before.state.has_ended() {
        before.clone()
    } else {
        let mut stream =
            Box::pin(JobStream::attach(&rpc, None, args.job, StreamTiming::default())).await?;
        stream.cancel().await?;
        tokio::time::timeout(SETTLE_LIMIT, stream.finish()).await.map_err(|_elapsed| {
            CommandError::new(Kind::Unavailable, "The job is cancelled, and not yet settled.")
                .hint(format!("See what it cost: infernet job show {}", args.job))
        })??
    };
    if context.output.is_json() {
        context.output.object(&job)?;
    } else {
        context.output.line(&said(&before, &job))?;
    }
    Ok(())
}

fn said(before: &Job, job: &Job) -> String {
    if before.state.has_ended() {
        return format!("The job had ended before: it is {}.", job.state);
    }
    let delivered = job.usage.unwrap_or_default().output_tokens;
    let cost = job.cost.unwrap_or_default();
    match job.state {
        JobState::Cancelled => {
            format!("Cancelled. {delivered} tokens were delivered and {cost} was charged.")
        }
        state => format!("The job ended first: it is {state}, and {cost} was charged."),
    }
}
