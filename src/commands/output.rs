//! What a command says: data on stdout, talk on stderr.
//!
//! Everything that is printed goes through here, so that a reader that goes away
//! (`infernet run … | head -1`) is an ordinary error and never a panic.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// How a command speaks.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    /// Speaks JSON or words, with talk or without.
    pub const fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Says whether data is wanted as JSON.
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// Says whether a person reads stdout.
    pub fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Writes data to stdout as it is, at once.
    pub fn data(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
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

    /// Writes a line of talk to stderr, unless the user wants quiet.
    pub fn talk(&self, text: &str) {
        if !self.quiet {
            // Talk is lost without a stderr; the data matters.
            drop(writeln!(io::stderr().lock(), "{text}"));
        }
    }

    /// Writes a line to stderr that the user must see even when quiet.
    pub fn warn(&self, text: &str) {
        drop(writeln!(io::stderr().lock(), "{text}"));
    }
}

/// Lays rows out in columns, the first row as heading; numbers are the caller's
/// to format.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
    }
    text
}

/// Writes a time for people: UTC, to the second.
pub(crate) fn moment(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["id".to_owned(), "state".to_owned()],
            vec!["12345".to_owned(), "ok".to_owned()],
        ];
        assert_eq!(columns(&rows), "id     state\n12345  ok");
    }
}
