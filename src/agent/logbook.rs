//! The log of a long-running process: a file that rotates by its size, the newest
//! lines in memory, a filter that can be changed while it runs.
//!
//! A [`Logbook`] is what `tracing` writes to. It begins on standard error; the
//! agent in the background moves it to its file with [`Logbook::into_file`].
//! Rotating happens in the write itself, so that the sizes hold whatever is logged,
//! which no crate that was looked at does together with a standard error that
//! follows (`tracing-appender` rotates by time).
//!
//! Invariants
//! - Writing never fails: `tracing` would tell of a failure on standard error, which
//!   is the same full disk, and panic. What could not be written is counted, and
//!   the count is the first line that fits again.
//! - All files together hold at most `size * kept` bytes, and one line more each.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::admin::LogLines;

/// The size at which a log is moved aside, in bytes.
const FILE_BYTES: u64 = 5 * 1024 * 1024;

/// How many files there are at most, the current one included.
const FILES: u32 = 5;

/// How many lines stay in memory, and how long each may be there, in bytes.
const TAIL_LINES: usize = 500;
const TAIL_LINE_BYTES: usize = 1024;

/// How large log files become, and how many are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rotation {
    /// The size at which a file is moved aside, in bytes.
    pub file_bytes: u64,
    /// How many files there are at most, the current one included.
    pub files: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { file_bytes: FILE_BYTES, files: FILES }
    }
}

/// The filter is none.
#[derive(Debug, thiserror::Error)]
#[error("\"{filter}\" is no filter of what is logged: {reason}")]
pub struct BadFilter {
    filter: String,
    reason: String,
}

/// The log of this process. Cloning it shares it.
#[derive(Clone, Debug)]
pub struct Logbook {
    shared: Arc<Mutex<Shared>>,
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    filter: String,
    tail: VecDeque<String>,
    /// The number of the line after the newest.
    next: u64,
    /// Lines that could not be written since the last one that could.
    dropped: u64,
}

#[derive(Debug)]
enum Target {
    Stderr,
    File(RotatingFile),
    #[cfg(test)]
    Nowhere,
}

impl Logbook {
    /// Makes a log on standard error, for a subscriber whose filter can be changed
    /// through `handle`.
    pub fn new(filter: &str, handle: Option<reload::Handle<EnvFilter, Registry>>) -> Self {
        let shared = Shared {
            target: Target::Stderr,
            filter: filter.to_owned(),
            tail: VecDeque::new(),
            next: 0,
            dropped: 0,
        };
        Self { shared: Arc::new(Mutex::new(shared)), filter: handle }
    }

    /// Moves the log to a file (0600). With `redirect`, standard error goes there too,
    /// before and after each rotation: it is where a panic is told.
    pub fn into_file(&self, path: &Path, rotation: Rotation, redirect: bool) -> io::Result<()> {
        let file = RotatingFile::open(path, rotation, redirect)?;
        self.lock().target = Target::File(file);
        Ok(())
    }

    /// Reads the filter in force.
    pub fn filter(&self) -> String {
        self.lock().filter.clone()
    }

    /// Logs what another filter lets through from now on; answers the one until now.
    pub fn set_filter(&self, filter: &str) -> Result<String, BadFilter> {
        let bad = |reason: String| BadFilter { filter: filter.to_owned(), reason };
        let parsed = EnvFilter::try_new(filter).map_err(|error| bad(error.to_string()))?;
        let Some(handle) = &self.filter else {
            return Err(bad("this process does not let it be changed".to_owned()));
        };
        // Not under our lock: the subscriber may log on the way.
        handle.reload(parsed).map_err(|error| bad(error.to_string()))?;
        Ok(std::mem::replace(&mut self.lock().filter, filter.to_owned()))
    }

    /// Returns at most so many lines from memory: those from a number on, or the last.
    pub fn lines(&self, from: Option<u64>, most: usize) -> LogLines {
        let shared = self.lock();
        let first = shared.next - shared.tail.len() as u64;
        let from = match from {
            Some(from) => from.clamp(first, shared.next),
            None => shared.next.saturating_sub(most as u64).max(first),
        };
        let skipped = usize::try_from(from - first).unwrap_or(usize::MAX);
        let lines: Vec<String> = shared.tail.iter().skip(skipped).take(most).cloned().collect();
        let file = match &shared.target {
            Target::File(file) => Some(file.path.display().to_string()),
            _ => None,
        };
        LogLines { next: from + lines.len() as u64, lines, file }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn take(&mut self, event: &[u8]) {
        for line in String::from_utf8_lossy(event).lines() {
            if self.tail.len() == TAIL_LINES {
                self.tail.pop_front();
            }
            self.tail.push_back(plain(line));
            self.next += 1;
        }
        let written = match &mut self.target {
            Target::Stderr => write(&mut io::stderr().lock(), event, self.dropped),
            Target::File(file) => {
                file.make_room(event.len() as u64).and_then(|()| write(file, event, self.dropped))
            }
            #[cfg(test)]
            Target::Nowhere => Err(io::ErrorKind::StorageFull.into()),
        };
        match written {
            Ok(()) => self.dropped = 0,
            Err(_full) => self.dropped += 1,
        }
    }
}

/// Writes an event, and before it how many are missing.
fn write(target: &mut impl Write, event: &[u8], dropped: u64) -> io::Result<()> {
    if dropped > 0 {
        // The last one may have been cut off.
        let text = format!("\n({dropped} lines of the log could not be written here)\n");
        target.write_all(text.as_bytes())?;
    }
    target.write_all(event)
}

/// Takes the colours out of a line, and all beyond a limit.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len().min(TAIL_LINE_BYTES));
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            // Colours are all that is written: an escape, then up to a letter.
            '\u{1b}' => {
                for character in characters.by_ref() {
                    if character.is_ascii_alphabetic() {
                        break;
                    }
                }
            }
            character if character.is_control() && character != '\t' => {}
            _ if text.len() >= TAIL_LINE_BYTES => {
                text.push('…');
                break;
            }
            character => text.push(character),
        }
    }
    text
}

impl<'a> MakeWriter<'a> for Logbook {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Entry { logbook: self }
    }
}

/// Takes one event of the log, which comes as one write.
#[derive(Debug)]
pub struct Entry<'a> {
    logbook: &'a Logbook,
}

impl Write for Entry<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.logbook.lock().take(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is moved aside when it has grown.
#[derive(Debug)]
struct RotatingFile {
    path: PathBuf,
    rotation: Rotation,
    redirect: bool,
    file: File,
    size: u64,
}

impl RotatingFile {
    fn open(path: &Path, rotation: Rotation, redirect: bool) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let rotating = Self { path: path.to_owned(), rotation, redirect, file, size };
        rotating.redirect()?;
        Ok(rotating)
    }

    fn redirect(&self) -> io::Result<()> {
        if self.redirect {
            nix::unistd::dup2_stderr(&self.file)?;
        }
        Ok(())
    }

    /// Moves the file aside when an event of so many bytes would not fit any more. One
    /// that cannot be moved is written on, and tried again after some growth.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        if self.size == 0 || self.size + bytes <= self.rotation.file_bytes {
            return Ok(());
        }
        if self.rotate().is_err() {
            self.size = self.rotation.file_bytes - self.rotation.file_bytes / 10;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let kept = self.rotation.files.max(1) - 1;
        for number in (1..kept).rev() {
            moved(&numbered(&self.path, number), &numbered(&self.path, number + 1))?;
        }
        let aside = numbered(&self.path, 1);
        if kept > 0 {
            moved(&self.path, &aside)?;
        } else {
            fs::remove_file(&self.path)?;
        }
        match open(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => {
                // The log goes on where it was, and its name must say so.
                moved(&aside, &self.path)?;
                return Err(error);
            }
        }
        self.size = 0;
        self.redirect()
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Names an earlier file of a log: `agent.log.1` is the newest.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Returns the files of a log that exist, oldest first.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let older = (1..FILES).rev().map(|number| numbered(path, number));
    older.chain([path.to_owned()]).filter(|path| path.exists()).collect()
}

/// Opens a log to write at its end (0600).
pub(super) fn open(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Renames a file; one that is not there is no error.
fn moved(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn logbook() -> Logbook {
        let logbook = Logbook::new("info", None);
        logbook.lock().target = Target::Nowhere;
        logbook
    }

    fn say(logbook: &Logbook, line: &str) {
        let text = format!("{line}\n");
        logbook.make_writer().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn files_rotate_by_size_and_only_so_many_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agent.log");
        let logbook = logbook();
        logbook.into_file(&path, Rotation { file_bytes: 100, files: 3 }, false).unwrap();
        for number in 0..100 {
            say(&logbook, &format!("line {number:03} of a log"));
        }
        let found = files(&path);
        let names = ["agent.log.2", "agent.log.1", "agent.log"].map(|name| home.path().join(name));
        assert_eq!(found, names);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 3);
        let mut whole = String::new();
        for path in &found {
            let metadata = fs::metadata(path).unwrap();
            assert!(metadata.len() <= 100, "{} bytes", metadata.len());
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            whole.push_str(&fs::read_to_string(path).unwrap());
        }
        let lines: Vec<_> = whole.lines().collect();
        assert!(lines.len() > 10, "{whole}");
        for (line, number) in lines.iter().rev().zip((0..100).rev()) {
            assert_eq!(*line, format!("line {number:03} of a log"), "nothing is missing");
        }
    }

    #[test]
    fn a_log_that_was_there_is_written_on() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agent.log");
        fs::write(&path, "earlier\n").unwrap();
        let logbook = logbook();
        logbook.into_file(&path, Rotation::default(), false).unwrap();
        say(&logbook, "later");
        assert_eq!(fs::read_to_string(&path).unwrap(), "earlier\nlater\n");
        assert_eq!(logbook.lines(None, 5).file.unwrap(), path.display().to_string());
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_kept_in_memory() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agent.log");
        let logbook = logbook();
        say(&logbook, "one");
        say(&logbook, "two");
        logbook.into_file(&path, Rotation::default(), false).unwrap();
        say(&logbook, "three");
        say(&logbook, "four");
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "\n(2 lines of the log could not be written here)\nthree\nfour\n"
        );
        assert_eq!(logbook.lines(None, 9).lines, ["one", "two", "three", "four"]);
    }

    #[test]
    fn the_tail_is_bounded_and_can_be_followed() {
        let logbook = logbook();
        for number in 0..TAIL_LINES + 7 {
            say(&logbook, &format!("\u{1b}[32m INFO\u{1b}[0m {number}"));
        }
        say(&logbook, &"x".repeat(1 << 20));
        let last = logbook.lines(None, 2);
        assert_eq!(last.lines[0], format!(" INFO {}", TAIL_LINES + 6));
        assert!(last.lines[1].len() <= TAIL_LINE_BYTES + '…'.len_utf8());
        assert_eq!(last.next, TAIL_LINES as u64 + 8);
        assert_eq!(
            logbook.lines(Some(last.next), 9),
            LogLines { next: last.next, ..Default::default() }
        );
        say(&logbook, "more");
        let more = logbook.lines(Some(last.next), 9);
        assert_eq!((more.lines, more.next), (vec!["more".to_owned()], last.next + 1));
        let all = logbook.lines(Some(0), usize::MAX);
        assert_eq!(all.lines.len(), TAIL_LINES, "older ones are gone");
    }
}
