//! The life of one model's container.
//!
//! [`run_engine`] is the only writer of a container engine's state, but for the request
//! to start it. It starts the engine when asked, watches it, removes it after its idle
//! time, and starts it again when it dies: at once where it has worked, else with pauses
//! that grow from death to death, and after some deaths in a row only when somebody asks.

use std::collections::HashMap;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::catalogue::{EngineEntry, EngineKind, GpuNeed, ModelForm, SOCKET_DIRECTORY};
use crate::engine::docker::{ContainerHost, Exit};
use crate::engine::error::EngineError;
use crate::engine::relay::RelayProgram;
use crate::engine::room::Need;
use crate::engine::sandbox::{
    BindMount, LABEL_ENGINE, LABEL_MODEL, LABEL_NODE, NOBODY, Network, Sandbox,
};
use crate::engine::supervised::{Container, Engine, State, Supervised};
use crate::engine::transport::{Address, Transport};

/// Begins the name of every container and socket directory.
pub(super) const NAME_PREFIX: &str = "infernet-";

/// An engine that lived so long was healthy, as was one that answered: its death is the
/// first again.
const HEALTHY_LIFE: Duration = Duration::from_secs(60);

/// After so many deaths or failed starts in a row, only a request starts it again.
const RESTART_LIMIT: u32 = 5;

/// The pause after the second failure in a row; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Callers wait through pauses of up to this length; longer ones they are told of.
const WAITED_PAUSE: Duration = Duration::from_secs(5);

/// How long Docker may be away, as when it is restarted, before requests that wait for
/// an engine fail; and the pauses between two looks at it.
const HOST_PATIENCE: Duration = Duration::from_secs(30);
const HOST_FIRST_PAUSE: Duration = Duration::from_millis(100);
const HOST_LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long one question about health may take, and the pauses between two.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const HEALTH_FIRST_PAUSE: Duration = Duration::from_millis(20);
const HEALTH_LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How often a slow start is logged.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// The memory and the processes of a relay: it copies bytes and nothing else.
const RELAY_MEMORY_MB: u64 = 64;
const RELAY_PIDS: u32 = 32;

/// The longest path that a unix socket may have.
const SOCKET_PATH_LIMIT: usize = 107;

/// Why a ready engine is no longer watched.
enum End {
    Shutdown,
    Idle,
    Evicted,
    Restart,
    Died(Exit),
}

/// Runs a model's engine whenever it is asked for, until `shutdown`.
pub(super) async fn run_engine(model: Arc<Supervised>, shutdown: CancellationToken) {
    let mut states = model.state.subscribe();
    let mut failures = 0;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            asked = states.wait_for(|state| matches!(state, State::Starting { .. })) => {
                if asked.is_err() {
                    return;
                }
            }
        }
        let begun = Instant::now();
        model.begin_life();
        match patient_life(&model, &shutdown).await {
            Ok(End::Shutdown) | Err(EngineError::Stopping) => return,
            Ok(End::Idle | End::Evicted | End::Restart) => failures = 0,
            Ok(End::Died(exit)) if exit.host_away || host_is_away(&model).await => {
                tracing::warn!(model = %model.name, %exit, "an engine ended with its Docker");
                model.state.send_replace(State::Starting { since: Instant::now() });
            }
            Ok(End::Died(exit)) => {
                let healthy = begun.elapsed() > HEALTHY_LIFE || model.has_answered();
                failures = if healthy { 1 } else { failures + 1 };
                tracing::warn!(model = %model.name, %exit, failures, "an engine died");
                revive(&model, exit, failures, &shutdown).await;
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(model = %model.name, %error, failures, "an engine did not start");
                let until = Instant::now() + pause(failures);
                model.state.send_replace(State::Failed { error, until });
            }
        }
    }
}

/// Lives a [`life`], waiting for a Docker that went away: whoever asked for the engine
/// waits with it, and no attempt is used up meanwhile. A Docker that was never there is
/// not waited for.
async fn patient_life(
    model: &Arc<Supervised>,
    shutdown: &CancellationToken,
) -> Result<End, EngineError> {
    let mut away_since = None;
    let mut longest = HOST_FIRST_PAUSE;
    loop {
        let error = match life(model, shutdown).await {
            Err(error) if error.is_host_away() && model.settings.host_was_seen() => error,
            end => return end,
        };
        let since = away_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= HOST_PATIENCE {
            return Err(error);
        }
        tracing::debug!(model = %model.name, %error, "waiting for Docker");
        tokio::select! {
            () = shutdown.cancelled() => return Err(EngineError::Stopping),
            () = tokio::time::sleep(longest.mul_f64(0.5 + 0.5 * fastrand::f64())) => {}
        }
        longest = (longest * 2).min(HOST_LONGEST_PAUSE);
    }
}

/// Tells whether Docker cannot be reached now.
async fn host_is_away(model: &Supervised) -> bool {
    ContainerHost::connect(model.settings.docker_host.as_deref())
        .await
        .is_err_and(|error| error.is_host_away())
}

/// Starts a container, watches it to its end, and removes it whatever happens.
async fn life(model: &Arc<Supervised>, shutdown: &CancellationToken) -> Result<End, EngineError> {
    let launch = tokio::select! {
        () = shutdown.cancelled() => return Err(EngineError::Stopping),
        launch = Launch::prepare(model) => launch?,
    };
    let room = &model.settings.room;
    let reserved = tokio::select! {
        () = shutdown.cancelled() => Err(EngineError::Stopping),
        reserved = room.reserve(&launch.name, &model.name, launch.need.clone()) => reserved,
    };
    let _reservation = match reserved {
        Ok(reservation) => reservation,
        Err(error) => {
            launch.clear().await;
            return Err(error);
        }
    };
    let started = tokio::select! {
        () = shutdown.cancelled() => Err(EngineError::Stopping),
        started = launch.start() => started,
    };
    let end = match started {
        Ok(engine) => {
            model.touch();
            model.state.send_replace(State::Ready(engine));
            Ok(watch_over(model, &launch, shutdown).await)
        }
        Err(error) => Err(error),
    };
    launch.clear().await;
    end
}

/// Waits until an engine dies, has been idle for long enough, is to be restarted, or all
/// is to be stopped.
async fn watch_over(model: &Supervised, launch: &Launch<'_>, shutdown: &CancellationToken) -> End {
    let mut dying = std::pin::pin!(launch.wait());
    let mut states = model.state.subscribe();
    loop {
        let idle_check = async {
            match model.settings.keep_alive {
                None => std::future::pending().await,
                Some(keep_alive) => {
                    // One in use is looked at again after a whole idle time.
                    let left = keep_alive.saturating_sub(model.idle_for().unwrap_or_default());
                    tokio::time::sleep(left.max(Duration::from_millis(10))).await;
                    keep_alive
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return End::Shutdown,
            exit = &mut dying => return End::Died(exit),
            end = asked_to_end(&mut states) => {
                tracing::info!(model = %model.name, evicted = matches!(end, End::Evicted), "ending an engine");
                return end;
            }
            keep_alive = idle_check => {
                if model.stop_if_idle(keep_alive) {
                    tracing::info!(model = %model.name, "stopping an idle engine");
                    return End::Idle;
                }
            }
        }
    }
}

/// Waits until somebody wants the engine to end, or to start anew.
async fn asked_to_end(states: &mut watch::Receiver<State>) -> End {
    let asked = states
        .wait_for(|state| matches!(state, State::Starting { .. } | State::Stopped))
        .await
        .map(|state| matches!(*state, State::Stopped));
    match asked {
        Ok(true) => End::Evicted,
        Ok(false) => End::Restart,
        // The model is gone, and with it the pool.
        Err(_gone) => End::Shutdown,
    }
}

/// Publishes a death and asks for the next start, unless there were too many.
async fn revive(model: &Supervised, exit: Exit, failures: u32, shutdown: &CancellationToken) {
    let pause = if failures == 1 { Duration::ZERO } else { pause(failures) };
    if pause <= WAITED_PAUSE {
        model.state.send_replace(State::Starting { since: Instant::now() });
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
        return;
    }
    let error = EngineError::Unreachable {
        model: model.name.as_ref().to_owned(),
        reason: format!("{exit}, and it is started again in a while"),
    };
    model.state.send_replace(State::Failed { error, until: Instant::now() + pause });
    if failures > RESTART_LIMIT {
        return;
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(pause) => {
            model.state.send_if_modified(|state| {
                let failed = matches!(state, State::Failed { .. });
                if failed {
                    *state = State::Starting { since: Instant::now() };
                }
                failed
            });
        }
    }
}

/// Returns the pause after so many failures, up to a fifth longer by chance.
fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10));
    doubled.min(LONGEST_PAUSE).mul_f64(1.0 + 0.2 * fastrand::f64())
}

/// One start of a container: everything that has to be tidied up after it.
struct Launch<'a> {
    model: &'a Supervised,
    entry: &'a EngineEntry,
    host: ContainerHost,
    /// Of the container and of its socket's directory.
    name: Arc<str>,
    directory: PathBuf,
    sandbox: Sandbox,
    /// The container that hands the socket on to the engine's port, where it needs one.
    relay: Option<(String, Sandbox)>,
    need: Need,
    transport: Arc<Transport>,
}

impl<'a> Launch<'a> {
    /// Checks the model and the image, and makes everything but the container.
    async fn prepare(model: &'a Supervised) -> Result<Self, EngineError> {
        let served = &model.served;
        let (Some(entry), EngineKind::Container { engine, path }) = (&model.entry, served.kind()?)
        else {
            unreachable!("only models with a container are supervised");
        };
        let (bytes, _) = model.settings.digests.check(served, path).await?;
        if path.is_dir() != (entry.model == ModelForm::Folder) {
            return Err(EngineError::BadModel {
                model: served.name.clone(),
                reason: match entry.model {
                    ModelForm::File => format!("its engine {engine} takes a file, not a folder"),
                    ModelForm::Folder => format!("its engine {engine} takes a folder, not a file"),
                },
            });
        }
        let source = std::fs::canonicalize(path).map_err(|error| EngineError::ModelUnreadable {
            model: served.name.clone(),
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let host = ContainerHost::connect(model.settings.docker_host.as_deref()).await?;
        model.settings.see_host();
        // A Docker that went away could not remove what it ran.
        for leftover in host.containers_of(&model.settings.node, Some(&served.name)).await? {
            host.remove(&leftover).await?;
        }
        let image = host.image(&entry.image).await?.ok_or_else(|| entry.image_missing())?;
        entry.check_image(&image.id)?;
        let relay_program = match entry.port {
            None => None,
            Some(_) => Some(
                RelayProgram::find(model.settings.relay_program.as_deref())
                    .map_err(|error| runtime_error(Path::new("/proc/self"), &error))?,
            ),
        };
        let name = format!("{NAME_PREFIX}{:016x}", fastrand::u64(..));
        let user = host.container_user();
        let directory = make_socket_directory(&model.settings.runtime_dir, &name, user)?;
        let socket = directory.join(&entry.socket);
        if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
            remove_directory(&directory).await;
            return Err(EngineError::RuntimeDirectory {
                path: socket,
                reason: format!(
                    "the path of a socket may have {SOCKET_PATH_LIMIT} bytes; choose a shorter \
                     runtime directory"
                ),
            });
        }
        let memory_mb =
            served.memory_mb.unwrap_or_else(|| bytes.div_ceil(1 << 20) + entry.overhead_mb);
        let socket_mount = BindMount {
            source: directory.clone(),
            target: SOCKET_DIRECTORY.to_owned(),
            writable: true,
        };
        let relay = match (entry.port, relay_program) {
            (None, _) | (_, None) => None,
            (Some(port), Some(program)) => {
                let mut sandbox = relay_sandbox(&program, &socket_mount, entry, port);
                sandbox.image_id.clone_from(&image.id);
                sandbox.image_env.clone_from(&image.env_names);
                sandbox.user = user;
                sandbox.labels = labels(model, engine);
                sandbox.network = Network::Of(name.clone());
                Some((format!("{name}-relay"), sandbox))
            }
        };
        let mut mounts =
            vec![BindMount { source, target: entry.model_path().to_owned(), writable: false }];
        if relay.is_none() {
            mounts.insert(0, socket_mount);
        }
        let gpus = if entry.gpu == GpuNeed::None { Vec::new() } else { served.gpus.clone() };
        let gpu_count = u64::try_from(gpus.len()).unwrap_or(u64::MAX).max(1);
        let gpu_memory_mb =
            served.gpu_memory_mb.unwrap_or_else(|| bytes.div_ceil(1 << 20) + entry.overhead_mb);
        let need = Need {
            memory_mb,
            gpus: gpus.clone(),
            gpu_memory_mb: gpu_memory_mb.div_ceil(gpu_count),
        };
        let sandbox = Sandbox {
            image_id: image.id,
            command: entry.command_line(served),
            env: entry.environment(served),
            image_env: image.env_names,
            user,
            labels: labels(model, engine),
            mounts,
            tmpfs: entry.tmpfs.clone(),
            shm_mb: entry.shm_mb,
            memory_mb,
            cpus: served.threads(),
            pids: entry.pids,
            gpus,
            network: Network::Own,
            stdin: false,
            file_mb: None,
        };
        let transport = Arc::new(Transport::new(Address::Unix(socket), served.slots as usize));
        let name = name.into();
        Ok(Self { model, entry, host, name, directory, sandbox, relay, need, transport })
    }

    /// Waits until the engine's container, or its relay's, has ended, and says how.
    async fn wait(&self) -> Exit {
        let relay = async {
            match &self.relay {
                Some((name, _)) => self.host.wait(name).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            exit = self.host.wait(&self.name) => exit,
            exit = relay => exit,
        }
    }

    /// Starts the container and waits until the engine in it is ready.
    async fn start(&self) -> Result<Engine, EngineError> {
        let begun = Instant::now();
        let model = &self.model.name;
        tracing::info!(%model, container = %self.name, "starting an engine");
        self.host.start(&self.name, &self.sandbox).await?;
        if let Some((name, sandbox)) = &self.relay {
            self.host.start(name, sandbox).await?;
        }
        let limit = self.entry.start_timeout();
        let outcome = tokio::select! {
            exit = self.wait() => Err(Some(exit)),
            ready = tokio::time::timeout(limit, self.healthy()) => ready.map_err(|_| None),
        };
        match outcome {
            Ok(()) => {}
            Err(Some(exit)) if exit.out_of_memory => {
                return Err(EngineError::OutOfMemory {
                    model: model.as_ref().to_owned(),
                    memory_mb: self.sandbox.memory_mb,
                });
            }
            Err(Some(exit)) => {
                return Err(EngineError::StartFailed {
                    model: model.as_ref().to_owned(),
                    reason: exit.to_string(),
                    log: self.host.last_words(&self.name).await,
                });
            }
            Err(None) => {
                return Err(EngineError::NotHealthy {
                    model: model.as_ref().to_owned(),
                    waited: limit,
                    log: self.host.last_words(&self.name).await,
                });
            }
        }
        seal_socket_directory(&self.directory)?;
        tracing::info!(%model, seconds = begun.elapsed().as_secs_f64(), "an engine is ready");
        Ok(Engine {
            model: Arc::clone(model),
            transport: Arc::clone(&self.transport),
            container: Some(Container {
                name: Arc::clone(&self.name),
                host: self.host.clone(),
                memory_mb: self.sandbox.memory_mb,
            }),
        })
    }

    /// Asks the engine until it says that it is ready.
    async fn healthy(&self) {
        let mut pause = HEALTH_FIRST_PAUSE;
        let begun = Instant::now();
        let mut told = begun;
        loop {
            let asking = async {
                let mut answer = self.transport.send(&self.entry.health, None).await.ok()?;
                answer.read_small(4096).await.ok()?;
                Some(answer.status())
            };
            let status = tokio::time::timeout(HEALTH_TIMEOUT, asking).await.ok().flatten();
            if status == Some(200) {
                return;
            }
            if told.elapsed() > PROGRESS_INTERVAL {
                told = Instant::now();
                let seconds = begun.elapsed().as_secs();
                tracing::info!(model = %self.model.name, seconds, "an engine is still loading");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(HEALTH_LONGEST_PAUSE);
        }
    }

    /// Removes the containers and the socket.
    async fn clear(&self) {
        // The relay first: it is in the engine's network.
        let names = self.relay.iter().map(|(name, _)| name.as_str()).chain([self.name.as_ref()]);
        for name in names {
            if let Err(error) = self.host.remove(name).await {
                tracing::warn!(container = name, %error, "a container could not be removed");
            }
        }
        remove_directory(&self.directory).await;
    }
}

/// Returns the labels by which a model's containers are found again.
fn labels(model: &Supervised, engine: &str) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_NODE.to_owned(), model.settings.node.clone()),
        (LABEL_ENGINE.to_owned(), engine.to_owned()),
        (LABEL_MODEL.to_owned(), model.served.name.clone()),
    ])
}

/// Returns the container of a relay, all but what it has in common with its engine's.
fn relay_sandbox(
    program: &RelayProgram,
    socket: &BindMount,
    entry: &EngineEntry,
    port: u16,
) -> Sandbox {
    let path = format!("{SOCKET_DIRECTORY}/{}", entry.socket);
    Sandbox {
        image_id: String::new(),
        command: program.command_line(&path, port),
        env: vec![("HOME".to_owned(), "/tmp".to_owned())],
        image_env: Vec::new(),
        user: (NOBODY, NOBODY),
        labels: HashMap::new(),
        mounts: program.mounts.iter().chain([socket]).cloned().collect(),
        tmpfs: Vec::new(),
        shm_mb: 1,
        memory_mb: RELAY_MEMORY_MB,
        cpus: 1,
        pids: RELAY_PIDS,
        gpus: Vec::new(),
        network: Network::Own,
        stdin: false,
        file_mb: None,
    }
}

/// Makes the directory that the engine puts its socket into, open to the container's
/// user and to nobody else.
fn make_socket_directory(
    runtime_dir: &Path,
    name: &str,
    user: (u32, u32),
) -> Result<PathBuf, EngineError> {
    let directory = runtime_dir.join(name);
    let make = || {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(runtime_dir)?;
        std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&directory, Some(user.0), Some(user.1))?;
        }
        // Docker needs the whole path, and a relative one would be a volume's name.
        std::fs::canonicalize(&directory)
    };
    make().map_err(|error| runtime_error(&directory, &error))
}

/// Closes the directory once the socket is in it, so that an engine cannot fill this
/// machine's disk through it.
fn seal_socket_directory(directory: &Path) -> Result<(), EngineError> {
    let seal = || {
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(directory, Some(0), Some(0))?;
        }
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o500))
    };
    seal().map_err(|error| runtime_error(directory, &error))
}

fn runtime_error(path: &Path, error: &std::io::Error) -> EngineError {
    EngineError::RuntimeDirectory { path: path.to_owned(), reason: error.to_string() }
}

/// Removes the socket directories that an earlier process left.
pub(super) async fn remove_socket_directories(runtime_dir: &Path) {
    let Ok(mut entries) = tokio::fs::read_dir(runtime_dir).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        if entry.file_name().to_string_lossy().starts_with(NAME_PREFIX) {
            remove_directory(&entry.path()).await;
        }
    }
}

async fn remove_directory(directory: &Path) {
    // A sealed directory must be opened before its owner can empty it.
    let opened = std::fs::Permissions::from_mode(0o700);
    let _ = tokio::fs::set_permissions(directory, opened).await;
    match tokio::fs::remove_dir_all(directory).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %directory.display(), %error, "a socket's directory remains");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        assert!((1.0..1.21).contains(&pause(1).as_secs_f64()));
        assert!((4.0..4.81).contains(&pause(3).as_secs_f64()));
        assert!((60.0..72.1).contains(&pause(30).as_secs_f64()));
    }

    #[tokio::test]
    async fn socket_directories_are_closed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let directory = make_socket_directory(folder.path(), "infernet-x", own).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        std::fs::write(directory.join("e.sock"), "").unwrap();
        seal_socket_directory(&directory).unwrap();
        assert_eq!(mode(&directory), 0o500);
        std::fs::create_dir(folder.path().join("other")).unwrap();
        remove_socket_directories(folder.path()).await;
        assert!(!directory.exists());
        assert!(folder.path().join("other").exists());
    }
}
