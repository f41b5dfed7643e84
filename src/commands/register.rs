//! `infernet register`: tells the control plane what this node is and offers.

use super::table::offer_table;
use super::{Context, join};
use crate::command_error::CommandError;

/// The arguments of `infernet register`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A running agent registers by itself when it starts; use this after a change of prices. Models
that are no longer in the configuration are no longer offered.")]
pub(crate) struct Args {}

/// Registers.
pub(crate) async fn run(_args: &Args, context: &Context) -> Result<(), CommandError> {
    let config = context.config()?;
    let rpc = context.node().await?;
    let registration = join::register(&rpc, &config, context).await?;
    let output = context.output;
    output.show(&registration, || {
        let node = format!(
            "Node: {} ({}, {}, {})",
            registration.id, registration.name, registration.role, registration.approval
        );
        if registration.offers.is_empty() {
            return node;
        }
        format!("{node}\n{}", offer_table(&registration.offers).text(&output))
    })?;
    Ok(())
}
