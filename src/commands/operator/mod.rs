//! `infernet operator`: what an operator of a control plane does.

mod approve;
mod credit;
mod health;
mod ledger;
mod setting;
mod user;

use std::path::PathBuf;

use clap::Subcommand;

use super::Context;
use crate::command_error::CommandError;

/// The arguments of `infernet operator`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Act as the holder of this key instead of owner.key
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "INFERNET_OPERATOR_KEY_FILE",
        hide_env_values = true
    )]
    key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Give a user credit
    Credit(credit::Args),
    /// Set whether a node gets work
    Approve(approve::Args),
    /// Set whether a user may act
    User(user::Args),
    /// Change a setting of the control plane
    Setting(setting::Args),
    /// Prove that the ledger is sound
    Ledger(ledger::Args),
    /// Show how the control plane is
    Health(health::Args),
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    match args.command {
        Command::Credit(args) => credit::run(&args, &rpc, context).await,
        Command::Approve(args) => approve::run(&args, &rpc, context).await,
        Command::User(args) => user::run(&args, &rpc, context).await,
        Command::Setting(args) => setting::run(&args, &rpc, context).await,
        Command::Ledger(args) => ledger::run(&args, &rpc, context).await,
        Command::Health(args) => health::run(&args, &rpc, context).await,
    }
}
