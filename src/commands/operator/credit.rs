//! `infernet operator credit`.

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::control::rpc::Rpc;
use crate::id::TransferId;
use crate::identity::PublicKey;
use crate::money::Usd;

/// The arguments of `infernet operator credit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The user's public key, npub1… or hex
    user: PublicKey,
    /// How many USD
    amount: Usd,
    /// Write this beside the transfer
    #[arg(long, value_name = "TEXT")]
    memo: Option<String>,
    /// Use this id for the transfer; the same id again changes nothing
    #[arg(long, value_name = "UUID")]
    id: Option<TransferId>,
}

/// Grants the credit.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let id = args.id.unwrap_or_else(TransferId::generate);
    let grant = rpc.grant_credit(id, args.user.as_hex(), args.amount, args.memo.as_deref()).await?;
    if context.output.is_json() {
        context.output.object(&grant)?;
    } else {
        let verb = if grant.result == "exists" { "was granted before" } else { "granted" };
        context.output.line(&format!(
            "{} {verb}; {} can be spent now (transfer {})",
            args.amount, grant.balance, grant.transfer
        ))?;
    }
    Ok(())
}
