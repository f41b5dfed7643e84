//! The live screen of `infernet top`.
//!
//! The screen is put together as lines of cells, as tables are: who the node is,
//! what it earned beside what it did, then GPUs, engines and jobs, then the end of
//! the log in what is left. Where there is little room the jobs go before the
//! engines, those before the GPUs, and a few lines of the log stay. ratatui draws
//! what has changed of it.

use jiff::Timestamp;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::terminal::Frame;
use ratatui_core::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

use super::Seen;
use super::panels::{self, Panel};
use crate::commands::table::{Cell, Tone, cell, gap};

/// The rows and columns from which there is room for everything.
const ROOMY: (usize, usize) = (20, 50);

/// The lines of the log that are kept when the jobs are many, its title included.
const LOG_LINES: usize = 4;

/// The columns between what was earned and what was done.
const HEAD_GAP: usize = 4;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, seen: &Seen, colour: bool) {
    let area = frame.area();
    let lines = compose(seen, usize::from(area.width), usize::from(area.height));
    for (row, line) in area.rows().zip(lines) {
        draw_line(frame, row, &line, colour);
    }
}

fn draw_line(frame: &mut Frame<'_>, row: Rect, line: &[Cell], colour: bool) {
    let span = |cell: &Cell| Span::styled(cell.text().to_owned(), style(cell.meaning(), colour));
    frame.render_widget(line.iter().map(span).collect::<Line<'_>>(), row);
}

/// Puts the screen together: its lines from above, at most as many as its height.
fn compose(seen: &Seen, width: usize, height: usize) -> Vec<Vec<Cell>> {
    let roomy = height >= ROOMY.0 && width >= ROOMY.1;
    // The lowest line tells how to end it.
    let above = height.saturating_sub(1);
    let mut lines = head(seen, width, roomy);
    let panels = panels::panels(seen, Some(width));
    let left = above.saturating_sub(lines.len());
    let heights = share(&panels, left.saturating_sub(LOG_LINES.min(left.div_ceil(3))), roomy);
    for (panel, height) in panels.iter().zip(heights) {
        lines.extend(panel_lines(panel, width, height, roomy));
    }
    lines.extend(log_lines(seen, width, above.saturating_sub(lines.len())));
    lines.resize(above, Vec::new());
    if height > 0 {
        lines.push(vec![cell("q ends").tone(Tone::Dim)]);
    }
    lines
}

/// Who the node is, what its reader must know, what it earned and did.
fn head(seen: &Seen, width: usize, roomy: bool) -> Vec<Vec<Cell>> {
    let mut first = vec![panels::name(seen), gap(2), panels::phase(seen)];
    let place = cell(&seen.agent.status.introduction.control_plane).tone(Tone::Dim);
    let used: usize = first.iter().map(Cell::width).sum();
    if used + 2 + place.width() <= width {
        first.extend([gap(width - used - place.width()), place]);
    }
    let mut lines = vec![first];
    lines.extend(panels::notes(seen).iter().flat_map(|note| wrapped(note, width)));
    if !roomy {
        lines.extend(head_words(seen).map(|words| vec![words.cut(width)]));
        return lines;
    }
    let earnings = panels::earnings(seen);
    let left = earnings.width() + HEAD_GAP;
    let work = panels::work(seen).lines(Some(width.saturating_sub(left)));
    let mut earnings = earnings.lines(None).into_iter();
    for right in work {
        let mut line = earnings.next().unwrap_or_default();
        let used: usize = line.iter().map(Cell::width).sum();
        line.push(gap(left - used));
        line.extend(right);
        lines.push(line);
    }
    lines
}

/// Breaks a note between words into lines of a width; a word that is longer is cut.
fn wrapped(note: &Cell, width: usize) -> Vec<Vec<Cell>> {
    let mut lines: Vec<String> = Vec::new();
    for word in note.text().split(' ') {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| vec![cell(line).cut(width).tone(note.meaning())]).collect()
}

/// What it earned and did, in two lines.
fn head_words(seen: &Seen) -> [Cell; 2] {
    let earned = match &seen.node {
        Some(node) => {
            let pending = seen
                .owner
                .map_or_else(String::new, |owner| format!(", {} not paid out", owner.pending));
            let earnings = node.earnings;
            cell(format!("{} today, {} in 30 days{pending}", earnings.today, earnings.days30))
        }
        None => cell("What was earned is not known yet.").tone(Tone::Dim),
    };
    let agent = &seen.agent;
    let counters = &agent.counters;
    let done = format!(
        "{} of {} slots in use; jobs: {} done, {} failed, {} lost",
        agent.attempts.len(),
        agent.slots,
        counters.completed,
        counters.failed,
        counters.lost
    );
    [earned, cell(done)]
}

/// Shares lines among panels: first what each must have, the last panel before the
/// others, then one line after the other to those that want more.
fn share(panels: &[Panel], mut room: usize, roomy: bool) -> Vec<usize> {
    let mut heights = vec![0; panels.len()];
    let above = above_rows(roomy);
    for (height, panel) in heights.iter_mut().zip(panels).rev() {
        // One row, and how many more there are.
        let least = above + panel.table.len().clamp(1, 2);
        if least <= room {
            *height = least;
            room -= least;
        }
    }
    let mut wanting = true;
    while wanting && room > 0 {
        wanting = false;
        for (height, panel) in heights.iter_mut().zip(panels).rev() {
            if room > 0 && *height > 0 && *height < above + panel.table.len() {
                *height += 1;
                room -= 1;
                wanting = true;
            }
        }
    }
    heights
}

/// Returns the lines above the rows of a panel: the names of its columns, and its
/// title where there is room.
const fn above_rows(roomy: bool) -> usize {
    if roomy { 2 } else { 1 }
}

/// Lays out a panel in so many lines; none where it has none.
fn panel_lines(panel: &Panel, width: usize, height: usize, roomy: bool) -> Vec<Vec<Cell>> {
    let Some(rows) = height.checked_sub(above_rows(roomy)) else { return Vec::new() };
    let mut lines = Vec::new();
    if roomy {
        lines.push(rule(panel.title, width));
    }
    let mut table = panel.table.lines(Some(width));
    let hidden = panel.table.len().saturating_sub(rows);
    if hidden > 0 {
        table.truncate(rows);
        lines.append(&mut table);
        lines.push(vec![cell(format!("and {} more", hidden + 1)).tone(Tone::Dim)]);
    } else {
        lines.append(&mut table);
    }
    if panel.table.len() == 0 {
        lines.push(vec![cell("none at present").tone(Tone::Dim)]);
    }
    lines
}

/// Lays out the end of the log in so many lines, its title included.
fn log_lines(seen: &Seen, width: usize, height: usize) -> Vec<Vec<Cell>> {
    let Some(rows) = height.checked_sub(1) else { return Vec::new() };
    let newest = &seen.agent.log.lines;
    let newest = &newest[newest.len().saturating_sub(rows)..];
    let lines = newest.iter().map(|line| vec![log_line(line).cut(width)]);
    std::iter::once(rule("Log", width)).chain(lines).collect()
}

/// Shortens the moment of a line to the time of day, and gives the line the colour
/// of its level.
fn log_line(line: &str) -> Cell {
    let mut words = line.splitn(2, ' ');
    let moment = words.next().and_then(|word| word.parse::<Timestamp>().ok());
    let (Some(moment), Some(rest)) = (moment, words.next()) else { return cell(line) };
    let rest = rest.trim_start();
    let tone = match rest.split(' ').next() {
        Some("ERROR") => Tone::Bad,
        Some("WARN") => Tone::Warning,
        _ => Tone::Plain,
    };
    cell(format!("{} {rest}", moment.strftime("%H:%M:%S"))).tone(tone)
}

/// Makes a line with a title in it.
fn rule(title: &str, width: usize) -> Vec<Cell> {
    let rest = width.saturating_sub(title.len() + 4);
    vec![
        cell("─ ").tone(Tone::Dim),
        cell(title),
        cell(format!(" {}", "─".repeat(rest + 1))).tone(Tone::Dim),
    ]
}

/// Returns what a tone looks like.
fn style(tone: Tone, colour: bool) -> Style {
    if !colour {
        return Style::new();
    }
    match tone {
        Tone::Plain => Style::new(),
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Warning => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red),
        Tone::Dim => Style::new().add_modifier(Modifier::DIM),
    }
}

#[cfg(test)]
mod tests {
    use ratatui_core::backend::TestBackend;
    use ratatui_core::terminal::Terminal;

    use super::*;
    use crate::commands::Output;

    /// A node at work, as its agent and the control plane tell it.
    fn seen() -> Seen {
        let agent = r#"{
            "version": "0.1.0",
            "status": {
                "pid": 4711, "started_at": "1990-01-01T00:00:00Z", "phase": "running",
                "message": null, "wakeups": "realtime", "running": 2,
                "last_heartbeat": null, "clock_ahead_ms": 3,
                "introduction": {
                    "node": "0192f3a4-5b6c-4d8e-9f00-112233445566", "name": "attic",
                    "role": "provider", "approval": "approved", "pid": 4711,
                    "control_plane": "https://infernet.tech", "models": ["llama3.2:3b"]
                }
            },
            "draining": false, "slots": 4,
            "attempts": [
                {"attempt": "0192f3a4-5b6c-4d8e-9f00-112233445501",
                 "job": "0192f3a4-5b6c-7d8e-9f00-112233445502", "model": "llama3.2:3b",
                 "kind": "chat", "stage": "generating", "age_secs": 12.4,
                 "first_token_secs": 0.31, "tokens": 512, "output_bytes": 2048,
                 "tokens_per_second": 48.26},
                {"attempt": "0192f3a4-5b6c-4d8e-9f00-112233445503",
                 "job": "0192f3a4-6a01-7d8e-9f00-112233445504", "model": null, "kind": null,
                 "stage": "waiting", "age_secs": 1.0, "first_token_secs": null, "tokens": 0,
                 "output_bytes": 0, "tokens_per_second": null}
            ],
            "engines": [
                {"model": "llama3.2:3b", "engine": "llama.cpp", "phase": "ready",
                 "message": null, "slots": 4, "running": 2},
                {"model": "mistral", "engine": "vllm", "phase": "failed",
                 "message": "It ran out of memory.", "slots": 1, "running": 0}
            ],
            "gpus": [
                {"index": 0, "name": "NVIDIA GeForce RTX 4090", "memory_bytes": 25769803776,
                 "memory_used_bytes": 3221225472, "use_percent": 97,
                 "temperature_celsius": 64, "power_watts": 398, "complaints": []}
            ],
            "counters": {
                "ended": 9, "resumed": 0, "completed": 7, "cancelled": 1, "failed": 1,
                "handed_back": 0, "lost": 0, "undelivered": 0, "input_tokens": 900,
                "output_tokens": 1800, "earned": "0.000180000000"
            },
            "resident_bytes": 18400000, "log_filter": "info",
            "log": {"lines": [
                        "2026-11-24T04:21:05.123456Z  INFO infernet::agent: the agent is ready",
                        "2026-11-24T04:21:06.123456Z  WARN infernet::agent: it is \u001b[2J slow",
                        "the newest line"
                    ], "next": 3, "file": null}
        }"#;
        let node = r#"{
            "node": {"id": "0192f3a4-5b6c-4d8e-9f00-112233445566", "name": "attic",
                     "role": "provider", "status": "online", "approval": "approved",
                     "last_seen": null, "owner": "0192f3a4-5b6c-4d8e-9f00-112233445577",
                     "region": null, "labels": [], "vram_gb": 24, "stops": []},
            "running": 2,
            "earnings": {"today": "0.250000000000", "days30": "12.500000000000",
                         "total": "99.000000000000"},
            "offers": []
        }"#;
        Seen {
            agent: serde_json::from_str(agent).unwrap(),
            node: Some(serde_json::from_str(node).unwrap()),
            owner: Some(
                serde_json::from_str(r#"{"today":"0","days30":"0","pending":"7.5"}"#).unwrap(),
            ),
            trouble: None,
        }
    }

    /// The screen of so many columns and rows, without the age, which moves.
    fn screen(seen: &Seen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, seen, true)).unwrap();
        still(&terminal.backend().to_string())
    }

    /// Replaces the age of the agent.
    fn still(text: &str) -> String {
        let Some(days) = text.find(" days ago") else { return text.to_owned() };
        let from = text[..days].rfind(' ').unwrap() + 1;
        format!("{}9999{}", &text[..from], &text[days..])
    }

    /// A node with so many jobs at once.
    fn busy(jobs: usize) -> Seen {
        let mut seen = seen();
        let attempt = seen.agent.attempts[0].clone();
        seen.agent.attempts = vec![attempt; jobs];
        seen
    }

    #[test]
    fn a_wide_terminal_shows_everything() {
        insta::assert_snapshot!(screen(&seen(), 110, 24));
    }

    #[test]
    fn a_terminal_of_the_usual_size_shows_everything() {
        insta::assert_snapshot!(screen(&seen(), 80, 24));
    }

    #[test]
    fn a_small_terminal_shows_the_jobs_and_the_end_of_the_log() {
        insta::assert_snapshot!(screen(&seen(), 60, 16));
    }

    #[test]
    fn jobs_that_do_not_fit_are_counted() {
        for (width, height) in [(80, 24), (60, 16)] {
            let shown = screen(&busy(30), width, height);
            let rows = shown.lines().filter(|line| line.contains("48.3")).count();
            assert!(rows > 0 && shown.contains(&format!("and {} more", 30 - rows)), "{shown}");
            assert!(shown.contains("the newest line"), "{shown}");
        }
        assert!(!screen(&busy(30), 80, 60).contains(" more"));
    }

    #[test]
    fn a_note_is_shown_whole() {
        let mut drained = seen();
        let words = "Drained by a command. It takes work again after the command resume.";
        drained.agent.status.message = Some(words.to_owned());
        let shown = screen(&drained, 60, 24);
        assert!(shown.contains("after the command "), "{shown}");
        assert!(shown.contains("\"resume. "), "{shown}");
        assert_eq!(wrapped(&cell("a 屋根裏 bc"), 8).len(), 2);
    }

    #[test]
    fn an_idle_node_says_so() {
        let mut idle = seen();
        idle.agent.attempts.clear();
        idle.agent.gpus.clear();
        let shown = screen(&idle, 80, 24);
        assert!(shown.contains("none at present"), "{shown}");
        assert!(shown.contains("0 of 4 in use"), "{shown}");
        assert!(!shown.contains("GPUs"), "{shown}");
    }

    #[test]
    fn an_agent_that_went_away_is_told_and_its_last_words_stay() {
        let mut gone = seen();
        gone.trouble = Some("No agent is running on this machine.".to_owned());
        gone.node = None;
        gone.owner = None;
        for (width, height) in [(100, 24), (60, 16)] {
            let shown = screen(&gone, width, height);
            assert!(shown.contains("attic (provider)  does not answer"), "{shown}");
            assert!(shown.contains("No agent is running on this machine."), "{shown}");
            assert!(shown.contains("not known yet"), "{shown}");
            assert!(shown.contains("the newest line"), "{shown}");
        }
    }

    #[test]
    fn any_size_is_drawn_and_the_lowest_line_tells_how_to_end_it() {
        for width in [1, 2, 3, 9, 20, 49, 50, 51, 79, 300] {
            for height in [1, 2, 3, 4, 5, 7, 11, 15, 19, 20, 21, 100] {
                for seen in [seen(), busy(30), busy(0)] {
                    let lines = compose(&seen, usize::from(width), usize::from(height));
                    assert_eq!(lines.len(), usize::from(height));
                    assert_eq!(lines[lines.len() - 1][0].text(), "q ends");
                    screen(&seen, width, height);
                }
            }
        }
    }

    #[test]
    fn a_terminal_that_changes_its_size_is_drawn_anew() {
        let mut terminal = Terminal::new(TestBackend::new(110, 24)).unwrap();
        for (width, height) in [(110, 24), (60, 16), (80, 24)] {
            terminal.backend_mut().resize(width, height);
            terminal.draw(|frame| draw(frame, &seen(), true)).unwrap();
            let shown = still(&terminal.backend().to_string());
            assert_eq!(shown, screen(&seen(), width, height));
        }
    }

    #[test]
    fn states_have_colours_unless_none_are_wanted() {
        for colour in [true, false] {
            let mut terminal = Terminal::new(TestBackend::new(110, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &seen(), colour)).unwrap();
            let cells = terminal.backend().buffer().content();
            let styled =
                cells.iter().any(|cell| cell.fg != Color::Reset || !cell.modifier.is_empty());
            assert_eq!(styled, colour);
        }
    }

    #[test]
    fn it_is_printed_once_as_tables() {
        let text = panels::once(&seen(), &Output::of_pipe());
        for line in [
            "Node\tattic (provider)",
            "Not paid out\t$7.50",
            "0\tNVIDIA GeForce RTX 4090\t3.0 of 24.0 GiB\t97 %\t64 °C\t398 W\tgood",
            "mistral\tvllm\tfailed\t0 of 1\tIt ran out of memory.",
            "0192f3a4-5b6c-7d8e-9f00-112233445502\tllama3.2:3b\twrites\t12 s\t0.31 s\t512\t48.3",
            "2026-11-24T04:21:06.123456Z  WARN infernet::agent: it is  [2J slow",
            "the newest line",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in:\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_person_gets_tables_printed_once_that_fit_the_terminal() {
        let text = panels::once(&seen(), &Output::of_terminal(60, false));
        assert!(text.contains("\n0192f3a4-5b6c  "), "{text}");
        assert!(text.contains("tokens/s"), "{text}");
        let tables = text.split("\n\n").skip(3).take(3);
        for line in tables.flat_map(str::lines) {
            assert!(line.chars().count() <= 60, "{line}");
        }
    }
}
