//! What a command says: data on stdout, talk on stderr.
//!
//! Everything that is printed goes through here, so that a reader that goes away
//! (`infernet run … | head -1`) is an ordinary error and never a panic. A person
//! at a terminal reads tables, in colour unless `NO_COLOR` is set; a program reads
//! tabs, one row a line without headings, or with `--json` one object a line.
//! What others wrote (names, titles, answers) cannot move the cursor of a
//! terminal: [`table`](super::table) and [`Output::answer`] see to it.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::table::{Cell, Table};

/// How a command speaks.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
    /// The width of the terminal that stdout is, if it is one.
    terminal: Option<u16>,
    colour: bool,
}

impl Output {
    /// Speaks JSON or words, with talk or without, to whatever stdout is.
    pub fn new(json: bool, quiet: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal().then(width_of_terminal);
        Self { json, quiet, terminal, colour: terminal.is_some() && colour_is_wanted() }
    }

    /// Speaks to a terminal of so many columns.
    #[cfg(test)]
    pub(crate) fn of_terminal(width: u16, colour: bool) -> Self {
        Self { json: false, quiet: false, terminal: Some(width), colour }
    }

    /// Speaks to a program.
    #[cfg(test)]
    pub(crate) fn of_pipe() -> Self {
        Self { json: false, quiet: false, terminal: None, colour: false }
    }

    /// Says whether data is wanted as JSON.
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// Says whether talk is not wanted.
    pub const fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Says whether a person reads stdout.
    pub const fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Returns the columns of the terminal that stdout is, if it is one.
    pub(crate) const fn width(&self) -> Option<u16> {
        self.terminal
    }

    /// Says whether colours are wanted on stdout.
    pub(crate) const fn has_colour(&self) -> bool {
        self.colour
    }

    /// Writes data to stdout as it is, at once.
    pub fn data(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Writes what a model answered to stdout, at once: to a program as it is, to
    /// a terminal without the characters that would command it.
    pub fn answer(&self, text: &str) -> io::Result<()> {
        if self.is_terminal() { self.data(&without_commands(text)) } else { self.data(text) }
    }

    /// Writes a line of data to stdout.
    pub fn line(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.write_all(b"\n")?;
        stdout.flush()
    }

    /// Writes an object to stdout, on one line.
    pub fn object<T: Serialize>(&self, object: &T) -> io::Result<()> {
        self.line(&serde_json::to_string(object)?)
    }

    /// Writes one thing: the object, or else what `words` makes of it.
    pub(crate) fn show<T: Serialize>(
        &self,
        object: &T,
        words: impl FnOnce() -> String,
    ) -> io::Result<()> {
        if self.json { self.object(object) } else { self.line(&words()) }
    }

    /// Writes a list: an object a line, or else a table with a row each. Where
    /// there is nothing, `nothing` is talk that says so.
    pub(crate) fn list<T: Serialize>(
        &self,
        items: &[T],
        heading: &[&'static str],
        nothing: &str,
        row: impl Fn(&T) -> Vec<Cell>,
    ) -> io::Result<()> {
        if self.json {
            return items.iter().try_for_each(|item| self.object(item));
        }
        if items.is_empty() {
            self.talk(nothing);
            return Ok(());
        }
        let mut table = Table::new(heading);
        for item in items {
            table.row(row(item));
        }
        self.line(&table.text(self))
    }

    /// Writes a line of talk to stderr, unless the user wants quiet.
    pub fn talk(&self, text: &str) {
        if !self.quiet {
            // Talk is lost without a stderr; the data matters.
            drop(writeln!(io::stderr().lock(), "{}", without_commands(text)));
        }
    }

    /// Writes a line to stderr that the user must see even when quiet.
    pub fn warn(&self, text: &str) {
        drop(writeln!(io::stderr().lock(), "{}", without_commands(text)));
    }
}

/// Says whether the environment allows colours.
pub(crate) fn colour_is_wanted() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let plain = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    !refused && !plain
}

/// Returns the columns of the terminal, 80 where it does not tell.
fn width_of_terminal() -> u16 {
    terminal_size::terminal_size().map_or(80, |(columns, _rows)| columns.0.max(20))
}

/// Says whether a character commands a terminal, or changes the direction of
/// what follows, instead of being shown.
pub(crate) fn is_command(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Replaces what commands a terminal, except for the ends of lines and tabs.
fn without_commands(text: &str) -> Cow<'_, str> {
    let kept = |character: char| matches!(character, '\n' | '\t') || !is_command(character);
    if text.chars().all(kept) {
        return Cow::Borrowed(text);
    }
    text.chars().map(|character| if kept(character) { character } else { '\u{fffd}' }).collect()
}

/// Writes a time for people: UTC, to the second.
pub(crate) fn moment(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_cannot_command_the_terminal() {
        assert_eq!(without_commands("a\tb\nc é 中"), "a\tb\nc é 中");
        assert_eq!(without_commands("\u{1b}]0;owned\u{7}x\r"), "\u{fffd}]0;owned\u{fffd}x\u{fffd}");
        assert_eq!(without_commands("\u{9b}2J\u{202e}"), "\u{fffd}2J\u{fffd}");
    }
}
