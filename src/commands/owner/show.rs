//! `infernet owner show`.

use serde::Serialize;

use crate::command_error::CommandError;
use crate::commands::table::{Table, cell, state};
use crate::commands::{Context, Output};
use crate::control::rpc::{Balance, OwnedNode, OwnerEarnings, Rpc, Whoami};
use crate::id::UserId;

/// The most nodes that are listed.
const NODES: u32 = 200;

/// What is known of the owner.
#[derive(Serialize)]
struct Owner {
    #[serde(flatten)]
    user: Whoami,
    balance: Balance,
    earnings: OwnerEarnings,
    nodes: Vec<OwnedNode>,
}

/// Shows who the owner is, what it has and earned, and its nodes.
pub(super) async fn run(rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    // One after the other at first, so that one login serves them all.
    let user = rpc.whoami().await?;
    let (balance, earnings, nodes) =
        tokio::try_join!(rpc.balance(), rpc.my_earnings(), rpc.list_nodes(None, NODES))?;
    let own = UserId::from_uuid(user.id);
    // An operator is told of everybody's.
    let nodes = nodes.into_iter().filter(|node| node.owner == own).collect();
    let owner = Owner { user, balance, earnings, nodes };
    let output = context.output;
    output.show(&owner, || sheet(&owner, &output))?;
    Ok(())
}

fn sheet(owner: &Owner, output: &Output) -> String {
    let mut sheet = Table::sheet();
    sheet.fact("user", owner.user.id);
    sheet.fact_if("name", owner.user.name.as_ref());
    sheet.fact("public key", &owner.user.public_key);
    sheet.fact_cell("status", state(&owner.user.status));
    if owner.user.operator {
        sheet.fact("operator", "yes");
    }
    sheet.fact("available", owner.balance.available);
    sheet.fact("held", owner.balance.held);
    sheet.fact("earned today", owner.earnings.today);
    sheet.fact("in 30 days", owner.earnings.days30);
    sheet.fact("not paid out yet", owner.earnings.pending);
    if owner.nodes.is_empty() {
        return sheet.text(output);
    }
    let mut table = Table::new(&["node", "name", "status", "approval", "running"]);
    for node in &owner.nodes {
        table.row(vec![
            cell(node.id),
            cell(&node.name),
            state(&node.status),
            state(&node.approval),
            cell(node.running),
        ]);
    }
    format!("{}\n\n{}", sheet.text(output), table.text(output))
}
