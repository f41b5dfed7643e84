//! `infernet resume`.

use serde_json::json;

use super::Context;
use crate::agent::admin;
use crate::command_error::CommandError;

/// The arguments of `infernet resume`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Has this machine's agent take work again.
pub(crate) async fn run(_args: &Args, context: &Context) -> Result<(), CommandError> {
    let running = admin::resume(&context.process_files()).await?;
    let output = &context.output;
    if output.is_json() {
        output.object(&json!({"draining": false, "running": running}))?;
    } else {
        output.talk("This node takes work again, unless the control plane says otherwise.");
        output.talk("See infernet status.");
    }
    Ok(())
}
