//! `infernet job show`.

use serde_json::json;

use super::{Found, OneJob};
use crate::command_error::CommandError;
use crate::commands::output::moment;
use crate::commands::table::{Table, cell, maybe, state};
use crate::commands::{Context, Output};
use crate::control::rest::{AttemptRow, StatementLine};
use crate::control::rpc::Job;

/// How many lines of the ledger one job can have at most, well above what it
/// has.
const LINES: u32 = 100;

/// The arguments of `infernet job show`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) job: OneJob,
    /// Print the answer alone
    #[arg(long, conflicts_with = "json")]
    output: bool,
}

/// Shows the job.
pub(super) async fn run(args: &Args, found: Found, context: &Context) -> Result<(), CommandError> {
    let Found { rpc, id } = found;
    let output = context.output;
    let job = rpc.get_job(id).await?;
    if args.output {
        let text = job.output.ok_or_else(|| {
            CommandError::user(format!("The job is {} and has no output.", job.state))
        })?;
        output.answer(&format!("{text}\n"))?;
        return Ok(());
    }
    let attempts = rpc.job_attempts(id).await?;
    let statement = rpc.statement(LINES, Some(id)).await?;
    if output.is_json() {
        output.object(&json!({"job": job, "attempts": attempts, "ledger": statement}))?;
        return Ok(());
    }
    let mut parts = vec![facts(&job).text(&output)];
    if !attempts.is_empty() {
        parts.push(attempt_table(&attempts).text(&output));
    }
    if !statement.is_empty() {
        parts.push(ledger(&statement, &output));
    }
    output.line(&parts.join("\n\n"))?;
    if let Some(text) = &job.output {
        output.answer(&format!("\n{text}\n"))?;
    }
    Ok(())
}

fn facts(job: &Job) -> Table {
    let mut sheet = Table::sheet();
    sheet.fact("job", job.id);
    sheet.fact_cell("state", state(job.state));
    sheet.fact("model", &job.model);
    sheet.fact_if("title", job.title.as_ref());
    sheet.fact_if("waits", job.waiting.as_ref().map(|reason| &reason.message));
    let error = job.error.as_ref();
    sheet.fact_if("error", error.map(|reason| format!("{} ({})", reason.message, reason.code)));
    sheet.fact_if("usage", job.usage);
    sheet.fact_if("finish", job.finish.as_ref());
    sheet.fact("cap", job.held);
    sheet.fact_if("cost", job.cost);
    sheet.fact("submitted", moment(job.created_at));
    sheet.fact_if("started", job.started_at.map(moment));
    sheet.fact_if("ended", job.ended_at.map(moment));
    sheet.fact_if("deadline", job.deadline_at.map(moment));
    sheet.fact_if("forgotten", job.forgotten_at.map(moment));
    sheet
}

fn attempt_table(attempts: &[AttemptRow]) -> Table {
    let mut table = Table::new(&["attempt", "node", "state", "started", "ended", "cost", "error"]);
    for attempt in attempts {
        table.row(vec![
            cell(attempt.number),
            maybe(attempt.provider_name.as_ref()),
            state(attempt.state),
            maybe(attempt.started_at.map(moment)),
            maybe(attempt.ended_at.map(moment)),
            maybe(attempt.cost),
            maybe(attempt.error.as_ref()),
        ]);
    }
    table
}

/// Lays lines of the ledger out, the oldest first.
pub(crate) fn ledger(statement: &[StatementLine], output: &Output) -> String {
    let mut table = Table::new(&["posted", "kind", "account", "amount", "then", "memo"]);
    for line in statement.iter().rev() {
        table.row(vec![
            cell(moment(line.created_at)),
            cell(&line.kind),
            cell(&line.account),
            cell(line.amount),
            maybe(line.balance_after),
            maybe(line.memo.as_ref()),
        ]);
    }
    table.text(output)
}
