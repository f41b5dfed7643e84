//! The agent's side of the admin socket.
//!
//! Each connection is one task with one request; there are few at once, each has
//! little time and little to say, so that no client can hold up the agent.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Answer, EnginePhase, EngineView, GpuView, Request, Snapshot};
use crate::agent::logbook::Logbook;
use crate::agent::process::ProcessFiles;
use crate::agent::status::StatusSources;
use crate::agent::table::{TableEvent, TableView, look};
use crate::command_error::{CommandError, Kind, RelayedError};
use crate::control::rpc::{NodeStatus, Rpc};
use crate::engine::{EngineKind, EnginePool, EngineState};
use crate::hardware;

/// How many clients are served at once; more wait.
const CLIENTS: usize = 8;

/// The longest request, in bytes.
const REQUEST_BYTES: u64 = 4096;

/// How long a client may take to ask, and to take its answer.
const CLIENT_TIME: Duration = Duration::from_secs(5);

/// How long the table may take.
const TABLE_TIME: Duration = Duration::from_secs(2);

/// How long the control plane may take.
const STANDING_TIME: Duration = Duration::from_secs(5);

/// How long an answer of the control plane is good enough for people.
const STANDING_AGE: Duration = Duration::from_secs(5);

/// How long a look at the GPUs is good enough.
const GPU_AGE: Duration = Duration::from_secs(1);

/// How long a machine without GPUs is believed to have none.
const NO_GPU_AGE: Duration = Duration::from_secs(300);

/// The most lines of the log in one answer.
const LOG_LINES: usize = 500;

/// The pause before a socket that could not be made is tried again.
const BIND_PAUSE: Duration = Duration::from_secs(30);

/// What the admin socket shows and changes.
#[derive(Debug)]
pub(in crate::agent) struct AdminContext {
    /// Where the socket is.
    pub(in crate::agent) files: ProcessFiles,
    /// What the agent's status is made of.
    pub(in crate::agent) status: StatusSources,
    /// The attempts.
    pub(in crate::agent) table: mpsc::Sender<TableEvent>,
    /// The engines.
    pub(in crate::agent) engines: EnginePool,
    /// The control plane's calls.
    pub(in crate::agent) rpc: Rpc,
    /// Whether the node takes no more work until it is resumed.
    pub(in crate::agent) drained: watch::Sender<bool>,
    /// The log.
    pub(in crate::agent) logbook: Logbook,
}

/// The context and what is remembered between two requests.
#[derive(Debug)]
struct Admin {
    context: AdminContext,
    standing: Mutex<Option<(Instant, NodeStatus)>>,
    gpus: Mutex<Option<(Instant, Vec<GpuView>)>>,
}

/// Makes the socket before the agent says that it is ready, so that whoever started it
/// can ask it something at once. None where it cannot be made, such as on a full disk.
pub(in crate::agent) fn open_early(files: &ProcessFiles) -> Option<UnixListener> {
    let path = files.admin();
    bind(files.runtime_dir(), &path)
        .inspect_err(
            |error| warn!(path = %path.display(), error = %error, "the admin socket cannot be made"),
        )
        .ok()
}

/// Serves the socket until it is told to end, and removes it then. Where it could not
/// be made early, the agent works without it and tries again.
pub(in crate::agent) async fn run_admin(
    context: AdminContext,
    early: Option<UnixListener>,
    shutdown: CancellationToken,
) {
    let path = context.files.admin();
    let runtime_dir = context.files.runtime_dir().to_owned();
    let admin = Arc::new(Admin { context, standing: Mutex::new(None), gpus: Mutex::new(None) });
    let mut opened = early;
    let listener = loop {
        if let Some(listener) = opened {
            break listener;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(BIND_PAUSE) => opened = bind(&runtime_dir, &path).ok(),
        }
    };
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ended = clients.join_next(), if !clients.is_empty() => {}
            accepted = listener.accept(), if clients.len() < CLIENTS => match accepted {
                Ok((stream, _address)) => {
                    clients.spawn(serve(Arc::clone(&admin), stream));
                }
                Err(error) => {
                    // Such as too many open files: it passes, and must not spin.
                    debug!(error = %error, "a client of the admin socket could not be taken");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    clients.shutdown().await;
    if let Err(error) = fs::remove_file(&path) {
        debug!(error = %error, "the admin socket could not be removed");
    }
}

/// Makes the socket: in a new directory of this user alone, so that there is no
/// moment in which another user could connect, then under its name in the place of
/// what a killed agent left.
fn bind(runtime_dir: &Path, path: &Path) -> io::Result<UnixListener> {
    let nursery = runtime_dir.join(format!(".sock-{}", std::process::id()));
    remove_nursery(&nursery)?;
    fs::DirBuilder::new().mode(0o700).create(&nursery)?;
    // A short name: the path of a socket may have 107 bytes.
    let newborn = nursery.join("s");
    let listener = UnixListener::bind(&newborn).and_then(|listener| {
        fs::set_permissions(&newborn, fs::Permissions::from_mode(0o600))?;
        fs::rename(&newborn, path)?;
        Ok(listener)
    });
    let removed = remove_nursery(&nursery);
    let listener = listener?;
    removed.map(|()| listener)
}

fn remove_nursery(nursery: &Path) -> io::Result<()> {
    match fs::remove_dir_all(nursery) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Serves one client.
async fn serve(admin: Arc<Admin>, mut stream: UnixStream) {
    if let Err(error) = converse(&admin, &mut stream).await {
        debug!(error = %error, "a client of the admin socket");
    }
}

async fn converse(admin: &Admin, stream: &mut UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(REQUEST_BYTES));
    timeout(CLIENT_TIME, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => admin.answer(request).await,
        Err(error) => refused(
            CommandError::new(Kind::User, error)
                .hint("The agent is of another version than the program: infernet restart"),
        ),
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    timeout(CLIENT_TIME, writer.write_all(&bytes)).await??;
    writer.shutdown().await
}

fn refused(error: CommandError) -> Answer {
    Answer::Refused(RelayedError::from(&error))
}

impl Admin {
    async fn answer(&self, request: Request) -> Answer {
        let answered = match request {
            Request::Snapshot { log_lines } => self.snapshot(log_lines).await,
            Request::Standing => self.standing().await,
            Request::Drain => self.drain(true).await,
            Request::Resume => self.drain(false).await,
            Request::Log { from, lines } => {
                Ok(Answer::Log(self.context.logbook.lines(from, lines.min(LOG_LINES))))
            }
            Request::SetLog { filter } => self.set_log(&filter),
        };
        answered.unwrap_or_else(refused)
    }

    async fn snapshot(&self, log_lines: usize) -> Result<Answer, CommandError> {
        let context = &self.context;
        let TableView { attempts, counters } = self.look().await?;
        let engines = engines(&context.engines, &attempts);
        let gpus = self.gpus().await;
        Ok(Answer::Snapshot(Box::new(Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            status: context.status.now(),
            draining: *context.drained.borrow(),
            slots: engines.iter().map(|engine| engine.slots).sum(),
            attempts,
            engines,
            gpus,
            counters,
            resident_bytes: resident_bytes(),
            log_filter: context.logbook.filter(),
            log: context.logbook.lines(None, log_lines.min(LOG_LINES)),
        })))
    }

    async fn look(&self) -> Result<TableView, CommandError> {
        match look(&self.context.table, TABLE_TIME).await {
            Some(view) => Ok(view),
            // The agent ends; what it still does is told by its status.
            None if self.context.table.is_closed() => Ok(TableView::default()),
            None => Err(CommandError::unavailable("The agent does not get to its attempts.")
                .hint("Read its log: infernet logs")),
        }
    }

    async fn standing(&self) -> Result<Answer, CommandError> {
        let mut known = self.standing.lock().await;
        if let Some((at, standing)) = &*known
            && at.elapsed() < STANDING_AGE
        {
            return Ok(Answer::Standing(Box::new(standing.clone())));
        }
        let asked = timeout(STANDING_TIME, self.context.rpc.node_status()).await;
        let standing = asked.map_err(|_slow| {
            CommandError::unavailable(format!(
                "The control plane did not answer within {} s.",
                STANDING_TIME.as_secs()
            ))
        })??;
        *known = Some((Instant::now(), standing.clone()));
        Ok(Answer::Standing(Box::new(standing)))
    }

    async fn drain(&self, draining: bool) -> Result<Answer, CommandError> {
        let changed = self
            .context
            .drained
            .send_if_modified(|drained| std::mem::replace(drained, draining) != draining);
        if changed {
            let what = if draining { "drained" } else { "resumed" };
            info!("{what} by the owner of this machine");
            *self.standing.lock().await = None;
        }
        let running = self.look().await?.attempts.len();
        Ok(Answer::Draining { draining, running })
    }

    fn set_log(&self, filter: &str) -> Result<Answer, CommandError> {
        let before = self.context.logbook.set_filter(filter)?;
        info!(filter, before, "logging something else from now on");
        Ok(Answer::LogSet { before })
    }

    /// Looks at the GPUs, beside the runtime's thread: a driver takes its time.
    async fn gpus(&self) -> Vec<GpuView> {
        let mut known = self.gpus.lock().await;
        if let Some((at, gpus)) = &*known
            && at.elapsed() < if gpus.is_empty() { NO_GPU_AGE } else { GPU_AGE }
        {
            return gpus.clone();
        }
        let gpus = tokio::task::spawn_blocking(look_at_gpus).await.unwrap_or_default();
        *known = Some((Instant::now(), gpus.clone()));
        gpus
    }
}

/// Describes every GPU that the driver knows.
fn look_at_gpus() -> Vec<GpuView> {
    let cards = hardware::gpus().cards.into_iter();
    cards
        .map(|card| GpuView {
            index: card.index,
            name: card.name,
            memory_bytes: card.memory_bytes,
            memory_used_bytes: card.memory_used_bytes,
            use_percent: card.use_percent,
            temperature_celsius: card.temperature_celsius,
            power_watts: card.power_watts,
            complaints: card.complaints,
        })
        .collect()
}

/// Describes the engines, by model.
fn engines(engines: &EnginePool, attempts: &[super::AttemptView]) -> Vec<EngineView> {
    let states = engines.states();
    engines
        .models()
        .map(|served| {
            let state = states.iter().find(|(name, _state)| *name == served.name);
            let (phase, message) = match state.map(|(_name, state)| state) {
                None | Some(EngineState::Stopped) => (EnginePhase::Stopped, None),
                Some(EngineState::Starting(since)) => {
                    (EnginePhase::Starting, Some(format!("for {} s", since.as_secs())))
                }
                Some(EngineState::Ready) => (EnginePhase::Ready, None),
                Some(EngineState::Failed(error)) => (EnginePhase::Failed, Some(error.to_string())),
            };
            EngineView {
                model: served.name.clone(),
                engine: match served.kind() {
                    Ok(EngineKind::Container { engine, .. }) => engine.to_owned(),
                    _ => "external".to_owned(),
                },
                phase,
                message,
                slots: served.slots,
                running: attempts
                    .iter()
                    .filter(|attempt| attempt.model.as_ref() == Some(&served.name))
                    .count(),
            }
        })
        .collect()
}

/// Reads how much memory this process has, where the system says so.
fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_replaces_what_a_killed_agent_left() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agent.sock");
        fs::write(&path, "left").unwrap();
        for _restart in 0..2 {
            // Dropped without being removed, as by a kill.
            let listener = bind(home.path(), &path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let (client, server) = tokio::join!(UnixStream::connect(&path), listener.accept());
            drop((client.unwrap(), server.unwrap()));
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
