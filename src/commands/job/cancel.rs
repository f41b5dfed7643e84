//! `infernet job cancel`.

use std::time::Duration;

use super::Found;
use crate::command_error::{CommandError, Kind};
use crate::commands::Context;
use crate::control::job_stream::{JobStream, StreamTiming};
use crate::control::rpc::{Job, JobState};

/// How long the node may take to say what it delivered.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// Cancels the job and waits until it is settled.
pub(super) async fn run(found: Found, context: &Context) -> Result<(), CommandError> {
    let Found { rpc, id } = found;
    let before = rpc.get_job(id).await?;
    let job = if before.state.has_ended() {
        before.clone()
    } else {
        let mut stream =
            Box::pin(JobStream::attach(&rpc, None, id, StreamTiming::default())).await?;
        stream.cancel().await?;
        tokio::time::timeout(SETTLE_LIMIT, stream.finish()).await.map_err(|_elapsed| {
            CommandError::new(Kind::Unavailable, "The job is cancelled, and not yet settled.")
                .hint(format!("See what it cost: infernet job show {id}"))
        })??
    };
    context.output.show(&job, || said(&before, &job))?;
    Ok(())
}

fn said(before: &Job, job: &Job) -> String {
    if before.state.has_ended() {
        return format!("The job had ended before: it is {}.", job.state);
    }
    let cost = job.cost.unwrap_or_default();
    match job.state {
        JobState::Cancelled => {
            let usage = job.usage.unwrap_or_default();
            let delivered = match usage.seconds {
                Some(seconds) => format!("It ran for {seconds} s"),
                None => format!("{} tokens were delivered", usage.output_tokens),
            };
            format!("Cancelled. {delivered} and {cost} was charged.")
        }
        state => format!("The job ended first: it is {state}, and {cost} was charged."),
    }
}
