//! `infernet job submit`.

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
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let request = args.prompt.job()?;
    let rpc = context.user(args.prompt.key_file.as_ref()).await?;
    let submitted = rpc.submit_job(&request).await?;
    let job = &submitted.job;
    if context.output.is_json() {
        context.output.object(&submitted)?;
    } else {
        context.output.line(&job.id.to_string())?;
        if let Some(waiting) = &job.waiting {
            context.output.talk(&format!("Queued: {}", waiting.message));
        }
        context.output.talk(&format!("Read the answer with: infernet job show {}", job.id));
    }
    Ok(())
}
