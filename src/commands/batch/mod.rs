//! `infernet batch`: many jobs that are submitted as one.

mod input;
mod progress;
mod submit;

use std::path::PathBuf;

use clap::Subcommand;

use super::Context;
use super::output::moment;
use super::table::{Table, cell, maybe};
use crate::command_error::CommandError;
use crate::control::rpc::{Batch, JobState, Rpc};
use crate::id::IdPrefix;

/// The arguments of `infernet batch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Act as the holder of this key instead of owner.key
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit the lines of a file as one batch, and print its id
    Submit(Box<submit::Args>),
    /// List batches, the newest first
    Ls(LsArgs),
    /// Show how far a batch is, or print its results
    Show(ShowArgs),
    /// Cancel what of a batch has not ended; what was delivered is paid
    Cancel(OneBatch),
}

/// The arguments of `infernet batch ls`.
#[derive(Debug, clap::Args)]
struct LsArgs {
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
}

/// The batch that a verb is about.
#[derive(Debug, clap::Args)]
struct OneBatch {
    /// The batch's id, or enough of its beginning
    batch: IdPrefix,
}

/// The arguments of `infernet batch show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A result is one JSON object a line: item (its number, from 1), id (its job), state, output, finish,
cost and error. Results of a batch that is still in work are those that are there already.")]
struct ShowArgs {
    #[command(flatten)]
    batch: OneBatch,
    /// Print the results of the items that have ended, as JSON lines
    #[arg(long)]
    results: bool,
    /// Wait until every item has ended
    #[arg(long)]
    wait: bool,
    /// Leave out the items up to this number
    #[arg(long, value_name = "ITEM", default_value_t = 0, requires = "results")]
    after: u32,
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let key = args.key_file.as_ref();
    match args.command {
        Command::Submit(args) => submit::run(&args, key, context).await,
        Command::Ls(args) => ls(&args, &context.user(key).await?, context).await,
        Command::Show(args) => show(&args, &context.user(key).await?, context).await,
        Command::Cancel(args) => cancel(&args, &context.user(key).await?, context).await,
    }
}

/// Lists the batches.
async fn ls(args: &LsArgs, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let batches = rpc.list_batches(args.limit).await?;
    let heading = ["batch", "model", "items", "done", "failed", "cost", "submitted", "title"];
    let nothing = "There are no batches. Submit one: infernet batch submit MODEL FILE";
    context.output.list(&batches, &heading, nothing, |batch| {
        vec![
            cell(batch.id),
            cell(&batch.model),
            cell(batch.items),
            cell(batch.done),
            cell(failed(batch)),
            cell(batch.cost),
            cell(moment(batch.created_at)),
            maybe(batch.title.as_ref()),
        ]
    })?;
    Ok(())
}

/// Shows how far a batch is, or prints what there is of its results.
async fn show(args: &ShowArgs, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let id = rpc.find_batch(&args.batch.batch).await?;
    let batch = if args.wait {
        progress::wait(id, rpc, context).await?
    } else {
        rpc.get_batch(id, 0, 0).await?.batch
    };
    if args.results {
        progress::results(id, args.after, rpc, context).await?;
    } else {
        context.output.show(&batch, || sheet(&batch).text(&context.output))?;
    }
    if args.wait { progress::outcome(&batch) } else { Ok(()) }
}

/// Cancels what has not ended.
async fn cancel(args: &OneBatch, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let id = rpc.find_batch(&args.batch).await?;
    let batch = rpc.cancel_batch(id).await?;
    context.output.show(&batch, || {
        let left = batch.items - batch.done;
        match left {
            0 => format!("The batch is over: {}.", states(&batch)),
            _ => format!("Cancelled; {left} items are being stopped by their nodes."),
        }
    })?;
    Ok(())
}

/// Counts the items that came to nothing.
fn failed(batch: &Batch) -> u32 {
    batch.count(JobState::Failed) + batch.count(JobState::Expired)
}

/// Counts the items of each state in words.
fn states(batch: &Batch) -> String {
    let parts: Vec<String> =
        batch.states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    parts.join(", ")
}

fn sheet(batch: &Batch) -> Table {
    let mut sheet = Table::sheet();
    sheet.fact("batch", batch.id);
    sheet.fact_if("title", batch.title.as_ref());
    sheet.fact("model", &batch.model);
    sheet.fact("items", format!("{} of {} have ended", batch.done, batch.items));
    sheet.fact("states", states(batch));
    sheet.fact("held", batch.held);
    sheet.fact("cost", batch.cost);
    sheet.fact("submitted", moment(batch.created_at));
    sheet.fact_if("cancelled", batch.cancelled_at.map(moment));
    sheet.fact_if("ended", batch.ended_at.map(moment));
    sheet
}
