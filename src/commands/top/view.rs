//! The live screen of `infernet top`.
//!
//! Above, who the node is and what it earned, side by side; then GPUs, engines
//! and jobs, each as high as it must be; what is left shows the end of the log.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row};

use super::Seen;
use super::panels::{self, Panel};
use crate::commands::table::{Cell, Table, Tone, on_one_line};

/// The least rows of the log that are kept when the jobs are many.
const LOG_ROWS: u16 = 3;

/// The columns from which the two sheets stand side by side.
const WIDE: u16 = 90;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, seen: &Seen, colour: bool) {
    let (node, money) = (panels::node(seen), panels::money(seen));
    let wide = frame.area().width >= WIDE;
    let (rows_node, rows_money) = (height(&node), height(&money));
    let head = if wide { rows_node.max(rows_money) } else { rows_node + rows_money };
    let panels = panels::panels(seen);
    let mut constraints = vec![Constraint::Length(head)];
    // A title and a heading above the rows.
    constraints.extend(panels.iter().map(|panel| Constraint::Max(height(&panel.table) + 2)));
    constraints.push(Constraint::Min(LOG_ROWS));
    constraints.push(Constraint::Length(1));
    let areas = Layout::vertical(constraints).split(frame.area());
    let [left, right] = if wide {
        Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(areas[0])
    } else {
        Layout::vertical([Constraint::Length(rows_node), Constraint::Length(rows_money)])
            .areas(areas[0])
    };
    draw_table(frame, left, &node, colour);
    draw_table(frame, right, &money, colour);
    for (panel, area) in panels.iter().zip(&areas[1..]) {
        draw_panel(frame, *area, panel, colour);
    }
    draw_log(frame, areas[areas.len() - 2], seen, colour);
    let keys = Span::styled("q ends", style(Tone::Dim, colour));
    frame.render_widget(Paragraph::new(keys), areas[areas.len() - 1]);
}

fn height(table: &Table) -> u16 {
    u16::try_from(table.rows().len()).unwrap_or(u16::MAX)
}

fn draw_panel(frame: &mut Frame<'_>, area: Rect, panel: &Panel, colour: bool) {
    let block = titled(panel.title, colour);
    let inside = block.inner(area);
    frame.render_widget(block, area);
    draw_table(frame, inside, &panel.table, colour);
}

/// Draws the end of the log, its last line lowest.
fn draw_log(frame: &mut Frame<'_>, area: Rect, seen: &Seen, colour: bool) {
    let block = titled("Log", colour);
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let lines = &seen.agent.log.lines;
    let first = lines.len().saturating_sub(usize::from(inside.height));
    let text: Vec<Line<'_>> =
        lines[first..].iter().map(|line| Line::raw(on_one_line(line))).collect();
    frame.render_widget(Paragraph::new(text), inside);
}

fn titled(title: &'static str, colour: bool) -> Block<'static> {
    let bold = if colour { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
    Block::new().borders(Borders::TOP).title(Span::styled(format!(" {title} "), bold))
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, table: &Table, colour: bool) {
    let span = |cell: &Cell| Span::styled(cell.text().to_owned(), style(cell.tone_of(), colour));
    let rows: Vec<Row<'_>> =
        table.rows().iter().map(|row| Row::new(row.iter().map(span))).collect();
    let widths: Vec<Constraint> = table
        .widths()
        .into_iter()
        .map(|width| Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX)))
        .collect();
    let mut widget = ratatui::widgets::Table::new(rows, widths).column_spacing(2);
    if !table.heading().is_empty() {
        let dim = style(Tone::Dim, colour);
        let names = table.heading().iter().map(|name| Span::styled(*name, dim));
        widget = widget.header(Row::new(names));
    }
    frame.render_widget(widget, area);
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
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

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
                 "job": "0192f3a4-5b6c-7d8e-9f00-112233445504", "model": null, "kind": null,
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
            "log": {"lines": ["an older line", "attempt started \u001b[2J", "the newest line"],
                    "next": 3, "file": null}
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

    #[test]
    fn a_wide_terminal_shows_everything() {
        insta::assert_snapshot!(screen(&seen(), 110, 24));
    }

    #[test]
    fn a_small_terminal_keeps_the_end_of_the_log() {
        insta::assert_snapshot!(screen(&seen(), 60, 28));
    }

    #[test]
    fn an_agent_that_went_away_is_told_and_its_last_words_stay() {
        let mut gone = seen();
        gone.trouble = Some("No agent is running on this machine.".to_owned());
        gone.agent.attempts.clear();
        gone.node = None;
        let shown = screen(&gone, 100, 20);
        assert!(shown.contains("No agent is running on this machine."), "{shown}");
        assert!(shown.contains("not known yet"), "{shown}");
        assert!(shown.contains("the newest line"), "{shown}");
        assert!(!shown.contains("tokens/s"), "{shown}");
    }

    #[test]
    fn any_size_is_drawn() {
        for (width, height) in [(1, 1), (5, 3), (20, 5), (300, 100)] {
            screen(&seen(), width, height);
        }
    }

    #[test]
    fn states_have_colours_unless_none_are_wanted() {
        for colour in [true, false] {
            let mut terminal = Terminal::new(TestBackend::new(110, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &seen(), colour)).unwrap();
            let cells = terminal.backend().buffer().content();
            let coloured = cells.iter().any(|cell| cell.fg != Color::Reset);
            assert_eq!(coloured, colour);
        }
    }

    #[test]
    fn it_is_printed_once_as_tables() {
        let text = panels::once(&seen(), &Output::of_pipe());
        for line in [
            "Node\tattic (provider)",
            "Not paid out yet\t$7.50",
            "0\tNVIDIA GeForce RTX 4090\t3.0 of 24.0 GiB\t97 %\t64 °C\t398 W\tgood",
            "mistral\tvllm\tfailed\t0 of 1\tIt ran out of memory.",
            "0192f3a4-5b6c-7d8e-9f00-112233445502\tllama3.2:3b\twrites\t12 s\t0.31 s\t512\t48.3",
            "the newest line",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in:\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }
}
