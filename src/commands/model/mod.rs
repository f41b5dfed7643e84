//! `infernet model`: what can be asked.

mod ls;

use clap::Subcommand;

use super::Context;
use crate::command_error::CommandError;

/// The arguments of `infernet model`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the models that can be asked, and their lowest prices
    Ls(ls::Args),
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    match args.command {
        Command::Ls(args) => ls::run(&args, context).await,
    }
}
