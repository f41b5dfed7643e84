//! `infernet balance`.

use std::path::PathBuf;

use serde_json::json;

use super::Context;
use super::job::ledger;
use super::table::Table;
use crate::command_error::CommandError;

/// The arguments of `infernet balance`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// List the newest lines of the ledger too, at most this many
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20", value_parser = clap::value_parser!(u32).range(1..=1000))]
    statement: Option<u32>,
    /// Show the balance of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Shows the balance.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let balance = rpc.balance().await?;
    let statement = match args.statement {
        Some(limit) => Some(rpc.statement(limit, None).await?),
        None => None,
    };
    if context.output.is_json() {
        context.output.object(&json!({"balance": balance, "ledger": statement}))?;
        return Ok(());
    }
    let output = context.output;
    let mut sheet = Table::sheet();
    sheet.fact("available", balance.available);
    sheet.fact("held", balance.held);
    sheet.fact("earned", balance.earned);
    output.line(&sheet.text(&output))?;
    if let Some(statement) = statement {
        output.line(&format!("\n{}", ledger(&statement, &output)))?;
    }
    Ok(())
}
