//! `infernet job explain`.

use std::path::PathBuf;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::{columns, moment};
use crate::control::rpc::{Explanation, SeenOffer, ToldAttempt, ToldEntry};
use crate::id::JobId;

/// The arguments of `infernet job explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job's id
    job: JobId,
    /// Explain a job of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Tells the job's life.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let told = rpc.explain_job(args.job).await?;
    if context.output.is_json() {
        context.output.object(&told)?;
    } else {
        context.output.line(&sheet(&told))?;
    }
    Ok(())
}

fn sheet(told: &Explanation) -> String {
    let mut parts = vec![story(told)];
    if let Some(waiting) = &told.waiting {
        parts.push(format!("It waits: {}", waiting.reason.message));
        parts.extend(offers(&waiting.offers, waiting.seen));
    }
    for attempt in &told.attempts {
        parts.push(columns(&facts(attempt)));
        parts.extend(offers(&attempt.choice.offers, attempt.choice.seen));
    }
    if !told.ledger.is_empty() {
        parts.push(ledger(&told.ledger));
    }
    parts.push(match told.chain.broken_at {
        None => format!("Its history is as it was written: {} events.", told.chain.events),
        Some(event) => {
            format!("Its history was changed after it was written, from event {event} on.")
        }
    });
    parts.join("\n\n")
}

fn story(told: &Explanation) -> String {
    let rows: Vec<Vec<String>> =
        told.story.iter().map(|line| vec![moment(line.at), line.what.clone()]).collect();
    columns(&rows)
}

fn facts(attempt: &ToldAttempt) -> Vec<Vec<String>> {
    let mut rows = vec![
        vec![
            "attempt".to_owned(),
            format!("{} on {}: {}", attempt.number, attempt.node.name, attempt.state),
        ],
        vec!["offered".to_owned(), moment(attempt.offered_at)],
    ];
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    fact("started", attempt.started_at.map(moment));
    fact("ended", attempt.ended_at.map(moment));
    fact("lease", attempt.lease_until.map(|until| format!("until {}", moment(until))));
    let price = if attempt.price_second.is_zero() {
        format!("{} in, {} out per million tokens", attempt.price_input, attempt.price_output)
    } else {
        format!("{} a second", attempt.price_second)
    };
    fact("price", Some(price));
    fact("cost", attempt.cost.map(|cost| cost.to_string()));
    fact(
        "error",
        attempt.error.as_ref().map(|error| format!("{} ({})", error.message, error.code)),
    );
    rows
}

/// Lays the offers that were looked at out, if there are any to show.
fn offers(offers: &[SeenOffer], seen: Option<u32>) -> Option<String> {
    if offers.is_empty() {
        return None;
    }
    let mut rows = vec![vec!["node".to_owned(), "score".to_owned(), "why not".to_owned()]];
    rows.extend(offers.iter().map(|offer| {
        vec![
            offer.node.as_ref().map_or_else(|| "(private)".to_owned(), |node| node.name.clone()),
            offer.score.map(|score| format!("{score:.3}")).unwrap_or_default(),
            offer.reason.clone().unwrap_or_default(),
        ]
    }));
    let mut text = columns(&rows);
    let more = seen.map_or(0, |seen| seen as usize).saturating_sub(offers.len());
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    Some(text)
}

fn ledger(entries: &[ToldEntry]) -> String {
    let heading = ["posted", "kind", "account", "amount", ""];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        vec![
            moment(entry.at),
            entry.kind.clone(),
            entry.account.clone(),
            entry.amount.to_string(),
            if entry.of_batch { "for the whole batch".to_owned() } else { String::new() },
        ]
    }));
    columns(&rows)
}
