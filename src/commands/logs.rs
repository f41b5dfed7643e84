//! `infernet logs`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::Context;
use crate::agent::admin::{self, AdminError, LogLines};
use crate::agent::logbook;
use crate::command_error::{CommandError, Kind};

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// The most lines that are asked for at once.
const LINES_AT_ONCE: usize = 500;

/// The arguments of `infernet logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An agent in the background logs to a file, which is moved aside when it has grown to 5 MiB;
four earlier ones are kept. One in the foreground or of a service keeps its last 500 lines
for this command; the others are with the terminal, or in: journalctl -u infernet")]
pub(crate) struct Args {
    /// Show so many of the last lines
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    lines: usize,
    /// Go on with what is logged from now on, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Change what the running agent logs, such as infernet=debug,warn; not lasting
    #[arg(long, value_name = "FILTER", conflicts_with = "follow")]
    set: Option<String>,
}

/// Shows the agent's log.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let files = context.process_files();
    if let Some(filter) = &args.set {
        let before = admin::set_log(&files, filter).await?;
        if context.output.is_json() {
            context.output.object(&json!({"filter": filter, "before": before}))?;
        } else {
            context
                .output
                .talk(&format!("The agent logs {filter} until it ends; it was {before}."));
        }
        return Ok(());
    }
    let showing = async {
        match admin::log(&files, None, args.lines).await {
            // The running agent has no file: it keeps its last lines itself.
            Ok(lines) if lines.file.is_none() => from_memory(args, lines, context).await,
            Ok(_) | Err(AdminError::NotRunning) => from_files(args, &files.log(), context).await,
            // What was written can be read, whatever became of the agent.
            Err(_) if files.log().exists() => from_files(args, &files.log(), context).await,
            Err(error) => Err(error.into()),
        }
    };
    tokio::select! {
        shown = showing => shown,
        _asked = tokio::signal::ctrl_c(), if args.follow => Ok(()),
    }
}

fn show(line: &str, context: &Context) -> io::Result<()> {
    if context.output.is_json() {
        context.output.object(&json!({"line": line}))
    } else {
        context.output.line(line)
    }
}

/// Shows what the agent keeps in memory.
async fn from_memory(
    args: &Args,
    mut lines: LogLines,
    context: &Context,
) -> Result<(), CommandError> {
    let files = context.process_files();
    loop {
        for line in &lines.lines {
            show(line, context)?;
        }
        if !args.follow {
            return Ok(());
        }
        sleep(LOOK).await;
        lines = match admin::log(&files, Some(lines.next), LINES_AT_ONCE).await {
            Ok(lines) => lines,
            Err(AdminError::NotRunning) => {
                context.output.talk("The agent has ended.");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
    }
}

/// Shows what an agent in the background wrote.
async fn from_files(args: &Args, path: &Path, context: &Context) -> Result<(), CommandError> {
    let files = logbook::files(path);
    if files.is_empty() && !args.follow {
        return Err(CommandError::new(
            Kind::User,
            format!("There is no log at {} yet.", path.display()),
        )
        .hint("Start the agent: infernet start"));
    }
    let mut follower = Follower::new(path.to_owned());
    for line in follower.last(&files, args.lines)? {
        show(&line, context)?;
    }
    if !args.follow {
        return Ok(());
    }
    loop {
        for line in follower.more()? {
            show(&line, context)?;
        }
        sleep(LOOK).await;
    }
}

/// Reads a log that grows and is moved aside meanwhile.
struct Follower {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// The beginning of a line whose end was not written yet.
    partial: Vec<u8>,
}

impl Follower {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, partial: Vec::new() }
    }

    /// Returns the last lines of a log's files, and stays at their end.
    fn last(&mut self, files: &[PathBuf], most: usize) -> io::Result<Vec<String>> {
        let mut last = VecDeque::new();
        for path in files {
            // One that was moved on meanwhile is read under its next name.
            let Ok(file) = File::open(path) else { continue };
            self.file = Some(BufReader::new(file));
            for line in self.read()? {
                if last.len() == most {
                    last.pop_front();
                }
                last.push_back(line);
            }
        }
        // Zero lines are none at all.
        last.truncate(most);
        Ok(last.into())
    }

    /// Returns what was written since, also after the file was moved aside.
    fn more(&mut self) -> io::Result<Vec<String>> {
        let mut lines = self.read()?;
        let current = fs::metadata(&self.path).ok().map(|metadata| metadata.ino());
        let ours = match &self.file {
            Some(file) => Some(file.get_ref().metadata()?.ino()),
            None => None,
        };
        if current.is_some() && current != ours {
            self.file = Some(BufReader::new(File::open(&self.path)?));
            lines.extend(self.read()?);
        }
        Ok(lines)
    }

    fn read(&mut self) -> io::Result<Vec<String>> {
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        let mut lines = Vec::new();
        // Bounded, so that a line without an end cannot fill the memory.
        while file.by_ref().take(1 << 20).read_until(b'\n', &mut self.partial)? > 0 {
            if self.partial.ends_with(b"\n") || self.partial.len() >= 1 << 20 {
                let line = std::mem::take(&mut self.partial);
                lines.push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_lines_cross_files_and_following_survives_a_rotation() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agent.log");
        fs::write(logbook::numbered(&path, 1), "one\ntwo\n").unwrap();
        fs::write(&path, "three\nfo").unwrap();
        let mut follower = Follower::new(path.clone());
        let last = follower.last(&logbook::files(&path), 2).unwrap();
        assert_eq!(last, ["two", "three"]);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"ur\nfive\n").unwrap();
        assert_eq!(follower.more().unwrap(), ["four", "five"]);
        assert!(follower.more().unwrap().is_empty());
        file.write_all(b"six\n").unwrap();
        fs::rename(&path, logbook::numbered(&path, 1)).unwrap();
        fs::write(&path, "seven\n").unwrap();
        assert_eq!(follower.more().unwrap(), ["six", "seven"]);
    }
}
