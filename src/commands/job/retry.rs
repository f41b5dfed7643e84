//! `infernet job retry`.

use std::path::PathBuf;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::id::JobId;

/// The arguments of `infernet job retry`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job's id
    job: JobId,
    /// Retry a job of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Queues the job anew.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let job = rpc.retry_job(args.job).await?;
    if context.output.is_json() {
        context.output.object(&job)?;
        return Ok(());
    }
    context.output.line(&format!("The job is {}; {} is held for it.", job.state, job.held))?;
    if let Some(waiting) = &job.waiting {
        context.output.talk(&format!("Queued: {}", waiting.message));
    }
    context.output.talk(&format!("Read the answer with: infernet job show {}", job.id));
    Ok(())
}
