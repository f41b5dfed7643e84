//! `infernet job explain`.

use super::Found;
use crate::command_error::CommandError;
use crate::commands::output::moment;
use crate::commands::table::{Table, cell, maybe};
use crate::commands::{Context, Output};
use crate::control::rpc::{Explanation, SeenOffer, ToldAttempt, ToldEntry};

/// Tells the job's life.
pub(super) async fn run(found: Found, context: &Context) -> Result<(), CommandError> {
    let told = found.rpc.explain_job(found.id).await?;
    context.output.show(&told, || sheet(&told, &context.output))?;
    Ok(())
}

fn sheet(told: &Explanation, output: &Output) -> String {
    let mut parts = vec![story(told).text(output)];
    if let Some(waiting) = &told.waiting {
        parts.push(format!("It waits: {}", waiting.reason.message));
        parts.extend(offers(&waiting.offers, waiting.seen, output));
    }
    for attempt in &told.attempts {
        parts.push(facts(attempt).text(output));
        parts.extend(offers(&attempt.choice.offers, attempt.choice.seen, output));
    }
    if !told.ledger.is_empty() {
        parts.push(ledger(&told.ledger).text(output));
    }
    parts.push(match told.chain.broken_at {
        None => format!("Its history is as it was written: {} events.", told.chain.events),
        Some(event) => {
            format!("Its history was changed after it was written, from event {event} on.")
        }
    });
    parts.join("\n\n")
}

fn story(told: &Explanation) -> Table {
    let mut table = Table::sheet();
    for line in &told.story {
        table.fact(&moment(line.at), &line.what);
    }
    table
}

fn facts(attempt: &ToldAttempt) -> Table {
    let mut sheet = Table::sheet();
    sheet
        .fact("attempt", format!("{} on {}: {}", attempt.number, attempt.node.name, attempt.state));
    sheet.fact("offered", moment(attempt.offered_at));
    sheet.fact_if("started", attempt.started_at.map(moment));
    sheet.fact_if("ended", attempt.ended_at.map(moment));
    sheet.fact_if("lease", attempt.lease_until.map(|until| format!("until {}", moment(until))));
    sheet.fact(
        "price",
        if attempt.price_second.is_zero() {
            format!("{} in, {} out per million tokens", attempt.price_input, attempt.price_output)
        } else {
            format!("{} a second", attempt.price_second)
        },
    );
    sheet.fact_if("cost", attempt.cost);
    let error = attempt.error.as_ref();
    sheet.fact_if("error", error.map(|error| format!("{} ({})", error.message, error.code)));
    sheet
}

/// Lays the offers that were looked at out, if there are any to show.
fn offers(offers: &[SeenOffer], seen: Option<u32>, output: &Output) -> Option<String> {
    if offers.is_empty() {
        return None;
    }
    let mut table = Table::new(&["node", "score", "why not"]);
    for offer in offers {
        table.row(vec![
            cell(offer.node.as_ref().map_or("(private)", |node| &node.name)),
            maybe(offer.score.map(|score| format!("{score:.3}"))),
            maybe(offer.reason.as_ref()),
        ]);
    }
    let mut text = table.text(output);
    let more = seen.map_or(0, |seen| seen as usize).saturating_sub(offers.len());
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    Some(text)
}

fn ledger(entries: &[ToldEntry]) -> Table {
    let mut table = Table::new(&["posted", "kind", "account", "amount", ""]);
    for entry in entries {
        table.row(vec![
            cell(moment(entry.at)),
            cell(&entry.kind),
            cell(&entry.account),
            cell(entry.amount),
            maybe(entry.of_batch.then_some("for the whole batch")),
        ]);
    }
    table
}
