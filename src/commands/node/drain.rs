//! `infernet node drain`.

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::control::rpc::Rpc;

/// The arguments of `infernet node drain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node
    node: String,
    /// Why, for whoever looks at it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Drains the node.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let node = rpc.find_node(&args.node).await?;
    super::tell(&rpc.drain_node(node, args.reason.as_deref()).await?, context)
}
