//! `infernet balance`.

use std::path::PathBuf;

use serde_json::json;

use super::Context;
use super::job::ledger;
use super::output::columns;
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
    let row = |name: &str, amount: crate::money::Usd| vec![name.to_owned(), amount.to_string()];
    context.output.line(&columns(&[
        row("available", balance.available),
        row("held", balance.held),
        row("earned", balance.earned),
    ]))?;
    if let Some(statement) = statement {
        context.output.line("")?;
        context.output.line(&ledger(&statement))?;
    }
    Ok(())
}
