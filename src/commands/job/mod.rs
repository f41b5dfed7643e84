//! `infernet job`: jobs that were submitted.

mod cancel;
mod discard;
mod explain;
mod failed;
mod forget;
mod ls;
mod retry;
mod show;
mod submit;

use clap::Subcommand;

pub(crate) use self::show::ledger;

use super::Context;
use crate::command_error::CommandError;

/// The arguments of `infernet job`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit a job and print its id, without waiting for the answer
    Submit(submit::Args),
    /// List jobs, the newest first
    Ls(ls::Args),
    /// Show a job, its attempts, what it cost and its answer
    Show(show::Args),
    /// Tell the life of a job: each step with its cause, the offers seen, the ledger
    Explain(explain::Args),
    /// Cancel a job; what was delivered until then is paid
    Cancel(cancel::Args),
    /// List jobs that failed for good, the last first
    Failed(failed::Args),
    /// Let a job that failed for good try again
    Retry(retry::Args),
    /// Take a job off the list of those that failed; its record stays
    Discard(discard::Args),
    /// Delete a job's prompt, answer, title and error messages; its payment stays
    Forget(forget::Args),
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    match args.command {
        Command::Submit(args) => submit::run(&args, context).await,
        Command::Ls(args) => ls::run(&args, context).await,
        Command::Show(args) => show::run(&args, context).await,
        Command::Explain(args) => explain::run(&args, context).await,
        Command::Cancel(args) => cancel::run(&args, context).await,
        Command::Failed(args) => failed::run(&args, context).await,
        Command::Retry(args) => retry::run(&args, context).await,
        Command::Discard(args) => discard::run(&args, context).await,
        Command::Forget(args) => forget::run(&args, context).await,
    }
}
