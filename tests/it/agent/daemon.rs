//! The agent as a daemon: its admin socket and the commands that use it, its log,
//! its watchdog, a full disk under its journal, and engines that flood it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use infernet::agent::admin::{self, EnginePhase, Snapshot, Stage};
use infernet::agent::process::{self, ProcessFiles};
use infernet::agent::status::Phase;
use infernet::control::rpc::JobState;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::agent_gate::Gate;
use crate::support::agent_world::{AgentNode, PATIENCE, World, program, run, talk};
use crate::support::fixed_rate::FixedRateEngine;

const PAUSE: Duration = Duration::from_millis(20);

fn files(node: &AgentNode) -> ProcessFiles {
    ProcessFiles::new(node.folder.join("run"), node.folder.join("state"))
}

/// Ends the agent in the background with the test, also with one that fails: it would
/// live on, and hold whatever it inherited.
struct Background(PathBuf);

impl Drop for Background {
    fn drop(&mut self) {
        let files = ProcessFiles::new(self.0.join("run"), self.0.join("state"));
        if let Ok(Some(pid)) = process::running(&files) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Waits until the running agent's snapshot is as wanted.
pub(crate) async fn wait_for(
    node: &AgentNode,
    what: &str,
    holds: impl Fn(&Snapshot) -> bool,
) -> Snapshot {
    let limit = Instant::now() + PATIENCE;
    loop {
        let seen = admin::snapshot(&files(node), 0).await;
        if let Ok(snapshot) = &seen
            && holds(snapshot)
        {
            return snapshot.clone();
        }
        assert!(Instant::now() < limit, "the agent never was {what}: {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a command that must work; returns what it printed.
async fn works(node: &AgentNode, arguments: &[&str]) -> String {
    let output = run(&node.folder, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", talk(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_looks_in_drains_resumes_and_restarts() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 2).await;
    let _background = Background(node.folder.clone());

    // Without an agent, each command says so.
    for command in [&["drain"][..], &["resume"], &["logs", "--set", "info"]] {
        let output = run(&node.folder, command).await;
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let said = talk(&output);
        assert!(said.contains("No agent is running on this machine."), "{said}");
        assert!(said.contains("infernet start"), "{said}");
    }
    let output = run(&node.folder, &["logs"]).await;
    assert!(talk(&output).contains("There is no log"), "{}", talk(&output));

    // A log that is almost full is moved aside by the first lines.
    let log = node.folder.join("state/agent.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::write(&log, format!("{}\n", "x".repeat(5 * 1024 * 1024 - 2))).unwrap();
    works(&node, &["restart"]).await;
    let aside = node.folder.join("state/agent.log.1");
    assert_eq!(fs::metadata(&aside).unwrap().len(), 5 * 1024 * 1024 - 1);
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);

    let socket = fs::metadata(node.folder.join("run/agent.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let consumer = world.consumer().await;
    let mut running = consumer.submit(150).await;
    running.hear(None, |heard| heard.deltas > 3).await;
    let snapshot = wait_for(&node, "at work", |seen| !seen.attempts.is_empty()).await;
    let attempt = &snapshot.attempts[0];
    assert_eq!((attempt.job, attempt.stage), (running.id, Stage::Generating));
    assert_eq!(attempt.model.as_deref(), Some(snapshot.engines[0].model.as_str()));
    assert!(attempt.tokens > 3 && attempt.output_bytes > attempt.tokens, "{attempt:?}");
    let speed = attempt.tokens_per_second.unwrap();
    assert!((5.0..=60.0).contains(&speed), "{attempt:?}");
    assert_eq!((snapshot.slots, snapshot.engines[0].running), (2, 1));
    assert_eq!(snapshot.engines[0].phase, EnginePhase::Ready);
    assert!(snapshot.resident_bytes.unwrap() > 1 << 20);

    // Drained, it finishes what it has and takes nothing more.
    let drained: Value = serde_json::from_str(&works(&node, &["drain", "--json"]).await).unwrap();
    assert_eq!(drained, serde_json::json!({"draining": true, "running": 1}));
    node.wait_for_own("drained", |own| own.phase == Phase::Stopped).await;
    let waiting = consumer.submit(5).await;
    works(&node, &["drain", "--wait", "30"]).await;
    assert_eq!(consumer.ended(running.id).await.state, JobState::Completed);
    let snapshot = wait_for(&node, "counting", |seen| seen.counters.completed == 1).await;
    assert!(snapshot.draining && snapshot.attempts.is_empty(), "{snapshot:?}");
    assert_eq!(snapshot.counters.output_tokens, 150);
    assert!(!snapshot.counters.earned.is_zero());
    assert_eq!(consumer.rpc.get_job(waiting.id).await.unwrap().attempts, 0);
    works(&node, &["resume"]).await;
    assert_eq!(consumer.ended(waiting.id).await.state, JobState::Completed);
    let standing = admin::standing(&files(&node)).await.unwrap();
    assert!(!standing.earnings.total.is_zero());

    // The log: its end, its filter, and what is no filter.
    assert!(works(&node, &["logs", "-n", "500"]).await.contains("resumed by the owner"));
    works(&node, &["logs", "--set", "infernet=warn"]).await;
    assert_eq!(admin::snapshot(&files(&node), 0).await.unwrap().log_filter, "infernet=warn");
    let output = run(&node.folder, &["logs", "--set", "a=b=c"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(talk(&output).contains("is no filter"), "{}", talk(&output));

    let before = snapshot.status.pid;
    works(&node, &["restart"]).await;
    let after = wait_for(&node, "back", |_seen| true).await;
    assert_ne!(after.status.pid, before);
    assert!(!after.draining);
    works(&node, &["stop"]).await;
    assert!(!node.folder.join("run/agent.sock").exists());
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_hears_that_the_agent_is_ready_lives_and_ends() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let path = node.folder.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let hear = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    };
    let mut agent = program(&node.folder)
        .args(["start", "--foreground"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000")
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(agent.id()).unwrap());
    let mut heard = vec![hear().unwrap(), hear().unwrap(), hear().unwrap()];
    heard.sort();
    assert!(heard[0].starts_with("READY=1\n"), "{heard:?}");
    assert!(heard[1].starts_with("WATCHDOG=1\n") && heard[2].starts_with("WATCHDOG=1\n"));

    // An agent that hangs is silent, and its manager would restart it.
    kill(pid, Signal::SIGSTOP).unwrap();
    manager.set_nonblocking(true).unwrap();
    while hear().is_some() {}
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(hear(), None, "a stopped process says nothing");
    kill(pid, Signal::SIGCONT).unwrap();
    manager.set_nonblocking(false).unwrap();
    assert!(hear().unwrap().starts_with("WATCHDOG=1\n"));

    // What it logs in the foreground is kept for `infernet logs`.
    assert!(works(&node, &["logs"]).await.contains("Realtime"));
    kill(pid, Signal::SIGTERM).unwrap();
    let ended = std::iter::from_fn(hear).find(|message| message.starts_with("STOPPING=1\n"));
    assert!(ended.is_some());
    assert!(agent.wait().unwrap().success());
}

/// A disk of its own, as small as they come.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"])
            .arg(path)
            .status()
            .unwrap();
        assert!(mounted.success(), "this test has to be run by root");
        Self(path.to_owned())
    }

    /// Writes until nothing fits any more.
    fn fill(&self) -> PathBuf {
        let ballast = self.0.join("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        while std::io::Write::write(&mut file, &[0; 4096]).is_ok_and(|written| written > 0) {}
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_journal_loses_nothing_and_doubles_nothing() {
    let world = World::start_behind(Gate::Open).await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let disk = SmallDisk::mount(&node.folder.join("state"));
    let ballast = disk.fill();
    let mut agent = node.start().await;
    let consumer = world.consumer().await;
    let gate = world.gate.as_ref().unwrap();

    // An answer that cannot be handed in and not be written down waits in memory.
    let running = consumer.submit(50).await;
    engine.wait_until_begun(1).await;
    gate.set(Gate::Shut);
    engine.wait_until_ended(1).await;
    node.wait_for_own("in trouble", |own| own.journal_trouble.is_some()).await;
    let written = || fs::read_dir(disk.0.join("attempts")).unwrap().count();
    assert_eq!(written(), 0, "nothing half-written stays");
    gate.set(Gate::Open);
    let job = consumer.ended(running.id).await;
    assert_eq!(job.output, Some(FixedRateEngine::answer(50)));
    assert_eq!(job.attempts, 1, "it did not have to run again");

    // What a killed agent could not write down is assigned again.
    let mut running = consumer.submit(60).await;
    running.hear(None, |heard| heard.deltas > 2).await;
    agent.kill_9();
    let mut agent = node.start().await;
    let job = consumer.ended(running.id).await;
    assert_eq!(job.output, Some(FixedRateEngine::answer(60)));
    assert_eq!(job.usage.unwrap().output_tokens, 60, "captured once");

    // With room, the trouble is over.
    fs::remove_file(&ballast).unwrap();
    let job = consumer.submit(5).await.id;
    assert_eq!(consumer.ended(job).await.state, JobState::Completed);
    node.wait_for_own("out of trouble", |own| own.journal_trouble.is_none()).await;
    assert!(agent.stop().await.success());
    assert_eq!(written(), 0);
    world.prove_ledger().await;
}

/// How much an engine of the flood would write.
const FLOOD: u64 = 1 << 30;

/// How much the agent's memory may grow by a flood.
const GROWTH: u64 = 32 << 20;

/// An engine that writes a gigabyte, in words or as one word without an end.
struct FloodEngine {
    url: String,
    sent: Arc<AtomicU64>,
    server: JoinHandle<()>,
}

impl Drop for FloodEngine {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FloodEngine {
    async fn start(endless_line: bool) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let router = Router::new()
            .route("/v1/models", get(|| async { r#"{"object":"list","data":[]}"# }))
            .route("/v1/chat/completions", post(flood))
            .with_state((endless_line, Arc::clone(&sent)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, sent, server }
    }
}

async fn flood(State((endless_line, sent)): State<(bool, Arc<AtomicU64>)>) -> Response {
    let word = "x".repeat(64 * 1024);
    let begin = r#"data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":""#;
    let end = r#""},"finish_reason":null}]}"#;
    let chunk = if endless_line { word } else { format!("{begin}{word}{end}\n\n") };
    let first = if endless_line { Bytes::from(begin) } else { Bytes::new() };
    let chunk = Bytes::from(chunk);
    let parts = stream::unfold(0_u64, move |part| {
        let bytes = if part == 0 { first.clone() } else { chunk.clone() };
        let total = sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let next = (total < FLOOD).then(|| (Ok::<_, std::io::Error>(bytes), part + 1));
        std::future::ready(next)
    });
    ([("content-type", "text/event-stream")], Body::from_stream(parts)).into_response()
}

/// Reads a size of a process, in bytes.
fn memory(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_floods_the_agent_does_not_fill_its_memory() {
    let world = World::start().await;
    let (words, line) = (FloodEngine::start(false).await, FloodEngine::start(true).await);
    let model = |name: &str, engine: &FloodEngine| {
        format!(
            "[[model]]\nname = \"{name}\"\nengine = \"external\"\nendpoint = \"{}\"\nslots = 1\n\
             price_input = \"1\"\nprice_output = \"100\"\n\n",
            engine.url
        )
    };
    let models = format!("{}{}", model("words", &words), model("line", &line));
    let node = world.enrol_with("attic", &models).await;
    let mut agent = node.start().await;
    let consumer = world.consumer().await;
    let before = memory(agent.id(), "VmHWM");

    let job = consumer.submit_model("words", 1000).await.id;
    let job = consumer.ended(job).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.error);
    let length = job.output.unwrap().len();
    assert!((900_000..=1 << 20).contains(&length), "cut at the limit, at {length} bytes");
    let job = consumer.submit_model("line", 1000).await.id;
    let job = consumer.ended(job).await;
    assert_eq!(job.state, JobState::Failed, "one word without an end is no answer");

    let grown = memory(agent.id(), "VmHWM").saturating_sub(before);
    assert!(grown < GROWTH, "the agent grew by {} MiB", grown >> 20);
    for engine in [&words, &line] {
        let sent = engine.sent.load(Ordering::Relaxed);
        assert!(sent < FLOOD, "the agent read all of it");
    }
    assert!(agent.stop().await.success());
    world.prove_ledger().await;
}
