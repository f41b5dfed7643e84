//! `infernet node show`.

use super::maintenance::window;
use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::{columns, moment};
use crate::control::rpc::{NodeDetails, Rpc};

/// The arguments of `infernet node show`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node
    node: String,
}

/// Shows the node.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let details = rpc.get_node(&args.node).await?;
    let output = context.output;
    if output.is_json() {
        output.object(&details)?;
        return Ok(());
    }
    output.line(&columns(&rows(&details)))?;
    if !details.offers.is_empty() {
        let heading = ["model", "slots", "input $/M", "output $/M"];
        let mut table = vec![heading.map(str::to_owned).to_vec()];
        table.extend(details.offers.iter().map(|offer| {
            vec![
                offer.model.clone(),
                offer.slots.to_string(),
                offer.price_input.to_string(),
                offer.price_output.to_string(),
            ]
        }));
        output.line(&format!("\n{}", columns(&table)))?;
    }
    if !details.commands.is_empty() {
        let heading = ["command", "what", "model", "state", "given", "outcome"];
        let mut table = vec![heading.map(str::to_owned).to_vec()];
        table.extend(details.commands.iter().map(|command| {
            let outcome = command.error.clone().or_else(|| {
                command.result.as_ref().filter(|result| !result.is_null()).map(ToString::to_string)
            });
            vec![
                command.id.to_string(),
                command.command.to_string(),
                command.args.model.clone().unwrap_or_default(),
                command.state.clone(),
                moment(command.created_at),
                outcome.unwrap_or_default(),
            ]
        }));
        output.line(&format!("\n{}", columns(&table)))?;
    }
    Ok(())
}

fn rows(details: &NodeDetails) -> Vec<Vec<String>> {
    let node = &details.node;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    row("Node", format!("{}, {}", node.name, node.id));
    row("Status", format!("{}, {}", node.status, node.approval));
    for stop in &node.stops {
        row("", stop.to_string());
        row("", stop.hint.clone());
    }
    if let Some(maintenance) = &node.maintenance {
        row("Maintenance", window(maintenance));
    }
    row("Owner", node.owner.to_string());
    row("Last seen", node.last_seen.map_or_else(|| "never".to_owned(), moment));
    row("Jobs in work", node.running.to_string());
    if let Some(region) = &node.region {
        row("Region", region.clone());
    }
    if !node.labels.is_empty() {
        row("Labels", node.labels.join(", "));
    }
    if node.vram_gb > 0 {
        row("GPU memory", format!("{} GB", node.vram_gb));
    }
    if let Some(version) = &node.version {
        row("Version", version.clone());
    }
    rows
}
