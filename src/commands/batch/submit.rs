//! `infernet batch submit`.

use std::path::PathBuf;

use super::{input, progress};
use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::terms::TermsArgs;
use crate::control::rpc::{JobKind, SubmitBatch};

/// The arguments of `infernet batch submit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A line of the file is one item: a prompt as a JSON string, or an object with \"prompt\" or
\"messages\" and other keys of an OpenAI request. Empty lines are left out.

Examples:
  infernet batch submit llama3.2:3b questions.jsonl --title survey
  cut -f2 reviews.tsv | infernet batch submit llama3.2:3b - --plain --wait > answers.jsonl")]
pub(crate) struct Args {
    /// The model that answers
    model: String,
    /// The file, a JSON value a line; - for stdin
    file: PathBuf,
    /// Take each line as a prompt as it is
    #[arg(long)]
    plain: bool,
    /// Say this to the model before each prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Stop each answer after this many tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    #[command(flatten)]
    terms: TermsArgs,
    /// Wait until every item has ended, and print the results as JSON lines
    #[arg(long)]
    wait: bool,
}

/// Submits the batch.
pub(super) async fn run(
    args: &Args,
    key: Option<&PathBuf>,
    context: &Context,
) -> Result<(), CommandError> {
    let items = input::read(&args.file, args.plain, args.system.as_deref())?;
    let mut request = SubmitBatch::new(&args.model, JobKind::Chat, items);
    request.max_tokens = args.max_tokens;
    request.terms = args.terms.terms();
    let rpc = context.user(key).await?;
    let submitted = rpc.submit_batch(&request).await?;
    let batch = &submitted.batch;
    let held = format!("{} items; {} is held for them.", batch.items, batch.held);
    if !args.wait {
        context.output.show(&submitted, || batch.id.to_string())?;
        context.output.talk(&held);
        context.output.talk(&format!("See how far it is: infernet batch show {}", batch.id));
        return Ok(());
    }
    context.output.talk(&format!("Batch {}: {held}", batch.id));
    let ended = progress::wait(batch.id, &rpc, context).await?;
    progress::results(batch.id, 0, &rpc, context).await?;
    progress::outcome(&ended)
}
