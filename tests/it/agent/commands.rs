//! A node that its owner stops, resumes and commands, with a running agent; and what
//! `infernet node` and `infernet doctor` say about it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use infernet::agent::status::Phase;
use infernet::control::rpc::{CommandArgs, CommandKind, JobState, NodeCommand, Rpc};
use infernet::control::session::{LoginKind, Session};
use infernet::identity::Keys;
use serde_json::Value;

use crate::support::agent_world::{AgentNode, PATIENCE, World, run, talk};
use crate::support::fixed_rate::FixedRateEngine;

/// The engine's pause between two tokens.
const PAUSE: Duration = Duration::from_millis(5);

/// Gives a node a command, and waits until it has ended.
pub(crate) async fn command(
    world: &World,
    node: &AgentNode,
    kind: CommandKind,
    model: Option<&str>,
) -> NodeCommand {
    let args = CommandArgs { model: model.map(str::to_owned), ..CommandArgs::default() };
    let given = world.operator.command_node(node.id, kind, &args, Some(60)).await.unwrap();
    let limit = std::time::Instant::now() + PATIENCE;
    loop {
        let details = world.operator.get_node(&node.id.to_string()).await.unwrap();
        let found = details.commands.into_iter().find(|found| found.id == given.command.id);
        let found = found.unwrap();
        if found.ended_at.is_some() {
            return found;
        }
        assert!(std::time::Instant::now() < limit, "the command never ended: {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_finishes_and_gets_work_again_when_it_is_resumed() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    world.set("heartbeat_secs", 1.into()).await;
    let node = world.enrol("attic", &engine, 1).await;
    let mut agent = node.start().await;
    let consumer = world.consumer().await;
    let running = consumer.submit(100).await;
    consumer.wait_for(running.id, "running", |job| job.state == JobState::Running).await;

    let stopped = world.operator.drain_node(node.id, Some("new disk")).await.unwrap();
    assert_eq!(stopped.stops[0].why, "drained");
    assert_eq!(consumer.ended(running.id).await.state, JobState::Completed);
    node.wait_for_own("stopped", |own| own.phase == Phase::Stopped).await;
    let own = node.own_status().unwrap().message.unwrap();
    assert!(own.contains("new disk") && own.contains("infernet node resume"), "{own}");
    let waiting = consumer.submit(5).await;
    let shown = run(&node.folder, &["status"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("new disk"), "{shown}");
    assert_eq!(consumer.rpc.get_job(waiting.id).await.unwrap().state, JobState::Queued);

    assert_eq!(world.operator.resume_node(node.id).await.unwrap().stops, []);
    assert_eq!(consumer.ended(waiting.id).await.state, JobState::Completed);
    node.wait_for_own("running", |own| own.phase == Phase::Running).await;
    assert!(agent.stop().await.success());
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_does_what_it_is_told_and_says_what_it_cannot() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    world.set("heartbeat_secs", 1.into()).await;
    let node = world.enrol("attic", &engine, 1).await;
    let mut agent = node.start().await;

    let drained = command(&world, &node, CommandKind::Drain, None).await;
    assert_eq!(drained.state, "done", "{drained:?}");
    node.wait_for_own("stopped", |own| own.phase == Phase::Stopped).await;
    let consumer = world.consumer().await;
    let waiting = consumer.submit(5).await;
    assert_eq!(consumer.rpc.get_job(waiting.id).await.unwrap().state, JobState::Queued);
    let resumed = command(&world, &node, CommandKind::Resume, None).await;
    assert_eq!(resumed.state, "done", "{resumed:?}");
    assert_eq!(consumer.ended(waiting.id).await.state, JobState::Completed);

    for (kind, model, reason) in [
        (CommandKind::PullModel, Some("other"), "does not serve the model other"),
        (CommandKind::PullModel, Some("fixed"), "a server of its own"),
        (CommandKind::RemoveModel, Some("fixed"), "infernet model rm"),
        (CommandKind::RestartEngine, Some("fixed"), "leaves alone"),
        (CommandKind::RestartEngine, Some("unheard-of"), "unheard-of"),
        (CommandKind::RestartEngine, None, "None of this node's engines"),
    ] {
        let failed = command(&world, &node, kind, model).await;
        assert_eq!(failed.state, "failed", "{failed:?}");
        assert!(failed.error.as_ref().unwrap().contains(reason), "{failed:?}");
    }
    assert!(agent.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_looks_after_nodes_on_the_command_line() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let owner = world.control_folder().join("operator.key");
    let owner = owner.to_str().unwrap();
    let infernet = async |arguments: &[&str]| {
        let arguments = [&["node", "--key-file", owner], arguments].concat();
        let output = run(&node.folder, &arguments).await;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), talk(&output));
        (output.status.code().unwrap(), said)
    };

    let registered = run(&node.folder, &["register"]).await;
    assert!(registered.status.success(), "{}", talk(&registered));
    let (code, said) = infernet(&["ls"]).await;
    assert!(code == 0 && said.contains("attic") && said.contains("offline"), "{said}");
    let (_code, said) = infernet(&["drain", "attic", "--reason", "new disk"]).await;
    assert!(said.contains("Drained by its operator: new disk."), "{said}");
    let (_code, said) = infernet(&["ls", "--json"]).await;
    let listed: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(listed["stops"][0]["why"], "drained", "{said}");
    let (_code, said) = infernet(&["resume", "attic"]).await;
    assert!(said.contains("Node attic is offline."), "{said}");

    let (code, said) = infernet(&["maintenance", "attic", "--for", "2h", "--note", "fans"]).await;
    assert!(code == 0 && said.contains("In maintenance by an operator until "), "{said}");
    let (_code, said) = infernet(&["maintenance", "attic", "--clear"]).await;
    assert!(!said.contains("maintenance"), "{said}");
    let (code, said) = infernet(&["maintenance", "attic", "--until", "2001-01-01T00:00:00Z"]).await;
    assert!(code == 1 && said.contains("must end after it begins"), "{said}");

    let (code, said) = infernet(&["command", "attic", "pull-model", "other"]).await;
    assert_eq!(code, 0, "{said}");
    let id = said.lines().next().unwrap();
    let (_code, said) = infernet(&["show", "attic"]).await;
    assert!(said.contains("pull_model") && said.contains("pending"), "{said}");
    let (_code, said) = infernet(&["cancel", id]).await;
    assert!(said.contains("is cancelled."), "{said}");
    let (code, said) = infernet(&["drain", "cellar"]).await;
    assert!(code == 1 && said.contains("There is no provider cellar of yours."), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_wrong() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let registered = run(&node.folder, &["register"]).await;
    assert!(registered.status.success(), "{}", talk(&registered));
    let doctor = async |arguments: &[&str]| {
        let output = run(&node.folder, &[&["doctor"], arguments].concat()).await;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), talk(&output));
        (output.status.code().unwrap(), said)
    };

    let (code, said) = doctor(&[]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("The node signs in as attic"), "{said}");

    // An operator needs no node: a URL and a key are enough.
    let empty = tempfile::tempdir().unwrap();
    let key = world.control_folder().join("operator.key");
    let key = key.to_str().unwrap();
    let (url, look) = (world.node_url(), ["doctor", "--key-file", key, "--json", "--url"]);
    let output = run(empty.path(), &[&look[..], &[&url]].concat()).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report}");
    assert_eq!(report["health"]["nodes"]["total"], 1, "{report}");

    // With the operator's key it sees the control plane as well.
    let key = Keys::load(&world.control_folder().join("operator.key")).unwrap();
    key.store(&node.folder.join("config/owner.key")).unwrap();
    let session = Session::new(world.plane.clone(), key, LoginKind::User);
    Rpc::new(session).drain_node(node.id, Some("new disk")).await.unwrap();
    let (code, said) = doctor(&["--json"]).await;
    assert_eq!(code, 0, "{said}");
    let report: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(report["level"], "warning", "{said}");
    assert_eq!(report["health"]["nodes"]["total"], 1, "{said}");
    let (code, said) = doctor(&["--strict"]).await;
    assert!(code == 1 && said.contains("Drained by its operator: new disk."), "{said}");

    // A key that others can read, and a control plane that is away.
    let key = node.folder.join("config/node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, said) = doctor(&[]).await;
    assert!(code == 1 && said.contains("node.key"), "{said}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let (code, said) = doctor(&["--url", "http://127.0.0.1:9"]).await;
    assert!(code == 1 && said.contains("http://127.0.0.1:9"), "{said}");
}
