//! The world of the agent's end-to-end tests: a control plane, nodes and a
//! consumer, as real processes of the built binary in directories of their own.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use infernet::agent::admin;
use infernet::agent::process::ProcessFiles;
use infernet::control::realtime::{Channel, ChannelEvent, JoinOptions, Realtime, RealtimeEndpoint};
use infernet::control::rpc::{Job, NodeStatus, Rpc, SubmitJob};
use infernet::control::session::{Enrolment, LoginKind, Session};
use infernet::control::{ControlPlane, PlainHttp, install_tls_provider};
use infernet::id::{AttemptId, JobId, NodeId, TransferId};
use infernet::identity::Keys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::agent_gate::{ControlGate, Gate};
use super::control_plane::copy_template;
use super::fixed_rate::FixedRateEngine;

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A process that dies with the test.
pub(crate) struct Process {
    child: std::process::Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    /// Kills it without a chance to tidy up.
    pub(crate) fn kill_9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Says whether it has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let limit = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < limit, "the process did not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks it to end and waits.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        if let Some(status) = self.child.try_wait().unwrap() {
            return status;
        }
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // A control plane that is killed leaves its PostgreSQL; one that is
            // asked does not. A test that fails must not leave either.
            self.signal(Signal::SIGTERM);
            let limit = Instant::now() + Duration::from_secs(20);
            while Instant::now() < limit && self.child.try_wait().is_ok_and(|e| e.is_none()) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// The built binary with the folders of one actor.
pub(crate) fn program(folder: &Path) -> Command {
    program_in(None, folder)
}

/// The same in a network namespace of this machine.
fn program_in(namespace: Option<&str>, folder: &Path) -> Command {
    let binary = env!("CARGO_BIN_EXE_infernet");
    let mut command = match namespace {
        // It becomes the program, under the same process id.
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, binary]);
            command
        }
        None => Command::new(binary),
    };
    for (name, _value) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("INFERNET_") && name != "INFERNET_POSTGRES_BIN" {
            command.env_remove(name);
        }
    }
    command
        .env("INFERNET_CONFIG_DIR", folder.join("config"))
        .env("INFERNET_STATE_DIR", folder.join("state"))
        .env("INFERNET_RUNTIME_DIR", folder.join("run"))
        .env("INFERNET_LOG", "infernet=debug,info")
        .stdin(Stdio::null());
    command
}

/// Runs a command of an actor to its end.
pub(crate) async fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = program(folder);
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What a command said on standard error.
pub(crate) fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A control plane with its operator, and what tests need of it.
pub(crate) struct World {
    pub(crate) control: Process,
    pub(crate) plane: ControlPlane,
    pub(crate) operator: Rpc,
    pub(crate) gate: Option<ControlGate>,
    url: String,
    port: u16,
    publishable_key: String,
    /// Where its database is reached as the owner of the schema, password included.
    pub(crate) database_url: String,
    root: TempDir,
}

impl World {
    /// Starts a control plane.
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts a control plane whose nodes reach it through a gate only.
    pub(crate) async fn start_behind(gate: Gate) -> Self {
        Self::start_with(Some((gate, Ipv4Addr::LOCALHOST.into()))).await
    }

    /// The same with a gate at another address of this machine.
    pub(crate) async fn start_behind_at(gate: Gate, ip: IpAddr) -> Self {
        Self::start_with(Some((gate, ip))).await
    }

    async fn start_with(gate: Option<(Gate, IpAddr)>) -> Self {
        install_tls_provider();
        let root = tempfile::Builder::new().prefix("infernet-it.").tempdir().unwrap();
        // PostgreSQL runs as another user when we are root.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        copy_template(&root.path().join("control")).await;
        let (gate, upstream) = match gate {
            Some((mode, ip)) => {
                let (gate, upstream) = ControlGate::bind(mode, ip).await;
                (Some(gate), Some(upstream))
            }
            None => (None, None),
        };
        let public = gate.as_ref().map(ControlGate::url);
        let (control, printed) = start_control(root.path(), 0, public.as_deref()).await;
        let field = |name: &str| printed[name].as_str().unwrap().to_owned();
        let (url, publishable_key) = (field("API_URL"), field("PUBLISHABLE_KEY"));
        let database_url = field("DB_URL");
        let port = url::Url::parse(&url).unwrap().port().unwrap();
        if let Some(upstream) = upstream {
            upstream.send(([127, 0, 0, 1], port).into()).unwrap();
        }
        let (plane, _info) = ControlPlane::discover(&url, PlainHttp::PrivateOnly).await.unwrap();
        let keys = Keys::load(&root.path().join("control/operator.key")).unwrap();
        let operator = Rpc::new(Session::new(plane.clone(), keys, LoginKind::User));
        Self { control, plane, operator, gate, url, port, publishable_key, database_url, root }
    }

    /// Starts the control plane again, at the same place, on the same data.
    pub(crate) async fn restart_control(&mut self) {
        let public = self.gate.as_ref().map(ControlGate::url);
        let (control, _printed) =
            start_control(self.root.path(), self.port, public.as_deref()).await;
        self.control = control;
    }

    /// Changes a setting of the market.
    pub(crate) async fn set(&self, key: &str, value: Value) {
        self.operator.set_setting(key, &value).await.unwrap();
    }

    /// Returns the folder of the control plane's data.
    pub(crate) fn control_folder(&self) -> PathBuf {
        self.root.path().join("control")
    }

    /// Returns the URL that nodes use.
    pub(crate) fn node_url(&self) -> String {
        self.gate.as_ref().map_or_else(|| self.url.clone(), ControlGate::url)
    }

    /// Makes the directory, the key and the configuration of a node, enrolled
    /// and approved, that serves one model by an engine.
    pub(crate) async fn enrol(
        &self,
        name: &str,
        engine: &FixedRateEngine,
        slots: u32,
    ) -> AgentNode {
        let model = format!(
            "[[model]]\nname = \"fixed\"\nengine = \"external\"\nendpoint = \"{}\"\n\
             slots = {slots}\nprice_input = \"1\"\nprice_output = \"100\"\n",
            engine.url()
        );
        self.enrol_with(name, &model).await
    }

    /// The same with other models, as the configuration's text.
    pub(crate) async fn enrol_with(&self, name: &str, models: &str) -> AgentNode {
        let folder = self.root.path().join(name);
        let config = folder.join("config");
        fs::create_dir_all(&config).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o700)).unwrap();
        let (keys, _made) = Keys::load_or_create(&config.join("node.key")).unwrap();
        let enrolment = self.operator.make_enrolment("provider", Some(900)).await.unwrap();
        let session = Session::new(self.plane.clone(), keys, LoginKind::Node);
        let signed_in = session
            .enrol(&Enrolment {
                role: "provider".to_owned(),
                code: enrolment.code,
                name: Some(name.to_owned()),
            })
            .await
            .unwrap();
        let id = NodeId::from_uuid(signed_in.subject);
        self.operator.set_node_approval(id, "approved").await.unwrap();
        let text = format!(
            "[control]\nurl = \"{}\"\npublishable_key = \"{}\"\n\n[node]\nname = \"{name}\"\n\n{models}",
            self.node_url(),
            self.publishable_key
        );
        fs::write(config.join("config.toml"), text).unwrap();
        AgentNode { folder, id, rpc: Rpc::new(session) }
    }

    /// Makes a consumer with credit.
    pub(crate) async fn consumer(&self) -> Consumer {
        let session = Session::new(self.plane.clone(), Keys::generate(), LoginKind::User);
        let subject = session.login().await.unwrap().subject;
        let key = session.keys().public_hex();
        let amount = "100".parse().unwrap();
        self.operator
            .grant_credit(TransferId::generate(), &key, amount, Some("test"))
            .await
            .unwrap();
        let shutdown = CancellationToken::new();
        let base = url::Url::parse(&self.url).unwrap();
        let endpoint = RealtimeEndpoint::new(&base, &self.publishable_key).unwrap();
        let realtime = Realtime::spawn(endpoint, session.newest_token(), shutdown.child_token());
        Consumer { rpc: Rpc::new(session), realtime, subject, _shutdown: shutdown.drop_guard() }
    }

    /// Says that the books are in order: nothing created, nothing lost.
    pub(crate) async fn prove_ledger(&self) {
        let proof = self.operator.prove_ledger().await.unwrap();
        assert!(proof.ok, "{proof:?}");
    }
}

async fn start_control(root: &Path, port: u16, public: Option<&str>) -> (Process, Value) {
    let output = root.join("control.json");
    let log = root.join("control.log");
    let mut command = program(&root.join("operator"));
    command.args(["up", "-o", "json", "--port", &port.to_string(), "--data-dir"]);
    command.arg(root.join("control"));
    if let Some(public) = public {
        command.args(["--public-url", public]);
    }
    let child = command
        .stdout(File::create(&output).unwrap())
        .stderr(File::options().append(true).create(true).open(&log).unwrap())
        .spawn()
        .unwrap();
    let mut control = Process { child, log };
    let limit = Instant::now() + 2 * PATIENCE;
    loop {
        if let Ok(printed) = serde_json::from_slice::<Value>(&fs::read(&output).unwrap()) {
            return (control, printed);
        }
        let ended = control.child.try_wait().unwrap();
        assert!(ended.is_none(), "the control plane ended with {ended:?}:\n{}", control.log());
        assert!(Instant::now() < limit, "the control plane is not up:\n{}", control.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A node of this machine: its folder, its key, and maybe its running agent.
pub(crate) struct AgentNode {
    pub(crate) folder: PathBuf,
    pub(crate) id: NodeId,
    pub(crate) rpc: Rpc,
}

impl AgentNode {
    /// Starts the agent in the foreground, as a child of the test.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Process {
        self.spawn_in(None, arguments)
    }

    /// The same in a network namespace of this machine.
    pub(crate) fn spawn_in(&self, namespace: Option<&str>, arguments: &[&str]) -> Process {
        let log = self.folder.join("agent.log");
        let child = program_in(namespace, &self.folder)
            .args(["start", "--foreground"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(File::options().append(true).create(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        Process { child, log }
    }

    /// Starts the agent and waits until it takes work, and answers on its admin socket.
    pub(crate) async fn start(&self) -> Process {
        self.start_with(&[]).await
    }

    /// The same with more arguments.
    pub(crate) async fn start_with(&self, arguments: &[&str]) -> Process {
        let mut agent = self.spawn(arguments);
        let limit = Instant::now() + PATIENCE;
        while self.status().await.node.status != "online" || !self.answers().await {
            let ended = agent.child.try_wait().unwrap();
            assert!(ended.is_none(), "the agent ended with {ended:?}:\n{}", agent.log());
            assert!(Instant::now() < limit, "the node is not online:\n{}", agent.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        agent
    }

    /// Says whether the agent can be asked on its admin socket, which it opens when the
    /// control plane knows it already.
    async fn answers(&self) -> bool {
        let files = ProcessFiles::new(self.folder.join("run"), self.folder.join("state"));
        admin::snapshot(&files, 0).await.is_ok()
    }

    pub(crate) async fn status(&self) -> NodeStatus {
        self.rpc.node_status().await.unwrap()
    }

    /// What the running agent says of itself.
    pub(crate) fn own_status(&self) -> Option<infernet::agent::status::AgentStatus> {
        infernet::agent::status::read(&self.folder.join("run/agent.json"))
    }

    /// Waits until the agent says something of itself.
    pub(crate) async fn wait_for_own(
        &self,
        what: &str,
        holds: impl Fn(&infernet::agent::status::AgentStatus) -> bool,
    ) {
        let limit = Instant::now() + PATIENCE;
        while !self.own_status().is_some_and(|status| holds(&status)) {
            assert!(Instant::now() < limit, "the agent never was {what}: {:?}", self.own_status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A consumer and its messages.
pub(crate) struct Consumer {
    pub(crate) rpc: Rpc,
    pub(crate) realtime: Realtime,
    pub(crate) subject: uuid::Uuid,
    _shutdown: tokio_util::sync::DropGuard,
}

/// A submitted job and its stream.
pub(crate) struct Running {
    pub(crate) id: JobId,
    channel: Channel,
}

/// What arrived of one attempt's stream.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) text: String,
    pub(crate) deltas: usize,
    pub(crate) ended: Option<(u64, String)>,
}

impl Consumer {
    /// Joins the stream of a new job and submits it.
    pub(crate) async fn submit(&self, tokens: u32) -> Running {
        self.submit_model("fixed", tokens).await
    }

    pub(crate) async fn submit_model(&self, model: &str, tokens: u32) -> Running {
        let prompt = format!("Say something, {}.", uuid::Uuid::new_v4());
        let mut job = SubmitJob::chat(
            model,
            json!({"messages": [{"role": "user", "content": prompt}], "temperature": 0}),
        );
        job.max_tokens = Some(tokens);
        // A price of one's own lets a job wait for an offer.
        job.terms.max_cost = Some("1".parse().unwrap());
        let topic = format!("job:{}:{}", self.subject, job.id);
        let mut channel = self.realtime.join(&topic, JoinOptions::default());
        let joined = tokio::time::timeout(PATIENCE, channel.recv()).await.unwrap();
        assert_eq!(joined, Some(ChannelEvent::Joined));
        self.rpc.submit_job(&job).await.unwrap();
        Running { id: job.id, channel }
    }

    /// Waits until a job has ended.
    pub(crate) async fn ended(&self, job: JobId) -> Job {
        self.wait_for(job, "ended", |job| job.state.has_ended()).await
    }

    /// Waits until something holds of a job.
    pub(crate) async fn wait_for(
        &self,
        job: JobId,
        what: &str,
        holds: impl Fn(&Job) -> bool,
    ) -> Job {
        let limit = Instant::now() + PATIENCE;
        loop {
            // The control plane may be away meanwhile; that is what some tests
            // are about.
            let seen = self.rpc.get_job(job).await;
            if let Ok(job) = &seen
                && holds(job)
            {
                return job.clone();
            }
            assert!(Instant::now() < limit, "the job was never {what}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Running {
    /// Reads the stream of one attempt for as long as it takes until `done`.
    pub(crate) async fn hear(
        &mut self,
        attempt: Option<AttemptId>,
        done: impl Fn(&Heard) -> bool,
    ) -> Heard {
        let mut heard = Heard::default();
        let mut current = attempt;
        let listen = async {
            while !done(&heard) {
                let event = self.channel.recv().await.expect("the channel stays");
                let ChannelEvent::Broadcast { event, payload, .. } = event else { continue };
                if event == "state" {
                    continue;
                }
                let from: AttemptId = payload["attempt"].as_str().unwrap().parse().unwrap();
                if *current.get_or_insert(from) != from {
                    continue;
                }
                match event.as_str() {
                    "delta" => {
                        let offset = payload["offset"].as_u64().unwrap() as usize;
                        assert_eq!(offset, heard.text.len(), "nothing is lost or doubled");
                        heard.text.push_str(payload["text"].as_str().unwrap());
                        heard.deltas += 1;
                    }
                    "end" => {
                        let length = payload["length"].as_u64().unwrap();
                        let finish = payload["finish"].as_str().unwrap().to_owned();
                        heard.ended = Some((length, finish));
                    }
                    other => panic!("an unknown event {other}"),
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, listen).await;
        assert!(in_time.is_ok(), "the stream stopped: {heard:?}");
        heard
    }

    /// Asks the node to say again what follows an offset.
    pub(crate) fn ask_again(&self, attempt: AttemptId, from: usize) {
        self.channel.send("resend", &json!({"attempt": attempt, "from": from})).unwrap();
    }

    /// Hears whatever comes next.
    pub(crate) async fn next(&mut self) -> (String, Value) {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.channel.recv()).await.unwrap();
            if let Some(ChannelEvent::Broadcast { event, payload, .. }) = event {
                return (event, payload);
            }
        }
    }
}
