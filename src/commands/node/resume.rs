//! `infernet node resume`.

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::control::rpc::Rpc;

/// The arguments of `infernet node resume`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node
    node: String,
}

/// Resumes the node.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let node = rpc.find_node(&args.node).await?;
    super::tell(&rpc.resume_node(node).await?, context)
}
