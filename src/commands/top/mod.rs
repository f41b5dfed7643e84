//! `infernet top`: the node at work, live on a terminal, or printed once.

mod panels;
mod view;

use std::io;
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures_util::StreamExt as _;
use ratatui::DefaultTerminal;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::sleep;

use super::prompt::parse_duration;
use super::screen::Interrupts;
use super::{Context, status};
use crate::agent::admin::{self, Snapshot};
use crate::agent::process::ProcessFiles;
use crate::command_error::CommandError;
use crate::control::rpc::{NodeStatus, OwnerEarnings};

/// How many of the log's last lines are asked for: more than a tall terminal.
const LOG_LINES: usize = 100;

/// How many of them are printed once.
const LOG_LINES_ONCE: usize = 10;

/// How often the control plane is asked what was earned.
const EARNINGS_PAUSE: Duration = Duration::from_secs(15);

/// The arguments of `infernet top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
q ends it. Without a terminal it prints once; with --json, an object each time it looks.")]
pub(crate) struct Args {
    /// Print once and end
    #[arg(short = '1', long)]
    once: bool,
    /// Look so often, such as 1s or 10s
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    every: Duration,
}

/// What is shown.
#[derive(Clone, Debug, Serialize)]
struct Seen {
    /// What the agent knows of itself.
    agent: Snapshot,
    /// How the control plane sees the node; once it has answered.
    node: Option<NodeStatus>,
    /// What the owner's nodes earned, where the owner's key is here.
    owner: Option<OwnerEarnings>,
    /// Why what is shown is old.
    trouble: Option<String>,
}

/// Shows the node at work.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let files = context.process_files();
    let output = context.output;
    let live = !args.once && (output.is_terminal() || output.is_json());
    let lines = if live { LOG_LINES } else { LOG_LINES_ONCE };
    let agent = admin::snapshot(&files, lines).await?;
    let mut seen = Seen { agent, node: None, owner: None, trouble: None };
    if !live {
        let owner = status::owner(context).await;
        (seen.node, seen.owner) =
            tokio::join!(standing(&files), status::owner_earnings(owner.as_ref()));
        output.show(&seen, || panels::once(&seen, &output))?;
        return Ok(());
    }
    let (sender, receiver) = watch::channel(seen);
    tokio::select! {
        outcome = run_screen(receiver, context) => outcome,
        () = run_looks(&files, args.every, &sender) => Ok(()),
        () = run_earnings(&files, context, &sender) => Ok(()),
    }
}

/// Asks how the control plane sees the node; none while it is away.
async fn standing(files: &ProcessFiles) -> Option<NodeStatus> {
    admin::standing(files).await.ok()
}

/// Asks the agent again and again; never ends.
async fn run_looks(files: &ProcessFiles, every: Duration, seen: &watch::Sender<Seen>) {
    loop {
        sleep(every).await;
        match admin::snapshot(files, LOG_LINES).await {
            Ok(agent) => seen.send_modify(|seen| {
                seen.agent = agent;
                seen.trouble = None;
            }),
            Err(error) => seen.send_modify(|seen| seen.trouble = Some(error.to_string())),
        }
    }
}

/// Asks the control plane again and again what was earned; never ends.
async fn run_earnings(files: &ProcessFiles, context: &Context, seen: &watch::Sender<Seen>) {
    let mut person = None;
    loop {
        if person.is_none() {
            person = status::owner(context).await;
        }
        let (node, owner) = tokio::join!(standing(files), status::owner_earnings(person.as_ref()));
        seen.send_modify(|seen| {
            // What was known stays while the control plane is away.
            seen.node = node.or(seen.node.take());
            seen.owner = owner.or(seen.owner);
        });
        sleep(EARNINGS_PAUSE).await;
    }
}

/// Shows what is seen until its reader has had enough.
async fn run_screen(seen: watch::Receiver<Seen>, context: &Context) -> Result<(), CommandError> {
    if context.output.is_json() {
        return run_objects(seen, context).await;
    }
    let screen = FullScreen::open()?;
    run_keys(screen, seen, context.output.has_colour()).await
}

/// Prints an object each time until Ctrl-C.
async fn run_objects(
    mut seen: watch::Receiver<Seen>,
    context: &Context,
) -> Result<(), CommandError> {
    let mut interrupts = Interrupts::new()?;
    loop {
        let now = seen.borrow_and_update().clone();
        context.output.object(&now)?;
        tokio::select! {
            () = interrupts.next() => return Ok(()),
            changed = seen.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Draws on the screen and reads its keys.
async fn run_keys(
    mut screen: FullScreen,
    mut seen: watch::Receiver<Seen>,
    colour: bool,
) -> Result<(), CommandError> {
    let mut events = EventStream::new();
    loop {
        let now = seen.borrow_and_update().clone();
        screen.terminal.draw(|frame| view::draw(frame, &now, colour))?;
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) if !is_end(&event) => {}
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(_)) | None => return Ok(()),
            },
            changed = seen.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Says whether a key means that the reader has had enough.
fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c' | 'd') => control,
            _ => false,
        }
}

/// The whole terminal; given back when it is dropped, and before a panic speaks.
struct FullScreen {
    terminal: DefaultTerminal,
}

impl FullScreen {
    fn open() -> io::Result<Self> {
        Ok(Self { terminal: ratatui::try_init()? })
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn q_escape_and_control_c_end_it() {
        let key = |code, modifiers| is_end(&Event::Key(KeyEvent::new(code, modifiers)));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE));
        assert!(!is_end(&Event::Resize(80, 24)));
    }
}
