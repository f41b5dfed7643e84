//! `infernet node cancel`.

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::control::rpc::Rpc;
use crate::id::CommandId;

/// The arguments of `infernet node cancel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The id of the command
    command: CommandId,
}

/// Takes the command back.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let command = rpc.cancel_command(args.command).await?;
    if context.output.is_json() {
        context.output.object(&command)?;
    } else {
        context.output.line(&format!("Command {} is {}.", command.id, command.state))?;
    }
    Ok(())
}
