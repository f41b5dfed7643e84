//! `infernet job submit`.

use std::path::PathBuf;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::prompt::PromptArgs;

/// The arguments of `infernet job submit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    prompt: PromptArgs,
}

/// Submits the job.
pub(super) async fn run(
    args: &Args,
    key: Option<&PathBuf>,
    context: &Context,
) -> Result<(), CommandError> {
    // The prompt is read before anybody is asked anything.
    let request = args.prompt.job()?;
    let submitted = context.user(key).await?.submit_job(&request).await?;
    let job = &submitted.job;
    context.output.show(&submitted, || job.id.to_string())?;
    if let Some(waiting) = &job.waiting {
        context.output.talk(&format!("Queued: {}", waiting.message));
    }
    context.output.talk(&format!("Read the answer with: infernet job logs {}", job.id));
    Ok(())
}
