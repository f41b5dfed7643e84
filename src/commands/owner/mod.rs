//! `infernet owner`: what an owner does for its nodes.

mod enrol;
mod show;

use std::path::PathBuf;

use clap::Subcommand;

use super::Context;
use crate::command_error::CommandError;

/// The arguments of `infernet owner`.
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
    /// Show who the owner is, what it has and earned, and its nodes
    Show,
    /// Make a one-time code with which a machine joins this owner
    Enrol(enrol::Args),
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    match args.command {
        Command::Show => show::run(&rpc, context).await,
        Command::Enrol(args) => enrol::run(&args, &rpc, context).await,
    }
}
