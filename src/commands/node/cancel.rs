//! `infernet node cancel`.

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::control::rpc::Rpc;
use crate::id::IdPrefix;

/// The arguments of `infernet node cancel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The command's id, or enough of its beginning
    command: IdPrefix,
}

/// Takes the command back.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let command = rpc.cancel_command(rpc.find_command(&args.command).await?).await?;
    context.output.show(&command, || format!("Command {} is {}.", command.id, command.state))?;
    Ok(())
}
