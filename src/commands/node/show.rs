//! `infernet node show`.

use super::maintenance::window;
use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::moment;
use crate::commands::table::{Table, cell, maybe, offer_table, state};
use crate::control::rpc::{NodeCommand, NodeDetails, Rpc};

/// The arguments of `infernet node show`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node: its id, its name, or enough of the beginning of its id
    node: String,
}

/// Shows the node.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let id = rpc.find_node(&args.node).await?;
    let details = rpc.get_node(&id.to_string()).await?;
    let output = context.output;
    output.show(&details, || {
        let mut parts = vec![facts(&details).text(&output)];
        if !details.offers.is_empty() {
            parts.push(offer_table(&details.offers).text(&output));
        }
        if !details.commands.is_empty() {
            parts.push(command_table(&details.commands).text(&output));
        }
        parts.join("\n\n")
    })?;
    Ok(())
}

fn facts(details: &NodeDetails) -> Table {
    let node = &details.node;
    let mut sheet = Table::sheet();
    sheet.fact("node", format!("{}, {}", node.name, node.id));
    sheet.fact_cell("status", state(&node.status));
    sheet.fact_cell("approval", state(&node.approval));
    for stop in &node.stops {
        sheet.fact("", stop);
        sheet.fact("", &stop.hint);
    }
    sheet.fact_if("maintenance", node.maintenance.as_ref().map(window));
    sheet.fact("owner", node.owner);
    sheet.fact("last seen", node.last_seen.map_or_else(|| "never".to_owned(), moment));
    sheet.fact("jobs in work", node.running);
    sheet.fact_if("region", node.region.as_ref());
    sheet.fact_if("labels", (!node.labels.is_empty()).then(|| node.labels.join(", ")));
    sheet.fact_if("GPU memory", (node.vram_gb > 0).then(|| format!("{} GB", node.vram_gb)));
    sheet.fact_if("version", node.version.as_ref());
    sheet
}

fn command_table(commands: &[NodeCommand]) -> Table {
    let mut table = Table::new(&["command", "what", "model", "state", "given", "outcome"]);
    for command in commands {
        let result = command.result.as_ref().filter(|result| !result.is_null());
        let outcome = command.error.clone().or_else(|| result.map(ToString::to_string));
        table.row(vec![
            cell(command.id),
            cell(command.command),
            maybe(command.args.model.as_ref()),
            state(&command.state),
            cell(moment(command.created_at)),
            maybe(outcome),
        ]);
    }
    table
}
