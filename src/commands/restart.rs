//! `infernet restart`.

use super::{Context, start, stop};
use crate::agent::{process, service};
use crate::command_error::CommandError;

/// The arguments of `infernet restart`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do not let running jobs finish; they are handed to other nodes
    #[arg(long)]
    now: bool,
}

/// Ends the agent and starts it again, as what it was: a service or a process in the
/// background. One that does not run is started.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let running = process::running(&context.process_files())?;
    let manager = match running {
        Some(pid) => service::managing(pid).await,
        None => None,
    };
    if let Some(scope) = manager {
        if args.now {
            // What systemd then starts finds nothing to wait for.
            stop::end(true, None, context).await?;
        }
        service::restart(scope).await?;
        context.output.talk("The service was restarted. See infernet status.");
        return Ok(());
    }
    // A configuration that cannot be started with must not end what runs.
    context.config()?.node()?;
    if running.is_some() {
        stop::end(args.now, None, context).await?;
    }
    start::run(&start::Args::default(), context).await
}
