//! `infernet node command`.

use std::time::Duration;

use clap::ValueEnum;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::moment;
use crate::commands::prompt::parse_duration;
use crate::control::rpc::{CommandArgs, CommandKind, Rpc};

/// The arguments of `infernet node command`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The agent hears of it at once, or with its next heartbeat, and says what came of it: infernet node
show NODE. What the machine's own configuration does not allow, no command allows.")]
pub(crate) struct Args {
    /// The node
    node: String,
    /// What to do
    #[arg(value_enum)]
    command: What,
    /// The model that it is about; restart-engine without one restarts all
    model: Option<String>,
    /// The sha256 that the pulled model's file must have
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
    /// Let it expire after this time, such as 15m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    expires: Option<Duration>,
}

/// What an agent can be told.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Fetch a model
    PullModel,
    /// Remove a model
    RemoveModel,
    /// Take no new work until it is resumed or its agent restarts
    Drain,
    /// Take work again after such a drain
    Resume,
    /// Restart the engine of a model once it is idle
    RestartEngine,
}

impl From<What> for CommandKind {
    fn from(what: What) -> Self {
        match what {
            What::PullModel => Self::PullModel,
            What::RemoveModel => Self::RemoveModel,
            What::Drain => Self::Drain,
            What::Resume => Self::Resume,
            What::RestartEngine => Self::RestartEngine,
        }
    }
}

/// Gives the command.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let node = rpc.find_node(&args.node).await?;
    let arguments = CommandArgs {
        model: args.model.clone(),
        digest: args.digest.clone(),
        ..CommandArgs::default()
    };
    let expires = args.expires.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    let given = rpc.command_node(node, args.command.into(), &arguments, expires).await?;
    if context.output.is_json() {
        context.output.object(&given)?;
        return Ok(());
    }
    context.output.line(&given.command.id.to_string())?;
    if !given.created {
        context.output.talk("The same command waits already; this is its id.");
    }
    context.output.talk(&format!(
        "It stands until {}. See what came of it: infernet node show {}",
        moment(given.command.expires_at),
        args.node
    ));
    Ok(())
}
