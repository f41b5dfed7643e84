//! `infernet job`: jobs that were submitted.

mod cancel;
mod explain;
mod failed;
mod logs;
mod ls;
mod settle;
mod show;
mod submit;

use std::path::PathBuf;

use clap::Subcommand;

pub(crate) use self::show::ledger;

use super::Context;
use crate::command_error::CommandError;
use crate::control::rpc::Rpc;
use crate::id::{IdPrefix, JobId};

/// The arguments of `infernet job`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Act as the holder of this key instead of owner.key
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit a job and print its id, without waiting for the answer
    Submit(Box<submit::Args>),
    /// List jobs, the newest first
    Ls(ls::Args),
    /// Show a job, its attempts, what it cost and its answer
    Show(show::Args),
    /// Print a job's answer, and follow it while it is written
    Logs(OneJob),
    /// Tell the life of a job: each step with its cause, the offers seen, the ledger
    Explain(OneJob),
    /// Cancel a job; what was delivered until then is paid
    Cancel(OneJob),
    /// List jobs that failed for good, the last first
    Failed(failed::Args),
    /// Let a job that failed for good try again
    Retry(OneJob),
    /// Take a job off the list of those that failed; its record stays
    Discard(OneJob),
    /// Delete a job's prompt, answer, title and error messages; its payment stays
    Forget(OneJob),
}

/// The job that a verb is about.
#[derive(Debug, clap::Args)]
pub(crate) struct OneJob {
    /// The job's id, or enough of its beginning
    job: IdPrefix,
}

impl OneJob {
    /// Signs in and finds the job.
    async fn find(&self, key: Option<&PathBuf>, context: &Context) -> Result<Found, CommandError> {
        let rpc = context.user(key).await?;
        let id = rpc.find_job(&self.job).await?;
        Ok(Found { rpc, id })
    }
}

/// A job, and who asks about it.
struct Found {
    rpc: Rpc,
    id: JobId,
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let key = args.key_file.as_ref();
    match args.command {
        Command::Submit(args) => submit::run(&args, key, context).await,
        Command::Ls(args) => ls::run(&args, &context.user(key).await?, context).await,
        Command::Failed(args) => failed::run(&args, &context.user(key).await?, context).await,
        Command::Show(args) => {
            let found = args.job.find(key, context).await?;
            show::run(&args, found, context).await
        }
        Command::Logs(args) => logs::run(args.find(key, context).await?, context).await,
        Command::Explain(args) => explain::run(args.find(key, context).await?, context).await,
        Command::Cancel(args) => cancel::run(args.find(key, context).await?, context).await,
        Command::Retry(args) => settle::retry(args.find(key, context).await?, context).await,
        Command::Discard(args) => settle::discard(args.find(key, context).await?, context).await,
        Command::Forget(args) => settle::forget(args.find(key, context).await?, context).await,
    }
}
