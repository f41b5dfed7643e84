//! `infernet operator health`.

use crate::command_error::{CommandError, Kind};
use crate::commands::Context;
use crate::control::rpc::Rpc;

/// The arguments of `infernet operator health`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Shows the health.
pub(crate) async fn run(_args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let health = rpc.health().await?;
    if context.output.is_json() {
        context.output.object(&health)?;
    } else {
        let health = serde_json::to_value(&health)
            .map_err(|error| CommandError::new(Kind::Internal, error))?;
        context.output.line(&format!("{health:#}"))?;
    }
    Ok(())
}
