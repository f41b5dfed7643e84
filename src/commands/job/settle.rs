//! `infernet job retry`, `discard` and `forget`: what is done about jobs that
//! have ended.

use super::Found;
use crate::command_error::CommandError;
use crate::commands::Context;

/// Queues the job anew.
pub(super) async fn retry(found: Found, context: &Context) -> Result<(), CommandError> {
    let job = found.rpc.retry_job(found.id).await?;
    let output = context.output;
    output.show(&job, || format!("The job is {}; {} is held for it.", job.state, job.held))?;
    if let Some(waiting) = &job.waiting {
        output.talk(&format!("Queued: {}", waiting.message));
    }
    output.talk(&format!("Read the answer with: infernet job logs {}", job.id));
    Ok(())
}

/// Takes the job off the list of those that failed.
pub(super) async fn discard(found: Found, context: &Context) -> Result<(), CommandError> {
    let job = found.rpc.discard_job(found.id).await?;
    context.output.show(&job, || {
        "The job is off the list of those that failed; its record stays.".to_owned()
    })?;
    Ok(())
}

/// Deletes what the job said and answered.
pub(super) async fn forget(found: Found, context: &Context) -> Result<(), CommandError> {
    let job = found.rpc.forget_job(found.id).await?;
    context.output.show(&job, || {
        "Its prompt, answer, title and messages of errors are deleted.".to_owned()
    })?;
    context.output.talk("What it cost stays, and so do the hashes in its receipt.");
    Ok(())
}
