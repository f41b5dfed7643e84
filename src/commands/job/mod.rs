//! `infernet job`: jobs that were submitted.

mod cancel;
mod ls;
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
    /// Cancel a job; what was delivered until then is paid
    Cancel(cancel::Args),
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    match args.command {
        Command::Submit(args) => submit::run(&args, context).await,
        Command::Ls(args) => ls::run(&args, context).await,
        Command::Show(args) => show::run(&args, context).await,
        Command::Cancel(args) => cancel::run(&args, context).await,
    }
}
