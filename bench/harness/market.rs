//! The market that is measured: a control plane (`infernet up`) and a node
//! (`infernet start --foreground`), processes of the released binary in a
//! directory of their own, and a consumer with credit in this process.

use std::error::Error;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use infernet::control::realtime::{Channel, ChannelEvent, JoinOptions, Realtime, RealtimeEndpoint};
use infernet::control::rpc::{Job, Rpc, SubmitJob, SubmittedJob};
use infernet::control::session::{Enrolment, LoginKind, Session};
use infernet::control::{ControlPlane, PlainHttp, install_tls_provider};
use infernet::id::TransferId;
use infernet::identity::Keys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What goes wrong in a benchmark ends it.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// How long a process may take to come up.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long a process may take to end when asked.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long one job may take.
const JOB_LIMIT: Duration = Duration::from_secs(120);
/// How long the last piece may come after the word that the job is done.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a channel may take to be joined.
const JOIN_LIMIT: Duration = Duration::from_secs(10);

/// A running market with one node and one consumer.
pub(crate) struct BenchMarket {
    directory: TempDir,
    control: Child,
    node: Child,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
    /// The consumer, signed in.
    pub(crate) consumer: Consumer,
}

/// A running proxy of the consumer.
pub(crate) struct Proxy {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What opens it.
    pub(crate) key: String,
}

impl Proxy {
    /// Stops it.
    ///
    /// # Errors
    /// It ends badly.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let status = stop(&mut self.child).await?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("The proxy ended with {status}.").into())
        }
    }
}

/// The consumer's side: calls and messages.
pub(crate) struct Consumer {
    rpc: Rpc,
    realtime: Realtime,
    subject: uuid::Uuid,
}

/// What a consumer saw of one job, all on this process's clock.
pub(crate) struct Seen {
    /// Just before `submit_job` was called.
    pub(crate) sent: Instant,
    /// When its answer was there.
    pub(crate) answered: Instant,
    /// When each piece of text was there, with how many bytes of output it ended.
    pub(crate) pieces: Vec<(Instant, usize)>,
    /// Pieces that did not begin where the one before ended.
    pub(crate) gaps: usize,
    /// The job after it ended.
    pub(crate) job: Job,
}

impl BenchMarket {
    /// Starts a market whose node serves the given models: each a table of
    /// `config.toml` without its heading.
    ///
    /// # Errors
    /// A process does not come up, or refuses what is asked; the end of its log is
    /// in the message.
    pub(crate) async fn start(models: &[String]) -> Result<Self, Failure> {
        install_tls_provider();
        let directory = tempfile::Builder::new().prefix("infernet-bench.").tempdir()?;
        // PostgreSQL runs as another user when we are root.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))?;
        let root = directory.path();

        let data = root.join("control");
        let (mut control, url, publishable_key) = start_control(root, &data).await?;
        let started = join_market(root, &data, &url, &publishable_key, models).await;
        match started {
            Ok((node, consumer, tasks, shutdown)) => {
                Ok(Self { directory, control, node, tasks, shutdown, consumer })
            }
            Err(error) => {
                stop(&mut control).await?;
                Err(format!("{error}\n{}", log_end(root)).into())
            }
        }
    }

    /// The directory of the node's state, where its engines' sockets are.
    pub(crate) fn node_directory(&self) -> PathBuf {
        self.directory.path().join("node")
    }

    /// The process id of the agent.
    pub(crate) fn agent_pid(&self) -> Option<u32> {
        self.node.id()
    }

    /// Starts the proxy of the consumer, as a process of its own.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) async fn start_proxy(&self) -> Result<Proxy, Failure> {
        let root = self.directory.path();
        let said = root.join("proxy.json");
        let mut child = program(root, "proxy")
            .args(["proxy", "--port", "0", "--json", "--log", "error"])
            .stdout(File::create(&said)?)
            .stderr(File::create(root.join("proxy.log"))?)
            .spawn()?;
        let limit = Instant::now() + START_LIMIT;
        let printed: Value = loop {
            if let Ok(printed) = serde_json::from_slice(&fs::read(&said)?) {
                break printed;
            }
            if let Some(status) = child.try_wait()? {
                let words = fs::read_to_string(root.join("proxy.log"))?;
                return Err(format!("The proxy ended with {status}.\n{words}").into());
            }
            if Instant::now() > limit {
                return Err("The proxy did not start.".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let word = |name: &str| printed.get(name).and_then(Value::as_str).unwrap_or_default();
        let url = url::Url::parse(word("base_url"))?;
        let port = url.port().ok_or("The proxy names no port.")?;
        let key = fs::read_to_string(word("api_key_file"))?.trim().to_owned();
        Ok(Proxy { child, address: ([127, 0, 0, 1], port).into(), key })
    }

    /// Stops the node, starts it again and says how long it takes from the start of
    /// its process until it is subscribed to its work.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) async fn restart_node(&mut self) -> Result<Duration, Failure> {
        stop(&mut self.node).await?;
        let root = self.directory.path();
        let log = root.join("node.log");
        let file = File::create(&log)?;
        let started = Instant::now();
        self.node = start_node(root, file)?;
        while !fs::read_to_string(&log)?.contains("work arrives by Realtime") {
            if started.elapsed() > START_LIMIT {
                return Err("The node was not subscribed.".into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(started.elapsed())
    }

    /// Runs a command as the user of the node and says how long it took.
    ///
    /// # Errors
    /// It fails.
    pub(crate) async fn time_command(&self, arguments: &[&str]) -> Result<Duration, Failure> {
        let mut command = program(self.directory.path(), "node");
        let started = Instant::now();
        let output = command.args(arguments).output().await?;
        let took = started.elapsed();
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("infernet {} failed: {words}", arguments.join(" ")).into());
        }
        Ok(took)
    }

    /// Stops node and control plane and removes what they kept.
    ///
    /// # Errors
    /// One of them ends badly.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let node = stop(&mut self.node).await?;
        self.shutdown.cancel();
        self.consumer.realtime.closed().await;
        while self.tasks.join_next().await.is_some() {}
        let control = stop(&mut self.control).await?;
        if node.success() && control.success() {
            return Ok(());
        }
        let words = log_end(self.directory.path());
        Err(format!("The node ended with {node}, the control plane with {control}.\n{words}")
            .into())
    }
}

impl Consumer {
    /// Runs one job to its end and notes when what arrived.
    ///
    /// # Errors
    /// The job is refused, fails or takes too long.
    pub(crate) async fn ask(
        &self,
        model: &str,
        prompt: &str,
        max_tokens: u32,
    ) -> Result<Seen, Failure> {
        tokio::time::timeout(JOB_LIMIT, self.ask_without_limit(model, prompt, max_tokens))
            .await
            .map_err(|_elapsed| format!("A job took longer than {} s.", JOB_LIMIT.as_secs()))?
    }

    async fn ask_without_limit(
        &self,
        model: &str,
        prompt: &str,
        max_tokens: u32,
    ) -> Result<Seen, Failure> {
        let mut job = SubmitJob::chat(
            model,
            json!({ "messages": [{ "role": "user", "content": prompt }], "temperature": 0 }),
        );
        job.max_tokens = Some(max_tokens);
        let topic = format!("job:{}:{}", self.subject, job.id);
        let mut channel = self.realtime.join(&topic, JoinOptions::default());
        wait_joined(&mut channel).await?;

        let sent = Instant::now();
        let mut call = std::pin::pin!(self.rpc.submit_job(&job));
        let mut answered: Option<(Instant, SubmittedJob)> = None;
        let mut pieces = Vec::new();
        let (mut reached, mut gaps) = (0, 0);
        let mut ended = false;
        // The word of SQL that the job is done may overtake the node's last piece,
        // for which there is a little time then.
        let mut patience = None;
        // Messages may be there before the call's own answer.
        while !ended || answered.is_none() {
            let tired = async {
                match patience {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = channel.recv() => match event {
                    Some(ChannelEvent::Broadcast { event, payload, .. }) => match event.as_str() {
                        "delta" => {
                            let end = end_of(&payload);
                            gaps += usize::from(start_of(&payload) != reached);
                            reached = end;
                            pieces.push((Instant::now(), end));
                        }
                        "end" => ended = true,
                        "state" if says_ended(&payload) => {
                            // An answer that was faster than the stream comes whole.
                            ended = pieces.is_empty();
                            patience = Some(tokio::time::Instant::now() + PATIENCE);
                        }
                        _ => {}
                    },
                    Some(_) => {}
                    None => return Err("The channel of a job was closed.".into()),
                },
                answer = &mut call, if answered.is_none() => {
                    answered = Some((Instant::now(), answer?));
                }
                () = tired => ended = true,
            }
        }
        let (answered, submitted) = answered.expect("the loop ends with an answer");
        let job = self.settled(&submitted.job).await?;
        Ok(Seen { sent, answered, pieces, gaps, job })
    }

    /// Reads a job until it has ended.
    async fn settled(&self, submitted: &Job) -> Result<Job, Failure> {
        loop {
            let job = self.rpc.get_job(submitted.id).await?;
            if job.state.has_ended() {
                if job.error.is_some() || job.output.is_none() {
                    return Err(format!("A job ended as {}: {:?}.", job.state, job.error).into());
                }
                return Ok(job);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Where a delta begins, in bytes of the output.
fn start_of(payload: &Value) -> usize {
    let offset = payload.get("offset").and_then(Value::as_u64).unwrap_or(0);
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Where it ends.
fn end_of(payload: &Value) -> usize {
    let length = payload.get("text").and_then(Value::as_str).map_or(0, str::len);
    start_of(payload).saturating_add(length)
}

fn says_ended(payload: &Value) -> bool {
    let state = payload.get("state").and_then(Value::as_str);
    matches!(state, Some("completed" | "failed" | "cancelled" | "expired"))
}

/// Waits until a channel is joined.
///
/// # Errors
/// It is refused, closed, or not joined in time.
pub(crate) async fn wait_joined(channel: &mut Channel) -> Result<(), Failure> {
    let joined = async {
        loop {
            match channel.recv().await {
                Some(ChannelEvent::Joined) => return Ok(()),
                Some(ChannelEvent::Refused { reason }) => {
                    return Err(format!("A channel was refused: {reason}").into());
                }
                Some(_) => {}
                None => return Err("A channel was closed.".into()),
            }
        }
    };
    tokio::time::timeout(JOIN_LIMIT, joined)
        .await
        .map_err(|_elapsed| "A channel was not joined in time.")?
}

/// Starts `infernet up` and reads its URL and publishable key.
async fn start_control(root: &Path, data: &Path) -> Result<(Child, String, String), Failure> {
    let output = root.join("control.json");
    let mut control = program(root, "operator")
        .args(["up", "--port", "0", "-o", "json", "--data-dir"])
        .arg(data)
        .stdout(File::create(&output)?)
        .stderr(File::create(root.join("control.log"))?)
        .spawn()?;
    let limit = Instant::now() + START_LIMIT;
    loop {
        if let Ok(printed) = serde_json::from_slice::<Value>(&fs::read(&output)?) {
            let of = |name: &str| printed.get(name).and_then(Value::as_str).map(str::to_owned);
            if let (Some(url), Some(key)) = (of("API_URL"), of("PUBLISHABLE_KEY")) {
                return Ok((control, url, key));
            }
            stop(&mut control).await?;
            return Err("The control plane printed neither API_URL nor PUBLISHABLE_KEY.".into());
        }
        if let Some(status) = control.try_wait()? {
            return Err(format!("The control plane ended with {status}.\n{}", log_end(root)).into());
        }
        if Instant::now() > limit {
            stop(&mut control).await?;
            return Err(format!("The control plane did not start.\n{}", log_end(root)).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Makes the people, enrols and starts the node, and waits until it is online.
async fn join_market(
    root: &Path,
    data: &Path,
    url: &str,
    publishable_key: &str,
    models: &[String],
) -> Result<(Child, Consumer, JoinSet<()>, CancellationToken), Failure> {
    let (plane, _info) = ControlPlane::discover(url, PlainHttp::PrivateOnly).await?;
    let person = |keys| Session::new(plane.clone(), keys, LoginKind::User);
    let operator = Rpc::new(person(Keys::load(&data.join("operator.key"))?));

    // The proxy's process finds the consumer's key there.
    let consumer_config = root.join("proxy/config");
    let consumer_keys = Keys::generate();
    consumer_keys.store(&consumer_config.join("owner.key"))?;
    fs::write(
        consumer_config.join("config.toml"),
        format!("[control]\nurl = \"{url}\"\npublishable_key = \"{publishable_key}\"\n"),
    )?;
    let consumer_session = person(consumer_keys);
    let subject = consumer_session.login().await?.subject;
    let public_key = consumer_session.keys().public_hex();
    let credit = "1000".parse()?;
    operator.grant_credit(TransferId::generate(), &public_key, credit, Some("benchmark")).await?;

    // An operator's own node needs no approval.
    let config = root.join("node/config");
    fs::create_dir_all(&config)?;
    let (node_keys, _made) = Keys::load_or_create(&config.join("node.key"))?;
    let enrolment = operator.make_enrolment("provider", Some(900)).await?;
    Session::new(plane.clone(), node_keys, LoginKind::Node)
        .enrol(&Enrolment {
            role: "provider".to_owned(),
            code: enrolment.code,
            name: Some("bench".to_owned()),
        })
        .await?;
    let mut text = format!(
        "[control]\nurl = \"{url}\"\npublishable_key = \"{publishable_key}\"\n\n[node]\nname = \"bench\"\nrole = \"provider\"\n"
    );
    for model in models {
        text.push_str("\n[[model]]\n");
        text.push_str(model);
    }
    fs::write(config.join("config.toml"), text)?;

    let mut node = start_node(root, File::create(root.join("node.log"))?)?;
    if let Err(error) = wait_online(&operator, &mut node, models.len()).await {
        stop(&mut node).await?;
        return Err(error);
    }

    let shutdown = CancellationToken::new();
    let endpoint = RealtimeEndpoint::new(&url::Url::parse(url)?, publishable_key)?;
    let realtime =
        Realtime::spawn(endpoint, consumer_session.newest_token(), shutdown.child_token());
    let mut tasks = JoinSet::new();
    let (session, token) = (consumer_session.clone(), shutdown.child_token());
    tasks.spawn(async move { session.run_refresh(token).await });
    let consumer = Consumer { rpc: Rpc::new(consumer_session), realtime, subject };
    Ok((node, consumer, tasks, shutdown))
}

/// Starts the agent.
fn start_node(root: &Path, log: File) -> std::io::Result<Child> {
    program(root, "node").args(["start", "--foreground"]).stdout(Stdio::null()).stderr(log).spawn()
}

/// Waits until the node's offers can be taken.
async fn wait_online(operator: &Rpc, node: &mut Child, models: usize) -> Result<(), Failure> {
    let limit = Instant::now() + START_LIMIT;
    loop {
        let overview = operator.overview().await?;
        if overview.models.iter().filter(|model| model.online > 0).count() >= models {
            return Ok(());
        }
        if let Some(status) = node.try_wait()? {
            return Err(format!("The node ended with {status}.").into());
        }
        if Instant::now() > limit {
            return Err("The node did not come online.".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The released binary, with the folders of one of the actors and nothing of the
/// caller's own.
fn program(root: &Path, actor: &str) -> Command {
    let mut command = Command::new(released_binary());
    for (name, _value) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("INFERNET_")
            && name != "INFERNET_POSTGRES_BIN"
            && name != "INFERNET_DOCKER_SOCKET"
        {
            command.env_remove(name);
        }
    }
    let folder = root.join(actor);
    command
        .env("INFERNET_CONFIG_DIR", folder.join("config"))
        .env("INFERNET_STATE_DIR", folder.join("state"))
        .env("INFERNET_RUNTIME_DIR", folder.join("run"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The path of `infernet`, which the same build put next to this program.
pub(crate) fn released_binary() -> PathBuf {
    let own = std::env::current_exe().expect("the system names the running program");
    own.parent()
        .and_then(Path::parent)
        .expect("a benchmark lies in the folder examples beside the binary")
        .join("infernet")
}

/// Asks a process to end and waits for it.
async fn stop(child: &mut Child) -> Result<ExitStatus, Failure> {
    if let Some(id) = child.id() {
        kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM)?;
    }
    match tokio::time::timeout(STOP_LIMIT, child.wait()).await {
        Ok(status) => Ok(status?),
        Err(_elapsed) => {
            child.kill().await?;
            Err("A process did not end when asked to.".into())
        }
    }
}

/// The ends of both logs, for a message.
fn log_end(root: &Path) -> String {
    let mut text = String::new();
    for name in ["control.log", "node.log"] {
        let log = fs::read_to_string(root.join(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        text.push_str(&format!("The end of {name}:\n{tail}\n"));
    }
    text
}
