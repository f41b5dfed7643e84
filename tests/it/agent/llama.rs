//! An agent with a real llama.cpp in a real container.

use std::time::{Duration, Instant};

use infernet::control::rpc::JobState;

use crate::support::agent_world::{PATIENCE, World};
use crate::support::engine_image::{MODEL, docker, engine_image};

/// Returns the ids of the containers that run for a node.
fn containers(node: &str) -> Vec<String> {
    let filter = format!("label=infernet.node={node}");
    let found = docker(&["ps", "--quiet", "--no-trunc", "--filter", &filter]);
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_model_answers_and_its_container_ends_with_the_agent() {
    let image = tokio::task::spawn_blocking(engine_image).await.unwrap();
    let world = World::start().await;
    let models = format!(
        "[[model]]\nname = \"{MODEL}\"\nengine = \"llama.cpp\"\npath = \"{}\"\nsha256 = \"{}\"\n\
         context_length = 1024\nprice_input = \"1\"\nprice_output = \"100\"\n",
        image.model_path.display(),
        image.model_sha256
    );
    let node = world.enrol_with("attic", &models).await;
    let name = node.rpc.session().unwrap().keys().public_hex()[..16].to_owned();
    let mut agent = node.start().await;
    let consumer = world.consumer().await;
    let mut running = consumer.submit_model(MODEL, 24).await;
    let heard = running.hear(None, |heard| heard.ended.is_some()).await;
    let job = consumer.ended(running.id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.error);
    assert_eq!(job.output.as_deref(), Some(heard.text.as_str()));
    assert!((1..=24).contains(&job.usage.unwrap().output_tokens));
    let first = containers(&name);
    assert_eq!(first.len(), 1);

    // A killed agent leaves its container; the next one removes it.
    agent.kill_9();
    assert_eq!(containers(&name), first);
    let mut agent = node.start().await;
    let job = consumer.submit_model(MODEL, 4).await.id;
    assert_eq!(consumer.ended(job).await.state, JobState::Completed);
    let second = containers(&name);
    assert_eq!(second.len(), 1);
    assert_ne!(first, second);

    // A container that is killed in the middle of an answer is not the end.
    let mut running = consumer.submit_model(MODEL, 150).await;
    running.hear(None, |heard| heard.deltas > 1).await;
    docker(&["kill", &second[0]]);
    let job = consumer.ended(running.id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.error);
    assert!(job.attempts > 1);
    world.prove_ledger().await;

    assert!(agent.stop().await.success());
    let limit = Instant::now() + PATIENCE;
    while !containers(&name).is_empty() {
        assert!(Instant::now() < limit, "the container outlives its agent");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
