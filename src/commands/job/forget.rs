//! `infernet job forget`.

use std::path::PathBuf;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::id::JobId;

/// The arguments of `infernet job forget`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job's id
    job: JobId,
    /// Forget a job of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Deletes what the job said and answered.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let job = rpc.forget_job(args.job).await?;
    if context.output.is_json() {
        context.output.object(&job)?;
    } else {
        context.output.line("Its prompt, answer, title and messages of errors are deleted.")?;
        context.output.talk("What it cost stays, and so do the hashes in its receipt.");
    }
    Ok(())
}
