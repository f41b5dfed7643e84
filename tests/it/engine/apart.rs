//! Real llama.cpp servers beside each other: consumers whose prompts are kept apart,
//! models that make room for each other, vectors, and a server behind a relay.

use std::path::PathBuf;

use infernet::engine::{
    Budget, Catalogue, EngineEvent, EngineRequest, EngineState, Finish, RequestKind, ServedModel,
    Usage,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::engine_image::{EngineNode, MODEL, chat, docker, engine_image, long_chat};

/// Asks as a consumer and returns the text and what was counted.
async fn ask(node: &EngineNode, model: &str, request: EngineRequest) -> (String, Usage) {
    let mut stream = node.pool.chat(model, request, CancellationToken::new()).await.unwrap();
    let mut text = String::new();
    loop {
        match stream.next().await.unwrap().unwrap() {
            EngineEvent::Delta { text: delta } => text.push_str(&delta),
            EngineEvent::Done { finish, .. } => {
                assert!(matches!(finish, Finish::Stop | Finish::Length));
                return (text, stream.usage());
            }
        }
    }
}

#[tokio::test]
async fn nobody_finds_out_what_another_asked() {
    let image = engine_image();
    let node = EngineNode::new(vec![image.model()], |_| {});
    let prompt = "The quick brown fox jumps over the lazy dog, again and again. ".repeat(20);
    let cached = async |consumer: Option<&str>, shares: bool| {
        let mut request = chat(&prompt, 1);
        request.consumer = consumer.map(str::to_owned);
        request.body["share_prefix_cache"] = json!(shares);
        ask(&node, MODEL, request).await.1.cached_tokens
    };
    assert_eq!(cached(Some("alice"), false).await, 0);
    // The oracle works: the same consumer is served out of what is remembered.
    assert!(cached(Some("alice"), false).await > 100);
    assert_eq!(cached(Some("bob"), false).await, 0, "bob learns that alice asked the same");
    assert_eq!(cached(Some("alice"), true).await, 0, "one who shares learns of one who does not");
    assert_eq!(cached(Some("bob"), false).await, 0);
    assert_eq!(cached(None, false).await, 0);
    assert_eq!(cached(None, false).await, 0, "nobody is the same as nobody");
    assert_eq!(cached(Some("alice"), true).await, 0);
    assert!(cached(Some("bob"), true).await > 100, "both allow it");
    node.pool.stop_all().await;
}

#[tokio::test]
async fn a_model_that_is_idle_makes_room_for_another() {
    let image = engine_image();
    let named =
        |name: &str| ServedModel { name: name.to_owned(), memory_mb: Some(600), ..image.model() };
    let node = EngineNode::new(vec![named("one"), named("two")], |config| {
        config.budget = Budget { memory_mb: Some(1000), ..Budget::default() };
    });
    let state = |name: &str| node.pool.states().into_iter().find(|(n, _)| n == name).unwrap().1;
    node.pool.ensure("one").await.unwrap();
    let first = node.containers();
    // One in use stays: the other waits until it is not.
    let cancel = CancellationToken::new();
    let long = long_chat(1500);
    let mut busy = node.pool.chat("one", long, cancel.clone()).await.unwrap();
    assert!(matches!(busy.next().await, Some(Ok(EngineEvent::Delta { .. }))));
    let waiting = node.pool.ensure("two");
    let working = async {
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        assert!(matches!(state("one"), EngineState::Ready));
        assert_eq!(node.containers(), first);
        cancel.cancel();
        drop(busy);
    };
    let (ready, ()) = tokio::join!(waiting, working);
    ready.unwrap();
    assert!(matches!((state("one"), state("two")), (EngineState::Stopped, EngineState::Ready)));
    assert_eq!(node.containers().len(), 1);
    // And back, by nothing but a request.
    assert!(!ask(&node, "one", chat("Say hi.", 2)).await.0.is_empty());
    assert!(matches!(state("two"), EngineState::Stopped));
    node.pool.stop_all().await;
    assert!(node.containers().is_empty());
}

#[tokio::test]
async fn texts_become_vectors() {
    let image = engine_image();
    let model = ServedModel { engine: "llama.cpp-embedding".to_owned(), ..image.model() };
    let node = EngineNode::new(vec![model], |_| {});
    let texts = ["The cat sat on the mat.", "A cat sits on a mat.", "Stocks fell on Monday."];
    let request = |input: Value| EngineRequest {
        kind: RequestKind::Embedding,
        body: json!({ "input": input }),
        max_tokens: 0,
        consumer: None,
    };
    let (text, usage) = ask(&node, MODEL, request(json!(texts))).await;
    assert!(usage.input_tokens > 10 && usage.output_tokens == 0, "{usage:?}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let vector =
        |index: usize| -> Vec<f64> { serde_json::from_value(answer[index].clone()).unwrap() };
    let (one, two, three) = (vector(0), vector(1), vector(2));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    assert_eq!(one.len(), 576);
    assert!(cosine(&one, &two) > cosine(&one, &three), "alike is nearer");
    // One text alone, after the connection was used before, and the other paths are closed.
    let (text, _) = ask(&node, MODEL, request(json!(texts[0]))).await;
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().len(), 1);
    let refused = node.pool.chat(MODEL, chat("hi", 1), CancellationToken::new()).await;
    assert!(refused.unwrap_err().to_string().contains("does not serve this kind"));
    node.pool.stop_all().await;
}

#[tokio::test]
async fn a_server_that_knows_ports_only_is_reached_through_a_relay() {
    let image = engine_image();
    let text = std::fs::read_to_string(
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/engines.toml"),
    )
    .unwrap();
    let text = text
        .replacen(
            "\"--host\", \"{socket}\"",
            "\"--host\", \"127.0.0.1\", \"--port\", \"{port}\"",
            1,
        )
        .replacen("socket = \"engine.sock\"", "port = 8080", 1);
    let catalogue = Catalogue::parse(&text, "test").unwrap();
    let node = EngineNode::new(vec![image.model()], |config| config.catalogue = catalogue);
    assert!(!ask(&node, MODEL, chat("Say hi.", 3)).await.0.is_empty());
    let engine = node.pool.ensure(MODEL).await.unwrap();
    let name = engine.container().unwrap();
    let inspect = |name: &str| -> Value {
        serde_json::from_slice(&docker(&["inspect", name]).stdout).unwrap()
    };
    let (server, relay) = (inspect(name), inspect(&format!("{name}-relay")));
    assert_eq!(server[0]["HostConfig"]["NetworkMode"], "none");
    let shared = format!("container:{}", server[0]["Id"].as_str().unwrap());
    assert_eq!(relay[0]["HostConfig"]["NetworkMode"], shared.as_str());
    for host in [&server[0]["HostConfig"], &relay[0]["HostConfig"]] {
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(host["CapDrop"], json!(["ALL"]));
        let ports = host["PortBindings"].as_object();
        assert!(ports.is_none_or(serde_json::Map::is_empty), "{ports:?}");
    }
    // The server itself has nowhere to write but its memory.
    let mounts = server[0]["Mounts"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| mount["RW"] == false), "{mounts:?}");
    // When the relay dies, so does the engine, and both come back.
    docker(&["kill", &format!("{name}-relay")]);
    let begun = std::time::Instant::now();
    loop {
        let again = node.pool.ensure(MODEL).await;
        if again.is_ok_and(|engine| engine.container() != Some(name)) {
            break;
        }
        assert!(begun.elapsed().as_secs() < 60);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(node.containers().len(), 2);
    node.pool.stop_all().await;
    assert!(node.containers().is_empty() && node.sockets().is_empty());
}
