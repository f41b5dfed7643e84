//! What `infernet top` shows, as tables: the same printed once and live.

use super::Seen;
use crate::agent::admin::{AttemptView, EnginePhase, EngineView, GpuView, Stage};
use crate::commands::Output;
use crate::commands::status::{ago, phase_tone, phase_words, wakeup_words};
use crate::commands::table::{Table, Tone, cell, maybe};

/// A table with its title; none where there is nothing to show.
pub(super) struct Panel {
    /// What it shows.
    pub(super) title: &'static str,
    /// The rows.
    pub(super) table: Table,
}

/// Lays everything out one below the other.
pub(super) fn once(seen: &Seen, output: &Output) -> String {
    let mut parts = vec![node(seen).text(output), money(seen).text(output)];
    for Panel { table, .. } in panels(seen) {
        parts.push(table.text(output));
    }
    let mut log = Table::sheet();
    for line in &seen.agent.log.lines {
        log.row(vec![cell(line)]);
    }
    if !seen.agent.log.lines.is_empty() {
        parts.push(log.text(output));
    }
    parts.join("\n\n")
}

/// Who the node is and what it does.
pub(super) fn node(seen: &Seen) -> Table {
    let status = &seen.agent.status;
    let introduction = &status.introduction;
    let mut sheet = Table::sheet();
    sheet.fact("Node", format!("{} ({})", introduction.name, introduction.role));
    let agent = match &seen.trouble {
        Some(trouble) => cell(trouble).tone(Tone::Bad),
        None => cell(phase_words(status.phase)).tone(phase_tone(status.phase)),
    };
    sheet.fact_cell("Agent", agent);
    sheet.fact_if("", status.message.as_ref());
    sheet.fact_if("", status.journal_trouble.as_ref());
    sheet.fact("Since", format!("{}, process {}", ago(status.started_at), status.pid));
    sheet.fact("Hears of work", wakeup_words(status.wakeups));
    sheet.fact("Control plane", &introduction.control_plane);
    let memory = seen
        .agent
        .resident_bytes
        .map_or_else(String::new, |bytes| format!(", {:.1} MB of memory", bytes as f64 / 1e6));
    sheet.fact("Version", format!("{}{memory}", seen.agent.version));
    sheet
}

/// What it earned, and by what.
pub(super) fn money(seen: &Seen) -> Table {
    let counters = &seen.agent.counters;
    let mut sheet = Table::sheet();
    let earnings = seen.node.as_ref().map(|node| node.earnings);
    let known = |amount: Option<crate::money::Usd>| {
        amount.map_or_else(|| cell("not known yet").tone(Tone::Dim), cell)
    };
    sheet.fact_cell("Earned today", known(earnings.map(|earnings| earnings.today)));
    sheet.fact_cell("In 30 days", known(earnings.map(|earnings| earnings.days30)));
    sheet.fact_if("Not paid out yet", seen.owner.map(|owner| owner.pending));
    sheet.fact("In this run", counters.earned);
    sheet.fact("Slots", format!("{} of {} in use", seen.agent.attempts.len(), seen.agent.slots));
    sheet.fact(
        "Jobs",
        format!("{} done, {} failed, {} lost", counters.completed, counters.failed, counters.lost),
    );
    sheet.fact("Tokens", format!("{} in, {} out", counters.input_tokens, counters.output_tokens));
    sheet
}

/// GPUs, engines and jobs, where there are any.
pub(super) fn panels(seen: &Seen) -> Vec<Panel> {
    let agent = &seen.agent;
    let mut panels = Vec::new();
    if !agent.gpus.is_empty() {
        panels.push(Panel { title: "GPUs", table: gpus(&agent.gpus) });
    }
    if !agent.engines.is_empty() {
        panels.push(Panel { title: "Engines", table: engines(&agent.engines) });
    }
    if !agent.attempts.is_empty() {
        panels.push(Panel { title: "Jobs", table: jobs(&agent.attempts) });
    }
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

fn jobs(attempts: &[AttemptView]) -> Table {
    let mut table =
        Table::new(&["job", "model", "state", "age", "first token", "tokens", "tokens/s"]);
    for attempt in attempts {
        let (word, tone) = match attempt.stage {
            Stage::Starting => ("starting", Tone::Dim),
            Stage::Waiting => ("waits for engine", Tone::Warning),
            Stage::Generating => ("writes", Tone::Good),
            Stage::Settling => ("settles", Tone::Plain),
        };
        table.row(vec![
            cell(attempt.job),
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

/// Counts bytes in GiB.
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
