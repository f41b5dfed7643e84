//! Docker or Podman as this node sees them.
//!
//! A thin face of `bollard` for [`super::pool`]: every call has a timeout and fails
//! with a sentence. [`ContainerHost::connect`] also asks whether the host can enforce
//! the limits of [`super::sandbox`], since Docker leaves out those that it cannot with
//! no more than a warning.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::future::Future;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as DockerError;
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, CreateImageOptions, KillContainerOptions,
    ListContainersOptions, LogsOptions, RemoveContainerOptions, WaitContainerOptions,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::engine::error::EngineError;
use crate::engine::fetch::Progress;
use crate::engine::sandbox::{
    LABEL_ATTEMPT, LABEL_ENGINE, LABEL_MODEL, LABEL_NODE, NOBODY, Sandbox,
};

/// How long an ordinary call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the first question may take: a daemon that hangs is as good as none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a container whose end cannot be waited for is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How long a registry may say nothing.
const PULL_SILENCE: Duration = Duration::from_secs(120);

/// The oldest API that knows every limit of the sandbox (Docker 20.10).
const OLDEST_API: (usize, usize) = (1, 41);

/// The most of a log that goes into an error: lines, and bytes of each.
const LOG_LINES: usize = 15;
const LOG_LINE_BYTES: usize = 200;

/// A Docker or Podman that answered and can hold the sandbox's limits.
#[derive(Debug, Clone)]
pub struct ContainerHost {
    docker: Docker,
    rootless: bool,
}

/// What is known of an image on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id, `sha256:…`.
    pub id: String,
    /// The names of the environment variables that it sets.
    pub env_names: Vec<String>,
}

/// A container of a node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NodeContainer {
    /// Its name.
    pub name: String,
    /// The entry of the catalogue that it was made by.
    pub engine: String,
    /// The model that it serves.
    pub model: Option<String>,
    /// The attempt that it was made for.
    pub attempt: Option<String>,
    /// What Docker says of it, such as `Up 3 minutes`.
    pub state: String,
}

/// How a container ended; the default is one of which nothing is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, where Docker knows it.
    pub code: Option<i64>,
    /// Whether the kernel killed it for its memory.
    pub out_of_memory: bool,
    /// Whether Docker itself was away when it ended, which then is not the engine's doing.
    pub host_away: bool,
}

/// What a container reads and writes.
pub struct Attached {
    /// Its standard input.
    input: Pin<Box<dyn AsyncWrite + Send>>,
    /// What it writes, in the order in which Docker saw it.
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, DockerError>> + Send>>,
}

/// A piece of what a container wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// To its standard output.
    Out(Bytes),
    /// To its standard error.
    Err(Bytes),
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Attached").finish_non_exhaustive()
    }
}

impl Attached {
    /// Splits into writing the standard input to its end, and reading. A program that
    /// does not read its input is no error.
    pub(super) fn split(self, input: Bytes) -> (impl Future<Output = ()> + Send, Reading) {
        let Self { input: mut sink, output } = self;
        let write = async move {
            let written = async {
                sink.write_all(&input).await?;
                sink.shutdown().await
            };
            if let Err(error) = written.await {
                tracing::debug!(%error, "a container did not read its input");
            }
        };
        (write, Reading { output })
    }
}

/// The output of a container as it is written. Nothing is read ahead.
pub(super) struct Reading {
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, DockerError>> + Send>>,
}

impl Reading {
    /// Returns the next piece, `None` at the end.
    ///
    /// # Errors
    /// [`EngineError::Docker`] when the connection to Docker breaks.
    pub(super) async fn next(&mut self) -> Result<Option<Written>, EngineError> {
        loop {
            return match self.output.next().await {
                None => Ok(None),
                Some(Ok(LogOutput::StdOut { message } | LogOutput::Console { message })) => {
                    Ok(Some(Written::Out(message)))
                }
                Some(Ok(LogOutput::StdErr { message })) => Ok(Some(Written::Err(message))),
                Some(Ok(LogOutput::StdIn { .. })) => continue,
                Some(Err(error)) => Err(failed("read what a container writes", &error)),
            };
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.out_of_memory, self.code) {
            (true, _) => formatter.write_str("it ran out of memory"),
            (false, Some(132)) => formatter.write_str(
                "it used an instruction that this machine's processor does not have (exit code 132)",
            ),
            (false, Some(137)) => formatter.write_str("it was killed (exit code 137)"),
            (false, Some(139)) => formatter.write_str("it crashed (exit code 139)"),
            (false, Some(code)) => write!(formatter, "it ended with exit code {code}"),
            (false, None) => formatter.write_str("it is gone"),
        }
    }
}

impl ContainerHost {
    /// Connects to the socket that `given` or `DOCKER_HOST` names, or to the first of
    /// the usual sockets of Docker and Podman, and asks what it can do.
    ///
    /// # Errors
    /// [`EngineError::DockerNotRunning`] and its neighbours, each saying what to do.
    pub async fn connect(given: Option<&str>) -> Result<Self, EngineError> {
        let socket = socket_path(given)?;
        let shown = socket.display().to_string();
        let not_running =
            |reason: String| EngineError::DockerNotRunning { socket: shown.clone(), reason };
        let kind = tokio::fs::metadata(&socket).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => not_running("there is no such socket".to_owned()),
            std::io::ErrorKind::PermissionDenied => {
                EngineError::DockerForbidden { socket: shown.clone() }
            }
            _ => not_running(error.to_string()),
        })?;
        if !kind.file_type().is_socket() {
            return Err(not_running("it is not a socket".to_owned()));
        }
        // Bollard reports every failure to connect alike; a connection of our own tells
        // a socket that may not be used from one that nobody listens at.
        match tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::UnixStream::connect(&socket)).await
        {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(EngineError::DockerForbidden { socket: shown });
            }
            Ok(Err(error)) => return Err(not_running(error.to_string())),
            Err(_) => return Err(not_running("it does not accept a connection".to_owned())),
        }
        let docker =
            Docker::connect_with_unix(&shown, CALL_TIMEOUT.as_secs(), bollard::API_DEFAULT_VERSION)
                .map_err(|error| not_running(reason(&error)))?;
        let docker = tokio::time::timeout(CONNECT_TIMEOUT, docker.negotiate_version())
            .await
            .map_err(|_| not_running("it does not answer".to_owned()))?
            .map_err(|error| not_running(reason(&error)))?;
        let version = docker.client_version();
        if (version.major_version, version.minor_version) < OLDEST_API {
            return Err(EngineError::DockerTooOld { socket: shown, found: version.to_string() });
        }
        let info = call("describe itself", docker.info()).await?;
        let options = info.security_options.unwrap_or_default();
        let missing =
            missing_limits(info.memory_limit, info.pids_limit, info.cpu_cfs_quota, &options);
        if !missing.is_empty() {
            return Err(EngineError::SandboxUnavailable { missing: missing.join(", ") });
        }
        Ok(Self { docker, rootless: options.iter().any(|option| option == "name=rootless") })
    }

    /// Returns the user and group that containers run as, and that must be able to use
    /// the files which this process gives them.
    ///
    /// `nobody` when this process is root. Another user may not give files away, and
    /// the socket that `nobody` makes would be closed to it, so that its containers
    /// run as itself, which is an ordinary user too. Under a rootless engine, number
    /// 0 inside *is* this user outside.
    #[must_use]
    pub fn container_user(&self) -> (u32, u32) {
        let user = nix::unistd::geteuid();
        if self.rootless {
            (0, 0)
        } else if user.is_root() {
            (NOBODY, NOBODY)
        } else {
            (user.as_raw(), nix::unistd::getegid().as_raw())
        }
    }

    /// Returns what the daemon says that it and its parts are: names and versions.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn versions(&self) -> Result<Vec<(String, String)>, EngineError> {
        let version = call("tell its version", self.docker.version()).await?;
        let components = version.components.unwrap_or_default().into_iter();
        Ok(components.map(|component| (component.name, component.version)).collect())
    }

    /// Finds an image by its name or id; `None` when it is not on this machine.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn image(&self, name: &str) -> Result<Option<Image>, EngineError> {
        let found = match timed(self.docker.inspect_image(name)).await {
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => {
                return Ok(None);
            }
            other => other.map_err(|error| failed("look for an image", &error))?,
        };
        let env_names = found
            .config
            .and_then(|config| config.env)
            .unwrap_or_default()
            .into_iter()
            .map(|entry| entry.split('=').next().unwrap_or_default().to_owned())
            .collect();
        let id = found.id.ok_or_else(|| EngineError::Docker {
            action: "look for an image",
            reason: "it named no id".to_owned(),
        })?;
        Ok(Some(Image { id, env_names }))
    }

    /// Gets an image from its registry, and says how far it is.
    ///
    /// # Errors
    /// [`EngineError::Docker`] with the registry's words.
    pub async fn pull(
        &self,
        image: &str,
        told: &(dyn Fn(Progress) + Sync),
    ) -> Result<(), EngineError> {
        // Without a tag every image of the name would be meant.
        let tagged = image.rsplit('/').next().is_some_and(|name| name.contains([':', '@']));
        let name = if tagged { image.to_owned() } else { format!("{image}:latest") };
        let options = CreateImageOptions { from_image: Some(name), ..Default::default() };
        let mut steps = std::pin::pin!(self.docker.create_image(Some(options), None, None));
        let mut layers = BTreeMap::new();
        loop {
            let step = tokio::time::timeout(PULL_SILENCE, steps.next()).await.map_err(|_slow| {
                EngineError::Docker {
                    action: "pull an image",
                    reason: format!("the registry said nothing for {} s", PULL_SILENCE.as_secs()),
                }
            })?;
            let Some(step) = step else { return Ok(()) };
            let step = step.map_err(|error| failed("pull an image", &error))?;
            // Layers are fetched side by side, then unpacked, which counts anew.
            let (Some("Downloading"), Some(layer), Some(detail)) =
                (step.status.as_deref(), step.id, step.progress_detail)
            else {
                continue;
            };
            let bytes = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
            layers.insert(layer, (bytes(detail.current), bytes(detail.total)));
            let done = layers.values().filter_map(|(done, _total)| *done).sum();
            let total = layers.values().map(|(_done, total)| *total).sum();
            told(Progress { done, total });
        }
    }

    /// Makes a container of this name and starts it. When starting fails, the
    /// container is removed again.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn start(&self, name: &str, sandbox: &Sandbox) -> Result<(), EngineError> {
        self.create(name, sandbox).await?;
        let started = self.start_created(name).await;
        if started.is_err() {
            self.remove(name).await?;
        }
        started
    }

    /// Makes a container of this name, which does not run yet.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn create(&self, name: &str, sandbox: &Sandbox) -> Result<(), EngineError> {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
        let created = call(
            "create a container",
            self.docker.create_container(Some(options), sandbox.container()),
        )
        .await?;
        for warning in created.warnings {
            tracing::warn!(container = name, warning, "docker changed a container");
        }
        Ok(())
    }

    /// Starts a container that was made.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn start_created(&self, name: &str) -> Result<(), EngineError> {
        let options = None::<bollard::query_parameters::StartContainerOptions>;
        call("start a container", self.docker.start_container(name, options)).await
    }

    /// Connects to what a container that was made will read and write.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn attach(&self, name: &str, stdin: bool) -> Result<Attached, EngineError> {
        let options = AttachContainerOptions {
            stdin,
            stdout: true,
            stderr: true,
            stream: true,
            ..Default::default()
        };
        let attached =
            call("attach to a container", self.docker.attach_container(name, Some(options)))
                .await?;
        Ok(Attached { input: attached.input, output: attached.output })
    }

    /// Ends a container's programs at once. One that has ended is no error.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn kill(&self, name: &str) -> Result<(), EngineError> {
        match timed(self.docker.kill_container(name, None::<KillContainerOptions>)).await {
            Err(DockerError::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            other => other.map_err(|error| failed("end a container", &error)),
        }
    }

    /// Waits until a container has ended, however long that takes, and says how. A
    /// container that is not there has ended.
    pub async fn wait(&self, name: &str) -> Exit {
        let mut host_away = false;
        loop {
            let mut waiting = self.docker.wait_container(name, None::<WaitContainerOptions>);
            // The stream yields once, at the end; any error of it means only that the
            // state has to be looked at.
            drop(waiting.next().await);
            match self.exit(name).await {
                Ok(Some(exit)) => return Exit { host_away, ..exit },
                Ok(None) => host_away = false,
                Err(error) => {
                    host_away |= error.is_host_away();
                    tracing::debug!(%error, "a container cannot be looked at");
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Says how a container ended, `None` while it runs.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn exit(&self, name: &str) -> Result<Option<Exit>, EngineError> {
        let found = self
            .docker
            .inspect_container(name, None::<bollard::query_parameters::InspectContainerOptions>);
        let state = match timed(found).await {
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => {
                return Ok(Some(Exit::default()));
            }
            other => other.map_err(|error| failed("look at a container", &error))?.state,
        };
        let Some(state) = state else { return Ok(None) };
        if state.running.unwrap_or(false) {
            return Ok(None);
        }
        Ok(Some(Exit {
            code: state.exit_code,
            out_of_memory: state.oom_killed.unwrap_or(false),
            host_away: false,
        }))
    }

    /// Returns the last lines that a container wrote, shortened; of nothing, a dash.
    pub async fn last_words(&self, name: &str) -> String {
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            tail: LOG_LINES.to_string(),
            ..Default::default()
        };
        let mut lines = self.docker.logs(name, Some(options));
        let mut bytes = Vec::new();
        let reading = async {
            while let Some(Ok(output)) = lines.next().await {
                if let LogOutput::StdErr { message } | LogOutput::StdOut { message } = output {
                    bytes.extend_from_slice(&message);
                }
            }
        };
        // What arrived until then is still worth showing.
        let _ = tokio::time::timeout(CONNECT_TIMEOUT, reading).await;
        shorten(&String::from_utf8_lossy(&bytes))
    }

    /// Ends and removes a container with everything that Docker keeps of it. One that
    /// is not there is no error.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn remove(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match timed(self.docker.remove_container(name, Some(options))).await {
            // 409: another call is removing it already.
            Err(DockerError::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            other => other.map_err(|error| failed("remove a container", &error)),
        }
    }

    /// Returns a node's containers that run, the eldest first.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn running(&self, node: &str) -> Result<Vec<NodeContainer>, EngineError> {
        let labels = vec![format!("{LABEL_NODE}={node}")];
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options = ListContainersOptions { filters: Some(filters), ..Default::default() };
        let mut found = call("list containers", self.docker.list_containers(Some(options))).await?;
        found.sort_by_key(|container| container.created);
        Ok(found
            .into_iter()
            .map(|container| {
                let mut labels = container.labels.unwrap_or_default();
                let names = container.names.unwrap_or_default();
                NodeContainer {
                    name: names.first().map_or("", |name| name.trim_start_matches('/')).to_owned(),
                    engine: labels.remove(LABEL_ENGINE).unwrap_or_default(),
                    model: labels.remove(LABEL_MODEL),
                    attempt: labels.remove(LABEL_ATTEMPT),
                    state: container.status.unwrap_or_default(),
                }
            })
            .collect())
    }

    /// Returns the ids of a node's containers, running or not; of one model, where it
    /// is given.
    ///
    /// # Errors
    /// [`EngineError::Docker`].
    pub async fn containers_of(
        &self,
        node: &str,
        model: Option<&str>,
    ) -> Result<Vec<String>, EngineError> {
        let mut labels = vec![format!("{LABEL_NODE}={node}")];
        labels.extend(model.map(|model| format!("{LABEL_MODEL}={model}")));
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options =
            ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let found = call("list containers", self.docker.list_containers(Some(options))).await?;
        Ok(found.into_iter().filter_map(|container| container.id).collect())
    }
}

/// Finds the socket to connect to.
fn socket_path(given: Option<&str>) -> Result<PathBuf, EngineError> {
    let named = given
        .map(str::to_owned)
        .or_else(|| std::env::var("DOCKER_HOST").ok().filter(|value| !value.is_empty()));
    if let Some(host) = named {
        return match host.strip_prefix("unix://") {
            Some(path) => Ok(PathBuf::from(path)),
            None if host.starts_with('/') => Ok(PathBuf::from(host)),
            None => Err(EngineError::DockerHostUnsupported { host }),
        };
    }
    let docker = PathBuf::from("/var/run/docker.sock");
    let mut usual = vec![docker.clone()];
    if let Ok(runtime) = std::env::var("XDG_RUNTIME_DIR") {
        usual.push(Path::new(&runtime).join("docker.sock"));
        usual.push(Path::new(&runtime).join("podman/podman.sock"));
    }
    usual.push(PathBuf::from("/run/podman/podman.sock"));
    // With none there, the message names Docker's.
    Ok(usual.into_iter().find(|path| path.exists()).unwrap_or(docker))
}

/// Names the limits that a host says it cannot hold.
fn missing_limits(
    memory: Option<bool>,
    pids: Option<bool>,
    cpu: Option<bool>,
    security_options: &[String],
) -> Vec<&'static str> {
    let mut missing = Vec::new();
    for (able, name) in
        [(memory, "limits of memory"), (pids, "limits of processes"), (cpu, "limits of processors")]
    {
        if able == Some(false) {
            missing.push(name);
        }
    }
    let seccomp = security_options.iter().find(|option| option.starts_with("name=seccomp"));
    if seccomp.is_none_or(|option| option.contains("profile=unconfined")) {
        missing.push("its default seccomp profile");
    }
    missing
}

/// Makes a call to Docker with its timeout.
async fn timed<T>(answer: impl Future<Output = Result<T, DockerError>>) -> Result<T, DockerError> {
    tokio::time::timeout(CALL_TIMEOUT, answer)
        .await
        .unwrap_or(Err(DockerError::RequestTimeoutError))
}

/// Makes a call to Docker whose every failure is an error.
async fn call<T>(
    action: &'static str,
    answer: impl Future<Output = Result<T, DockerError>>,
) -> Result<T, EngineError> {
    timed(answer).await.map_err(|error| failed(action, &error))
}

fn failed(action: &'static str, error: &DockerError) -> EngineError {
    let reason = reason(error);
    match error {
        DockerError::HyperResponseError { .. }
        | DockerError::HyperLegacyError { .. }
        | DockerError::IOError { .. }
        | DockerError::SocketNotFoundError(_) => EngineError::DockerGone { action, reason },
        _ => EngineError::Docker { action, reason },
    }
}

/// Returns Docker's own words, with the causes beneath them.
fn reason(error: &DockerError) -> String {
    if let DockerError::DockerResponseServerError { message, .. } = error {
        return message.clone();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

/// Keeps the last lines of a log, each shortened.
fn shorten(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return "  -".to_owned();
    }
    let mut text = String::new();
    for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
        let mut end = line.len().min(LOG_LINE_BYTES);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}", &line[..end]);
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_host_that_is_not_there_is_named_with_the_way_to_start_it() {
        let error = ContainerHost::connect(Some("unix:///nonexistent/docker.sock"))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/docker.sock"), "{error}");
        assert!(error.contains("systemctl start docker"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_at_is_not_running() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = ContainerHost::connect(path.to_str()).await.unwrap_err();
        assert!(matches!(error, EngineError::DockerNotRunning { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_host_on_another_machine_is_refused() {
        let error = ContainerHost::connect(Some("tcp://10.0.0.1:2375")).await.unwrap_err();
        assert!(matches!(error, EngineError::DockerHostUnsupported { .. }), "{error}");
    }

    #[test]
    fn limits_that_are_missing_are_named() {
        let good = ["name=seccomp,profile=default".to_owned()];
        assert!(missing_limits(Some(true), Some(true), Some(true), &good).is_empty());
        let without = missing_limits(Some(false), Some(true), Some(true), &[]);
        assert_eq!(without, ["limits of memory", "its default seccomp profile"]);
        let unconfined = ["name=seccomp,profile=unconfined".to_owned()];
        assert_eq!(missing_limits(None, None, None, &unconfined).len(), 1);
    }

    #[test]
    fn logs_are_shortened() {
        assert_eq!(shorten("\n \n"), "  -");
        let long = format!("first\n{}\n{}", "second\n".repeat(20), "é".repeat(300));
        let short = shorten(&long);
        assert_eq!(short.lines().count(), LOG_LINES);
        assert!(!short.contains("first"));
        assert!(short.lines().all(|line| line.len() <= LOG_LINE_BYTES + 2));
    }
}
