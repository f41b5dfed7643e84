//! `infernet operator user`.

use clap::ValueEnum;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::control::rpc::Rpc;
use crate::identity::PublicKey;

/// The arguments of `infernet operator user`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The user's public key, npub1… or hex
    user: PublicKey,
    /// What the user is from now on
    #[arg(value_enum)]
    status: Status,
}

/// Whether a user may act.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Status {
    /// Every call is open
    Active,
    /// No call is
    Suspended,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }
}

/// Sets the status.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let answer = rpc.set_user_status(args.user.as_hex(), args.status.as_str()).await?;
    context.output.show(&answer, || format!("The user is {}.", args.status.as_str()))?;
    Ok(())
}
