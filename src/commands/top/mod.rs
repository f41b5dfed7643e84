//! `infernet top`: the node at work, live on a terminal, or printed once.

mod panels;
mod view;

use std::io::{self, Stdout};
use std::panic;
use std::time::Duration;

use crossterm::cursor::Show;
use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::execute;
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use futures_util::StreamExt as _;
use ratatui_core::terminal::Terminal;
use ratatui_crossterm::CrosstermBackend;
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
const EARNINGS_PAUSE: Duration = Duration::from_secs(5);

/// The arguments of `infernet top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
q ends it. Without a terminal it prints once; with --json, an object each time it looks.
What is not paid out yet is told where the owner's key is.")]
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
    let live = !args.once && (output.is_json() || output.is_terminal() && can_be_drawn_on());
    let lines = if live { LOG_LINES } else { LOG_LINES_ONCE };
    let agent = admin::snapshot(&files, lines).await?;
    let mut seen = Seen { agent, node: None, owner: None, trouble: None };
    if !live {
        let person = async { status::person_earnings(status::owner(context).await.as_ref()).await };
        let (node, person) = tokio::join!(standing(&files), person);
        seen.owner = status::of_owner(person, node.as_ref());
        seen.node = node;
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
        let (node, earned) =
            tokio::join!(standing(files), status::person_earnings(person.as_ref()));
        seen.send_modify(|seen| {
            // What was known stays while the control plane is away.
            seen.node = node.or(seen.node.take());
            seen.owner = status::of_owner(earned, seen.node.as_ref()).or(seen.owner);
        });
        sleep(EARNINGS_PAUSE).await;
    }
}

/// Shows what is seen until its reader has had enough.
async fn run_screen(seen: watch::Receiver<Seen>, context: &Context) -> Result<(), CommandError> {
    if context.output.is_json() {
        return run_objects(seen, context).await;
    }
    let unfit = |error: io::Error| {
        CommandError::user(format!("This terminal cannot be drawn on: {error}"))
            .hint("Print once instead: infernet top -1")
    };
    let screen = FullScreen::open().map_err(unfit)?;
    run_keys(screen, seen, context.output.has_colour()).await.map_err(unfit)
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

/// Draws on the screen, again where its size changes, and reads its keys.
async fn run_keys(
    mut screen: FullScreen,
    mut seen: watch::Receiver<Seen>,
    colour: bool,
) -> io::Result<()> {
    let mut interrupts = Interrupts::new()?;
    let mut events = EventStream::new();
    loop {
        let now = seen.borrow_and_update().clone();
        screen.terminal.draw(|frame| view::draw(frame, &now, colour))?;
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) if !is_end(&event) => {}
                Some(Err(error)) => return Err(error),
                Some(Ok(_)) | None => return Ok(()),
            },
            () = interrupts.next() => return Ok(()),
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

/// Says whether a terminal can do more than print one line after the other.
fn can_be_drawn_on() -> bool {
    std::env::var_os("TERM").is_some_and(|terminal| terminal != "dumb")
}

/// The whole terminal; given back when it is dropped, and before a panic speaks.
struct FullScreen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl FullScreen {
    fn open() -> io::Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
        // From here on its end gives the terminal back, also halfway.
        let mut screen = Self { terminal: Terminal::new(CrosstermBackend::new(io::stdout()))? };
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen)?;
        screen.terminal.clear()?;
        Ok(screen)
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Makes the terminal what it was before. Whoever ends can do nothing about a failure.
fn give_back() {
    drop(disable_raw_mode());
    drop(execute!(io::stdout(), LeaveAlternateScreen, Show));
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
