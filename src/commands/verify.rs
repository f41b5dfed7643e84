//! `infernet verify`: checks a receipt's signature, offline or against a job.

use std::io::Read;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Context;
use super::table::Table;
use crate::command_error::{CommandError, Kind};
use crate::control::rpc::Job;
use crate::id::IdPrefix;
use crate::identity::{Receipt, sha256_hex};

/// The most that is read of a receipt.
const RECEIPT_LIMIT: u64 = 64 * 1024;

/// The arguments of `infernet verify`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("subject").required(true).args(["receipt", "job"]))]
pub(crate) struct Args {
    /// The file of the receipt, or - for stdin
    receipt: Option<PathBuf>,
    /// Check the receipt of this job, and that it says what the job says
    #[arg(long, value_name = "ID")]
    job: Option<IdPrefix>,
    /// Check that the receipt is for the output in this file
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Read the job with this key instead of owner.key
    #[arg(long, value_name = "FILE", requires = "job")]
    key_file: Option<PathBuf>,
}

/// Checks the receipt.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let (event, job) = match (&args.job, &args.receipt) {
        (Some(id), _) => {
            let rpc = context.user(args.key_file.as_ref()).await?;
            let job = rpc.get_job(rpc.find_job(id).await?).await?;
            let event = job.receipt.clone().ok_or_else(|| {
                CommandError::user(format!("The job is {} and has no receipt.", job.state))
            })?;
            (event, Some(job))
        }
        (None, Some(path)) => (read(path)?, None),
        (None, None) => return Err(CommandError::new(Kind::Usage, "There is no receipt.")),
    };
    let verified = Receipt::verify(&event).map_err(|error| CommandError::new(Kind::User, error))?;
    let receipt = &verified.receipt;
    if let Some(job) = &job {
        compare(receipt, job)?;
    }
    if let Some(path) = &args.output {
        let output = std::fs::read(path).map_err(|error| {
            CommandError::user(format!("{} cannot be read ({error}).", path.display()))
        })?;
        if sha256_hex(&output) != receipt.output_sha256 {
            return Err(CommandError::user(format!(
                "The receipt is for another output than that in {}.",
                path.display()
            ))
            .word("other_output"));
        }
    }
    if context.output.is_json() {
        context.output.object(&json!({
            "genuine": true,
            "event": verified.event_id,
            "signed_at": verified.signed_at,
            "receipt": receipt,
        }))?;
    } else {
        context.output.line(&sheet(receipt).text(&context.output))?;
        context.output.talk("The signature is genuine.");
    }
    Ok(())
}

/// Reads a receipt from a file or from stdin.
fn read(path: &PathBuf) -> Result<Value, CommandError> {
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(RECEIPT_LIMIT).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(RECEIPT_LIMIT).read_to_end(&mut bytes))
    };
    read.map_err(|error| {
        CommandError::user(format!("The receipt {} cannot be read ({error}).", path.display()))
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        CommandError::user(format!(
            "{} is not a receipt: it is not JSON ({error}).",
            path.display()
        ))
    })
}

/// Refuses a receipt that says something else than its job.
fn compare(receipt: &Receipt, job: &Job) -> Result<(), CommandError> {
    let output = job.output.as_ref().map(|output| sha256_hex(output.as_bytes()));
    let differing = [
        ("job", receipt.job == job.id.as_uuid()),
        ("model", receipt.model == job.model),
        ("attempt", job.attempt.as_ref().is_none_or(|a| a.id.as_uuid() == receipt.attempt)),
        ("input", job.input_sha256.as_ref().is_none_or(|sha256| *sha256 == receipt.input_sha256)),
        ("output", output.is_none_or(|sha256| sha256 == receipt.output_sha256)),
        ("finish", job.finish.as_ref().is_none_or(|finish| *finish == receipt.finish)),
    ]
    .into_iter()
    .find(|(_field, same)| !same);
    match differing {
        None => Ok(()),
        Some((field, _)) => Err(CommandError::user(format!(
            "The receipt is genuine, but its {field} is not that of the job."
        ))
        .word("other_job")),
    }
}

fn sheet(receipt: &Receipt) -> Table {
    let (usage, price) = match (receipt.seconds, &receipt.price_second) {
        (Some(seconds), Some(price)) => {
            (format!("{seconds} seconds"), format!("{price} USD per second"))
        }
        _ => (
            format!("{} tokens in, {} out", receipt.input_tokens, receipt.output_tokens),
            format!("{} in, {} out, USD per million", receipt.price_input, receipt.price_output),
        ),
    };
    let mut sheet = Table::sheet();
    sheet.fact("node", &receipt.node);
    sheet.fact("control plane", &receipt.url);
    sheet.fact("job", receipt.job);
    sheet.fact("attempt", receipt.attempt);
    sheet.fact("model", &receipt.model);
    sheet.fact_if("model digest", receipt.model_digest.as_ref());
    sheet.fact("input sha256", &receipt.input_sha256);
    sheet.fact("output sha256", &receipt.output_sha256);
    sheet.fact("usage", usage);
    sheet.fact("price", price);
    sheet.fact("finish", &receipt.finish);
    sheet
}
