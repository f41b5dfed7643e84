//! `infernet node ls`.

use clap::ValueEnum;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::moment;
use crate::commands::table::{cell, maybe, state};
use crate::control::rpc::Rpc;

/// The arguments of `infernet node ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// List nodes of this status only
    #[arg(long, value_enum)]
    status: Option<Status>,
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

/// A status that can be asked for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Status {
    Offline,
    Online,
    Draining,
    Paused,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Online => "online",
            Self::Draining => "draining",
            Self::Paused => "paused",
        }
    }
}

/// Lists the nodes.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let nodes = rpc.list_nodes(args.status.map(Status::as_str), args.limit).await?;
    let heading = ["node", "name", "status", "approval", "running", "last seen", "because"];
    let nothing = "There are no such nodes. A machine joins with: infernet init";
    context.output.list(&nodes, &heading, nothing, |node| {
        vec![
            cell(node.id),
            cell(&node.name),
            state(&node.status),
            state(&node.approval),
            cell(node.running),
            cell(node.last_seen.map_or_else(|| "never".to_owned(), moment)),
            maybe(node.stops.first()),
        ]
    })?;
    Ok(())
}
