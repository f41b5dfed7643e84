//! `infernet top` and `infernet status` beside a running agent, and without one;
//! `top` also on a terminal, which `script` makes.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::agent_world::{PATIENCE, World, program, run, talk};
use crate::support::fixed_rate::FixedRateEngine;

/// What the terminal runs: it writes down its modes before and after, and the process.
const IN_THE_TERMINAL: &str = r#"
tty > "$AT/tty"
stty cols 80 rows 24
stty -g > "$AT/before"
sh -c 'echo $$ > "$AT/pid"; exec "$PROGRAM" top'
echo $? > "$AT/code"
stty -g > "$AT/after"
"#;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `infernet top` on a terminal of its own.
struct Terminal {
    at: PathBuf,
    child: Child,
    keys: ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    fn open(folder: &Path, name: &str, environment: &[(&str, &str)]) -> Self {
        let at = folder.join(name);
        fs::create_dir_all(&at).unwrap();
        let environment =
            environment.iter().map(|(name, value)| (name.as_ref(), Some(value.as_ref())));
        let template = program(folder);
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", IN_THE_TERMINAL, "/dev/null"]);
        command.env_remove("NO_COLOR");
        for (name, value) in template.get_envs().chain(environment) {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm-256color")
            .env("AT", &at)
            .env("PROGRAM", template.get_program())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let mut stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn({
            let shown = Arc::clone(&shown);
            move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stdout.read(&mut bytes) {
                    shown.lock().unwrap().extend_from_slice(&bytes[..count]);
                }
            }
        });
        let keys = child.stdin.take().unwrap();
        Self { at, child, keys, shown, reader: Some(reader) }
    }

    /// Everything that was written to the terminal so far.
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until a word is written to the terminal, from a place on.
    async fn wait_for(&self, word: &str, from: usize) {
        let limit = Instant::now() + PATIENCE;
        while !self.shown()[from..].contains(word) {
            assert!(Instant::now() < limit, "{word} was never shown: {:?}", self.shown());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn noted(&self, name: &str) -> String {
        fs::read_to_string(self.at.join(name)).unwrap_or_default().trim().to_owned()
    }

    fn resize(&self, columns: u16, rows: u16) {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let status = Command::new("stty")
            .args(["-F", &self.noted("tty"), "cols", &columns, "rows", &rows])
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn press(&mut self, key: &str) {
        self.keys.write_all(key.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits for its end; the terminal must be what it was.
    async fn ended(mut self) {
        let limit = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < limit, "it did not end: {:?}", self.shown());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.reader.take().unwrap().join().unwrap();
        let shown = self.shown();
        assert_eq!(self.noted("code"), "0", "{shown:?}");
        assert!(!self.noted("before").is_empty());
        assert_eq!(self.noted("before"), self.noted("after"));
        let left = shown.rfind("\u{1b}[?1049l").expect("it leaves the screen");
        assert!(shown.find("\u{1b}[?1049h").unwrap() < left, "{shown:?}");
        assert!(shown[left..].contains("\u{1b}[?25h"), "the cursor is back: {shown:?}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its end takes the terminal away, and with it what runs there.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_a_node_at_work_and_status_what_it_earned() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(Duration::from_millis(20)).await;
    let node = world.enrol("attic", &engine, 1).await;
    let consumer = world.consumer().await;
    let mut agent = node.start().await;

    let first = consumer.submit(3).await;
    consumer.ended(first.id).await;
    let long = consumer.submit(1000).await;
    consumer.wait_for(long.id, "running", |job| job.started_at.is_some()).await;
    let limit = Instant::now() + PATIENCE;
    let seen = loop {
        let seen = run(&node.folder, &["top", "-1", "--json"]).await;
        assert_eq!(seen.status.code(), Some(0), "{}", talk(&seen));
        let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
        if seen["agent"]["attempts"][0]["tokens_per_second"].is_number() {
            break seen;
        }
        assert!(Instant::now() < limit, "no speed was ever told: {seen}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(seen["agent"]["attempts"][0]["job"], long.id.to_string(), "{seen}");
    assert_eq!(seen["agent"]["counters"]["completed"], 1, "{seen}");
    assert_ne!(seen["node"]["earnings"]["today"], "0.000000000000", "{seen}");
    assert!(seen["owner"].is_null(), "there is no key of an owner: {seen}");

    let once = run(&node.folder, &["top", "-1"]).await;
    let text = said(&once);
    assert!(text.starts_with("Node\tattic (provider)\nAgent\trunning\n"), "{text}");
    assert!(text.contains(&format!("{}\tfixed\twrites\t", long.id)), "{text}");
    assert!(text.contains("fixed\texternal\t"), "{text}");
    assert!(text.contains("Not paid out\tnot told here\n"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    // A pipe is no terminal: it prints once.
    assert_eq!(run(&node.folder, &["top"]).await.status.code(), Some(0));
    let status = said(&run(&node.folder, &["status"]).await);
    assert!(status.contains("Not paid out\ttold where the owner's key is"), "{status}");

    // The key of somebody else tells nothing of the owner.
    let owner_key = node.folder.join("config/owner.key");
    infernet::identity::Keys::load_or_create(&owner_key).unwrap();
    let status = run(&node.folder, &["status", "--json"]).await;
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert!(status["owner"].is_null(), "{status}");

    // The owner's key makes the owner's part known.
    fs::copy(world.control_folder().join("operator.key"), &owner_key).unwrap();
    let status = run(&node.folder, &["status", "--json"]).await;
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["owner"]["pending"], status["node"]["earnings"]["total"], "{status}");
    let text = said(&run(&node.folder, &["status"]).await);
    for fact in ["Earned today\t$0.", "In 30 days\t$0.", "Not paid out\t$0."] {
        assert!(text.contains(fact), "{text}");
    }
    let text = said(&run(&node.folder, &["top", "-1"]).await);
    assert!(text.contains("Not paid out\t$0."), "{text}");

    consumer.rpc.cancel_job(long.id).await.unwrap();
    assert!(agent.stop().await.success());
    let status = run(&node.folder, &["status"]).await;
    assert!(said(&status).starts_with("Agent\tnot running\n"), "{}", said(&status));
}

#[tokio::test(flavor = "multi_thread")]
async fn top_fills_a_terminal_follows_its_size_and_gives_it_back() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(Duration::from_millis(20)).await;
    let node = world.enrol("attic", &engine, 1).await;
    let mut agent = node.start().await;

    let mut terminal = Terminal::open(&node.folder, "by-key", &[]);
    terminal.wait_for("attic", 0).await;
    terminal.wait_for("Earned", 0).await;
    assert!(terminal.shown().contains("[38;5;"), "{:?}", terminal.shown());
    let before = terminal.shown().len();
    terminal.resize(60, 16);
    terminal.wait_for("slots", before).await;
    terminal.press("q");
    terminal.ended().await;

    let terminal = Terminal::open(&node.folder, "by-signal", &[("NO_COLOR", "1")]);
    terminal.wait_for("attic", 0).await;
    terminal.wait_for("ends", 0).await;
    assert!(!terminal.shown().contains("[38;5;"), "{:?}", terminal.shown());
    kill(Pid::from_raw(terminal.noted("pid").parse().unwrap()), Signal::SIGTERM).unwrap();
    terminal.ended().await;

    // It stays when the agent goes.
    let mut terminal = Terminal::open(&node.folder, "by-control-c", &[]);
    terminal.wait_for("attic", 0).await;
    let before = terminal.shown().len();
    assert!(agent.stop().await.success());
    terminal.wait_for("answer", before).await;
    terminal.press("\u{3}");
    terminal.ended().await;

    let gone = run(&node.folder, &["top", "-1"]).await;
    assert_eq!(gone.status.code(), Some(1));
    assert!(talk(&gone).contains("No agent is running on this machine."), "{}", talk(&gone));
    assert!(talk(&gone).contains("infernet start"), "{}", talk(&gone));
    let gone = run(&node.folder, &["top", "-1", "--json"]).await;
    assert_eq!((gone.status.code(), said(&gone)), (Some(1), String::new()));
    let wrong = run(&node.folder, &["top", "--every", "soon"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{}", talk(&wrong));
}
