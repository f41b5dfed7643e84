//! `infernet start`.

use std::ffi::OsString;
use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::Context;
use crate::agent::logbook::Rotation;
use crate::agent::notify::Notifier;
use crate::agent::process::{self, PidFile, ProcessFiles, Readiness};
use crate::agent::{Agent, Introduction, Stop, prepare};
use crate::command_error::{CommandError, RelayedError};
use crate::engine::escapes::KnownEscapes;
use crate::identity::Keys;

/// How long the background agent may take until it is ready: checking the
/// models' files and signing in.
const READY_TIME: Duration = Duration::from_secs(300);

/// The flag that the background agent is started with, beside the user's own.
const BACKGROUND_FLAG: &str = "--in-background";

/// The arguments of `infernet start`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Stay in the foreground and log to stderr
    #[arg(long)]
    foreground: bool,
    /// Let running jobs finish for so long when told to stop
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u64>,
    /// Start even if a container could be left in a known way (see infernet doctor)
    #[arg(long)]
    accept_known_escapes: bool,
    /// Be the background agent of another infernet start
    #[arg(long, hide = true, conflicts_with = "foreground")]
    in_background: bool,
}

impl Args {
    /// Says whether this process is the agent, and not only starts it.
    pub(crate) fn is_agent(&self) -> bool {
        self.foreground || self.in_background
    }
}

/// Starts the agent.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let files = context.process_files();
    if args.in_background {
        process::enter_background()?;
        let ready = |introduction: &Introduction| {
            Ok(process::report(&Readiness::Ready(introduction.clone()))?)
        };
        let outcome = serve(args, context, files, ready).await;
        if let Err(failure) = &outcome {
            // Once it was ready there is nobody left who waits for this.
            process::report(&Readiness::Failed(RelayedError::from(failure)))?;
        }
        return outcome;
    }
    if args.foreground {
        let ready = |introduction: &Introduction| introduce(context, introduction, None);
        return serve(args, context, files, ready).await;
    }
    if let Some(pid) = process::running(&files)? {
        return Err(process::ProcessError::AlreadyRunning { pid }.into());
    }
    let arguments = background_arguments(std::env::args_os());
    let readiness = {
        let files = files.clone();
        tokio::task::spawn_blocking(move || {
            process::spawn_background(&files, &arguments, READY_TIME)
        })
        .await
        .expect("waiting for a process does not panic")?
    };
    match readiness {
        Readiness::Ready(introduction) => introduce(context, &introduction, Some(&files)),
        Readiness::Failed(failure) => Err(failure.into()),
    }
}

/// Makes the arguments of the agent in the background from the command line of this
/// process: the same, beginning with `start` where it was `restart`.
fn background_arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut named = false;
    let mut arguments: Vec<OsString> = given
        .skip(1)
        .filter_map(|argument| match argument.to_str() {
            Some("restart") if !named => {
                named = true;
                Some("start".into())
            }
            // How the earlier agent was ended.
            Some("--now") => None,
            _ => Some(argument),
        })
        .collect();
    arguments.push(BACKGROUND_FLAG.into());
    arguments
}

/// Is the agent, from its start to its end.
async fn serve(
    args: &Args,
    context: &Context,
    files: ProcessFiles,
    ready: impl FnOnce(&Introduction) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let mut context = context.clone();
    if args.accept_known_escapes {
        context.overrides.known_escapes = Some(KnownEscapes::Accept);
    }
    let context = &context;
    let config = context.config()?;
    let node = config.node()?;
    let keys = Keys::load(&context.directories.node_key())?;
    let _only_agent = PidFile::take(&files)?;
    let logbook = context.logbook.clone();
    if args.in_background {
        logbook.into_file(&files.log(), Rotation::default(), true)?;
    }
    let mut signals = Signals::install()?;
    let starting = async {
        let control = context.control(&config).await?;
        let mut options =
            prepare(&config, node, &context.directories, control, keys, files, logbook).await?;
        options.notifier = Notifier::from_env();
        if let Some(grace) = args.grace {
            options.grace = Duration::from_secs(grace);
        }
        Ok::<_, CommandError>(Agent::start(options).await?)
    };
    let agent = tokio::select! {
        agent = Box::pin(starting) => agent?,
        () = signals.next() => return Ok(()),
    };
    ready(&agent.introduction())?;
    let (stop, stopped) = watch::channel(Stop::Run);
    let tell = async {
        signals.next().await;
        stop.send_replace(Stop::Drain);
        signals.next().await;
        stop.send_replace(Stop::Now);
        std::future::pending::<()>().await;
    };
    run_until(Box::pin(agent.run(stopped)), tell).await;
    Ok(())
}

/// Runs the agent to its end beside what listens for signals.
async fn run_until(agent: impl Future<Output = ()>, tell: impl Future<Output = ()>) {
    tokio::select! {
        () = agent => {}
        () = tell => {}
    }
}

/// The signals that end the agent.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn install() -> Result<Self, CommandError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Says who runs now, and what to do next.
fn introduce(
    context: &Context,
    introduction: &Introduction,
    background: Option<&ProcessFiles>,
) -> Result<(), CommandError> {
    let output = &context.output;
    if output.is_json() {
        output.object(introduction)?;
        return Ok(());
    }
    let Introduction { name, role, pid, control_plane, models, approval, .. } = introduction;
    let place = if background.is_some() { " in the background" } else { "" };
    output.talk(&format!("The {role} {name} runs{place} as process {pid}."));
    output.talk(&format!("  Control plane  {control_plane}"));
    if !models.is_empty() {
        output.talk(&format!("  Models         {}", models.join(", ")));
    }
    if let Some(files) = background {
        output.talk(&format!("  Log            {}", files.log().display()));
    }
    if approval == "pending" {
        output.talk(
            "It gets no work until an operator approves it: infernet operator approve, or in the \
             dashboard.",
        );
    }
    if background.is_some() {
        output.talk("See infernet status; end it with: infernet stop");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_begins_as_a_start_did() {
        let made = |line: &str| {
            let made = background_arguments(line.split(' ').map(OsString::from));
            made.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(made("infernet start --grace 5"), "start --grace 5 --in-background");
        assert_eq!(made("infernet -v restart --now"), "-v start --in-background");
    }
}
