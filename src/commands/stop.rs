//! `infernet stop`.

use std::time::Duration;

use serde_json::json;

use super::Context;
use crate::agent::process;
use crate::command_error::CommandError;

/// What the agent needs beyond its grace period: handing back, saying
/// good-bye, stopping engines.
const WINDING_UP: Duration = Duration::from_secs(30);

/// The grace period of an agent whose configuration cannot be read.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// The arguments of `infernet stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do not let running jobs finish; they are handed to other nodes
    #[arg(long)]
    now: bool,
    /// Wait at most this long until it has ended
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

/// Ends the agent and waits until it is gone.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let stopped = end(args.now, args.wait.map(Duration::from_secs), context).await?;
    let output = &context.output;
    if output.is_json() {
        output.object(&json!({"stopped": stopped.is_some(), "pid": stopped}))?;
        return Ok(());
    }
    match stopped {
        Some(pid) => output.talk(&format!("The agent (process {pid}) has ended.")),
        None => output.talk("No agent is running on this machine."),
    }
    Ok(())
}

/// Ends the agent; answers its process, if one ran.
pub(super) async fn end(
    now: bool,
    wait: Option<Duration>,
    context: &Context,
) -> Result<Option<i32>, CommandError> {
    let files = context.process_files();
    let patience = match wait {
        Some(wait) => wait,
        None if now => WINDING_UP,
        None => {
            // A configuration that was broken meanwhile must not keep the
            // agent from being stopped.
            let grace = context.config().ok().and_then(|c| c.node().ok().map(|node| node.grace));
            grace.unwrap_or(DEFAULT_GRACE) + WINDING_UP
        }
    };
    let stopped = tokio::task::spawn_blocking(move || process::stop(&files, now, patience))
        .await
        .expect("waiting for a process does not panic")?;
    Ok(stopped)
}
