//! `infernet job discard`.

use std::path::PathBuf;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::id::JobId;

/// The arguments of `infernet job discard`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job's id
    job: JobId,
    /// Discard a job of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Takes the job off the list of those that failed.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let job = rpc.discard_job(args.job).await?;
    if context.output.is_json() {
        context.output.object(&job)?;
    } else {
        context.output.line("The job is off the list of those that failed; its record stays.")?;
    }
    Ok(())
}
