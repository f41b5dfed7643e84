//! `infernet operator ledger`.

use crate::command_error::{CommandError, Kind};
use crate::commands::Context;
use crate::commands::table::Table;
use crate::control::rpc::Rpc;

/// The arguments of `infernet operator ledger`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Has the ledger proven.
pub(crate) async fn run(_args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let proof = rpc.prove_ledger().await?;
    if context.output.is_json() {
        context.output.object(&proof)?;
    } else {
        let mut sheet = Table::sheet();
        for (name, total) in &proof.totals {
            sheet.fact(name, plain(total));
        }
        if !proof.totals.is_empty() {
            context.output.line(&sheet.text(&context.output))?;
        }
        for fault in &proof.faults {
            context.output.line(&plain(fault))?;
        }
    }
    if proof.ok {
        context.output.talk("The ledger is sound.");
        Ok(())
    } else {
        Err(CommandError::new(Kind::User, "The ledger is not sound.").word("ledger_fault"))
    }
}

/// Writes a value without the quotes of JSON text.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
