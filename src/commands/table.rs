//! Rows and columns: what [`Output`] lays out for a person or a program.
//!
//! A table has a heading and rows; a sheet has a name and a value a row. For a
//! terminal the columns are aligned, the heading is dim, and a row that is too
//! long loses the end of its last cell. For a program the cells are joined by
//! tabs, and there is no heading. Each row is one line either way, and no cell
//! holds a character that commands a terminal.

use std::fmt::Display;

use unicode_width::UnicodeWidthStr;

use super::output::{Output, is_command};
use crate::control::rpc::Offer;

/// The least that is left of a last cell that is cut.
const LEAST_REST: usize = 12;

/// The columns of a terminal between two columns of a table.
const COLUMN_GAP: usize = 2;

/// What a cell means, which is its colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tone {
    /// As any text.
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Wrong.
    Bad,
    /// Of less interest.
    Dim,
}

impl Tone {
    /// Returns the tone of a state of a job, an attempt, a node or a command.
    pub(crate) fn of_state(state: &str) -> Self {
        match state {
            "completed" | "online" | "approved" | "running" | "done" | "ok" | "active" => {
                Self::Good
            }
            "failed" | "expired" | "lost" | "suspended" | "revoked" | "error" => Self::Bad,
            "queued" | "unpaid" | "pending" | "paused" | "draining" | "cancelling" | "warning" => {
                Self::Warning
            }
            "cancelled" | "offline" => Self::Dim,
            _ => Self::Plain,
        }
    }

    /// Returns what switches a terminal to it.
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\u{1b}[32m",
            Self::Warning => "\u{1b}[33m",
            Self::Bad => "\u{1b}[31m",
            Self::Dim => "\u{1b}[2m",
        }
    }

    /// Paints a text, where colours are wanted.
    pub(crate) fn paint(self, text: &str, output: &Output) -> String {
        if self == Self::Plain || text.is_empty() || !output.has_colour() {
            text.to_owned()
        } else {
            format!("{}{text}\u{1b}[0m", self.code())
        }
    }
}

/// One cell: a text on one line.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

/// Makes a cell of a value.
pub(crate) fn cell(value: impl Display) -> Cell {
    Cell { text: on_one_line(&value.to_string()), tone: Tone::Plain }
}

/// Makes a cell of a value that may be missing.
pub(crate) fn maybe(value: Option<impl Display>) -> Cell {
    match value {
        Some(value) => cell(value),
        None => cell(""),
    }
}

/// Makes a cell of a state, in its colour.
pub(crate) fn state(value: impl Display) -> Cell {
    let cell = cell(value);
    let tone = Tone::of_state(&cell.text);
    cell.tone(tone)
}

impl Cell {
    /// Gives the cell a colour.
    #[must_use]
    pub(crate) fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    /// Returns its text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns what it means.
    pub(crate) const fn meaning(&self) -> Tone {
        self.tone
    }

    /// Returns its width in columns.
    pub(crate) fn width(&self) -> usize {
        self.text.width()
    }

    /// Leaves so many columns of it.
    pub(crate) fn cut(&self, width: usize) -> Self {
        if self.width() <= width {
            return self.clone();
        }
        let mut text = String::new();
        for character in self.text.chars() {
            text.push(character);
            if text.width() >= width {
                text.pop();
                break;
            }
        }
        text.push('…');
        Self { text, tone: self.tone }
    }
}

/// Makes one line of a text: what ends lines or commands a terminal becomes a
/// space.
fn on_one_line(text: &str) -> String {
    if !text.chars().any(is_command) {
        return text.to_owned();
    }
    text.split(is_command).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A table, or a sheet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Begins a table with the names of its columns.
    pub(crate) fn new(heading: &[&'static str]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new() }
    }

    /// Begins a sheet.
    pub(crate) fn sheet() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Adds a name and its value.
    pub(crate) fn fact(&mut self, name: &str, value: impl Display) {
        self.row(vec![cell(name).tone(Tone::Dim), cell(value)]);
    }

    /// Adds a name and a cell.
    pub(crate) fn fact_cell(&mut self, name: &str, value: Cell) {
        self.row(vec![cell(name).tone(Tone::Dim), value]);
    }

    /// Adds a name and its value, if there is one.
    pub(crate) fn fact_if(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.fact(name, value);
        }
    }

    /// Returns how many rows it has, without the heading.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns the width that all of it takes.
    pub(crate) fn width(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + COLUMN_GAP * widths.len().saturating_sub(1)
    }

    /// Leaves columns out, in the order in which they are named, until all of it
    /// takes so many columns of a terminal or no name is left.
    #[must_use]
    pub(crate) fn narrowed(mut self, width: usize, spare: &[&str]) -> Self {
        for name in spare {
            if self.width() <= width {
                break;
            }
            let Some(column) = self.heading.iter().position(|heading| heading == name) else {
                continue;
            };
            self.heading.remove(column);
            for row in self.rows.iter_mut().filter(|row| column < row.len()) {
                row.remove(column);
            }
        }
        self
    }

    /// Lays it out for whoever reads, without a newline at its end.
    pub(crate) fn text(&self, output: &Output) -> String {
        let lines: Vec<String> = match output.width() {
            // A sheet's values are wrapped by the terminal: nothing of them is lost.
            Some(width) => self
                .lines((!self.heading.is_empty()).then_some(usize::from(width)))
                .iter()
                .map(|line| {
                    line.iter().map(|piece| piece.tone.paint(&piece.text, output)).collect()
                })
                .collect(),
            None => self.rows.iter().map(|row| joined(row)).collect(),
        };
        lines.join("\n")
    }

    /// Lays it out in columns, its heading first: the pieces of each line. The last
    /// cell of a line does not pass the width, if there is one.
    pub(crate) fn lines(&self, width: Option<usize>) -> Vec<Vec<Cell>> {
        let heading: Vec<Cell> =
            self.heading.iter().map(|name| cell(name).tone(Tone::Dim)).collect();
        let rows = (!heading.is_empty()).then_some(&heading).into_iter().chain(&self.rows);
        let widths = self.widths();
        rows.map(|row| line(row, &widths, width)).collect()
    }

    /// Returns the width of each column, that of its name included.
    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0).max(self.heading.len());
        (0..columns)
            .map(|column| {
                let name = self.heading.get(column).map_or(0, |name| name.width());
                let cells = self.rows.iter().filter_map(|row| row.get(column)).map(Cell::width);
                cells.max().unwrap_or(0).max(name)
            })
            .collect()
    }
}

/// Joins cells by tabs.
fn joined(row: &[Cell]) -> String {
    row.iter().map(|cell| cell.text.as_str()).collect::<Vec<_>>().join("\t")
}

/// Lays one row out; `most` is the width that its last column may not pass.
fn line(row: &[Cell], widths: &[usize], most: Option<usize>) -> Vec<Cell> {
    let mut line = Vec::new();
    let mut used = 0;
    let last = widths.len().saturating_sub(1);
    for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
        let cut = match most {
            Some(most) if column == last => cell.cut(most.saturating_sub(used).max(LEAST_REST)),
            _ => cell.clone(),
        };
        let rest = width.saturating_sub(cut.width()) + COLUMN_GAP;
        line.push(cut);
        if row[column + 1..].iter().any(|later| !later.text.is_empty()) {
            line.push(gap(rest));
        }
        used += width + COLUMN_GAP;
    }
    line
}

/// Makes a piece of a line that is empty.
pub(crate) fn gap(width: usize) -> Cell {
    Cell { text: " ".repeat(width), tone: Tone::Plain }
}

/// Lays out what a node offers.
pub(crate) fn offer_table(offers: &[Offer]) -> Table {
    let mut table = Table::new(&["model", "slots", "input $/M", "output $/M"]);
    for offer in offers {
        table.row(vec![
            cell(&offer.model),
            cell(offer.slots),
            cell(offer.price_input),
            cell(offer.price_output),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> Table {
        let mut table = Table::new(&["job", "state", "title"]);
        table.row(vec![cell(12345), state("completed"), cell("one\ntwo\tthree")]);
        table.row(vec![cell(6), state("failed"), maybe(None::<&str>)]);
        table
    }

    #[test]
    fn a_terminal_gets_columns_as_wide_as_their_widest_cell() {
        assert_eq!(
            jobs().text(&Output::of_terminal(80, false)),
            "job    state      title\n12345  completed  one two three\n6      failed"
        );
    }

    #[test]
    fn a_program_gets_tabs_and_no_heading() {
        assert_eq!(jobs().text(&Output::of_pipe()), "12345\tcompleted\tone two three\n6\tfailed\t");
    }

    #[test]
    fn colours_are_those_of_states_and_do_not_count_as_width() {
        let text = jobs().text(&Output::of_terminal(80, true));
        assert!(text.contains("12345  \u{1b}[32mcompleted\u{1b}[0m  one two three"), "{text:?}");
        assert!(text.contains("\u{1b}[31mfailed\u{1b}[0m"), "{text:?}");
    }

    #[test]
    fn the_last_cell_of_a_table_is_cut_and_a_sheet_is_not() {
        let mut table = Table::new(&["a", "b"]);
        table.row(vec![cell("x"), cell("0123456789012345678901234567890")]);
        assert_eq!(table.text(&Output::of_terminal(20, false)), "a  b\nx  0123456789012345…");
        let mut sheet = Table::sheet();
        sheet.fact("x", "0123456789012345678901234567890");
        sheet.fact_if("gone", None::<&str>);
        assert_eq!(
            sheet.text(&Output::of_terminal(20, false)),
            "x  0123456789012345678901234567890"
        );
    }

    #[test]
    fn columns_that_can_be_spared_make_room() {
        let narrowed = |width| {
            let table = jobs().narrowed(width, &["state", "unknown", "job"]);
            table.text(&Output::of_terminal(200, false))
        };
        assert_eq!(narrowed(31), jobs().text(&Output::of_terminal(200, false)));
        assert_eq!(narrowed(30), "job    title\n12345  one two three\n6");
        assert_eq!(narrowed(5), "title\none two three\n");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let mut table = Table::new(&["name", "n"]);
        table.row(vec![cell("屋根裏"), cell(1)]);
        assert_eq!(table.text(&Output::of_terminal(80, false)), "name    n\n屋根裏  1");
    }

    #[test]
    fn no_cell_commands_the_terminal() {
        let mut sheet = Table::sheet();
        sheet.fact("name", "\u{1b}[2Jattic\u{7}\u{202e}");
        assert_eq!(sheet.text(&Output::of_terminal(80, false)), "name  [2Jattic");
        assert_eq!(sheet.text(&Output::of_pipe()), "name\t[2Jattic");
    }
}
