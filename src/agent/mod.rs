//! The agent: what a node runs all day.
//!
//! It signs in, registers what the machine offers, subscribes to its wake-ups,
//! claims what is its own and then runs attempts until it is told to stop. It
//! decides nothing: which job, at what price and whether it is paid is SQL's
//! business; see `docs/protocol.md` for the calls.
//!
//! In reading order: [`table`] owns the attempts and is the only one to change
//! them; [`attempt`] is one attempt from wake-up to settlement, [`output`] and
//! [`stream`] what it says on the way, [`journal`] what it holds on disk;
//! [`heartbeat`] renews leases and catches up; [`wakeup`] listens to
//! `node:ID`; [`commands`] does what the owner asks from afar; [`clock`],
//! [`status`] and [`progress`] tell the owner, [`admin`] whoever asks on this
//! machine, [`notify`] its service manager, of which [`service`] makes use; [`logbook`] is the log; [`process`]
//! makes it a background process.
//!
//! Invariants
//! - Every task is in the `JoinSet` of [`Agent::run`] or of the table; none is
//!   detached, none outlives the agent.
//! - Tasks share no state but watch channels; nothing is locked over an await.
//! - Work goes on while the control plane is away; nothing depends on a message
//!   arriving.

pub mod admin;
mod attempt;
pub(crate) mod clock;
mod commands;
mod heartbeat;
mod journal;
pub mod logbook;
pub mod notify;
mod output;
mod preparation;
pub mod process;
mod progress;
pub mod service;
pub mod status;
mod stream;
mod table;
mod wakeup;
mod work;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use self::admin::server::{AdminContext, open_early, run_admin};
use self::attempt::AttemptContext;
use self::commands::{CommandContext, run_commands};
use self::heartbeat::{HeartbeatContext, run_heartbeat};
use self::journal::{Journal, Record};
use self::logbook::Logbook;
use self::notify::{Notifier, run_watchdog};
pub use self::preparation::{catalogue, container_label, docker_host, engines, prepare};
use self::process::ProcessFiles;
use self::status::{Monitor, StatusFile, StatusSources, run_status_file};
use self::table::{CatchUp, Held, Table, TableEvent};
use self::wakeup::{WakeupContext, run_wakeups};
use crate::control::realtime::{EndpointError, Realtime, RealtimeEndpoint};
use crate::control::rpc::{Claim, Inventory, Offering, Registration, Rpc, RpcError};
use crate::control::session::{LoginKind, Session, SessionError};
use crate::control::{ControlError, ControlPlane};
use crate::engine::{EngineError, EnginePool};
use crate::id::{AttemptId, NodeId};
use crate::identity::Keys;

/// How many events may wait for the table. More only means that a heartbeat
/// waits a moment.
const EVENTS: usize = 256;

/// The most time for handing attempts back at the end.
const HAND_BACK_TIME: Duration = Duration::from_secs(5);

/// The most time for saying good-bye to the control plane.
const LEAVE_TIME: Duration = Duration::from_secs(5);

/// The same for an agent that was told to stop at once.
const LEAVE_NOW_TIME: Duration = Duration::from_secs(1);

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The control plane cannot be talked to.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Signing in failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The control plane refused the node or could not be reached.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The control plane's URL cannot carry messages.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// An engine, a model or Docker is not as it must be.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The journal cannot be used.
    #[error("The journal below {} cannot be used", path.display())]
    Journal {
        /// The state directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What an agent is made of.
#[derive(Debug)]
pub struct AgentOptions {
    /// The control plane that it works for.
    pub control: ControlPlane,
    /// The node's key.
    pub keys: Keys,
    /// The engines; they are checked and swept of leftovers already.
    pub engines: EnginePool,
    /// The machine, coarsely.
    pub inventory: Inventory,
    /// What is offered.
    pub offers: Vec<Offering>,
    /// Where the process keeps its files.
    pub files: ProcessFiles,
    /// How long running attempts may finish when the agent is told to stop.
    pub grace: Duration,
    /// The log of this process.
    pub logbook: Logbook,
    /// The service manager, if one started the agent.
    pub notifier: Notifier,
}

/// Who an agent is, as it introduces itself to its owner.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Introduction {
    /// The node's id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// What it does: `provider`, `aggregator` or `client`.
    pub role: String,
    /// Whether it may take work: `approved`, `pending` or `suspended`.
    pub approval: String,
    /// The control plane's URL.
    pub control_plane: String,
    /// The models that it serves.
    pub models: Vec<String>,
    /// The process.
    pub pid: u32,
}

/// How far an agent is told to stop.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stop {
    /// Not at all.
    #[default]
    Run,
    /// Take no more work, finish within the grace period, then hand back.
    Drain,
    /// Do not wait for anything.
    Now,
}

/// An agent that is registered and has claimed what is its own.
#[derive(Debug)]
pub struct Agent {
    options: AgentOptions,
    session: Session,
    rpc: Rpc,
    registration: Registration,
    claim: Claim,
    unfinished: Vec<Record>,
    journal: Journal,
    endpoint: RealtimeEndpoint,
    admin: Option<UnixListener>,
}

impl Agent {
    /// Signs in, registers and claims.
    ///
    /// What an earlier run held and could not finish is reported as lost by
    /// not being named, so that it is assigned again at once; answers that it
    /// had finished are still to be handed in by [`Agent::run`].
    pub async fn start(options: AgentOptions) -> Result<Self, AgentError> {
        let control = &options.control;
        let endpoint = realtime_endpoint(control)?;
        let journal_error =
            |source| AgentError::Journal { path: options.files.state_dir().to_owned(), source };
        let journal = Journal::open(options.files.state_dir()).map_err(journal_error)?;
        let session = Session::new(control.clone(), options.keys.clone(), LoginKind::Node);
        session.login().await?;
        let rpc = Rpc::new(session.clone());
        let registration = rpc.register_node(&options.inventory, &options.offers, true).await?;
        let (unfinished, lost): (Vec<_>, Vec<_>) = journal
            .read()
            .map_err(journal_error)?
            .into_iter()
            .partition(|record| record.finished.is_some());
        let named: Vec<AttemptId> = unfinished.iter().map(|record| record.attempt).collect();
        let claim = rpc.claim_attempts(&named, true).await?;
        for record in &lost {
            info!(attempt = %record.attempt, job = %record.job, "reported as lost, because it was cut off");
            journal.remove(record.attempt).map_err(journal_error)?;
        }
        let admin = open_early(&options.files);
        Ok(Self {
            options,
            session,
            rpc,
            registration,
            claim,
            unfinished,
            journal,
            endpoint,
            admin,
        })
    }

    /// Returns who the agent is.
    pub fn introduction(&self) -> Introduction {
        Introduction {
            node: self.registration.id,
            name: self.registration.name.clone(),
            role: self.registration.role.clone(),
            approval: self.registration.approval.clone(),
            control_plane: self.options.control.base_url().to_string(),
            models: self.registration.offers.iter().map(|offer| offer.model.clone()).collect(),
            pid: std::process::id(),
        }
    }

    /// Works until `stop` says otherwise, then ends in order: no more work,
    /// running attempts finished or handed back, the node marked offline, the
    /// engines stopped.
    pub async fn run(self, mut stop: watch::Receiver<Stop>) {
        let introduction = self.introduction();
        let Self {
            options,
            session,
            rpc,
            registration,
            claim,
            unfinished,
            journal,
            endpoint,
            admin,
        } = self;
        let shutdown = CancellationToken::new();
        let (events, queue) = mpsc::channel(EVENTS);
        let (held, held_view) = watch::channel(Vec::<Held>::new());
        let (joined, joined_view) = watch::channel(false);
        let (draining, draining_view) = watch::channel(false);
        let (drained, drained_view) = watch::channel(false);
        let (commands, mut commands_view) = watch::channel(claim.commands);
        // Those that came with the claim are to be seen too.
        commands_view.mark_changed();
        let (stream_rate, stream_rate_view) = watch::channel(claim.stream_rate);
        let catch_up = Arc::new(Notify::new());
        let monitor = Monitor::new(introduction);
        let engines = options.engines;
        let realtime = Realtime::spawn(endpoint, session.newest_token(), shutdown.child_token());
        let context = Arc::new(AttemptContext {
            rpc: rpc.clone(),
            realtime: realtime.clone(),
            engines: engines.clone(),
            keys: options.keys,
            journal,
            url: options.control.base_url().to_string(),
            stream_rate: stream_rate_view,
            lease: duration(registration.lease_secs),
        });
        let status = StatusSources {
            monitor: monitor.clone(),
            held: held_view.clone(),
            joined: joined_view.clone(),
            journal_trouble: context.journal.trouble(),
        };
        let mut table = Table::new(context, held);
        for record in unfinished {
            table.resume(record);
        }

        let mut tasks = JoinSet::new();
        tasks.spawn(run_status_file(
            status.clone(),
            StatusFile::new(options.files.status()),
            shutdown.clone(),
        ));
        tasks.spawn(run_admin(
            AdminContext {
                files: options.files,
                status,
                table: events.clone(),
                engines: engines.clone(),
                rpc: rpc.clone(),
                drained: drained.clone(),
                logbook: options.logbook,
            },
            admin,
            shutdown.clone(),
        ));
        let notifier = Arc::new(options.notifier);
        tasks.spawn({
            let (notifier, table) = (Arc::clone(&notifier), events.clone());
            let shutdown = shutdown.clone();
            async move { run_watchdog(&notifier, table, shutdown).await }
        });
        let refresh = (session.clone(), shutdown.clone());
        tasks.spawn(async move { refresh.0.run_refresh(refresh.1).await });
        tasks.spawn(run_wakeups(
            WakeupContext {
                realtime: realtime.clone(),
                topic: registration.topic,
                table: events.clone(),
                joined,
                catch_up: Arc::clone(&catch_up),
            },
            shutdown.clone(),
        ));
        tasks.spawn(run_heartbeat(
            HeartbeatContext {
                rpc: rpc.clone(),
                held: held_view,
                joined: joined_view,
                draining: draining_view,
                drained: drained_view,
                commands,
                catch_up,
                table: events.clone(),
                stream_rate,
                monitor: monitor.clone(),
                interval: duration(registration.heartbeat_secs),
            },
            shutdown.clone(),
        ));
        let command_context =
            CommandContext { rpc: rpc.clone(), engines: engines.clone(), drained };
        tasks.spawn(run_commands(command_context, commands_view, shutdown.clone()));
        if let [offer] = &registration.offers[..] {
            tasks.spawn(run_warm_up(engines.clone(), offer.model.clone(), shutdown.clone()));
        }
        let mut attempts = JoinSet::new();
        attempts.spawn(table.run(queue));
        let claimed = CatchUp { offered: claim.attempts, cancel: claim.cancel, lost: claim.lost };
        tell(&events, TableEvent::CatchUp(claimed)).await;
        notifier.ready("Takes work.");

        reached(&mut stop, Stop::Drain).await;
        info!(grace_secs = options.grace.as_secs(), "taking no more work");
        monitor.draining();
        notifier.stopping();
        tell(&events, TableEvent::Drain).await;
        draining.send_replace(true);
        let now = wind_up(&mut attempts, &events, options.grace, &mut stop).await;
        attempts.shutdown().await;
        shutdown.cancel();
        while tasks.join_next().await.is_some() {}
        let limit = if now { LEAVE_NOW_TIME } else { LEAVE_TIME };
        match timeout(limit, rpc.leave()).await {
            Ok(Ok(left)) => info!(handed_back = left.handed_back, "left the control plane"),
            Ok(Err(error)) => warn!(error = %error, "could not say good-bye"),
            Err(_slow) => warn!("could not say good-bye in time"),
        }
        engines.stop_all().await;
        // The socket's own task ends with the token; its last frames go out.
        let _closed_or_slow = timeout(LEAVE_NOW_TIME, realtime.closed()).await;
    }
}

/// Finds the control plane's messages.
fn realtime_endpoint(control: &ControlPlane) -> Result<RealtimeEndpoint, EndpointError> {
    let base = control.base_url().to_string();
    let url = Url::parse(&base).expect("a base URL that was checked is a URL");
    RealtimeEndpoint::new(&url, control.publishable_key())
}

/// Lets attempts end within the grace period, then has them handed back.
/// Answers whether the agent was told not to wait.
async fn wind_up(
    attempts: &mut JoinSet<()>,
    events: &mpsc::Sender<TableEvent>,
    grace: Duration,
    stop: &mut watch::Receiver<Stop>,
) -> bool {
    tokio::select! {
        () = reached(stop, Stop::Now) => return true,
        ended = timeout(grace, attempts.join_next()) => if ended.is_ok() {
            return false;
        },
    }
    tell(events, TableEvent::HandBack).await;
    tokio::select! {
        () = reached(stop, Stop::Now) => true,
        ended = timeout(HAND_BACK_TIME, attempts.join_next()) => {
            if ended.is_err() {
                warn!("not everything could be handed back in time");
            }
            false
        }
    }
}

/// Waits until the agent is told to stop at least that far.
async fn reached(stop: &mut watch::Receiver<Stop>, level: Stop) {
    // Nobody left who could tell means: stop.
    let _told_or_alone = stop.wait_for(|stop| *stop >= level).await;
}

async fn tell(events: &mpsc::Sender<TableEvent>, event: TableEvent) {
    // A table that has ended has nothing left to be told about.
    let _ended = events.send(event).await;
}

/// Starts the engine of a node's only model before its first job comes. With
/// several models, jobs decide which are worth their memory.
async fn run_warm_up(engines: EnginePool, model: String, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        ready = engines.ensure(&model) => match ready {
            Ok(_engine) => info!(model, "the engine is ready"),
            Err(error) => warn!(model, error = %error, "the engine could not be started"),
        },
    }
}

/// Turns seconds of the control plane into a duration, at most an hour.
fn duration(secs: f64) -> Duration {
    let most = Duration::from_secs(3600);
    Duration::try_from_secs_f64(secs).unwrap_or(most).min(most)
}
