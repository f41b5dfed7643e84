//! Waiting for a batch, and its results.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::time::sleep;

use super::{failed, states};
use crate::command_error::{CommandError, Kind};
use crate::commands::Context;
use crate::commands::screen::Interrupts;
use crate::control::rpc::{Batch, JobState, Rpc, RpcError, UnexpectedAnswer};
use crate::id::BatchId;

/// The pause between two looks at a batch in work, and how long it grows to.
const LOOK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// How many items are asked for at a time: their outputs travel with them.
const PAGE: u32 = 100;

/// Waits until every item has ended and shows how far it is. Ctrl-C leaves the
/// batch alone.
pub(super) async fn wait(id: BatchId, rpc: &Rpc, context: &Context) -> Result<Batch, CommandError> {
    let mut interrupts = Interrupts::new()?;
    let mut line = Line::new(context);
    let outcome = tokio::select! {
        biased;
        () = interrupts.next() => Err(
            CommandError::new(Kind::Interrupted, "Left; the batch goes on.")
                .hint(format!("Read what there is: infernet batch show {id} --results")),
        ),
        batch = look_until_over(id, rpc, &mut line) => Ok(batch?),
    };
    line.end();
    outcome
}

async fn look_until_over(id: BatchId, rpc: &Rpc, line: &mut Line) -> Result<Batch, RpcError> {
    let (mut pause, most) = LOOK;
    let mut done = 0;
    loop {
        let batch = rpc.get_batch(id, 0, 0).await?.batch;
        line.show(&batch);
        if batch.done >= batch.items {
            return Ok(batch);
        }
        // One that moves is looked at soon again.
        pause = if batch.done > done { LOOK.0 } else { pause.mul_f64(1.5).min(most) };
        done = batch.done;
        sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
    }
}

/// Says whether each item was answered.
pub(super) fn outcome(batch: &Batch) -> Result<(), CommandError> {
    if batch.count(JobState::Completed) == batch.items {
        return Ok(());
    }
    let mut error = CommandError::new(
        Kind::JobFailed,
        format!("Not every item was answered: {}.", states(batch)),
    )
    .word("items_failed");
    if failed(batch) > 0 {
        error = error.hint("See why, and try those again: infernet job failed");
    }
    Err(error)
}

/// Prints the items after a number that have ended, an object a line.
pub(super) async fn results(
    id: BatchId,
    after: u32,
    rpc: &Rpc,
    context: &Context,
) -> Result<(), CommandError> {
    let (mut reached, mut limit) = (after, PAGE);
    loop {
        let page = match rpc.get_batch(id, reached, limit).await {
            // Long answers are fetched in smaller pages.
            Err(error) if limit > 1 && is_too_large(&error) => {
                limit = (limit / 4).max(1);
                continue;
            }
            page => page?,
        };
        for result in page.results.iter().filter(|result| result.state.has_ended()) {
            context.output.object(result)?;
        }
        match page.results.last() {
            Some(last) => reached = last.item,
            None => return Ok(()),
        }
    }
}

fn is_too_large(error: &RpcError) -> bool {
    matches!(error, RpcError::Unexpected { source: UnexpectedAnswer::TooLarge { .. }, .. })
}

/// One line on stderr that says how far it is: written over on a terminal, and
/// elsewhere only the last one.
struct Line {
    live: bool,
    shown: String,
}

impl Line {
    fn new(context: &Context) -> Self {
        Self {
            live: std::io::stderr().is_terminal() && !context.output.is_quiet(),
            shown: String::new(),
        }
    }

    fn show(&mut self, batch: &Batch) {
        let text = format!("{} of {}: {}", batch.done, batch.items, states(batch));
        if self.live && text != self.shown {
            let mut stderr = std::io::stderr().lock();
            // A progress line that cannot be written is not missed.
            drop(write!(stderr, "\r\u{1b}[K{text}").and_then(|()| stderr.flush()));
        }
        self.shown = text;
    }

    fn end(&self) {
        if self.live && !self.shown.is_empty() {
            drop(writeln!(std::io::stderr().lock()));
        }
    }
}
