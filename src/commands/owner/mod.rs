//! `infernet owner`: what an owner does for its nodes.

mod enrol;

use clap::Subcommand;

use super::Context;
use crate::command_error::CommandError;

/// The arguments of `infernet owner`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a one-time code with which a machine joins this owner
    Enrol(enrol::Args),
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    match args.command {
        Command::Enrol(args) => enrol::run(&args, context).await,
    }
}
