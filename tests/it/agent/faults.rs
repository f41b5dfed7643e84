//! What goes wrong around an agent: killed processes, a control plane that is
//! away, a Realtime that refuses, is full or says nothing, a wrong clock.

use std::time::Duration;

use infernet::agent::status::{Phase, Wakeups};
use infernet::control::rpc::JobState;
use serde_json::json;

use crate::support::agent_gate::Gate;
use crate::support::agent_world::{World, program, run, talk};
use crate::support::fixed_rate::FixedRateEngine;
use crate::support::running_job::RunningJob;

const PAUSE: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn the_job_of_a_killed_agent_runs_again_when_it_comes_back() {
    let RunningJob { world, engine: _engine, node, mut agent, consumer, mut running } =
        RunningJob::start(PAUSE, 100, |heard| heard.deltas > 3).await;
    agent.kill_9();
    assert_eq!(std::fs::read_dir(node.folder.join("state/attempts")).unwrap().count(), 1);

    let _agent = node.start().await;
    let job = consumer
        .wait_for(running.id, "started again", |job| {
            job.attempts == 2 && job.state == JobState::Running
        })
        .await;
    let current = job.attempt.unwrap().id;
    let heard = running.hear(Some(current), |heard| heard.ended.is_some()).await;
    assert_eq!(heard.text, FixedRateEngine::answer(100), "one complete answer");
    let job = consumer.ended(running.id).await;
    assert_eq!(job.output, Some(FixedRateEngine::answer(100)));
    assert_eq!(job.usage.unwrap().output_tokens, 100, "captured once");
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_of_a_killed_agent_goes_elsewhere_after_the_lease() {
    let world = World::start().await;
    world.set("heartbeat_secs", json!(1)).await;
    world.set("lease_secs", json!(3)).await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let first = world.enrol("attic", &engine, 1).await;
    let mut agent = first.start().await;
    let consumer = world.consumer().await;
    let mut running = consumer.submit(100).await;
    running.hear(None, |heard| heard.deltas > 3).await;
    let second = world.enrol("cellar", &engine, 1).await;
    let _second_agent = second.start().await;
    agent.kill_9();
    let job = consumer.ended(running.id).await;
    assert_eq!(job.state, JobState::Completed);
    assert_eq!(job.attempt.unwrap().node.id, second.id);
    assert_eq!(job.output, Some(FixedRateEngine::answer(100)));
    assert_eq!(job.usage.unwrap().output_tokens, 100, "captured once");
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_control_plane_comes_back_and_everything_goes_on() {
    let RunningJob { mut world, engine: _engine, node, agent: _agent, consumer, running } =
        RunningJob::start(PAUSE, 100, |heard| heard.deltas > 3).await;
    world.control.kill_9();
    node.wait_for_own("unreachable", |own| own.phase == Phase::Unreachable).await;
    world.restart_control().await;
    let job = consumer.ended(running.id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.error);
    assert_eq!(job.output, Some(FixedRateEngine::answer(100)));
    node.wait_for_own("running again", |own| {
        own.phase == Phase::Running && own.wakeups == Wakeups::Realtime
    })
    .await;
    let next = consumer.submit(10).await.id;
    assert_eq!(consumer.ended(next).await.output, Some(FixedRateEngine::answer(10)));
    world.prove_ledger().await;
}

/// Runs jobs through a Realtime that fails; they arrive by heartbeat.
async fn jobs_complete_without_realtime(gate: Gate) {
    let world = World::start_behind(gate).await;
    world.set("heartbeat_secs", json!(1)).await;
    let engine = FixedRateEngine::start(Duration::from_millis(5)).await;
    let node = world.enrol("attic", &engine, 1).await;
    let mut agent = node.start().await;
    let consumer = world.consumer().await;
    for tokens in [20, 30] {
        let job = consumer.submit(tokens).await.id;
        let job = consumer.ended(job).await;
        assert_eq!(job.state, JobState::Completed, "{:?}", job.error);
        assert_eq!(job.output, Some(FixedRateEngine::answer(u64::from(tokens))));
    }
    assert_eq!(node.own_status().unwrap().wakeups, Wakeups::Heartbeat);
    let job = consumer.submit(5000).await.id;
    consumer.wait_for(job, "running", |job| job.state == JobState::Running).await;
    consumer.rpc.cancel_job(job).await.unwrap();
    let job = consumer.ended(job).await;
    assert_eq!(job.state, JobState::Cancelled);
    assert!(!job.cost.unwrap().is_zero(), "what was delivered is charged");
    world.prove_ledger().await;
    assert!(agent.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_complete_while_realtime_is_refused() {
    jobs_complete_without_realtime(Gate::RealtimeRefused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_complete_while_realtime_is_full() {
    jobs_complete_without_realtime(Gate::RealtimeFull).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_complete_while_realtime_is_silent() {
    jobs_complete_without_realtime(Gate::RealtimeSilent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_handed_in_when_the_control_plane_is_back() {
    let world = World::start_behind(Gate::Open).await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let _agent = node.start().await;
    let consumer = world.consumer().await;
    let running = consumer.submit(50).await;
    engine.wait_until_begun(1).await;
    let gate = world.gate.as_ref().unwrap();
    gate.set(Gate::Shut);
    engine.wait_until_ended(1).await;
    gate.set(Gate::Open);
    let job = consumer.ended(running.id).await;
    assert_eq!(job.output, Some(FixedRateEngine::answer(50)));
    assert_eq!(job.attempts, 1);
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_answer_outlives_the_agent() {
    let world = World::start_behind(Gate::Open).await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let mut agent = node.start().await;
    let consumer = world.consumer().await;
    let running = consumer.submit(50).await;
    engine.wait_until_begun(1).await;
    let gate = world.gate.as_ref().unwrap();
    gate.set(Gate::Shut);
    engine.wait_until_ended(1).await;
    let journal = node.folder.join("state/attempts");
    // A draft (`.new`) says so already, and is nothing yet.
    let finished = || {
        let mut entries = std::fs::read_dir(&journal).unwrap().map(|entry| entry.unwrap().path());
        entries.any(|path| {
            path.extension().is_none_or(|extension| extension != "new")
                && std::fs::read_to_string(path).is_ok_and(|text| text.contains("\"finished\""))
        })
    };
    let limit = std::time::Instant::now() + Duration::from_secs(10);
    while !finished() {
        assert!(std::time::Instant::now() < limit, "the answer was not written down");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    agent.kill_9();
    gate.set(Gate::Open);
    let _agent = node.start().await;
    let job = consumer.ended(running.id).await;
    assert_eq!(job.output, Some(FixedRateEngine::answer(50)));
    assert_eq!(job.attempts, 1, "it did not have to run again");
    world.prove_ledger().await;
}

/// A clock that is off, for one process: its system calls for the time are
/// answered by a library that is loaded before libc.
const WRONG_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = (int)syscall(SYS_clock_gettime, clock, time);
    if (!failed && clock == CLOCK_REALTIME) time->tv_sec += atol(getenv("CLOCK_OFF_SECS"));
    return failed;
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_named() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(PAUSE).await;
    let node = world.enrol("attic", &engine, 1).await;
    let source = node.folder.join("clock.c");
    let library = node.folder.join("clock.so");
    std::fs::write(&source, WRONG_CLOCK).unwrap();
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(built.success());

    let mut command = program(&node.folder);
    command.args(["start"]).env("LD_PRELOAD", &library).env("CLOCK_OFF_SECS", "-120");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = talk(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("clock"), "{said}");
    assert!(said.contains("120"), "{said}");

    // Twenty seconds do not keep it out, and are told.
    let mut command = program(&node.folder);
    command.args(["start"]).env("LD_PRELOAD", &library).env("CLOCK_OFF_SECS", "20");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", talk(&output));
    node.wait_for_own("measured", |own| own.clock_ahead_ms.is_some()).await;
    let own = node.own_status().unwrap();
    assert!((19_000..21_000).contains(&own.clock_ahead_ms.unwrap()), "{own:?}");
    assert!(own.message.unwrap().contains("ahead of the control plane's"));
    let shown = run(&node.folder, &["status"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("ahead of the control plane's"), "{shown}");
    assert!(run(&node.folder, &["stop"]).await.status.success());
}
