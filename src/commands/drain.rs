//! `infernet drain`.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Context;
use crate::agent::admin;
use crate::command_error::CommandError;

/// How often running jobs are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The arguments of `infernet drain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Wait until no job runs any more, at most this long
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

/// Has this machine's agent take no more work.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let files = context.process_files();
    let mut running = admin::drain(&files).await?;
    if let Some(secs) = args.wait {
        let limit = Instant::now() + Duration::from_secs(secs);
        while running > 0 {
            if Instant::now() >= limit {
                return Err(CommandError::unavailable(format!(
                    "{} still in work after {secs} s.",
                    jobs(running)
                ))
                .hint("Wait longer, or hand them to other nodes: infernet stop --now"));
            }
            sleep(LOOK).await;
            running = admin::snapshot(&files, 0).await?.attempts.len();
        }
    }
    let output = &context.output;
    if output.is_json() {
        output.object(&json!({"draining": true, "running": running}))?;
        return Ok(());
    }
    output.talk(&format!("This node takes no more work; {} in work.", jobs(running)));
    output.talk("It takes work again with infernet resume, or when its agent is restarted.");
    Ok(())
}

/// Counts jobs in words.
pub(super) fn jobs(count: usize) -> String {
    match count {
        0 => "no job is".to_owned(),
        1 => "1 job is".to_owned(),
        count => format!("{count} jobs are"),
    }
}
