//! `infernet model ps`.

use crate::agent;
use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::table::{cell, maybe};
use crate::engine::docker::ContainerHost;
use crate::identity::Keys;

/// The arguments of `infernet model ps`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Asks Docker for the containers of this machine's node: engines that are warm, and jobs.")]
pub(crate) struct Args {}

/// Lists the containers that run.
pub(crate) async fn run(_args: &Args, context: &Context) -> Result<(), CommandError> {
    let config = context.config()?;
    let keys = Keys::load(&context.directories.node_key())?;
    let host = ContainerHost::connect(Some(&agent::docker_host(&config))).await?;
    let running = host.running(&agent::container_label(&keys)).await?;
    let heading = ["engine", "model", "attempt", "state", "container"];
    context.output.list(&running, &heading, "Nothing runs in a container.", |container| {
        vec![
            cell(&container.engine),
            maybe(container.model.as_ref()),
            maybe(container.attempt.as_ref()),
            cell(&container.state),
            cell(&container.name),
        ]
    })?;
    Ok(())
}
