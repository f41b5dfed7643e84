//! Jobs from submission to settlement, through a real control plane, a real
//! agent process and an engine that writes at a fixed rate.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use infernet::agent::status::{Phase, Wakeups};
use infernet::control::rpc::JobState;
use infernet::identity::Keys;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::agent_world::{World, run, talk};
use crate::support::fixed_rate::FixedRateEngine;
use crate::support::running_job::RunningJob;

const PAUSE: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_streams_and_settles() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let mut agent = node.start().await;
    let consumer = world.consumer().await;

    node.wait_for_own("joined", |own| own.wakeups == Wakeups::Realtime).await;
    let mut running = consumer.submit(40).await;
    let heard = running.hear(None, |heard| heard.ended.is_some()).await;
    let answer = FixedRateEngine::answer(40);
    assert_eq!(heard.text, answer);
    assert_eq!(heard.ended, Some((answer.len() as u64, "stop".to_owned())));
    assert!(heard.deltas > 5, "streamed in {} pieces", heard.deltas);

    let job = consumer.ended(running.id).await;
    assert_eq!(job.state, JobState::Completed);
    assert_eq!(job.output.as_deref(), Some(answer.as_str()));
    assert_eq!(job.usage.unwrap().output_tokens, 40);
    assert_eq!(job.attempts, 1);
    assert!(!job.cost.unwrap().is_zero());
    let status = node.status().await;
    assert!(!status.earnings.total.is_zero());
    assert_eq!(status.running, 0);
    assert_eq!(std::fs::read_dir(node.folder.join("state/attempts")).unwrap().count(), 0);
    world.prove_ledger().await;

    assert!(agent.stop().await.success());
    assert_eq!(node.status().await.node.status, "offline");
    assert!(node.own_status().is_none(), "the status file goes with the agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_for_a_slot_and_follow_each_other() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(Duration::from_millis(5)).await;
    let node = world.enrol("attic", &engine, 2).await;
    let _agent = node.start().await;
    let consumer = world.consumer().await;
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(consumer.submit(30).await.id);
    }
    for job in jobs {
        let job = consumer.ended(job).await;
        assert_eq!(job.output, Some(FixedRateEngine::answer(30)));
        assert_eq!(job.attempts, 1);
    }
    assert_eq!(engine.behaviour.begun.load(Ordering::Relaxed), 6);
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_before_a_cancel_is_charged() {
    let RunningJob { world, engine, node: _node, agent: _agent, consumer, running } =
        RunningJob::start(PAUSE, 2000, |heard| heard.text.len() > 100).await;
    let held = consumer.rpc.cancel_job(running.id).await.unwrap().held;
    let job = consumer.ended(running.id).await;
    assert_eq!(job.state, JobState::Cancelled);
    assert_eq!(job.finish.as_deref(), Some("cancelled"));
    let output = job.output.unwrap();
    assert!(output.len() > 100 && FixedRateEngine::answer(2000).starts_with(&output));
    let tokens = job.usage.unwrap().output_tokens;
    assert!((5..1000).contains(&tokens), "{tokens} tokens");
    let cost = job.cost.unwrap();
    assert!(!cost.is_zero() && cost < held, "{cost} of {held}");
    assert_eq!(engine.behaviour.ended.load(Ordering::Relaxed), 0, "the engine was stopped");
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_hears_again_what_it_missed() {
    let RunningJob {
        world: _world,
        engine: _engine,
        node: _node,
        agent: _agent,
        consumer,
        mut running,
    } = RunningJob::start(PAUSE, 200, |heard| heard.text.len() > 60).await;
    let job = consumer.rpc.get_job(running.id).await.unwrap();
    let attempt = job.attempt.unwrap().id;
    running.ask_again(attempt, 10);
    let answer = FixedRateEngine::answer(200);
    loop {
        let (event, payload) = running.next().await;
        assert_ne!(event, "end", "nothing was said again");
        if event == "delta" && payload["offset"] == json!(10) {
            let text = payload["text"].as_str().unwrap();
            assert!(text.len() > 50 && answer[10..].starts_with(text));
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_share_the_answer_comes_whole_at_the_end() {
    let world = World::start().await;
    world.set("realtime_messages_per_second", json!(0)).await;
    let engine = FixedRateEngine::start(Duration::from_millis(5)).await;
    let node = world.enrol("attic", &engine, 1).await;
    let _agent = node.start().await;
    let consumer = world.consumer().await;
    let mut running = consumer.submit(30).await;
    let job = consumer.ended(running.id).await;
    assert_eq!(job.output, Some(FixedRateEngine::answer(30)));
    while let Ok((event, payload)) =
        tokio::time::timeout(Duration::from_millis(300), running.next()).await
    {
        assert_eq!(event, "state", "{payload}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_mid_stream_is_replaced_by_another_node() {
    let world = World::start().await;
    let dying = FixedRateEngine::start(PAUSE).await;
    dying.behaviour.broken_answers.store(u64::MAX, Ordering::Relaxed);
    let healthy = FixedRateEngine::start(PAUSE).await;
    let first = world.enrol("attic", &dying, 1).await;
    let mut first_agent = first.start().await;
    let consumer = world.consumer().await;
    let mut running = consumer.submit(20).await;
    dying.wait_until_begun(1).await;
    let second = world.enrol("cellar", &healthy, 1).await;
    let _second_agent = second.start().await;
    let job = consumer.ended(running.id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.error);
    assert_eq!(job.output, Some(FixedRateEngine::answer(20)));
    assert!(job.attempts >= 2);
    let last = job.attempt.unwrap();
    assert_eq!(last.node.id, second.id);
    let heard = running.hear(Some(last.id), |heard| heard.ended.is_some()).await;
    assert_eq!(heard.text, FixedRateEngine::answer(20));
    world.prove_ledger().await;
    assert!(first_agent.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_with_the_reason_when_engines_keep_dying() {
    let world = World::start().await;
    world.set("max_attempts", json!(2)).await;
    world.set("retry_secs", json!(1)).await;
    let engine = FixedRateEngine::start(PAUSE).await;
    engine.behaviour.broken_answers.store(u64::MAX, Ordering::Relaxed);
    let node = world.enrol("attic", &engine, 1).await;
    let _agent = node.start().await;
    let consumer = world.consumer().await;
    let running = consumer.submit(20).await;
    let job = consumer.ended(running.id).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.attempts, 2);
    let error = job.error.unwrap();
    assert_eq!(error.code, "engine_failed");
    assert!(error.message.contains("died in the middle of an answer"), "{}", error.message);
    assert_eq!(consumer.rpc.balance().await.unwrap().held.to_string(), "$0.00");
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_agent_finishes_what_it_holds() {
    let RunningJob { world: _world, engine: _engine, node, mut agent, consumer, running } =
        RunningJob::start(PAUSE, 100, |heard| heard.deltas > 2).await;
    agent.signal(Signal::SIGINT);
    node.wait_for_own("draining", |own| own.phase == Phase::Draining).await;
    let waiting = consumer.submit(5).await;
    assert!(agent.ended().await.success());
    let job = consumer.ended(running.id).await;
    assert_eq!(job.output, Some(FixedRateEngine::answer(100)));
    assert_eq!(consumer.rpc.get_job(waiting.id).await.unwrap().state, JobState::Queued);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_agent_hands_back_what_it_cannot_finish() {
    let world = World::start().await;
    let slow = FixedRateEngine::start(Duration::from_millis(500)).await;
    let fast = FixedRateEngine::start(Duration::from_millis(2)).await;
    let first = world.enrol("attic", &slow, 1).await;
    let mut agent = first.start_with(&["--grace", "0"]).await;
    let consumer = world.consumer().await;
    let mut running = consumer.submit(200).await;
    running.hear(None, |heard| heard.deltas > 1).await;
    let second = world.enrol("cellar", &fast, 1).await;
    let _second_agent = second.start().await;
    assert!(agent.stop().await.success());
    let job = consumer.ended(running.id).await;
    assert_eq!(job.state, JobState::Completed);
    assert_eq!(job.output, Some(FixedRateEngine::answer(200)));
    assert_eq!(job.attempts, 1, "what was handed back does not count");
    assert_eq!(job.attempt.unwrap().node.id, second.id);
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_agent_now() {
    let RunningJob { world: _world, engine: _engine, node, mut agent, consumer, running } =
        RunningJob::start(Duration::from_millis(500), 500, |heard| heard.deltas > 1).await;
    let began = std::time::Instant::now();
    agent.signal(Signal::SIGTERM);
    node.wait_for_own("draining", |own| own.phase == Phase::Draining).await;
    agent.signal(Signal::SIGINT);
    assert!(agent.ended().await.success());
    assert!(began.elapsed() < Duration::from_secs(10));
    let job = consumer.wait_for(running.id, "handed back", |job| job.state == JobState::Queued);
    job.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_node_gets_no_work_and_says_so() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let mut agent = node.start().await;
    world.operator.set_node_approval(node.id, "suspended").await.unwrap();
    node.wait_for_own("suspended", |own| own.phase == Phase::Suspended).await;
    let consumer = world.consumer().await;
    let running = consumer.submit(5).await;
    let shown = run(&node.folder, &["status"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("suspended"), "{shown}");
    assert!(agent.stop().await.success());

    let refused = run(&node.folder, &["start"]).await;
    assert!(!refused.status.success());
    assert!(talk(&refused).contains("suspended"), "{}", talk(&refused));

    assert_eq!(consumer.rpc.get_job(running.id).await.unwrap().state, JobState::Queued);
    world.operator.set_node_approval(node.id, "approved").await.unwrap();
    let _agent = node.start().await;
    assert_eq!(consumer.ended(running.id).await.state, JobState::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_never_enrolled_is_told_so() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let key = node.folder.join("config/node.key");
    std::fs::remove_file(&key).unwrap();
    Keys::load_or_create(&key).unwrap();
    let refused = run(&node.folder, &["start"]).await;
    let said = talk(&refused);
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(said.contains("enrol"), "{said}");
    assert!(said.contains("Hint: "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_the_background_starts_once_and_stops() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let started = run(&node.folder, &["start"]).await;
    let said = talk(&started);
    assert!(started.status.success(), "{said}");
    for words in ["attic", "in the background as process", "fixed", &world.node_url()] {
        assert!(said.contains(words), "{words} in {said}");
    }

    let second = run(&node.folder, &["start"]).await;
    assert_eq!(second.status.code(), Some(1));
    assert!(talk(&second).contains("already running"), "{}", talk(&second));

    let consumer = world.consumer().await;
    let job = consumer.submit(5).await.id;
    consumer.ended(job).await;
    let shown = run(&node.folder, &["status"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    for words in ["running, process", "attic (provider)", "approved", "Earned today", "fixed"] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    let shown = run(&node.folder, &["status", "--json"]).await;
    let report: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(report["agent"]["phase"], "running");
    assert_eq!(report["node"]["node"]["name"], "attic");

    let stopped = run(&node.folder, &["stop"]).await;
    assert!(stopped.status.success(), "{}", talk(&stopped));
    assert!(talk(&stopped).contains("has ended"));
    assert_eq!(node.status().await.node.status, "offline");
    let shown = run(&node.folder, &["status"]).await;
    assert!(String::from_utf8(shown.stdout).unwrap().contains("not running"));

    let log = node.folder.join("state/agent.log");
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    let key = std::fs::read_to_string(node.folder.join("config/node.key")).unwrap();
    assert!(!std::fs::read_to_string(&log).unwrap().contains(key.trim()));
}
