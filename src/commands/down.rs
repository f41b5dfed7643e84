//! `infernet down`: stops the embedded control plane of a data folder.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Context;
use crate::command_error::CommandError;
use crate::stack::StackError;
use crate::stack::data_dir::DataDir;
use crate::stack::postgres::stop_orphan;

/// How long a control plane may take to stop: its own limits and some more.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Stop the control plane of this machine
///
/// Waits until it has stopped. The data stay for the next infernet up.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Where its data are [default: /var/lib/infernet for root, else the user's data folder]
    #[arg(long, value_name = "DIR", env = "INFERNET_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// Stops it, and what a killed one left behind.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let output = context.output;
    let root = match args.data_dir {
        Some(root) => root,
        None => DataDir::default_root().map_err(StackError::from)?,
    };
    if !root.is_dir() {
        output.talk(&format!("No control plane has data in {}", root.display()));
        return Ok(());
    }
    let data = DataDir::create(root).map_err(StackError::from)?;
    if let Some(running) = data.running().map_err(StackError::from)? {
        output.talk(&format!("Stopping process {} …", running.pid));
        let pid = i32::try_from(running.pid)
            .map_or(Err(Errno::ESRCH), |pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        match pid {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                return Err(CommandError::user(format!(
                    "Process {} of {} cannot be stopped: {errno}",
                    running.pid,
                    data.root().display()
                ))
                .hint("Run this as the user who started it."));
            }
        }
        if !data.wait_released(STOP_LIMIT).await.map_err(StackError::from)? {
            return Err(CommandError::unavailable(format!(
                "The control plane still runs after {} s (process {})",
                STOP_LIMIT.as_secs(),
                running.pid
            ))
            .hint(format!("Once more, or kill -9 {}; the next start recovers.", running.pid)));
        }
        output.talk("It has stopped.");
        return Ok(());
    }
    // Held, so that nobody starts in between.
    let lock = data.lock().map_err(StackError::from)?;
    let found = stop_orphan(&data).await.map_err(StackError::from)?;
    drop(lock);
    output.talk(if found {
        "It had been killed; its PostgreSQL has been stopped."
    } else {
        "No control plane is running."
    });
    Ok(())
}
