//! What `infernet top` shows, as tables: the same printed once and live.

use super::Seen;
use crate::agent::admin::{AttemptView, EnginePhase, EngineView, GpuView, Stage};
use crate::commands::Output;
use crate::commands::status::{ago, phase_tone, phase_words, wakeup_words};
use crate::commands::table::{Cell, Table, Tone, cell, maybe};
use crate::money::Usd;

/// The lengths of the beginnings of ids: a UUID's groups, the first two of which are
/// the time of its making.
const BEGINNINGS: [usize; 3] = [13, 18, 23];

/// A table with its title.
pub(super) struct Panel {
    /// What it shows.
    pub(super) title: &'static str,
    /// The rows.
    pub(super) table: Table,
}

/// Lays everything out one below the other.
pub(super) fn once(seen: &Seen, output: &Output) -> String {
    let mut parts = vec![node(seen), earnings(seen), work(seen)];
    let width = output.width().map(usize::from);
    let filled = panels(seen, width).into_iter().filter(|panel| panel.table.len() > 0);
    parts.extend(filled.map(|panel| panel.table));
    let mut log = Table::sheet();
    for line in &seen.agent.log.lines {
        log.row(vec![cell(line)]);
    }
    if log.len() > 0 {
        parts.push(log);
    }
    parts.iter().map(|part| part.text(output)).collect::<Vec<_>>().join("\n\n")
}

/// Who the node is and what it does.
fn node(seen: &Seen) -> Table {
    let mut sheet = Table::sheet();
    sheet.fact_cell("Node", name(seen));
    sheet.fact_cell("Agent", phase(seen));
    for note in notes(seen) {
        sheet.fact_cell("", note);
    }
    sheet.fact("Control plane", &seen.agent.status.introduction.control_plane);
    sheet
}

/// Returns the node's name and role.
pub(super) fn name(seen: &Seen) -> Cell {
    let introduction = &seen.agent.status.introduction;
    cell(format!("{} ({})", introduction.name, introduction.role))
}

/// Says what the agent does.
pub(super) fn phase(seen: &Seen) -> Cell {
    if seen.trouble.is_some() {
        return cell("does not answer").tone(Tone::Bad);
    }
    let phase = seen.agent.status.phase;
    cell(phase_words(phase)).tone(phase_tone(phase))
}

/// Says what its reader must know, a sentence or two each.
pub(super) fn notes(seen: &Seen) -> Vec<Cell> {
    let status = &seen.agent.status;
    let mut notes = Vec::new();
    if let Some(trouble) = &seen.trouble {
        let words = format!("{trouble} What is shown is the last that it said.");
        notes.push(cell(words).tone(Tone::Bad));
    }
    notes.extend(status.message.iter().map(|message| cell(message).tone(Tone::Warning)));
    notes.extend(status.journal_trouble.iter().map(|trouble| cell(trouble).tone(Tone::Bad)));
    notes
}

/// What it earned.
pub(super) fn earnings(seen: &Seen) -> Table {
    let mut sheet = Table::sheet();
    let earnings = seen.node.as_ref().map(|node| node.earnings);
    let known = |amount: Option<Usd>, otherwise: &str| {
        amount.map_or_else(|| cell(otherwise).tone(Tone::Dim), cell)
    };
    let unknown = "not known yet";
    sheet.fact_cell("Earned today", known(earnings.map(|earnings| earnings.today), unknown));
    sheet.fact_cell("In 30 days", known(earnings.map(|earnings| earnings.days30), unknown));
    let pending = seen.owner.map(|owner| owner.pending);
    sheet.fact_cell("Not paid out", known(pending, "not told here"));
    sheet.fact("In this run", seen.agent.counters.earned);
    sheet
}

/// What it did since it started, and how.
pub(super) fn work(seen: &Seen) -> Table {
    let agent = &seen.agent;
    let counters = &agent.counters;
    let mut sheet = Table::sheet();
    sheet.fact("Slots", format!("{} of {} in use", agent.attempts.len(), agent.slots));
    sheet.fact(
        "Jobs",
        format!("{} done, {} failed, {} lost", counters.completed, counters.failed, counters.lost),
    );
    sheet.fact("Tokens", format!("{} in, {} out", counters.input_tokens, counters.output_tokens));
    sheet.fact("Wake-ups", wakeup_words(agent.status.wakeups));
    sheet.fact("Since", format!("{}, process {}", ago(agent.status.started_at), agent.status.pid));
    let memory = agent
        .resident_bytes
        .map_or_else(String::new, |bytes| format!(", {:.1} MB of memory", bytes as f64 / 1e6));
    sheet.fact("Version", format!("{}{memory}", agent.version));
    sheet
}

/// GPUs and engines, where there are any, and jobs. For a terminal of so many columns
/// what can be spared makes room, and ids are shown by their beginnings.
pub(super) fn panels(seen: &Seen, width: Option<usize>) -> Vec<Panel> {
    let agent = &seen.agent;
    let fit = |table: Table, spare: &[&str]| match width {
        Some(width) => table.narrowed(width, spare),
        None => table,
    };
    let mut panels = Vec::new();
    if !agent.gpus.is_empty() {
        let table = fit(gpus(&agent.gpus), &["power", "temperature", "gpu"]);
        panels.push(Panel { title: "GPUs", table });
    }
    if !agent.engines.is_empty() {
        panels.push(Panel { title: "Engines", table: fit(engines(&agent.engines), &["engine"]) });
    }
    let jobs = jobs(&agent.attempts, width.is_some());
    panels.push(Panel { title: "Jobs", table: fit(jobs, &["first token", "age", "model"]) });
    panels
}

fn gpus(gpus: &[GpuView]) -> Table {
    let mut table =
        Table::new(&["gpu", "model", "memory", "use", "temperature", "power", "condition"]);
    for gpu in gpus {
        let memory = match (gpu.memory_used_bytes, gpu.memory_bytes) {
            (Some(used), Some(all)) => Some(format!("{:.1} of {:.1} GiB", gib(used), gib(all))),
            _ => None,
        };
        let condition = match gpu.complaints.first() {
            Some(complaint) => cell(complaint).tone(Tone::Bad),
            None => cell("good").tone(Tone::Good),
        };
        table.row(vec![
            cell(gpu.index),
            maybe(gpu.name.as_ref()),
            maybe(memory),
            maybe(gpu.use_percent.map(|percent| format!("{percent} %"))),
            maybe(gpu.temperature_celsius.map(|degrees| format!("{degrees} °C"))),
            maybe(gpu.power_watts.map(|watts| format!("{watts} W"))),
            condition,
        ]);
    }
    table
}

fn engines(engines: &[EngineView]) -> Table {
    let mut table = Table::new(&["model", "engine", "state", "jobs", "message"]);
    for engine in engines {
        let (word, tone) = match engine.phase {
            EnginePhase::Stopped => ("stopped", Tone::Dim),
            EnginePhase::Starting => ("starting", Tone::Warning),
            EnginePhase::Ready => ("ready", Tone::Good),
            EnginePhase::Failed => ("failed", Tone::Bad),
        };
        table.row(vec![
            cell(&engine.model),
            cell(&engine.engine),
            cell(word).tone(tone),
            cell(format!("{} of {}", engine.running, engine.slots)),
            maybe(engine.message.as_ref()),
        ]);
    }
    table
}

fn jobs(attempts: &[AttemptView], short: bool) -> Table {
    let mut table =
        Table::new(&["job", "model", "state", "age", "first token", "tokens", "tokens/s"]);
    let ids: Vec<String> = attempts.iter().map(|attempt| attempt.job.to_string()).collect();
    let length = if short { beginning(&ids) } else { usize::MAX };
    for (attempt, id) in attempts.iter().zip(&ids) {
        let (word, tone) = match attempt.stage {
            Stage::Starting => ("starting", Tone::Dim),
            Stage::Waiting => ("waits", Tone::Warning),
            Stage::Generating => ("writes", Tone::Good),
            Stage::Settling => ("settles", Tone::Plain),
        };
        table.row(vec![
            cell(id.get(..length).unwrap_or(id)),
            maybe(attempt.model.as_ref()),
            cell(word).tone(tone),
            cell(format!("{:.0} s", attempt.age_secs)),
            maybe(attempt.first_token_secs.map(|secs| format!("{secs:.2} s"))),
            cell(attempt.tokens),
            maybe(attempt.tokens_per_second.map(|speed| format!("{speed:.1}"))),
        ]);
    }
    table
}

/// Returns how much of each id tells it from the others.
fn beginning(ids: &[String]) -> usize {
    let tells = |length: &usize| {
        let mut beginnings: Vec<&str> = ids.iter().filter_map(|id| id.get(..*length)).collect();
        beginnings.sort_unstable();
        beginnings.windows(2).all(|pair| pair[0] != pair[1])
    };
    BEGINNINGS.into_iter().find(tells).unwrap_or(usize::MAX)
}

/// Counts bytes in GiB.
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shortened_as_long_as_they_are_told_apart() {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let one = "0192f3a4-5b6c-7d8e-9f00-112233445502";
        assert_eq!(beginning(&ids(&[])), 13);
        assert_eq!(beginning(&ids(&[one, "0192f3a4-5b6d-7d8e-9f00-112233445502"])), 13);
        assert_eq!(beginning(&ids(&[one, "0192f3a4-5b6c-7d8f-9f00-112233445502"])), 18);
        assert_eq!(beginning(&ids(&[one, "0192f3a4-5b6c-7d8e-9f00-112233445503"])), usize::MAX);
    }
}
