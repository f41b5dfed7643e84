//! `infernet job failed`.

use jiff::Timestamp;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::moment;
use crate::commands::table::{cell, maybe};
use crate::control::rpc::Rpc;

/// The arguments of `infernet job failed`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// List those that failed before this time, such as 2026-11-23T15:00:00Z
    #[arg(long, value_name = "TIME")]
    before: Option<Timestamp>,
}

/// Lists the jobs that failed for good.
pub(super) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let jobs = rpc.failed_jobs(args.limit, args.before).await?;
    let heading = ["job", "failed", "model", "attempts", "error", "title"];
    let nothing = "No job waits for you to retry or discard it.";
    context.output.list(&jobs, &heading, nothing, |job| {
        vec![
            cell(job.id),
            cell(moment(job.failed_at)),
            cell(&job.model),
            cell(job.attempts.len()),
            cell(format!("{} ({})", job.error.message, job.error.code)),
            maybe(job.title.as_ref()),
        ]
    })?;
    if !jobs.is_empty() {
        context.output.talk("Try one again: infernet job retry JOB");
    }
    Ok(())
}
