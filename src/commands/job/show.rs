//! `infernet job show`.

use std::path::PathBuf;

use serde_json::json;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::{columns, moment};
use crate::control::rest::{AttemptRow, StatementLine};
use crate::control::rpc::Job;
use crate::id::JobId;

/// How many lines of the ledger one job can have at most, well above what it
/// has.
const LINES: u32 = 100;

/// The arguments of `infernet job show`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job's id
    job: JobId,
    /// Print the answer alone
    #[arg(long, conflicts_with = "json")]
    output: bool,
    /// Show a job of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Shows the job.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let job = rpc.get_job(args.job).await?;
    if args.output {
        let text = job.output.ok_or_else(|| {
            CommandError::user(format!("The job is {} and has no output.", job.state))
        })?;
        context.output.line(&text)?;
        return Ok(());
    }
    let attempts = rpc.job_attempts(args.job).await?;
    let statement = rpc.statement(LINES, Some(args.job)).await?;
    if context.output.is_json() {
        context.output.object(&json!({"job": job, "attempts": attempts, "ledger": statement}))?;
    } else {
        context.output.line(&sheet(&job, &attempts, &statement))?;
    }
    Ok(())
}

fn sheet(job: &Job, attempts: &[AttemptRow], statement: &[StatementLine]) -> String {
    let mut facts: Vec<(&str, String)> = vec![
        ("job", job.id.to_string()),
        ("state", job.state.to_string()),
        ("model", job.model.clone()),
    ];
    let mut fact = |name, value: Option<String>| {
        if let Some(value) = value {
            facts.push((name, value));
        }
    };
    fact("title", job.title.clone());
    fact("waits", job.waiting.as_ref().map(|reason| reason.message.clone()));
    fact("error", job.error.as_ref().map(|reason| format!("{} ({})", reason.message, reason.code)));
    fact(
        "tokens",
        job.usage.map(|usage| format!("{} in, {} out", usage.input_tokens, usage.output_tokens)),
    );
    fact("finish", job.finish.clone());
    fact("cap", Some(job.held.to_string()));
    fact("cost", job.cost.map(|cost| cost.to_string()));
    fact("submitted", Some(moment(job.created_at)));
    fact("started", job.started_at.map(moment));
    fact("ended", job.ended_at.map(moment));
    fact("deadline", job.deadline_at.map(moment));
    fact("forgotten", job.forgotten_at.map(moment));
    let rows: Vec<Vec<String>> =
        facts.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let mut text = columns(&rows);
    if !attempts.is_empty() {
        let heading = ["attempt", "node", "state", "started", "ended", "cost", "error"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(attempts.iter().map(|attempt| {
            vec![
                attempt.number.to_string(),
                attempt.provider_name.clone().unwrap_or_default(),
                attempt.state.to_string(),
                attempt.started_at.map(moment).unwrap_or_default(),
                attempt.ended_at.map(moment).unwrap_or_default(),
                attempt.cost.map(|cost| cost.to_string()).unwrap_or_default(),
                attempt.error.clone().unwrap_or_default(),
            ]
        }));
        text.push_str("\n\n");
        text.push_str(&columns(&rows));
    }
    if !statement.is_empty() {
        text.push_str("\n\n");
        text.push_str(&ledger(statement));
    }
    if let Some(output) = &job.output {
        text.push_str("\n\n");
        text.push_str(output);
    }
    text
}

/// Lays lines of the ledger out, the oldest first.
pub(crate) fn ledger(statement: &[StatementLine]) -> String {
    let heading = ["posted", "kind", "account", "amount", "then", "memo"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(statement.iter().rev().map(|line| {
        vec![
            moment(line.created_at),
            line.kind.clone(),
            line.account.clone(),
            line.amount.to_string(),
            line.balance_after.map(|balance| balance.to_string()).unwrap_or_default(),
            line.memo.clone().unwrap_or_default(),
        ]
    }));
    columns(&rows)
}
