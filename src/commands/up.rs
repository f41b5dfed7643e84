//! `infernet up`: runs the embedded control plane.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Map, Value};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;

use super::{Context, Output};
use crate::command_error::{CommandError, Kind};
use crate::control::{BaseUrl, PlainHttp};
use crate::stack::data_dir::DataDir;
use crate::stack::secrets::Secrets;
use crate::stack::{DEFAULT_PORT, Stack, StackError, StackOptions, Stage, database_url};

/// How long a control plane in the background may take to answer.
const DETACH_LIMIT: Duration = Duration::from_secs(150);

/// How the URL and the keys are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people, without secrets unless --show-secrets
    Pretty,
    /// Lines NAME="value", as of `supabase status -o env`
    Env,
    /// One JSON object
    Json,
}

/// Run a control plane on this machine
///
/// Keeps PostgreSQL, the API and Realtime running until Ctrl-C (twice: at once),
/// and its data for the next time. It needs PostgreSQL 15 to 18 on this machine.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Keep the data here [default: /var/lib/infernet for root, else the user's data folder]
    #[arg(long, value_name = "DIR", env = "INFERNET_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Answer on this port; 0 takes a free one
    #[arg(long, default_value_t = DEFAULT_PORT)]
    pub(crate) port: u16,
    /// Answer on this address; another than loopback lets other machines in
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) bind: IpAddr,
    /// Let PostgreSQL listen on this port of 127.0.0.1 [default: a free one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) db_port: Option<u16>,
    /// Name the control plane for people
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Publish it at this URL, where other machines reach it; may be repeated
    #[arg(long = "public-url", value_name = "URL")]
    pub(crate) public_urls: Vec<String>,
    /// Take the address of callers from this header, which a proxy in front sets
    #[arg(long, value_name = "HEADER")]
    pub(crate) address_header: Option<axum::http::HeaderName>,
    /// Go to the background once it answers; infernet down stops it
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print URL and keys like this
    #[arg(short, long, value_enum, default_value_t = Format::Pretty)]
    pub(crate) output: Format,
    /// Print secrets among the lines for people
    #[arg(long)]
    pub(crate) show_secrets: bool,
}

impl Args {
    /// Returns the folder of the data.
    fn data_root(&self) -> Result<PathBuf, StackError> {
        match &self.data_dir {
            Some(root) => Ok(root.clone()),
            None => Ok(DataDir::default_root()?),
        }
    }

    /// Gives the flags their meaning.
    fn options(&self) -> Result<StackOptions, CommandError> {
        let mut options = StackOptions::new(self.data_root()?);
        options.port = self.port;
        options.bind = self.bind;
        options.database_port = self.db_port;
        options.name.clone_from(&self.name);
        for text in &self.public_urls {
            options.public_urls.push(BaseUrl::parse(text, PlainHttp::Anywhere)?);
        }
        if let Some(header) = &self.address_header {
            options.client_address = crate::stack::auth::ClientAddress::Header(header.clone());
        }
        Ok(options)
    }
}

/// Runs the control plane until it is told to stop.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let output = context.output;
    let format = if output.is_json() { Format::Json } else { args.output };
    if args.detach {
        return Box::pin(detach(&args, format, output)).await;
    }
    let options = args.options()?;
    warn_of_open_door(&args, output);
    let mut stops = Stops::new()?;
    let Some(mut stack) = Box::pin(start(options, output, &mut stops)).await? else {
        return Err(interrupted());
    };
    let mut report = Report::new(stack.url(), stack.keys(), stack.data());
    report.database_url = stack.database_url_for("postgres");
    print(&report, format, args.show_secrets, output)?;
    output.talk("The control plane answers. Ctrl-C stops it.");

    let failure = tokio::select! {
        failure = stack.failed() => Some(failure),
        () = stops.next() => None,
    };
    output.talk("Stopping (again: at once) …");
    tokio::select! {
        () = Box::pin(stack.stop()) => {}
        // What is left undone is recovered at the next start.
        () = stops.next() => return Err(interrupted()),
    }
    match failure {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

/// Starts and says how far it is; `None` when it is told to stop meanwhile.
async fn start(
    mut options: StackOptions,
    output: Output,
    stops: &mut Stops,
) -> Result<Option<Stack>, CommandError> {
    let (stages, mut reached) = unbounded_channel();
    options.stages = Some(stages);
    let mut starting = std::pin::pin!(Stack::start(options));
    loop {
        tokio::select! {
            Some(stage) = reached.recv() => output.talk(match stage {
                Stage::Database => "Starting PostgreSQL …",
                Stage::Schema => "Bringing the schema up to date …",
                Stage::Gateway => "Opening the gateway …",
            }),
            started = &mut starting => return Ok(Some(started?)),
            () = stops.next() => return Ok(None),
        }
    }
}

/// Starts the same in the background and waits until it answers.
async fn detach(args: &Args, format: Format, output: Output) -> Result<(), CommandError> {
    let data = DataDir::create(args.data_root()?).map_err(StackError::from)?;
    // The refusal of a second one is better given here than in a log.
    drop(data.lock().map_err(StackError::from)?);
    warn_of_open_door(args, output);
    let log = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(data.log());
    let log = log.map_err(|source| cannot(&data, source))?;
    let log_start = log.metadata().map_or(0, |metadata| metadata.len());
    let errors = log.try_clone().map_err(|source| cannot(&data, source))?;
    let program = std::env::current_exe().map_err(|source| cannot(&data, source))?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1).filter(|argument| argument != "--detach"))
        // What is printed contains secrets when it was asked for, and belongs
        // to whoever asked.
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(|source| cannot(&data, source))?;
    drop(log);
    output.talk("Starting in the background …");
    let deadline = tokio::time::Instant::now() + DETACH_LIMIT;
    let running = loop {
        if let Some(status) = child.try_wait().map_err(|source| cannot(&data, source))? {
            let said = log_since(&data.log(), log_start);
            return Err(CommandError::unavailable(format!(
                "The control plane ended while starting ({status}): {said}"
            ))
            .hint(format!("See {}", data.log().display())));
        }
        let running = data.running().map_err(StackError::from)?;
        if let Some(running) = running.filter(|running| running.url.is_some()) {
            break running;
        }
        if tokio::time::Instant::now() > deadline {
            return Err(CommandError::unavailable("The control plane does not answer yet")
                .hint(format!("See {}", data.log().display())));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let secrets = Secrets::load_or_create(&data).map_err(StackError::from)?;
    let mut report = Report::new(running.url.as_deref().unwrap_or_default(), &secrets, &data);
    report.database_url = database_url(&secrets, &running);
    print(&report, format, args.show_secrets, output)?;
    output.talk(&format!(
        "It runs in the background (process {}). To stop it: infernet down --data-dir {}",
        running.pid,
        data.root().display()
    ));
    Ok(())
}

/// Wraps a failure of starting in the background.
fn cannot(data: &DataDir, source: std::io::Error) -> CommandError {
    CommandError::new(Kind::User, source)
        .hint(format!("Going to the background failed; its log is {}", data.log().display()))
}

/// Returns what a log got since `start`, on one line.
fn log_since(path: &std::path::Path, start: u64) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let start = usize::try_from(start).unwrap_or(usize::MAX).min(text.len());
    let text = String::from_utf8_lossy(&text[start..]);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// Says what it means to listen on more than loopback.
fn warn_of_open_door(args: &Args, output: Output) {
    if args.bind.is_loopback() {
        return;
    }
    output.warn(&format!(
        "Warning: {} lets other machines in over plain http, where anybody on the way can read \
         prompts and tokens; put a proxy with https in front for anything but a home network.",
        args.bind
    ));
    if args.public_urls.is_empty() {
        output.warn(
            "Warning: name the URL by which other machines reach it with --public-url, or they \
             cannot sign in.",
        );
    }
}

/// The failure of a start or stop that was cut short.
fn interrupted() -> CommandError {
    CommandError::new(Kind::Interrupted, "Stopped before it was done")
        .hint("The data are safe; the next start puts things right.")
}

/// The signals that mean: stop.
struct Stops {
    interrupt: Signal,
    terminate: Signal,
}

impl Stops {
    fn new() -> Result<Self, CommandError> {
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

/// What the operator wants to know of a control plane that answers.
struct Report<'a> {
    url: &'a str,
    secrets: &'a Secrets,
    database_url: Option<String>,
    operator_key: PathBuf,
    data: PathBuf,
}

impl<'a> Report<'a> {
    fn new(url: &'a str, secrets: &'a Secrets, data: &DataDir) -> Self {
        Self {
            url,
            secrets,
            database_url: None,
            operator_key: data.operator_key(),
            data: data.root().to_owned(),
        }
    }

    /// Lists name, value and whether it is secret; the names are those of
    /// `supabase status -o env` where it has them.
    fn entries(&self) -> Vec<(&'static str, String, bool)> {
        let secrets = self.secrets;
        let mut entries = vec![
            ("API_URL", self.url.to_owned(), false),
            ("REST_URL", format!("{}/rest/v1", self.url), false),
            ("FUNCTIONS_URL", format!("{}/functions/v1", self.url), false),
        ];
        if let Some(url) = &self.database_url {
            entries.push(("DB_URL", url.clone(), true));
        }
        entries.extend([
            ("PUBLISHABLE_KEY", secrets.publishable_key.clone(), false),
            ("SECRET_KEY", secrets.secret_key.clone(), true),
            ("JWT_SECRET", secrets.jwt_secret.clone(), true),
            ("ANON_KEY", secrets.anon_key.clone(), false),
            ("SERVICE_ROLE_KEY", secrets.service_role_key.clone(), true),
            ("OPERATOR_KEY_FILE", self.operator_key.display().to_string(), false),
            ("DATA_DIR", self.data.display().to_string(), false),
        ]);
        entries
    }
}

/// Prints a report.
fn print(
    report: &Report<'_>,
    format: Format,
    show_secrets: bool,
    output: Output,
) -> Result<(), CommandError> {
    let mut text = String::new();
    match format {
        Format::Json => {
            let object: Map<String, Value> = report
                .entries()
                .into_iter()
                .map(|(name, value, _)| (name.to_owned(), Value::from(value)))
                .collect();
            output.object(&object)?;
            return Ok(());
        }
        Format::Env => {
            for (name, value, _) in report.entries() {
                // No value of ours but a path can hold what a shell would read.
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
                writeln!(text, "{name}=\"{value}\"").expect("a string takes all text");
            }
        }
        Format::Pretty => {
            for (name, value, secret) in report.entries() {
                if matches!(name, "REST_URL" | "FUNCTIONS_URL" | "ANON_KEY") {
                    continue;
                }
                let hidden = secret && !show_secrets;
                let value = if hidden { "(hidden, see --show-secrets)" } else { &value };
                let label = name.to_lowercase().replace('_', " ");
                writeln!(text, "{label:>17}: {value}").expect("a string takes all text");
            }
        }
    }
    output.data(&text)?;
    Ok(())
}
