//! No secret and no prompt is where it does not belong: not in any command
//! line or environment, not in a log, not in a configuration, not in what a
//! failing command says. Looked for by their real values, while and after a
//! job runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use infernet::control::rpc::SubmitJob;
use infernet::stack::data_dir::DataDir;
use serde_json::{Value, json};

use crate::support::agent_world::{World, run, talk};
use crate::support::fixed_rate::FixedRateEngine;

/// What a text must not hold, each under a name that a failure may print.
struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// Fails when a text holds one of them.
    fn assert_absent(&self, text: &[u8], place: &str) {
        for (name, value) in &self.0 {
            let found = text.windows(value.len()).any(|window| window == value.as_bytes());
            assert!(!found, "{name} stands in {place}");
        }
    }
}

/// Lists the files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

/// Returns the parent of a process, while it lives.
fn parent(process: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// Says whether a process is one of `roots` or was started by one of them.
fn descends_from(process: u32, roots: &[u32]) -> bool {
    std::iter::successors(Some(process), |process| parent(*process)).any(|p| roots.contains(&p))
}

/// Looks at every command line of the machine, and at the environments of what
/// `roots` started. (Only an edge function gets secrets by its environment, as
/// on Supabase, and none is called here.)
fn assert_absent_from_processes(secrets: &Secrets, roots: &[u32]) {
    let mut seen = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(process) = entry.file_name().to_string_lossy().parse() else { continue };
        let own = descends_from(process, roots);
        seen += usize::from(own);
        for part in if own { &["cmdline", "environ"][..] } else { &["cmdline"] } {
            // A process that has just ended has nothing left to read.
            if let Ok(text) = fs::read(entry.path().join(part)) {
                secrets.assert_absent(&text, &format!("{}/{part}", entry.path().display()));
            }
        }
    }
    // The control plane, PostgreSQL and its workers, the agent.
    assert!(seen > 5, "only {seen} processes of our own could be looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_where_it_does_not_belong() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(Duration::from_millis(10)).await;
    let node = world.enrol("attic", &engine, 1).await;
    let data = DataDir::at(world.control_folder());
    let key_of = |path: PathBuf| fs::read_to_string(path).unwrap().trim().to_owned();

    let mut all = Vec::new();
    let kept: Value = serde_json::from_slice(&fs::read(data.secrets()).unwrap()).unwrap();
    for (name, value) in kept.as_object().unwrap() {
        // These two are public: everybody who joins is given them.
        if name != "publishable_key" && name != "anon_key" {
            all.push((name.clone(), value.as_str().unwrap().to_owned()));
        }
    }
    assert!(all.len() >= 6, "the file of secrets holds {} of them", all.len());
    all.push(("the operator's key".to_owned(), key_of(data.operator_key())));
    let node_key = node.folder.join("config/node.key");
    all.push(("the node's key".to_owned(), key_of(node_key.clone())));
    let prompt = format!("marked-prompt-{}", uuid::Uuid::new_v4());
    all.push(("the prompt".to_owned(), prompt.clone()));
    // Every token of ours begins like this: {"alg":
    all.push(("a token".to_owned(), "eyJhbGciOi".to_owned()));
    let secrets = Secrets(all);

    let mut agent = node.start_with(&[]).await;
    let consumer = world.consumer().await;
    let mut job = SubmitJob::chat(
        "fixed",
        json!({"messages": [{"role": "user", "content": prompt}], "temperature": 0}),
    );
    job.max_tokens = Some(60);
    consumer.rpc.submit_job(&job).await.unwrap();
    consumer.wait_for(job.id, "running", |job| job.started_at.is_some()).await;
    let without_tokens =
        Secrets(secrets.0.iter().filter(|(name, _)| name != "a token").cloned().collect());
    assert_absent_from_processes(&without_tokens, &[world.control.id(), agent.id()]);
    consumer.ended(job.id).await;

    // Commands that fail say why, with a node's key where a person's is needed too.
    for arguments in [
        &["status", "--json"][..],
        &["balance"],
        &["run", "unknown-model", "hello"],
        &["-v", "login"],
        &["start"],
    ] {
        let output = run(&node.folder, arguments).await;
        secrets.assert_absent(&output.stdout, &format!("the output of {arguments:?}"));
        secrets.assert_absent(&output.stderr, &talk(&output));
    }
    assert!(agent.stop().await.success());

    // The node's folder: its own key in its own file, and nothing else.
    for path in files(&node.folder) {
        let text = fs::read(&path).unwrap();
        if path == node_key {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let others = secrets.0.iter().filter(|(name, _)| name != "the node's key");
            Secrets(others.cloned().collect()).assert_absent(&text, &path.display().to_string());
        } else {
            secrets.assert_absent(&text, &path.display().to_string());
        }
    }
    // What the control plane wrote outside its database: secrets in their own files, closed to others.
    let own = [data.secrets(), data.operator_key()];
    for path in &own {
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o600,
            "{}",
            path.display()
        );
    }
    for path in [data.postgres_log(), data.log()] {
        secrets.assert_absent(&fs::read(&path).unwrap_or_default(), &path.display().to_string());
    }
    secrets.assert_absent(world.control.log().as_bytes(), "the log of the control plane");
    assert!(!world.control.log().is_empty(), "the control plane logs nothing");
}
