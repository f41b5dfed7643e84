//! Container jobs: one fresh container a job.
//!
//! [`JobImage`] is an image that the owner allows, pinned by its digest or id; nothing
//! else is ever started. [`run_container_job`] is the whole life of one container: made,
//! given its input, listened to, limited in time and output, and removed whatever
//! happens, because it is a task of the pool's own that a forgotten reader only tells to
//! stop. [`JobStream`] is the reader's end.
//!
//! The input is `/job/input.json`, and where the image wants it the standard input as
//! well. The output is the standard output as it is written, or the files of
//! `/job/output` at the end (`output_files`).

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::engine::catalogue::{Tmpfs, is_withheld};
use crate::engine::docker::{ContainerHost, Exit, Reading, Written};
use crate::engine::error::EngineError;
use crate::engine::openai::{EngineEvent, Finish, Usage};
use crate::engine::output_files::{self, OutputFault};
use crate::engine::room::{Need, Reservation};
use crate::engine::sandbox::{
    BindMount, LABEL_ATTEMPT, LABEL_ENGINE, LABEL_NODE, Network, Sandbox,
};
use crate::engine::supervised::Settings;
use crate::engine::supervisor::NAME_PREFIX;

/// Where a container finds its input, and where it may leave its output.
const INPUT_PATH: &str = "/job/input.json";
const OUTPUT_PATH: &str = "/job/output";

/// The catalogue's name of containers that are made for one job.
const ENGINE_NAME: &str = "container";

/// How much more than its largest output a directory may hold while its program works.
const SPARE_OUTPUT: u64 = 16 << 20;

/// How often the output directory of a running container is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// How much of what a program writes to its standard error is kept.
const STDERR_BYTES: usize = 500;

/// How long the end of a container is waited for once its output has ended.
const END_WAIT: Duration = Duration::from_secs(10);

/// How many pieces may wait for a reader; then the program waits.
const PIECES: usize = 16;

/// The most arguments of a job, and their bytes together.
const ARGUMENT_LIMIT: usize = 64;
const ARGUMENT_BYTES: usize = 32 * 1024;

/// An image that this node runs container jobs with, as the owner's configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobImage {
    /// The name under which it is offered, such as `tools/ffmpeg:7`.
    pub name: String,
    /// The image: `sha256:ID`, or `NAME@sha256:DIGEST`.
    pub image: String,
    /// The program and its first arguments.
    pub command: Vec<String>,
    /// Whether a job may add arguments.
    pub args: bool,
    /// Environment variables that the program needs.
    pub env: BTreeMap<String, String>,
    /// Whether the input also goes to the program's standard input.
    pub input: JobInput,
    /// Where the output comes from.
    pub output: JobOutput,
    /// The limit of its memory in MiB, directories in memory included.
    pub memory_mb: u64,
    /// The number of processors that it may keep busy.
    pub cpus: u32,
    /// The most processes and threads.
    pub pids: u32,
    /// The size of `/tmp`, in memory, in MiB.
    pub scratch_mb: u64,
    /// UUIDs of the GPUs that it may use.
    pub gpus: Vec<String>,
    /// How many jobs at once.
    pub slots: u32,
}

/// How a container is given its input, besides the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobInput {
    /// On its standard input: a text as it is, anything else as JSON.
    #[default]
    Stdin,
    /// Not at all.
    File,
}

/// Where the output of a container comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobOutput {
    /// What it writes to its standard output.
    #[default]
    Stdout,
    /// The files in `/job/output`, as one JSON object.
    Directory,
}

/// A container job as the agent has it.
#[derive(Debug, Clone)]
pub struct ContainerRequest {
    /// The consumer's own request: `{"input":any,"args":["…"]}`.
    pub body: Value,
    /// The most seconds that the container may run.
    pub max_seconds: u32,
    /// The most bytes of output.
    pub output_bytes: usize,
    /// Names the attempt in the container's labels.
    pub attempt: String,
}

impl JobImage {
    /// Makes the entry of an image, with the defaults of the configuration.
    pub fn new(name: impl Into<String>, image: impl Into<String>, command: Vec<String>) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            command,
            args: false,
            env: BTreeMap::new(),
            input: JobInput::default(),
            output: JobOutput::default(),
            memory_mb: 512,
            cpus: 1,
            pids: 128,
            scratch_mb: 64,
            gpus: Vec::new(),
            slots: 1,
        }
    }

    /// Returns the sha256 that pins the image, in hex.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        let (name, digest) = self.image.rsplit_once("sha256:")?;
        let pinned = name.is_empty() || (name.ends_with('@') && name.len() > 1);
        let hex = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        (pinned && hex).then_some(digest)
    }

    /// Tells whether the image is named by its id, which no registry knows it by.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.image.starts_with("sha256:")
    }

    /// Says that the image is not here, and how to get it.
    #[must_use]
    pub fn missing(&self) -> EngineError {
        let install = if self.is_local() {
            "docker load".to_owned()
        } else {
            format!("infernet model pull {}", self.name)
        };
        EngineError::ImageMissing { image: self.image.clone(), install }
    }

    /// Says what is wrong with the entry, if anything is.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.digest().is_none() {
            return Err("image must be sha256:ID or NAME@sha256:DIGEST, since a name alone may \
                        come to mean another image."
                .to_owned());
        }
        if self.command.first().is_none_or(String::is_empty) {
            return Err("command must name the program.".to_owned());
        }
        if let Some(name) = self.env.keys().find(|name| is_withheld(name)) {
            return Err(format!("env may not set {name}."));
        }
        for (key, zero) in [
            ("memory_mb", self.memory_mb == 0),
            ("cpus", self.cpus == 0),
            ("pids", self.pids == 0),
            ("scratch_mb", self.scratch_mb == 0),
            ("slots", self.slots == 0 || self.slots > 1024),
        ] {
            if zero {
                return Err(format!("{key} is out of range."));
            }
        }
        Ok(())
    }
}

/// An image with its free slots.
#[derive(Debug)]
pub(super) struct AllowedImage {
    pub(super) image: JobImage,
    pub(super) slots: Arc<Semaphore>,
}

/// When a container ran.
#[derive(Debug, Default)]
struct Clock {
    started: OnceLock<Instant>,
    ran: OnceLock<Duration>,
}

impl Clock {
    /// Returns the seconds so far, the last one whole.
    fn seconds(&self) -> u64 {
        let ran = match (self.ran.get(), self.started.get()) {
            (Some(ran), _) => *ran,
            (None, Some(started)) => started.elapsed(),
            (None, None) => return 0,
        };
        ran.as_secs() + u64::from(ran.subsec_nanos() > 0)
    }

    fn stop(&self) {
        if let Some(started) = self.started.get() {
            let _ = self.ran.set(started.elapsed());
        }
    }
}

/// The output of a container job as it is written. Dropping it ends the container.
#[derive(Debug)]
pub(super) struct JobStream {
    events: mpsc::Receiver<Result<EngineEvent, EngineError>>,
    clock: Arc<Clock>,
}

impl JobStream {
    /// Returns the next event; `None` after the end or an error.
    pub(super) async fn next(&mut self) -> Option<Result<EngineEvent, EngineError>> {
        self.events.recv().await
    }

    /// Returns how long the container has run.
    pub(super) fn usage(&self) -> Usage {
        Usage { seconds: Some(self.clock.seconds()), ..Usage::default() }
    }
}

/// A job that is ready to run, and the reader's end of it.
pub(super) fn open(
    allowed: &AllowedImage,
    request: ContainerRequest,
    settings: Arc<Settings>,
    slot: OwnedSemaphorePermit,
    cancel: CancellationToken,
) -> Result<(ContainerJob, JobStream), EngineError> {
    let image = allowed.image.clone();
    let (input, arguments) = read_request(&image, &request.body)?;
    let (sender, events) = mpsc::channel(PIECES);
    let clock = Arc::new(Clock::default());
    let stream = JobStream { events, clock: Arc::clone(&clock) };
    let job =
        ContainerJob { image, request, input, arguments, settings, cancel, sender, clock, slot };
    Ok((job, stream))
}

/// One container job before its container is made.
pub(super) struct ContainerJob {
    image: JobImage,
    request: ContainerRequest,
    input: Value,
    arguments: Vec<String>,
    settings: Arc<Settings>,
    cancel: CancellationToken,
    sender: mpsc::Sender<Result<EngineEvent, EngineError>>,
    clock: Arc<Clock>,
    /// Held until the container is gone.
    slot: OwnedSemaphorePermit,
}

/// Takes a request apart; the arguments only where the image allows them.
fn read_request(image: &JobImage, body: &Value) -> Result<(Value, Vec<String>), EngineError> {
    let bad = |message: String| EngineError::BadRequest { message };
    let Value::Object(body) = body else {
        return Err(bad("The request must be a JSON object.".to_owned()));
    };
    let input = body.get("input").cloned().unwrap_or(Value::Null);
    let given = match body.get("args") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(arguments)) => arguments,
        Some(_) => return Err(bad("`args` must be a list of texts.".to_owned())),
    };
    let arguments = given
        .iter()
        .map(|argument| argument.as_str().filter(|text| !text.contains('\0')).map(str::to_owned))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| bad("`args` must be a list of texts.".to_owned()))?;
    if !arguments.is_empty() && !image.args {
        return Err(bad(format!("The image {} takes no arguments.", image.name)));
    }
    let bytes: usize = arguments.iter().map(String::len).sum();
    if arguments.len() > ARGUMENT_LIMIT || bytes > ARGUMENT_BYTES {
        return Err(bad(format!(
            "At most {ARGUMENT_LIMIT} arguments of {ARGUMENT_BYTES} bytes together are taken."
        )));
    }
    Ok((input, arguments))
}

/// Runs one container from its making to its removal, and tells the reader.
pub(super) async fn run_container_job(job: ContainerJob, shutdown: CancellationToken) {
    let outcome = tokio::select! {
        biased;
        () = shutdown.cancelled() => Err(EngineError::Stopping),
        () = job.cancel.cancelled() => Ok(Finish::Cancelled),
        launch = Launch::prepare(&job) => match launch {
            Ok(launch) => {
                let outcome = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Err(EngineError::Stopping),
                    () = job.cancel.cancelled() => Ok(Finish::Cancelled),
                    // Nobody reads any more: the attempt was given up.
                    () = job.sender.closed() => Ok(Finish::Cancelled),
                    outcome = launch.work() => outcome,
                };
                job.clock.stop();
                launch.clear().await;
                outcome
            }
            Err(error) => Err(error),
        },
    };
    let event =
        outcome.map(|finish| EngineEvent::Done { finish, input_tokens: 0, output_tokens: 0 });
    // A reader that went away wants no end either.
    let _gone = job.sender.send(event).await;
    drop(job.slot);
}

/// One container and everything that has to be tidied up after it.
struct Launch<'a> {
    job: &'a ContainerJob,
    host: ContainerHost,
    /// Of the container and of its directory.
    name: String,
    directory: PathBuf,
    sandbox: Sandbox,
    _reservation: Reservation,
}

impl<'a> Launch<'a> {
    /// Checks the image, and makes everything but the container.
    async fn prepare(job: &'a ContainerJob) -> Result<Self, EngineError> {
        let image = &job.image;
        let host = ContainerHost::connect(job.settings.docker_host.as_deref()).await?;
        let found = host.image(&image.image).await?.ok_or_else(|| image.missing())?;
        let name = format!("{NAME_PREFIX}{:016x}", fastrand::u64(..));
        let need = Need { memory_mb: image.memory_mb, gpus: image.gpus.clone(), gpu_memory_mb: 0 };
        let reservation = job.settings.room.reserve(&name, &image.name, need).await?;
        let user = host.container_user();
        let directory = job.settings.runtime_dir.join(&name);
        let directory = match make_directory(&directory, &job.input, user) {
            Ok(directory) => directory,
            Err(error) => {
                remove_directory(&directory).await;
                return Err(EngineError::RuntimeDirectory {
                    path: directory,
                    reason: error.to_string(),
                });
            }
        };
        let mut mounts = vec![BindMount {
            source: directory.join("input.json"),
            target: INPUT_PATH.to_owned(),
            writable: false,
        }];
        if image.output == JobOutput::Directory {
            mounts.push(BindMount {
                source: directory.join("output"),
                target: OUTPUT_PATH.to_owned(),
                writable: true,
            });
        }
        let env = image.env.iter().map(|(name, value)| (name.clone(), value.clone()));
        let sandbox = Sandbox {
            image_id: found.id,
            command: image.command.iter().chain(&job.arguments).cloned().collect(),
            env: env.chain([("HOME".to_owned(), "/tmp".to_owned())]).collect(),
            image_env: found.env_names,
            user,
            labels: HashMap::from([
                (LABEL_NODE.to_owned(), job.settings.node.clone()),
                (LABEL_ENGINE.to_owned(), ENGINE_NAME.to_owned()),
                (LABEL_ATTEMPT.to_owned(), job.request.attempt.clone()),
            ]),
            mounts,
            tmpfs: vec![Tmpfs { path: "/tmp".to_owned(), size_mb: image.scratch_mb, exec: false }],
            shm_mb: 16,
            memory_mb: image.memory_mb,
            cpus: image.cpus,
            pids: image.pids,
            gpus: image.gpus.clone(),
            network: Network::Own,
            stdin: image.input == JobInput::Stdin,
            // One file in the scratch directory may fill it.
            file_mb: Some(image.scratch_mb.max(SPARE_OUTPUT >> 20)),
        };
        Ok(Self { job, host, name, directory, sandbox, _reservation: reservation })
    }

    /// Starts the container, tells the reader what it writes, and says how it ended.
    async fn work(&self) -> Result<Finish, EngineError> {
        let request = &self.job.request;
        self.host.create(&self.name, &self.sandbox).await?;
        let attached = self.host.attach(&self.name, self.sandbox.stdin).await?;
        let input = if self.sandbox.stdin { as_text(&self.job.input) } else { Bytes::new() };
        let (write, mut reading) = attached.split(input);
        self.host.start_created(&self.name).await?;
        // Whoever set it first was this very task.
        let _ = self.job.clock.started.set(Instant::now());
        tracing::info!(image = self.job.image.name, container = self.name, "running a job");
        let mut stderr = Tail::default();
        let limit = Duration::from_secs(u64::from(request.max_seconds));
        let ended = {
            let running = async {
                let (read, ()) = tokio::join!(self.read(&mut reading, &mut stderr), write);
                match read? {
                    None => {
                        let ended = tokio::time::timeout(END_WAIT, self.host.wait(&self.name));
                        let ended = ended.await.unwrap_or_default();
                        Ok(Ok(ended))
                    }
                    Some(finish) => Ok(Err(finish)),
                }
            };
            tokio::select! {
                ended = running => ended?,
                fault = self.watch() => return Err(refused(&fault)),
                () = tokio::time::sleep(limit) => Err(Finish::Length),
            }
        };
        self.job.clock.stop();
        // Docker does not end a container whose output somebody could still read.
        drop(reading);
        match ended {
            // Its time or the room for its output was used up: what there is counts.
            Err(finish) => {
                self.host.kill(&self.name).await?;
                self.host.wait(&self.name).await;
                self.collect().await?;
                Ok(finish)
            }
            Ok(Exit { code: Some(0), .. }) => {
                self.collect().await?;
                Ok(Finish::Stop)
            }
            Ok(exit) if exit.host_away => Err(EngineError::DockerGone {
                action: "wait for a container",
                reason: exit.to_string(),
            }),
            Ok(exit) if exit.out_of_memory => Err(EngineError::JobFailed {
                reason: format!("it ran out of its {} MiB of memory", self.sandbox.memory_mb),
                stderr: stderr.text(),
            }),
            Ok(exit) => {
                Err(EngineError::JobFailed { reason: exit.to_string(), stderr: stderr.text() })
            }
        }
    }

    /// Reads what the program writes until it ends. Answers why it was stopped, if the
    /// output is full.
    async fn read(
        &self,
        reading: &mut Reading,
        stderr: &mut Tail,
    ) -> Result<Option<Finish>, EngineError> {
        let mut text = TextPieces::default();
        let mut left = self.job.request.output_bytes;
        while let Some(written) = reading.next().await? {
            let bytes = match written {
                Written::Err(bytes) => {
                    stderr.push(&bytes);
                    continue;
                }
                Written::Out(bytes) if self.job.image.output == JobOutput::Stdout => bytes,
                Written::Out(_) => continue,
            };
            let full = bytes.len() > left;
            let taken = &bytes[..bytes.len().min(left)];
            left -= taken.len();
            self.tell(text.push(taken)?).await;
            if full {
                return Ok(Some(Finish::Length));
            }
        }
        text.finish()?;
        Ok(None)
    }

    /// Looks at the output directory until there is too much in it.
    async fn watch(&self) -> OutputFault {
        let limit = self.job.request.output_bytes;
        if self.job.image.output != JobOutput::Directory {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            let directory = self.directory.join("output");
            match tokio::task::spawn_blocking(move || output_files::size(&directory)).await {
                Ok(Ok(size)) if size > limit as u64 + SPARE_OUTPUT => {
                    return OutputFault::Size { limit };
                }
                Ok(Err(fault)) => return fault,
                Ok(Ok(_)) | Err(_) => {}
            }
        }
    }

    /// Tells the reader the files of the output directory, where the image has one.
    async fn collect(&self) -> Result<(), EngineError> {
        if self.job.image.output != JobOutput::Directory {
            return Ok(());
        }
        let directory = self.directory.join("output");
        let limit = self.job.request.output_bytes;
        let text = tokio::task::spawn_blocking(move || output_files::collect(&directory, limit))
            .await
            .unwrap_or_else(|error| Err(OutputFault::Unreadable(error.to_string())))
            .map_err(|fault| refused(&fault))?;
        self.tell(text).await;
        Ok(())
    }

    async fn tell(&self, text: String) {
        if !text.is_empty() {
            // A reader that is gone is noticed elsewhere.
            let _gone = self.job.sender.send(Ok(EngineEvent::Delta { text })).await;
        }
    }

    /// Removes the container and its directory.
    async fn clear(&self) {
        if let Err(error) = self.host.remove(&self.name).await {
            tracing::warn!(container = self.name, %error, "a container could not be removed");
        }
        remove_directory(&self.directory).await;
    }
}

fn refused(fault: &OutputFault) -> EngineError {
    EngineError::OutputRefused { reason: fault.to_string() }
}

/// Returns a text as it is, and anything else as JSON.
fn as_text(input: &Value) -> Bytes {
    match input {
        Value::Null => Bytes::new(),
        Value::String(text) => Bytes::from(text.clone()),
        other => Bytes::from(other.to_string()),
    }
}

/// Makes the directory of one job: its input, which the container's user may read, and
/// an empty output, which it may write to. Nobody else gets in.
fn make_directory(directory: &Path, input: &Value, user: (u32, u32)) -> std::io::Result<PathBuf> {
    use std::io::Write;
    let own = |path: &Path| {
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(user.0), Some(user.1))
        } else {
            Ok(())
        }
    };
    if let Some(parent) = directory.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    std::fs::DirBuilder::new().mode(0o700).create(directory)?;
    let path = directory.join("input.json");
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path)?;
    file.write_all(input.to_string().as_bytes())?;
    own(&path)?;
    let output = directory.join("output");
    std::fs::DirBuilder::new().mode(0o700).create(&output)?;
    own(&output)?;
    // Docker needs the whole path, and a relative one would be a volume's name.
    std::fs::canonicalize(directory)
}

async fn remove_directory(directory: &Path) {
    let owned = directory.to_owned();
    let removed = tokio::task::spawn_blocking(move || output_files::remove(&owned)).await;
    match removed.map_err(std::io::Error::other).flatten() {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %directory.display(), %error, "a job's directory remains");
        }
        _ => {}
    }
}

/// Text that arrives in pieces which may end inside a letter.
#[derive(Debug, Default)]
struct TextPieces {
    rest: Vec<u8>,
}

impl TextPieces {
    /// Returns what is whole so far.
    fn push(&mut self, bytes: &[u8]) -> Result<String, EngineError> {
        self.rest.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.len(),
            // Without a length, the letter is only cut off.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err(not_text()),
        };
        let rest = self.rest.split_off(whole);
        let whole = std::mem::replace(&mut self.rest, rest);
        Ok(String::from_utf8(whole).expect("what was found to be text is text"))
    }

    /// Refuses an end inside a letter.
    fn finish(&self) -> Result<(), EngineError> {
        if self.rest.is_empty() { Ok(()) } else { Err(not_text()) }
    }
}

fn not_text() -> EngineError {
    EngineError::OutputRefused {
        reason: "The program wrote something to its standard output that is not UTF-8 text."
            .to_owned(),
    }
}

/// The end of what a program wrote to its standard error.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&bytes[bytes.len().saturating_sub(STDERR_BYTES)..]);
        self.bytes.drain(..self.bytes.len().saturating_sub(STDERR_BYTES));
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        text.trim().replace(|letter: char| letter.is_control() && letter != '\n', " ")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn image() -> JobImage {
        let id = format!("sha256:{}", "ab".repeat(32));
        JobImage::new("tools/wc", id, vec!["/bin/wc".to_owned()])
    }

    #[test]
    fn images_are_pinned_and_checked() {
        let good = image();
        assert_eq!(good.check(), Ok(()));
        let digest = "cd".repeat(32);
        let named = JobImage { image: format!("x/y@sha256:{digest}"), ..good.clone() };
        assert_eq!(named.digest(), Some(digest.as_str()));
        let loader = BTreeMap::from([("LD_PRELOAD".to_owned(), "x".to_owned())]);
        for bad in [
            JobImage { image: "busybox:latest".to_owned(), ..good.clone() },
            JobImage { image: format!("@sha256:{digest}"), ..good.clone() },
            JobImage { image: "sha256:abc".to_owned(), ..good.clone() },
            JobImage { command: Vec::new(), ..good.clone() },
            JobImage { env: loader, ..good.clone() },
            JobImage { memory_mb: 0, ..good.clone() },
            JobImage { slots: 1025, ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn requests_are_taken_apart() {
        let plain = image();
        let open = JobImage { args: true, ..plain.clone() };
        let (input, arguments) =
            read_request(&open, &json!({"input": {"a": 1}, "args": ["-l"]})).unwrap();
        assert_eq!((input, arguments), (json!({"a": 1}), vec!["-l".to_owned()]));
        assert!(read_request(&plain, &json!({})).is_ok());
        for (image, body) in [
            (&plain, json!({"args": ["-l"]})),
            (&open, json!({"args": [1]})),
            (&open, json!({"args": "-l"})),
            (&open, json!({"args": ["a\0b"]})),
            (&open, json!({"args": vec!["x"; 65]})),
            (&open, json!({"args": ["x".repeat(ARGUMENT_BYTES + 1)]})),
            (&open, json!([])),
        ] {
            let error = read_request(image, &body).unwrap_err();
            assert_eq!(error.attempt_code(), "bad_request", "{body}");
        }
    }

    #[test]
    fn letters_may_arrive_in_pieces_and_other_bytes_do_not() {
        let mut pieces = TextPieces::default();
        let mut text = String::new();
        for byte in "aé€😀".bytes() {
            text += &pieces.push(&[byte]).unwrap();
        }
        assert_eq!(text, "aé€😀");
        assert!(pieces.finish().is_ok());
        assert!(pieces.push(&[0xff]).is_err());
        let mut cut = TextPieces::default();
        assert_eq!(cut.push(&[b'a', 0xc3]).unwrap(), "a");
        assert!(cut.finish().is_err());
    }

    #[test]
    fn the_end_of_what_was_said_is_kept() {
        let mut tail = Tail::default();
        for _ in 0..100 {
            tail.push(b"0123456789\x1b[31m\n");
        }
        assert!(tail.text().len() <= STDERR_BYTES);
        assert!(!tail.text().contains('\x1b'));
        tail.push(&[b'x'; 5000]);
        assert_eq!(tail.text(), "x".repeat(STDERR_BYTES));
    }
}
