//! `infernet operator approve`.

use clap::ValueEnum;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::control::rpc::Rpc;

/// The arguments of `infernet operator approve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node: its id, its name, or enough of the beginning of its id
    node: String,
    /// What the node is from now on
    #[arg(value_enum, default_value_t = Approval::Approved)]
    approval: Approval,
}

/// Whether a node gets work.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Approval {
    /// It gets work
    Approved,
    /// It gets no work until it is approved
    Pending,
    /// It gets no work and makes no calls
    Suspended,
    /// Its key is refused for good
    Revoked,
}

impl Approval {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Pending => "pending",
            Self::Suspended => "suspended",
            Self::Revoked => "revoked",
        }
    }
}

/// Sets the approval.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let node = rpc.find_node(&args.node).await?;
    let answer = rpc.set_node_approval(node, args.approval.as_str()).await?;
    context.output.show(&answer, || format!("Node {node} is {}.", args.approval.as_str()))?;
    Ok(())
}
