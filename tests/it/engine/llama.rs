//! A real llama.cpp in a real container: starting, streaming, cancelling, dying, idling
//! and being found again after its agent was killed.

use std::time::{Duration, Instant};

use infernet::engine::{
    Catalogue, EngineError, EngineEvent, EnginePool, EngineRequest, EngineState, EngineStream,
    Finish, RequestKind, ServedModel,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::engine_image::{EngineNode, MODEL, chat, docker, engine_image, long_chat};

const LIMIT: Duration = Duration::from_secs(120);

async fn read(mut stream: EngineStream) -> (String, EngineEvent) {
    let mut text = String::new();
    loop {
        match tokio::time::timeout(LIMIT, stream.next()).await.unwrap().unwrap().unwrap() {
            EngineEvent::Delta { text: delta } => text.push_str(&delta),
            end => return (text, end),
        }
    }
}

#[tokio::test]
async fn a_model_answers_from_a_container_without_network() {
    let image = engine_image();
    let node = EngineNode::new(vec![image.model()], |_| {});
    // Two callers, one container.
    let (one, two) = tokio::join!(node.pool.ensure(MODEL), node.pool.ensure(MODEL));
    let engine = one.unwrap();
    assert_eq!(engine.container(), two.unwrap().container());
    assert_eq!(node.containers().len(), 1);

    let question = chat("Write one short sentence about the sea.", 24);
    let stream = node.pool.chat(MODEL, question, CancellationToken::new()).await.unwrap();
    let (text, end) = read(stream).await;
    assert!(text.len() > 10, "{text:?}");
    let EngineEvent::Done { finish, input_tokens, output_tokens } = end else { panic!() };
    assert!(matches!(finish, Finish::Stop | Finish::Length), "{finish:?}");
    assert!(input_tokens > 10 && (3..=24).contains(&output_tokens), "{end:?}");

    let completion = EngineRequest {
        kind: RequestKind::Completion,
        body: json!({"prompt": "One, two, three,", "temperature": 0}),
        max_tokens: 4,
        consumer: None,
    };
    let stream = node.pool.chat(MODEL, completion, CancellationToken::new()).await.unwrap();
    let (text, end) = read(stream).await;
    assert!(!text.is_empty());
    assert!(
        matches!(end, EngineEvent::Done { finish: Finish::Length, output_tokens: 4, .. }),
        "{end:?}"
    );

    // What Docker was told, as Docker says it.
    let name = engine.container().unwrap().to_owned();
    let inspected: Value = serde_json::from_slice(&docker(&["inspect", &name]).stdout).unwrap();
    let (host, config) = (&inspected[0]["HostConfig"], &inspected[0]["Config"]);
    assert_eq!(inspected[0]["Image"], image.image_id.as_str());
    assert_eq!(host["NetworkMode"], "none");
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!(host["Memory"], host["MemorySwap"]);
    assert_eq!(host["NanoCpus"], 1_000_000_000);
    assert_eq!(host["PidsLimit"], 256);
    assert_eq!(host["LogConfig"]["Config"]["max-size"], "1m");
    assert_eq!(config["User"], "65534:65534");
    assert_eq!(config["Labels"]["infernet.node"], node.name.as_str());
    assert_eq!(config["Labels"]["infernet.engine"], "llama.cpp");

    // Once it is ready, it has nowhere left to write but its memory.
    for (path, allowed) in [("/run/engine/x", false), ("/models/x", false), ("/tmp/x", true)] {
        let program = format!("open('{path}', 'w').write('x')");
        let wrote = docker(&["exec", &name, "/usr/bin/python3", "-IS", "-c", &program]);
        assert_eq!(wrote.status.success(), allowed, "{path}: {wrote:?}");
    }

    node.pool.stop_all().await;
    assert!(node.containers().is_empty());
    assert!(node.sockets().is_empty());
    assert!(matches!(node.pool.ensure(MODEL).await, Err(EngineError::Stopping)));
}

#[tokio::test]
async fn a_deadline_stops_the_computing() {
    let image = engine_image();
    let node = EngineNode::new(vec![image.model()], |_| {});
    node.pool.ensure(MODEL).await.unwrap();
    // The deadline is the agent's: a token that fires.
    let deadline = CancellationToken::new();
    let long = long_chat(1900);
    let mut stream = node.pool.chat(MODEL, long, deadline.clone()).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(EngineEvent::Delta { .. }))));
    deadline.cancel();
    let Some(Ok(EngineEvent::Done { finish, input_tokens, output_tokens })) = stream.next().await
    else {
        panic!("the stream does not end")
    };
    assert_eq!(finish, Finish::Cancelled);
    assert!(input_tokens > 5 && output_tokens >= 1, "{input_tokens} {output_tokens}");
    drop(stream);
    // The engine's one slot is free at once: it would need a minute for the rest.
    let begun = Instant::now();
    let stream = node.pool.chat(MODEL, chat("Say hi.", 2), CancellationToken::new()).await.unwrap();
    read(stream).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    node.pool.stop_all().await;
}

#[tokio::test]
async fn an_engine_killed_in_the_middle_is_told_and_started_again() {
    let image = engine_image();
    let node = EngineNode::new(vec![image.model()], |_| {});
    let first = node.pool.ensure(MODEL).await.unwrap();
    let containers = node.containers();
    let long = long_chat(1900);
    let mut stream = node.pool.chat(MODEL, long, CancellationToken::new()).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(EngineEvent::Delta { .. }))));
    assert!(docker(&["kill", first.container().unwrap()]).status.success());
    let error = loop {
        match tokio::time::timeout(LIMIT, stream.next()).await.unwrap().unwrap() {
            Ok(EngineEvent::Delta { .. }) => {}
            Ok(end) => panic!("{end:?}"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, EngineError::DiedMidStream { reason, .. } if reason.contains("137")),
        "{error}"
    );
    assert!(stream.next().await.is_none());
    // It comes back by itself, without a request.
    let begun = Instant::now();
    let dead = containers;
    loop {
        let living = node.containers();
        let ready = matches!(node.pool.states()[0].1, EngineState::Ready);
        if ready && living.len() == 1 && living != dead {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{living:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let second = node.pool.ensure(MODEL).await.unwrap();
    assert_ne!(first.container(), second.container());
    let stream = node.pool.chat(MODEL, chat("Say hi.", 2), CancellationToken::new()).await.unwrap();
    read(stream).await;
    node.pool.stop_all().await;
    assert!(node.containers().is_empty());
}

#[tokio::test]
async fn an_idle_engine_goes_and_comes_back() {
    let image = engine_image();
    let node = EngineNode::new(vec![image.model()], |config| {
        config.keep_alive = Some(Duration::from_secs(1));
    });
    node.pool.ensure(MODEL).await.unwrap();
    let begun = Instant::now();
    while !node.containers().is_empty() {
        assert!(begun.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() > Duration::from_millis(500));
    assert!(matches!(node.pool.states()[0].1, EngineState::Stopped));
    let stream = node.pool.chat(MODEL, chat("Say hi.", 2), CancellationToken::new()).await.unwrap();
    read(stream).await;
    node.pool.stop_all().await;
}

#[tokio::test]
async fn an_engine_is_restarted_after_what_it_answers() {
    let image = engine_image();
    let node = EngineNode::new(vec![image.model()], |_| {});
    let first = node.pool.ensure(MODEL).await.unwrap();
    let answer = chat("Count from one to ten in words.", 40);
    let stream = node.pool.chat(MODEL, answer, CancellationToken::new()).await.unwrap();
    let (restarted, (text, end)) =
        tokio::join!(tokio::time::timeout(LIMIT, node.pool.restart(MODEL)), read(stream));
    restarted.unwrap().unwrap();
    assert!(!text.is_empty() && matches!(end, EngineEvent::Done { .. }), "{text} {end:?}");
    assert!(matches!(node.pool.states()[0].1, EngineState::Ready));
    let second = node.pool.ensure(MODEL).await.unwrap();
    assert_ne!(first.container(), second.container());
    assert_eq!(node.containers().len(), 1);
    let stream = node.pool.chat(MODEL, chat("Say hi.", 2), CancellationToken::new()).await.unwrap();
    read(stream).await;
    node.pool.stop_all().await;
    assert!(node.containers().is_empty());
}

#[tokio::test]
async fn leftovers_of_a_killed_agent_are_removed() {
    let image = engine_image();
    let mut node = EngineNode::new(vec![image.model()], |_| {});
    node.pool.ensure(MODEL).await.unwrap();
    // A pool that is dropped stops nothing, as little as a killed process does.
    node.pool = EnginePool::new(node.config.clone()).unwrap();
    assert_eq!((node.containers().len(), node.sockets().len()), (1, 1));
    assert_eq!(node.pool.remove_leftovers().await.unwrap(), 1);
    assert!(node.containers().is_empty() && node.sockets().is_empty());
    assert_eq!(node.pool.remove_leftovers().await.unwrap(), 0);
}

#[tokio::test]
async fn an_engine_without_enough_memory_says_so() {
    let image = engine_image();
    let model = ServedModel { memory_mb: Some(40), ..image.model() };
    let node = EngineNode::new(vec![model], |_| {});
    let error = node.pool.ensure(MODEL).await.unwrap_err();
    assert!(matches!(error, EngineError::OutOfMemory { memory_mb: 40, .. }), "{error}");
    assert!(error.to_string().contains("Raise memory_mb"), "{error}");
    assert!(node.containers().is_empty());
    node.pool.stop_all().await;
}

/// Makes a catalogue in which llama.cpp's entry has some lines replaced.
fn catalogue(replace: &[(&str, &str)]) -> Catalogue {
    let mut text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/engines.toml"))
            .unwrap();
    for (old, new) in replace {
        assert!(text.contains(old), "{old}");
        text = text.replacen(old, new, 1);
    }
    Catalogue::parse(&text, "test").unwrap()
}

#[tokio::test]
async fn what_is_missing_is_named_with_what_to_do() {
    let image = engine_image();
    let no_image = catalogue(&[("infernet/llama.cpp:local", "infernet/no-such-image:local")]);
    let pinned = catalogue(&[(
        "# image_id = \"sha256:…\"",
        "image_id = \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"",
    )]);
    let good = image.model();
    let no_file = ServedModel { path: Some("/nonexistent/model.gguf".into()), ..good.clone() };
    let changed = ServedModel { sha256: Some("0".repeat(64)), ..good.clone() };
    for (model, catalogue, wanted) in [
        (good.clone(), no_image, "Run `scripts/build-engine-image`"),
        (good, pinned, "the catalogue allows only"),
        (no_file, Catalogue::built_in(), "is missing: /nonexistent/model.gguf"),
        (changed, Catalogue::built_in(), "is not the one that is allowed"),
    ] {
        let node = EngineNode::new(vec![model], |config| config.catalogue = catalogue);
        let error = node.pool.ensure(MODEL).await.unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        assert_eq!(error.attempt_code(), "engine_unavailable");
        // What leaves the machine names nothing of it.
        assert_eq!(error.public_message(), "The engine could not be started on this node.");
        assert!(node.containers().is_empty() && node.sockets().is_empty());
    }
}

#[tokio::test]
async fn an_engine_that_does_not_come_up_is_told_with_its_last_words() {
    let image = engine_image();
    // One that ends, and one that never listens.
    let program = "import time; print('these are', 'last words', flush=True); ";
    for (rest, wanted) in
        [("raise SystemExit(3)", "exit code 3"), ("time.sleep(600)", "not ready after 2 s")]
    {
        let command =
            format!("command = [\"/usr/bin/python3\", \"-IS\", \"-c\", \"{program}{rest}\"]");
        let catalogue = catalogue(&[
            ("command = [\"/opt/engine/bin/llama-server\"]", &command),
            ("start_timeout_secs = 180", "start_timeout_secs = 2"),
        ]);
        let node = EngineNode::new(vec![image.model()], |config| config.catalogue = catalogue);
        let error = node.pool.ensure(MODEL).await.unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains("these are last words"), "{error}");
        // For a moment the answer is the same, without another try.
        let begun = Instant::now();
        assert_eq!(node.pool.ensure(MODEL).await.unwrap_err().to_string(), error);
        assert!(begun.elapsed() < Duration::from_millis(100));
        node.pool.stop_all().await;
        assert!(node.containers().is_empty());
    }
}

#[tokio::test]
async fn stopping_in_the_middle_of_a_start_leaves_nothing() {
    let image = engine_image();
    let node = EngineNode::new(vec![image.model()], |_| {});
    let starting = node.pool.ensure(MODEL);
    let stopping = async {
        while node.containers().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.pool.stop_all().await;
    };
    let (started, ()) = tokio::join!(starting, stopping);
    assert!(matches!(started, Err(EngineError::Stopping)), "{started:?}");
    assert!(node.containers().is_empty() && node.sockets().is_empty());
}
