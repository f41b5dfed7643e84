//! `infernet job logs`: a job's answer, from its beginning, until it is whole.

use tokio_util::sync::CancellationToken;

use super::Found;
use crate::command_error::{CommandError, Kind};
use crate::commands::Context;
use crate::commands::screen::{Interrupts, Screen, conclude, open_socket};
use crate::control::job_stream::{JobStream, StreamTiming};

/// Prints the answer while it is written. Ctrl-C leaves the job alone.
pub(super) async fn run(found: Found, context: &Context) -> Result<(), CommandError> {
    let Found { rpc, id } = found;
    let mut interrupts = Interrupts::new()?;
    let shutdown = CancellationToken::new();
    let job = rpc.get_job(id).await?;
    // What has ended is read from its row.
    let realtime = if job.state.has_ended() { None } else { open_socket(&rpc, &shutdown) };
    let mut stream =
        Box::pin(JobStream::attach(&rpc, realtime.as_ref(), id, StreamTiming::default())).await?;
    let mut screen = Screen::new(context.output, false);
    loop {
        tokio::select! {
            biased;
            () = interrupts.next() => {
                shutdown.cancel();
                return Err(CommandError::new(Kind::Interrupted, "Left; the job goes on.")
                    .hint(format!("Cancel it with: infernet job cancel {id}")));
            }
            event = stream.next() => match event? {
                Some(event) => screen.show(event)?,
                None => break,
            },
        }
    }
    shutdown.cancel();
    conclude(&stream, &screen, false)
}
