//! `/functions/v1/NAME`: the project's edge functions, run by the Deno of this
//! machine. `auth` and `info` never come here; the gateway answers them itself.
//!
//! Each function is one Deno process, started by its first request and listening
//! on a unix socket of its own. It may use the network, its environment and its
//! own files, as on Supabase: no other programs, no other files. It ends with us
//! however we end, because it watches a pipe that only we hold open. One that
//! breaks is started again, with growing pauses.
//!
//! Invariants: a token is checked here where `supabase/config.toml` wants it
//! (`verify_jwt`); secrets reach a function by its environment only.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::any;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use include_dir::{Dir, include_dir};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, User, geteuid};
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::data_dir::{DataDir, DataDirError, read_private};
use super::gateway::answer;
use super::jwt::{JwtVerifier, bearer_token};

/// Names the Deno to use, before `PATH`.
pub const DENO_VARIABLE: &str = "INFERNET_DENO";

/// The functions of this release.
static FUNCTIONS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/supabase/functions");
/// The settings of the project, which say whose token is checked.
const CONFIG: &str = include_str!("../../supabase/config.toml");
/// Answered by the gateway itself.
const NATIVE: [&str; 2] = ["auth", "info"];

/// Runs one function: serves its handler on the socket that Deno is told by
/// `DENO_SERVE_ADDRESS`, and ends when the other end of stdin is gone.
const RUNNER: &str = r#"// Made by infernet at every start; changes are lost.
(async () => {
  for await (const _ of Deno.stdin.readable) { /* Nothing is ever sent. */ }
  Deno.exit(0);
})();
const module = await import(Deno.args[0]);
if (typeof module.default?.fetch === "function") {
  Deno.serve((request, info) => module.default.fetch(request, info));
}
"#;

/// How long a function may take to listen; the first start downloads what it
/// imports.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a function may take to begin its answer, as on Supabase.
const ANSWER_LIMIT: Duration = Duration::from_secs(150);
/// How long a function may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// A function that ran for this long had started well.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Longest pause before a function is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Memory of a function's heap, in MB.
const HEAP_MB: u32 = 256;

/// Why the functions cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum FunctionsError {
    /// A file or directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The project's settings are wrong.
    #[error("supabase/config.toml cannot be understood")]
    Config(#[from] toml::de::Error),
    /// The operator's settings are wrong.
    #[error(
        "{path} line {line}: expected NAME=value with a name that does not begin with SUPABASE_"
    )]
    Environment {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
}

/// Why one request gets no answer of its function.
#[derive(Debug, thiserror::Error)]
enum CallError {
    /// There is no Deno.
    #[error("This control plane cannot run functions: Deno is not installed")]
    NoDeno,
    /// It was started in vain and is left alone for a while.
    #[error("The function does not start; it is tried again in {} s", seconds.max(&1))]
    Paused {
        /// How long.
        seconds: u64,
    },
    /// It ended or did not listen.
    #[error("The function does not start")]
    Boot,
    /// It ended or closed the connection.
    #[error("The function broke off")]
    Broken,
    /// It does not begin its answer.
    #[error("The function did not answer within {} s", ANSWER_LIMIT.as_secs())]
    Slow,
}

impl CallError {
    /// Makes the answer, in the codes of Supabase's edge runtime.
    fn response(&self) -> Response {
        let (status, code, hint) = match self {
            Self::NoDeno => (
                StatusCode::SERVICE_UNAVAILABLE,
                "DENO_MISSING",
                "The operator installs Deno 2 (https://deno.com) and starts the control plane again.",
            ),
            Self::Paused { .. } | Self::Boot => (
                StatusCode::SERVICE_UNAVAILABLE,
                "BOOT_ERROR",
                "The operator finds the reason in functions.log in the data folder.",
            ),
            Self::Broken => (
                StatusCode::BAD_GATEWAY,
                "WORKER_ERROR",
                "The operator finds the reason in functions.log in the data folder.",
            ),
            Self::Slow => {
                (StatusCode::GATEWAY_TIMEOUT, "IDLE_TIMEOUT", "Try again later, or ask for less.")
            }
        };
        answer(status, &json!({"code": code, "message": format!("{self}."), "hint": hint}))
    }
}

/// What the functions need.
pub(super) struct FunctionsContext<'a> {
    /// Where they are unpacked.
    pub(super) data: &'a DataDir,
    /// A directory of functions in place of those of this release.
    pub(super) source: Option<&'a Path>,
    /// The Deno to use; `None` to look for it.
    pub(super) deno: Option<PathBuf>,
    /// What Supabase puts into their environment.
    pub(super) environment: Vec<(&'static str, String)>,
    /// Checks tokens.
    pub(super) verifier: Arc<JwtVerifier>,
}

/// The functions of a control plane.
#[derive(Debug)]
pub(super) struct Functions {
    deno: Option<PathBuf>,
    account: Option<User>,
    directory: PathBuf,
    log: PathBuf,
    environment: Vec<(String, String)>,
    verifier: Arc<JwtVerifier>,
    workers: BTreeMap<String, Worker>,
    connections: TaskTracker,
}

/// One function.
#[derive(Debug)]
struct Worker {
    verify_jwt: bool,
    state: Mutex<WorkerState>,
}

/// What is known of a function's process.
#[derive(Debug, Default)]
struct WorkerState {
    child: Option<Child>,
    started: Option<Instant>,
    failures: u32,
    not_before: Option<Instant>,
}

/// The part of `config.toml` that is used here.
#[derive(Deserialize)]
struct Project {
    #[serde(default)]
    functions: BTreeMap<String, FunctionSettings>,
}

/// The settings of one function.
#[derive(Deserialize)]
struct FunctionSettings {
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default = "yes")]
    verify_jwt: bool,
}

fn yes() -> bool {
    true
}

impl Functions {
    /// Finds Deno and unpacks the functions. Without Deno the functions are known
    /// and answer 503.
    pub(super) fn prepare(context: FunctionsContext<'_>) -> Result<Self, FunctionsError> {
        let FunctionsContext { data, source, deno, environment, verifier } = context;
        let directory = data.functions();
        let mut environment: Vec<(String, String)> =
            environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        environment.extend(operator_environment(data)?);
        let code = directory.join("code");
        if code.exists() {
            fs::remove_dir_all(&code).map_err(failed("remove", &code))?;
        }
        make_dir(&directory, 0o755)?;
        make_dir(&code, 0o755)?;
        match source {
            Some(source) => copy_tree(source, &code)?,
            None => unpack(&FUNCTIONS, &code)?,
        }
        let settings: Project = match source.map(|source| source.join("config.toml")) {
            Some(path) if path.exists() => {
                toml::from_str(&fs::read_to_string(&path).map_err(failed("read", &path))?)?
            }
            _ => toml::from_str(CONFIG)?,
        };
        let workers = find_functions(&code, &settings)?;
        let deno = deno.or_else(find_deno).filter(|path| path.is_file());
        let account = unprivileged_account();
        if !workers.is_empty() && deno.is_some() {
            let runner = directory.join("run.ts");
            write_shared(&runner, RUNNER.as_bytes())?;
            for name in ["cache", "sockets"] {
                let path = directory.join(name);
                make_dir(&path, 0o700)?;
                if let Some(user) = &account {
                    chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                        .map_err(failed("give away", &path))?;
                }
            }
        }
        if !workers.is_empty() && deno.is_none() {
            let names: Vec<&str> = workers.keys().map(String::as_str).collect();
            tracing::warn!(
                functions = names.join(", "),
                "Deno is not installed, so these functions answer 503; everything else works"
            );
        }
        Ok(Self {
            deno,
            account,
            log: data.root().join("functions.log"),
            directory,
            environment,
            verifier,
            workers,
            connections: TaskTracker::new(),
        })
    }

    /// Says whether every function can run.
    pub(super) fn can_run(&self) -> bool {
        self.workers.is_empty() || self.deno.is_some()
    }

    /// Returns the routes below `/functions/v1`, with their full paths.
    pub(super) fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/functions/v1/{name}", any(serve_function))
            .route("/functions/v1/{name}/{*rest}", any(serve_function))
            .with_state(Arc::clone(self))
    }

    /// Ends all functions.
    pub(super) async fn stop(&self) {
        for worker in self.workers.values() {
            let child = worker.state.lock().await.child.take();
            if let Some(child) = child {
                end(child).await;
            }
        }
        self.connections.close();
        if tokio::time::timeout(STOP_LIMIT, self.connections.wait()).await.is_err() {
            tracing::debug!(open = self.connections.len(), "answers of functions are cut off");
        }
    }

    /// Connects to a function, starting it if need be.
    async fn connect(&self, name: &str, worker: &Worker) -> Result<UnixStream, CallError> {
        let deno = self.deno.as_deref().ok_or(CallError::NoDeno)?;
        let socket = self.directory.join("sockets").join(format!("{name}.sock"));
        // Held while the function starts, so that it is started once.
        let mut state = worker.state.lock().await;
        if let Some(mut child) = state.child.take() {
            let is_alive = matches!(child.try_wait(), Ok(None));
            if is_alive && let Ok(stream) = UnixStream::connect(&socket).await {
                state.child = Some(child);
                return Ok(stream);
            }
            tracing::warn!(function = name, "a function ended, starting it again");
            end(child).await;
            if state.started.is_some_and(|started| started.elapsed() >= STABLE_AFTER) {
                state.failures = 0;
            } else {
                state.fail();
            }
        }
        if let Some(pause) = state.not_before.map(|at| at.saturating_duration_since(Instant::now()))
            && !pause.is_zero()
        {
            return Err(CallError::Paused { seconds: pause.as_secs() });
        }
        match self.start(deno, name, &socket).await {
            Ok((child, stream)) => {
                state.child = Some(child);
                state.started = Some(Instant::now());
                Ok(stream)
            }
            Err(error) => {
                tracing::warn!(function = name, %error, "a function does not start");
                state.fail();
                Err(CallError::Boot)
            }
        }
    }

    /// Starts a function and waits until it listens.
    async fn start(
        &self,
        deno: &Path,
        name: &str,
        socket: &Path,
    ) -> io::Result<(Child, UnixStream)> {
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let log = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log)?;
        let mut command = Command::new(deno);
        self.set_environment(&mut command, socket);
        command
            .arg("run")
            .args(self.arguments(name))
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(true);
        if let Some(user) = &self.account {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let mut child = command.spawn()?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("it ended ({status})")));
            }
            if let Ok(stream) = UnixStream::connect(socket).await {
                return Ok((child, stream));
            }
            if Instant::now() > deadline {
                end(child).await;
                return Err(io::Error::other(format!(
                    "it does not listen after {} s",
                    START_LIMIT.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns what follows `deno run`.
    fn arguments(&self, name: &str) -> Vec<String> {
        let code = self.directory.join("code");
        let function = code.join(name);
        let sockets = self.directory.join("sockets");
        let mut arguments = vec![
            "--no-prompt".to_owned(),
            "--allow-net".to_owned(),
            "--allow-env".to_owned(),
            format!("--allow-read={},{},/tmp", code.display(), sockets.display()),
            format!("--allow-write={},/tmp", sockets.display()),
            format!("--v8-flags=--max-old-space-size={HEAP_MB}"),
        ];
        let config = [function.join("deno.json"), code.join("deno.json")];
        match config.iter().find(|path| path.exists()) {
            Some(path) => arguments.push(format!("--config={}", path.display())),
            None => arguments.push("--no-config".to_owned()),
        }
        // What it imports is what was tested.
        let lock = code.join("deno.lock");
        if lock.exists() {
            arguments.push(format!("--lock={}", lock.display()));
            arguments.push("--frozen".to_owned());
        } else {
            arguments.push("--no-lock".to_owned());
        }
        arguments.push(self.directory.join("run.ts").display().to_string());
        arguments.push(format!("file://{}", function.join("index.ts").display()));
        arguments
    }

    /// Gives a function its environment, and nothing of ours.
    fn set_environment(&self, command: &mut Command, socket: &Path) {
        command.env_clear();
        let passed = [
            "PATH",
            "TZ",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "NO_PROXY",
            "NPM_CONFIG_REGISTRY",
            "DENO_CERT",
            "DENO_TLS_CA_STORE",
            "NODE_EXTRA_CA_CERTS",
        ];
        for name in passed {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let cache = self.directory.join("cache");
        command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("HOME", &cache)
            .env("DENO_DIR", cache)
            .env("DENO_NO_UPDATE_CHECK", "1")
            .env("NO_COLOR", "1")
            .env("DENO_SERVE_ADDRESS", format!("unix:{}", socket.display()));
    }

    /// Checks the token of a request, in the words of Supabase's edge runtime.
    fn check_token(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let authorization =
            headers.get(header::AUTHORIZATION).ok_or("Missing authorization header")?;
        let token = authorization.to_str().ok().and_then(bearer_token);
        let token = token.ok_or("Auth header is not 'Bearer {token}'")?;
        self.verifier.verify(token).map(|_| ()).map_err(|_| "Invalid JWT")
    }

    /// Hands a request to a function.
    async fn forward(
        &self,
        stream: UnixStream,
        mut request: Request,
    ) -> Result<Response, CallError> {
        let handshake = http1::handshake::<_, Body>(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|_| CallError::Broken)?;
        self.connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to a function broke off");
            }
        });
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let path = path.strip_prefix("/functions/v1").unwrap_or(path);
        *request.uri_mut() = path.parse::<Uri>().map_err(|_| CallError::Broken)?;
        remove_hop_headers(request.headers_mut());
        request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
        let answered = tokio::time::timeout(ANSWER_LIMIT, sender.send_request(request)).await;
        let answered = answered.map_err(|_| CallError::Slow)?;
        let mut response = answered.map_err(|_| CallError::Broken)?;
        remove_hop_headers(response.headers_mut());
        Ok(response.map(Body::new))
    }
}

impl WorkerState {
    /// Notes a failed start and sets the pause before the next: 0.5 s doubling to
    /// half a minute, a quarter of it left to chance.
    fn fail(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let pause = Duration::from_millis(250).saturating_mul(1 << self.failures.min(10));
        let pause = pause.min(LONGEST_PAUSE).mul_f64(0.75 + 0.25 * fastrand::f64());
        self.not_before = Some(Instant::now() + pause);
    }
}

/// Answers a request for a function.
async fn serve_function(State(functions): State<Arc<Functions>>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches("/functions/v1/");
    let name = path.split('/').next().unwrap_or_default().to_owned();
    let Some(worker) = functions.workers.get(&name) else {
        return answer(
            StatusCode::NOT_FOUND,
            &json!({
                "code": "NOT_FOUND",
                "message": "Requested function was not found",
                "hint": null,
            }),
        );
    };
    if worker.verify_jwt
        && request.method() != Method::OPTIONS
        && let Err(reason) = functions.check_token(request.headers())
    {
        return answer(StatusCode::UNAUTHORIZED, &json!({"msg": reason}));
    }
    if request.headers().contains_key(header::UPGRADE) {
        return answer(
            StatusCode::NOT_IMPLEMENTED,
            &json!({
                "code": "not_implemented",
                "message": "Functions of this control plane do not serve websockets.",
                "hint": "Use /realtime/v1.",
            }),
        );
    }
    let outcome = match functions.connect(&name, worker).await {
        Ok(stream) => functions.forward(stream, request).await,
        Err(error) => Err(error),
    };
    outcome.unwrap_or_else(|error| error.response())
}

/// Ends a process and what it started: politely, then by force. The group is
/// meant, because `deno` from npm is a script that runs the program.
async fn end(mut child: Child) {
    let Some(group) = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw) else {
        return;
    };
    if let Err(error) = killpg(group, Signal::SIGTERM) {
        tracing::debug!(%error, "a function could not be signalled");
    }
    let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
    match killpg(group, Signal::SIGKILL) {
        // Nobody is left, as it should be.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::debug!(%error, "a function could not be killed"),
    }
    if ended.is_err()
        && let Err(error) = child.wait().await
    {
        tracing::debug!(%error, "a killed function could not be waited for");
    }
}

/// Removes the headers that are about one connection.
fn remove_hop_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let always = [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
    ];
    for name in named.iter().chain(&always) {
        headers.remove(name);
    }
}

/// Finds Deno: the variable, else `PATH`.
fn find_deno() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(DENO_VARIABLE).filter(|path| !path.is_empty()) {
        return Some(PathBuf::from(path));
    }
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|directory| directory.join("deno"))
        .find(|path| {
            fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
        })
}

/// Returns the account that functions run under when we are root: they are less
/// trusted than we are, and than the database, whose account is another.
fn unprivileged_account() -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    User::from_name("nobody").ok().flatten()
}

/// Reads the operator's own settings for functions, `functions.env` in the data
/// directory: lines NAME=value, `#` begins a comment line.
fn operator_environment(data: &DataDir) -> Result<Vec<(String, String)>, FunctionsError> {
    let path = data.root().join("functions.env");
    let Some(text) = read_private(&path)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        match entry {
            Some((name, value)) if is_own_name(name) => {
                let value = value
                    .strip_prefix('"')
                    .and_then(|value| value.strip_suffix('"'))
                    .unwrap_or(value);
                found.push((name.to_owned(), value.to_owned()));
            }
            _ => return Err(FunctionsError::Environment { path, line: index + 1 }),
        }
    }
    Ok(found)
}

/// Says whether an operator may set a variable of this name.
fn is_own_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with("SUPABASE_")
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.as_bytes()[0].is_ascii_digit()
}

/// Lists the functions of an unpacked directory: each folder with an `index.ts`.
fn find_functions(
    code: &Path,
    project: &Project,
) -> Result<BTreeMap<String, Worker>, FunctionsError> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(code).map_err(failed("read", code))? {
        let entry = entry.map_err(failed("read", code))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if NATIVE.contains(&name.as_str()) || !entry.path().join("index.ts").is_file() {
            continue;
        }
        let settings = project.functions.get(&name);
        if settings.is_some_and(|settings| !settings.enabled) {
            continue;
        }
        let verify_jwt = settings.is_none_or(|settings| settings.verify_jwt);
        found.insert(name, Worker { verify_jwt, state: Mutex::default() });
    }
    Ok(found)
}

/// Writes the functions of this release below a directory, leaving out what only
/// a local Supabase and tests read.
fn unpack(source: &Dir<'_>, target: &Path) -> Result<(), FunctionsError> {
    for directory in source.dirs() {
        let Some(name) = directory.path().file_name() else { continue };
        if name == "tests" || name == "node_modules" {
            continue;
        }
        let path = target.join(name);
        make_dir(&path, 0o755)?;
        unpack(directory, &path)?;
    }
    for file in source.files() {
        match file.path().file_name() {
            Some(name) if !name.to_string_lossy().starts_with('.') => {
                write_shared(&target.join(name), file.contents())?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Copies a directory of functions.
fn copy_tree(source: &Path, target: &Path) -> Result<(), FunctionsError> {
    for entry in fs::read_dir(source).map_err(failed("read", source))? {
        let path = entry.map_err(failed("read", source))?.path();
        let Some(name) = path.file_name() else { continue };
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let target = target.join(name);
        if path.is_dir() {
            make_dir(&target, 0o755)?;
            copy_tree(&path, &target)?;
        } else {
            write_shared(&target, &fs::read(&path).map_err(failed("read", &path))?)?;
        }
    }
    Ok(())
}

/// Writes a file that the account of the functions may read.
fn write_shared(path: &Path, content: &[u8]) -> Result<(), FunctionsError> {
    fs::write(path, content).map_err(failed("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
        .map_err(failed("protect", path))?;
    Ok(())
}

/// Makes a directory if it is not there, and sets its mode.
fn make_dir(path: &Path, mode: u32) -> Result<(), FunctionsError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed("create the directory", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("protect", path))?;
    Ok(())
}

/// Wraps a failure of a file.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::data_dir::write_private;

    #[test]
    fn own_settings_are_read_and_supabases_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let data = DataDir::create(temporary.path()).unwrap();
        assert!(operator_environment(&data).unwrap().is_empty());
        let path = data.root().join("functions.env");
        write_private(&path, b"# keys\n\nPAY_KEY=a=b\nNAME = \"two words\"\n").unwrap();
        let expected =
            [("PAY_KEY", "a=b"), ("NAME", "two words")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(operator_environment(&data).unwrap(), expected);
        for wrong in ["A=1\nSUPABASE_URL=x", "A=1\nnothing", "A=1\n1A=x"] {
            write_private(&path, wrong.as_bytes()).unwrap();
            let error = operator_environment(&data).unwrap_err().to_string();
            assert!(error.contains("functions.env line 2"), "{error}");
        }
    }

    #[test]
    fn the_settings_of_this_project_are_understood() {
        let project: Project = toml::from_str(CONFIG).unwrap();
        assert!(project.functions.values().all(|settings| settings.enabled));
        let project: Project = toml::from_str("[functions.a]\nverify_jwt = false\n").unwrap();
        assert!(!project.functions["a"].verify_jwt);
    }

    #[test]
    fn headers_of_one_connection_stay_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "close, x-own"), ("x-own", "1"), ("te", "trailers"), ("apikey", "k")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        remove_hop_headers(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["apikey"]);
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut state = WorkerState::default();
        for _ in 0..30 {
            state.fail();
        }
        let pause = state.not_before.unwrap() - Instant::now();
        assert!(pause <= LONGEST_PAUSE && pause > LONGEST_PAUSE / 2, "{pause:?}");
    }
}
