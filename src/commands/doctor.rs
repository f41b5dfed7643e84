//! `infernet doctor`: looks at everything that must be right, and says what is not.
//!
//! First this machine: its configuration, keys, clock, the way to the control plane,
//! what the engines need, and how the node stands. For an operator also the health
//! of the control plane itself. Every check is made, whatever came of the others.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;

use super::Context;
use super::table::Tone;
use crate::agent::clock;
use crate::command_error::{CommandError, Kind};
use crate::config::{Config, ModelSource};
use crate::control::rpc::{Finding, FindingLevel, Health, NodeStatus, Rpc};
use crate::control::session::{LoginKind, Session};
use crate::control::{ControlPlane, PlainHttp};
use crate::engine::Catalogue;
use crate::engine::docker::ContainerHost;
use crate::engine::escapes::{self, KnownEscapes, Machine};
use crate::identity::Keys;

/// How long one look at something away may take.
const LOOK_TIME: Duration = Duration::from_secs(15);

/// The arguments of `infernet doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 0 when nothing is wrong, and 1 when something is; with --strict, warnings count too.")]
pub(crate) struct Args {
    /// Let warnings count as failures
    #[arg(long)]
    strict: bool,
    /// Look as the holder of this key instead of owner.key, such as an operator's
    #[arg(long, value_name = "FILE", env = "INFERNET_OPERATOR_KEY_FILE", hide_env_values = true)]
    key_file: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    /// The worst of the findings.
    level: FindingLevel,
    /// Of this machine, then of the control plane.
    findings: Vec<Finding>,
    /// The control plane's numbers, for an operator.
    health: Option<Health>,
}

/// Collects findings, and shows each as it comes.
struct Findings<'a> {
    found: Vec<Finding>,
    context: &'a Context,
}

impl Findings<'_> {
    fn add(&mut self, finding: Finding) -> Result<(), CommandError> {
        let output = self.context.output;
        if !output.is_json() {
            let level = finding.level.as_str();
            let tone = Tone::of_state(level);
            let level = tone.paint(&format!("{level:<8}"), &output);
            output.line(&format!("{level} {}", finding.what))?;
            if let Some(hint) = finding.hint.as_ref().filter(|_| finding.level > FindingLevel::Ok) {
                output.line(&format!("{:<8} {hint}", ""))?;
            }
        }
        self.found.push(finding);
        Ok(())
    }

    fn ok(&mut self, what: impl Into<String>) -> Result<(), CommandError> {
        self.add(Finding { level: FindingLevel::Ok, what: what.into(), hint: None })
    }

    fn warning(&mut self, what: impl Into<String>, hint: &str) -> Result<(), CommandError> {
        let hint = Some(hint.to_owned());
        self.add(Finding { level: FindingLevel::Warning, what: what.into(), hint })
    }

    fn failure(&mut self, error: impl Into<CommandError>) -> Result<(), CommandError> {
        let (what, hint) = error.into().sentence();
        self.add(Finding { level: FindingLevel::Error, what, hint })
    }
}

/// Looks at everything.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let mut findings = Findings { found: Vec::new(), context };
    let config = match context.config() {
        Ok(config) => {
            findings.ok(format!(
                "The configuration is {}.",
                context.directories.config_file().display()
            ))?;
            Some(config)
        }
        Err(error) => {
            findings.failure(error)?;
            None
        }
    };
    let owner = match &args.key_file {
        Some(path) if !path.exists() => {
            findings
                .failure(CommandError::user(format!("There is no key at {}.", path.display())))?;
            None
        }
        Some(path) => key(path, "given", &mut findings)?,
        None => key(&context.directories.owner_key(), "owner's", &mut findings)?,
    };
    let node = key(&context.directories.node_key(), "node's", &mut findings)?;
    let mut health = None;
    if let Some(config) = &config {
        engines(config, context, &mut findings).await?;
        if let Some(control) = control(config, context, &mut findings).await? {
            if let Some(keys) = node {
                let rpc = Rpc::new(Session::new(control.clone(), keys, LoginKind::Node));
                standing(&rpc, &mut findings).await?;
            }
            if let Some(keys) = owner {
                let rpc = Rpc::new(Session::new(control, keys, LoginKind::User));
                health = person(&rpc, &mut findings).await?;
            }
        }
    }
    conclude(findings.found, health, args, context)
}

/// Prints what is left to print, and fails if something is wrong.
fn conclude(
    findings: Vec<Finding>,
    health: Option<Health>,
    args: &Args,
    context: &Context,
) -> Result<(), CommandError> {
    let level = findings.iter().map(|finding| finding.level).max().unwrap_or(FindingLevel::Ok);
    let least = if args.strict { FindingLevel::Warning } else { FindingLevel::Error };
    let wrong = findings.iter().filter(|finding| finding.level >= least).count();
    if context.output.is_json() {
        context.output.object(&Report { level, findings, health })?;
    }
    match wrong {
        0 => Ok(()),
        1 => Err(CommandError::new(Kind::User, "One thing is wrong; see above.")),
        _ => Err(CommandError::new(Kind::User, format!("{wrong} things are wrong; see above."))),
    }
}

/// Loads a key, which also checks who may read its file.
fn key(
    path: &Path,
    whose: &str,
    findings: &mut Findings<'_>,
) -> Result<Option<Keys>, CommandError> {
    if !path.exists() {
        // Either may be on another machine.
        return Ok(None);
    }
    match Keys::load(path) {
        Ok(keys) => {
            findings.ok(format!("The {whose} key is {}, for this user alone.", path.display()))?;
            Ok(Some(keys))
        }
        Err(error) => {
            findings.failure(error)?;
            Ok(None)
        }
    }
}

/// Asks the control plane what it is, and what time it has.
async fn control(
    config: &Config,
    context: &Context,
    findings: &mut Findings<'_>,
) -> Result<Option<ControlPlane>, CommandError> {
    let url = match config.control() {
        Ok(control) => control.url.to_string(),
        Err(error) => {
            findings.failure(error)?;
            return Ok(None);
        }
    };
    let (sent, began) = (Timestamp::now(), Instant::now());
    // The URL was checked when it was read.
    let info = match timeout(LOOK_TIME, ControlPlane::discover(&url, PlainHttp::Anywhere)).await {
        Ok(Ok((_plane, info))) => info,
        Ok(Err(error)) => {
            findings.failure(error)?;
            return Ok(None);
        }
        Err(_slow) => {
            findings.failure(slow("The control plane"))?;
            return Ok(None);
        }
    };
    findings.ok(format!("The control plane is {} at {url}.", info.name))?;
    if let Some(server) = info.server_time.and_then(|time| time.parse::<Timestamp>().ok()) {
        match clock::complaint(clock::ahead_ms(server, sent, began.elapsed())) {
            Some(complaint) => findings.warning(complaint, "Then look again: infernet doctor")?,
            None => findings.ok("The clock agrees with the control plane's.")?,
        }
    }
    match context.control(config).await {
        Ok(control) => Ok(Some(control)),
        Err(error) => {
            findings.failure(error)?;
            Ok(None)
        }
    }
}

/// Signs the node in, and looks at how it stands.
async fn standing(rpc: &Rpc, findings: &mut Findings<'_>) -> Result<(), CommandError> {
    let status: NodeStatus = match timeout(LOOK_TIME, rpc.node_status()).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return findings.failure(error),
        Err(_slow) => return findings.failure(slow("The control plane")),
    };
    let node = &status.node;
    findings.ok(format!(
        "The node signs in as {} ({}), and is {}.",
        node.name, node.role, node.status
    ))?;
    match node.approval.as_deref() {
        Some("pending") => findings.warning(
            "The node waits for an operator's approval, and gets no work.",
            &format!("An operator approves it: infernet operator approve {}", node.id),
        )?,
        Some(approval @ ("suspended" | "revoked")) => findings.failure(
            CommandError::user(format!("The node is {approval}, and gets no work."))
                .hint("Ask the operator of the control plane."),
        )?,
        _ => {}
    }
    for stop in &node.stops {
        findings.warning(stop.to_string(), &stop.hint)?;
    }
    if node.role == "provider" && status.offers.is_empty() {
        findings.warning(
            "The node offers no model, and gets no work.",
            "Add a [[model]] to config.toml, then run: infernet register",
        )?;
    }
    Ok(())
}

/// Signs the person in, and reads the control plane's health if it may.
async fn person(rpc: &Rpc, findings: &mut Findings<'_>) -> Result<Option<Health>, CommandError> {
    let user = match timeout(LOOK_TIME, rpc.whoami()).await {
        Ok(Ok(user)) => user,
        Ok(Err(error)) => return findings.failure(error).map(|()| None),
        Err(_slow) => return findings.failure(slow("The control plane")).map(|()| None),
    };
    findings.ok(format!("The person's key signs in as user {}.", user.id))?;
    if !user.operator {
        return Ok(None);
    }
    match timeout(LOOK_TIME, rpc.health()).await {
        Ok(Ok(health)) => {
            if health.findings.is_empty() {
                findings.ok("The control plane is well.")?;
            }
            for finding in &health.findings {
                findings.add(finding.clone())?;
            }
            Ok(Some(health))
        }
        Ok(Err(error)) => findings.failure(error).map(|()| None),
        Err(_slow) => findings.failure(slow("The control plane")).map(|()| None),
    }
}

/// Looks at what the models of this node need: their files, Docker, images.
async fn engines(
    config: &Config,
    context: &Context,
    findings: &mut Findings<'_>,
) -> Result<(), CommandError> {
    let mut engines = Vec::new();
    for model in config.models() {
        match &model.source {
            ModelSource::File { path, .. } if path.exists() => engines.push(model.engine.as_str()),
            ModelSource::File { path, .. } => {
                engines.push(model.engine.as_str());
                findings.failure(
                    CommandError::user(format!(
                        "The file of model {} is not there: {}.",
                        model.name,
                        path.display()
                    ))
                    .hint("Put it there, or correct its path in config.toml."),
                )?;
            }
            ModelSource::Endpoint { .. } => {}
        }
    }
    if engines.is_empty() {
        return Ok(());
    }
    let catalogue = match Catalogue::load(&context.directories.config().join("engines.toml")) {
        Ok(catalogue) => catalogue,
        Err(error) => return findings.failure(error),
    };
    let socket = format!("unix://{}", config.docker().socket.display());
    let host = match timeout(LOOK_TIME, ContainerHost::connect(Some(&socket))).await {
        Ok(Ok(host)) => host,
        Ok(Err(error)) => return findings.failure(error),
        Err(_slow) => return findings.failure(slow("Docker")),
    };
    findings.ok(format!("Docker answers at {}.", config.docker().socket.display()))?;
    containment(&host, config.docker().known_escapes, findings).await?;
    engines.sort_unstable();
    engines.dedup();
    for engine in engines {
        let Some(entry) = catalogue.get(engine) else {
            findings.failure(
                CommandError::user(format!("The engine {engine} is not in the catalogue."))
                    .hint("Correct the model's engine in config.toml, or add it to engines.toml."),
            )?;
            continue;
        };
        match timeout(LOOK_TIME, host.image(&entry.image)).await {
            Ok(Ok(Some(_image))) => {
                findings.ok(format!("The image of engine {engine} is here."))?;
            }
            Ok(Ok(None)) => findings.failure(
                CommandError::user(format!(
                    "The image of engine {engine} is not here: {}.",
                    entry.image
                ))
                .hint(format!("Fetch it: {}", entry.install)),
            )?,
            Ok(Err(error)) => findings.failure(error)?,
            Err(_slow) => findings.failure(slow("Docker"))?,
        }
    }
    Ok(())
}

/// Looks for known ways out of containers.
async fn containment(
    host: &ContainerHost,
    policy: KnownEscapes,
    findings: &mut Findings<'_>,
) -> Result<(), CommandError> {
    let reported = match timeout(LOOK_TIME, host.versions()).await {
        Ok(Ok(reported)) => reported,
        Ok(Err(error)) => return findings.failure(error),
        Err(_slow) => return findings.failure(slow("Docker")),
    };
    let machine = Machine::look(&reported).await;
    let openings = escapes::judge(&machine);
    for component in &machine.components {
        let known = escapes::known().iter().filter(|escape| escape.component == component.name);
        let open = openings.iter().filter(|opening| opening.escape.component == component.name);
        let (known, open) = (known.count(), open.count());
        if open == 0 {
            findings.ok(format!(
                "{} {} has closed the known ways out of containers ({known}).",
                component.name, component.version
            ))?;
        }
    }
    for opening in &openings {
        if opening.is_refused(policy) {
            let failure = CommandError::user(opening.to_string()).hint(opening.advice());
            findings.failure(failure)?;
        } else {
            findings.warning(opening.to_string(), &opening.advice())?;
        }
    }
    Ok(())
}

/// Says that something took too long.
fn slow(what: &str) -> CommandError {
    CommandError::unavailable(format!("{what} does not answer within {} s.", LOOK_TIME.as_secs()))
}
