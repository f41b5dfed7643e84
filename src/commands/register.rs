//! `infernet register`: tells the control plane what this node is and offers.

use super::output::columns;
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
    if context.output.is_json() {
        context.output.object(&registration)?;
        return Ok(());
    }
    context.output.line(&format!(
        "Node: {} ({}, {}, {})",
        registration.id, registration.name, registration.role, registration.approval
    ))?;
    if !registration.offers.is_empty() {
        let heading = ["model", "slots", "input $/M", "output $/M"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(registration.offers.into_iter().map(|offer| {
            vec![
                offer.model,
                offer.slots.to_string(),
                offer.price_input.to_string(),
                offer.price_output.to_string(),
            ]
        }));
        context.output.line(&columns(&rows))?;
    }
    Ok(())
}
