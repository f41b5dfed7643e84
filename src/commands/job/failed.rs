//! `infernet job failed`.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::{columns, moment};

/// The arguments of `infernet job failed`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// List those that failed before this time, such as 2026-11-23T15:00:00Z
    #[arg(long, value_name = "TIME")]
    before: Option<Timestamp>,
    /// List the jobs of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Lists the jobs that failed for good.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let jobs = rpc.failed_jobs(args.limit, args.before).await?;
    if context.output.is_json() {
        for job in &jobs {
            context.output.object(job)?;
        }
        return Ok(());
    }
    if jobs.is_empty() {
        context.output.talk("No job waits for you to retry or discard it.");
        return Ok(());
    }
    let heading = ["job", "failed", "model", "attempts", "error", "title"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(jobs.into_iter().map(|job| {
        vec![
            job.id.to_string(),
            moment(job.failed_at),
            job.model,
            job.attempts.len().to_string(),
            format!("{} ({})", job.error.message, job.error.code),
            job.title.unwrap_or_default(),
        ]
    }));
    context.output.line(&columns(&rows))?;
    context.output.talk("Try one again: infernet job retry JOB");
    Ok(())
}
