//! `infernet node`: what an owner, or an operator, does about nodes.

mod cancel;
mod command;
mod drain;
mod ls;
mod maintenance;
mod resume;
mod show;

use std::path::PathBuf;

use clap::Subcommand;

use super::Context;
use crate::command_error::CommandError;
use crate::control::rpc::StoppedNode;

/// The arguments of `infernet node`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A node that is drained, in maintenance or paused takes no new work and finishes what it runs. NODE
is its id, enough of its beginning, or its name where no other node has that.")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// Act as the holder of this key instead of owner.key
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List one's nodes; an operator's list has everybody's
    Ls(ls::Args),
    /// Show a node, what it offers and its last commands
    Show(show::Args),
    /// Give a node no new work until it is resumed
    Drain(drain::Args),
    /// Give a node work again: ends its drain, its pause and its open maintenance
    Resume(resume::Args),
    /// Plan a time in which a node gets no new work, or take it back
    Maintenance(maintenance::Args),
    /// Give a node's agent a command
    Command(command::Args),
    /// Take a command back that has not ended
    Cancel(cancel::Args),
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    match args.verb {
        Verb::Ls(args) => ls::run(&args, &rpc, context).await,
        Verb::Show(args) => show::run(&args, &rpc, context).await,
        Verb::Drain(args) => drain::run(&args, &rpc, context).await,
        Verb::Resume(args) => resume::run(&args, &rpc, context).await,
        Verb::Maintenance(args) => maintenance::run(&args, &rpc, context).await,
        Verb::Command(args) => command::run(&args, &rpc, context).await,
        Verb::Cancel(args) => cancel::run(&args, &rpc, context).await,
    }
}

/// Says how a node is after it was stopped or resumed.
fn tell(node: &StoppedNode, context: &Context) -> Result<(), CommandError> {
    let output = context.output;
    if output.is_json() {
        output.object(node)?;
        return Ok(());
    }
    output.line(&format!("Node {} is {}.", node.name, node.status))?;
    for stop in &node.stops {
        output.line(&stop.to_string())?;
        output.talk(&stop.hint);
    }
    if let Some(planned) = &node.maintenance
        && node.stops.iter().all(|stop| stop.why != "maintenance")
    {
        output.line(&format!("Maintenance {}.", maintenance::window(planned)))?;
    }
    if !node.stops.is_empty() && node.running > 0 {
        output.talk(&format!("It finishes {} running.", jobs(node.running)));
    }
    Ok(())
}

/// Counts jobs in words.
fn jobs(count: u32) -> String {
    if count == 1 { "the job".to_owned() } else { format!("the {count} jobs") }
}
