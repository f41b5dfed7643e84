//! `infernet top` and `infernet status` beside a running agent, and without one.

use std::fs;

use infernet::identity::Keys;
use serde_json::Value;

use super::agent_engine::FixedRateEngine;
use super::agent_world::{World, run, talk};

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_a_node_at_work_and_status_what_it_earned() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(std::time::Duration::from_millis(20)).await;
    let node = world.enrol("attic", &engine, 1).await;
    let consumer = world.consumer().await;
    let mut agent = node.start().await;

    let first = consumer.submit(3).await;
    consumer.ended(first.id).await;
    let long = consumer.submit(1000).await;
    consumer.wait_for(long.id, "running", |job| job.started_at.is_some()).await;
    let limit = std::time::Instant::now() + super::agent_world::PATIENCE;
    let seen = loop {
        let seen = run(&node.folder, &["top", "-1", "--json"]).await;
        assert_eq!(seen.status.code(), Some(0), "{}", talk(&seen));
        let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
        if seen["agent"]["attempts"][0]["tokens_per_second"].is_number() {
            break seen;
        }
        assert!(std::time::Instant::now() < limit, "no speed was ever told: {seen}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
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
    // A pipe is no terminal: it prints once.
    assert_eq!(run(&node.folder, &["top"]).await.status.code(), Some(0));

    // The owner's key makes the owner's part known.
    fs::copy(world.control_folder().join("operator.key"), node.folder.join("config/owner.key"))
        .unwrap();
    Keys::load(&node.folder.join("config/owner.key")).unwrap();
    let status = run(&node.folder, &["status", "--json"]).await;
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["owner"]["pending"], status["node"]["earnings"]["total"], "{status}");
    let text = said(&run(&node.folder, &["status"]).await);
    assert!(text.contains("Not paid out yet\t$0."), "{text}");
    assert!(text.contains("Earned today\t$0."), "{text}");

    consumer.rpc.cancel_job(long.id).await.unwrap();
    assert!(agent.stop().await.success());
    let gone = run(&node.folder, &["top", "-1"]).await;
    assert_eq!(gone.status.code(), Some(1));
    assert!(talk(&gone).contains("No agent is running on this machine."), "{}", talk(&gone));
    assert!(talk(&gone).contains("infernet start"), "{}", talk(&gone));
    let status = run(&node.folder, &["status"]).await;
    assert!(said(&status).starts_with("Agent\tnot running\n"), "{}", said(&status));
}
