//! The command line: one file a verb, a folder a noun.
//!
//! A command reads its arguments, calls the library and prints; it never thinks.
//! Each file has an `Args` struct, whose comments are the help, and a function
//! `run(args, context)`. Data goes to stdout, talk to stderr, failures through
//! [`crate::command_error`], which also names the exit codes.

mod ask;
mod balance;
mod batch;
mod completion;
mod config;
mod doctor;
#[cfg(feature = "stack")]
mod down;
mod drain;
mod gpu;
#[cfg(all(test, feature = "stack"))]
mod help;
mod init;
mod job;
mod join;
mod log;
mod login;
mod logs;
mod model;
mod node;
mod operator;
mod output;
mod owner;
mod prompt;
#[cfg(feature = "proxy")]
mod proxy;
mod register;
mod relay;
mod restart;
mod resume;
mod run;
mod screen;
mod service;
mod start;
mod status;
mod stop;
mod table;
mod terms;
mod top;
#[cfg(feature = "stack")]
mod up;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};

pub use self::output::Output;
use crate::agent::logbook::Logbook;
use crate::agent::process::ProcessFiles;
use crate::command_error::{CommandError, Kind};
use crate::config::{Config, Directories, Overrides};
use crate::control::rpc::Rpc;
use crate::control::session::{LoginKind, Session};
use crate::control::{ControlPlane, PlainHttp, install_tls_provider};
use crate::identity::Keys;

/// Rent out and use machines that answer prompts
#[derive(Debug, Parser)]
#[command(name = "infernet", version, arg_required_else_help = true, after_help = ENVIRONMENT)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

const ENVIRONMENT: &str = "\
Environment:
  INFERNET_CONFIG_DIR   Folder of config.toml, owner.key and node.key
  INFERNET_STATE_DIR    Folder of journals, logs and caches
  INFERNET_RUNTIME_DIR  Folder of the PID file and the admin socket
  INFERNET_LOG_FORMAT   json: log one JSON object a line
  NO_COLOR              Print without colours

Exit codes:
  0 it worked, 1 it cannot be done or a file is wrong, 2 the command line makes
  no sense, 3 the reader of the output went away, 4 not signed in, 5 the job
  failed, 69 something is away (try later), 130 stopped by Ctrl-C, 255 a bug";

/// What every command takes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Use the control plane at this URL
    #[arg(long, global = true, value_name = "URL", env = "INFERNET_URL", hide_env_values = true)]
    url: Option<String>,
    /// Use this publishable key instead of asking the control plane for it
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        env = "INFERNET_PUBLISHABLE_KEY",
        hide_env_values = true
    )]
    publishable_key: Option<String>,
    /// Allow plain http to a public host, although anybody on the way can read it
    #[arg(long, global = true)]
    plain_http: bool,
    /// Print data as JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    /// Print data and failures only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Log more: -v what happens, -vv every step
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Log what this filter lets through, such as infernet=debug,warn
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "INFERNET_LOG",
        hide_env_values = true
    )]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set this machine up: where to join, as what, and what to serve
    Init(init::Args),
    /// Sign in with the keys of this machine, and enrol its node
    Login(login::Args),
    /// Tell the control plane what this node is and offers
    Register(register::Args),
    /// Start this machine's agent, in the background
    Start(start::Args),
    /// End this machine's agent
    Stop(stop::Args),
    /// End this machine's agent and start it again
    Restart(restart::Args),
    /// Show what the agent logged
    Logs(logs::Args),
    /// Have this machine's node take no more work
    Drain(drain::Args),
    /// Have this machine's node take work again
    Resume(resume::Args),
    /// Make the agent a service of systemd
    Service(service::Args),
    /// Show how this machine's node is
    Status(status::Args),
    /// Watch this machine's node at work
    Top(top::Args),
    /// Ask a model and print the answer while it is written
    Run(run::Args),
    /// Submit, list, show, follow, cancel and retry jobs
    Job(job::Args),
    /// Submit, list, show and cancel batches of jobs
    Batch(batch::Args),
    /// See what can be asked
    Model(model::Args),
    /// Show the balance
    Balance(balance::Args),
    /// Answer OpenAI's API on this machine
    #[cfg(feature = "proxy")]
    Proxy(proxy::Args),
    /// Check the signed receipt of a job
    Verify(verify::Args),
    /// Act as the owner of nodes
    Owner(owner::Args),
    /// List, show, drain, resume and command nodes
    Node(node::Args),
    /// Act as an operator of the control plane
    Operator(operator::Args),
    /// Show processors, memory and GPUs of this machine
    Gpu(gpu::Args),
    /// Look at everything that must be right, and say what is not
    Doctor(doctor::Args),
    /// Show and change what this machine was told
    Config(config::Args),
    /// Hand a unix socket's connections on to a port; for the containers of engines
    #[command(hide = true)]
    Relay(relay::Args),
    /// Print a script that completes commands in a shell
    Completion(completion::Args),
    /// Run a control plane on this machine
    #[cfg(feature = "stack")]
    Up(up::Args),
    /// Stop the control plane of this machine
    #[cfg(feature = "stack")]
    Down(down::Args),
}

impl Command {
    /// Says whether it runs for long and logs as a daemon does.
    fn is_daemon(&self) -> bool {
        match self {
            #[cfg(feature = "stack")]
            Self::Up(_) => true,
            #[cfg(feature = "proxy")]
            Self::Proxy(_) => true,
            Self::Start(args) => args.is_agent(),
            _ => false,
        }
    }

    /// Says whether it serves many others at the same time.
    fn serves_many(&self) -> bool {
        match self {
            #[cfg(feature = "stack")]
            Self::Up(_) => true,
            _ => false,
        }
    }

    async fn run(self, context: Context) -> Result<(), CommandError> {
        match self {
            Self::Init(args) => Box::pin(init::run(args, &context)).await,
            Self::Login(args) => Box::pin(login::run(&args, &context)).await,
            Self::Register(args) => register::run(&args, &context).await,
            Self::Verify(args) => verify::run(&args, &context).await,
            Self::Owner(args) => owner::run(args, &context).await,
            Self::Node(args) => node::run(args, &context).await,
            Self::Doctor(args) => Box::pin(doctor::run(&args, &context)).await,
            Self::Gpu(args) => gpu::run(&args, &context).await,
            Self::Operator(args) => operator::run(args, &context).await,
            Self::Start(args) => start::run(&args, &context).await,
            Self::Stop(args) => stop::run(&args, &context).await,
            Self::Restart(args) => Box::pin(restart::run(&args, &context)).await,
            Self::Logs(args) => logs::run(&args, &context).await,
            Self::Drain(args) => drain::run(&args, &context).await,
            Self::Resume(args) => resume::run(&args, &context).await,
            Self::Service(args) => Box::pin(service::run(&args, &context)).await,
            Self::Status(args) => status::run(&args, &context).await,
            Self::Top(args) => Box::pin(top::run(&args, &context)).await,
            Self::Run(args) => run::run(args, &context).await,
            Self::Job(args) => Box::pin(job::run(args, &context)).await,
            Self::Batch(args) => batch::run(args, &context).await,
            Self::Config(args) => config::run(args, &context),
            Self::Model(args) => model::run(args, &context).await,
            Self::Balance(args) => balance::run(&args, &context).await,
            #[cfg(feature = "proxy")]
            Self::Proxy(args) => Box::pin(proxy::run(&args, &context)).await,
            Self::Relay(args) => relay::run(&args).await,
            Self::Completion(args) => completion::run(&args, &context),
            #[cfg(feature = "stack")]
            Self::Up(args) => up::run(args, &context).await,
            #[cfg(feature = "stack")]
            Self::Down(args) => down::run(args, &context).await,
        }
    }
}

/// What a command works with.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// How it speaks.
    pub(crate) output: Output,
    /// Where it finds its files.
    pub(crate) directories: Directories,
    /// What flags and environment say.
    pub(crate) overrides: Overrides,
    /// The log of this process.
    pub(crate) logbook: Logbook,
}

impl Context {
    fn new(global: &GlobalArgs) -> Result<Self, CommandError> {
        Ok(Self {
            logbook: Logbook::new("", None),
            output: Output::new(global.json, global.quiet),
            directories: Directories::from_env()?,
            overrides: Overrides {
                url: global.url.clone().filter(|url| !url.is_empty()),
                plain_http: global.plain_http,
                publishable_key: global.publishable_key.clone().filter(|key| !key.is_empty()),
                log: global.log.clone().filter(|log| !log.is_empty()),
                docker_socket: docker_socket(),
                known_escapes: None,
            },
        })
    }

    /// Names the files of the agent's process.
    pub(crate) fn process_files(&self) -> ProcessFiles {
        ProcessFiles::new(self.directories.runtime(), self.directories.state())
    }

    /// Reads the configuration.
    pub(crate) fn config(&self) -> Result<Config, CommandError> {
        Ok(Config::load(&self.directories, &self.overrides)?)
    }

    /// Connects to the control plane, asking it for its key if there is none.
    pub(crate) async fn control(&self, config: &Config) -> Result<ControlPlane, CommandError> {
        let control = config.control()?;
        match &control.publishable_key {
            Some(key) => Ok(ControlPlane::new(control.url.clone(), key)?),
            None => {
                // The URL was checked when it was read.
                let url = control.url.to_string();
                let (plane, _info) = ControlPlane::discover(&url, PlainHttp::Anywhere).await?;
                Ok(plane)
            }
        }
    }

    /// Signs in as the person of this machine: owner, consumer or operator.
    pub(crate) async fn user(&self, key_file: Option<&PathBuf>) -> Result<Rpc, CommandError> {
        let path = key_file.cloned().unwrap_or_else(|| self.directories.owner_key());
        let keys = Keys::load(&path)?;
        let control = self.control(&self.config()?).await?;
        Ok(Rpc::new(Session::new(control, keys, LoginKind::User)))
    }

    /// Signs in as the node of this machine.
    pub(crate) async fn node(&self) -> Result<Rpc, CommandError> {
        let keys = Keys::load(&self.directories.node_key())?;
        let control = self.control(&self.config()?).await?;
        Ok(Rpc::new(Session::new(control, keys, LoginKind::Node)))
    }
}

/// Finds Docker's socket in the environment.
fn docker_socket() -> Option<PathBuf> {
    let ours = std::env::var_os("INFERNET_DOCKER_SOCKET").filter(|path| !path.is_empty());
    ours.map(PathBuf::from).or_else(|| {
        let host = std::env::var("DOCKER_HOST").ok()?;
        host.strip_prefix("unix://").map(PathBuf::from)
    })
}

/// Runs a command line and returns its exit code. `arguments` begin with the
/// program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let bug = CommandError::new(Kind::Internal, panic.to_string())
            .hint("Please report it with the line above and what you did.");
        bug.report(false);
        std::process::exit(i32::from(Kind::Internal.exit_code()));
    }));
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A line that makes no sense is told as JSON too where that was asked for.
    let as_json = arguments.iter().any(|argument| argument == "--json");
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && as_json => {
            return CommandError::from(error).report(true);
        }
        Err(error) => {
            let code = if error.use_stderr() { Kind::Usage.exit_code() } else { 0 };
            // Help that nobody reads is not an error.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let json = cli.global.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(json),
    }
}

fn run(cli: Cli) -> Result<(), CommandError> {
    let mut context = Context::new(&cli.global)?;
    context.logbook = log::start(&log_filter(&cli, &context))?;
    install_tls_provider();
    // A control plane gets threads; an agent mostly waits and a command is gone
    // in a moment: one is enough for them, and costs less.
    let runtime = if cli.command.serves_many() {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    }?;
    let outcome = runtime.block_on(Box::pin(cli.command.run(context)));
    // A thread that still reads stdin must not hold the process.
    runtime.shutdown_background();
    outcome
}

/// Chooses what is logged: the flags, else the variable, else for a daemon the
/// file, else failures only.
fn log_filter(cli: &Cli, context: &Context) -> String {
    match (cli.global.verbose, &context.overrides.log) {
        (1, _) => "infernet=info,warn".to_owned(),
        (2.., _) => "infernet=debug,info".to_owned(),
        (0, Some(filter)) => filter.clone(),
        (0, None) if cli.command.is_daemon() => {
            // A wrong file is reported by the command itself.
            context.config().map_or_else(|_| "info".to_owned(), |config| config.log().to_owned())
        }
        (0, None) => "error".to_owned(),
    }
}
