//! `infernet proxy` before real agents: who is let in, what is answered in which
//! words, and that a client that hangs up pays for no more than it got.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use infernet::control::rpc::{Job, JobState};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::agent_world::{PATIENCE, World};
use crate::support::fixed_rate::FixedRateEngine;
use crate::support::proxy_world::TestProxy;

const MESSAGES: &str = "Say something.";

fn ask(tokens: u64) -> Value {
    json!({
        "model": "fixed", "messages": [{"role": "user", "content": MESSAGES}],
        "max_tokens": tokens,
    })
}

/// Sends bytes as they are and returns the status and the whole answer.
async fn raw(proxy: &TestProxy, request: &str) -> (u16, String) {
    let address = proxy.base_url.trim_start_matches("http://").trim_end_matches("/v1");
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let reading = socket.read_to_end(&mut answer);
    tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

/// Reads an answer's failure: status, type and code.
async fn failure(request: reqwest::RequestBuilder) -> (u16, String, String) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let error = &body["error"];
    assert!(!error["message"].as_str().unwrap().is_empty(), "{body}");
    let word = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    (status, word("type"), word("code"))
}

/// The JSON of each event of a stream; the last must be `[DONE]`.
fn events(text: &str) -> Vec<Value> {
    let mut events: Vec<&str> =
        text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{text}");
    events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_holder_of_the_key_on_this_machine_is_let_in() {
    let world = World::start().await;
    let mut proxy = TestProxy::start(&world, &[]).await;
    let key = proxy.key.clone();
    let request = |host: &str, key: &str| {
        format!(
            "GET /v1/models HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\
             Origin: http://evil.example\r\nConnection: close\r\n\r\n"
        )
    };
    let (status, answer) = raw(&proxy, &request("localhost", &key)).await;
    assert_eq!(status, 200, "{answer}");
    // Nothing tells a browser that a page may read this.
    assert!(!answer.to_ascii_lowercase().contains("access-control"), "{answer}");
    let (status, answer) = raw(&proxy, &request("evil.example", &key)).await;
    assert_eq!(status, 421, "a name that somebody pointed at 127.0.0.1: {answer}");
    assert!(answer.contains("host_not_allowed"), "{answer}");
    for wrong in ["", "sk-infernet-", &key[..key.len() - 1], &key.to_uppercase()] {
        let (status, answer) = raw(&proxy, &request("127.0.0.1", wrong)).await;
        assert_eq!(status, 401, "{answer}");
        assert!(answer.contains("invalid_api_key") && answer.contains("www-authenticate: Bearer"));
    }
    // No path is open, not even one that is not there.
    for path in ["/v1/models", "/v1/chat/completions", "/health", "/"] {
        let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(raw(&proxy, &text).await.0, 401, "{path}");
    }
    let preflight = "OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\
                     Access-Control-Request-Method: GET\r\nConnection: close\r\n\r\n";
    let (status, answer) = raw(&proxy, preflight).await;
    assert_eq!(status, 401);
    assert!(!answer.to_ascii_lowercase().contains("access-control"), "{answer}");

    let url = |path: &str| format!("{}{path}", proxy.base_url);
    let get = |path: &str| proxy.http.get(url(path)).bearer_auth(&key);
    assert_eq!(failure(get("/nowhere")).await.2, "unknown_url");
    assert_eq!(failure(get("/chat/completions")).await.0, 405);
    let big = "x".repeat(5 * 1024 * 1024);
    let big = proxy.post("/chat/completions", &json!({"model": "fixed", "big": big}));
    assert_eq!(failure(big).await.0, 413);
    let half = proxy.http.post(url("/chat/completions")).bearer_auth(&key).body("{\"model\":");
    assert_eq!(failure(half).await.1, "invalid_request_error");
    assert!(!proxy.log().contains(&key), "the key is in the log");

    // A new key opens, and the old one does not.
    assert!(proxy.stop().await);
    let path = proxy.folder.join("config/proxy.key");
    let other = TestProxy::start(&world, &["--new-api-key"]).await;
    assert_ne!(other.key, key);
    assert_eq!(std::fs::read_to_string(path).unwrap().trim(), key, "a folder has its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_refusals_speak_as_openai_does() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(Duration::from_millis(10)).await;
    let node = world.enrol("attic", &engine, 4).await;
    let mut agent = node.start().await;
    let proxy = TestProxy::start(&world, &["--max-cost", "0.01"]).await;

    let response = proxy.post("/chat/completions", &ask(6)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["id"], format!("chatcmpl-{id}"));
    assert_eq!(body["choices"][0]["message"]["content"], FixedRateEngine::answer(6));
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["completion_tokens"], 6);
    let job = proxy.rpc.get_job(id.parse().unwrap()).await.unwrap();
    // What --max-cost says was held, and no more than was used is paid.
    assert_eq!(job.held, "0.01".parse().unwrap());
    assert!(job.cost.unwrap() < job.held);
    assert_eq!(job.usage.unwrap().output_tokens, 6);

    let mut streamed = ask(6);
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    streamed["n"] = json!(2);
    let response = proxy.post("/chat/completions", &streamed).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let events = events(&text);
    let (mut texts, mut finishes) = ([String::new(), String::new()], [0, 0]);
    for event in &events[..events.len() - 1] {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event["usage"], Value::Null);
        let choice = &event["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        finishes[index] += usize::from(choice["finish_reason"] == "stop");
    }
    assert_eq!(texts, [FixedRateEngine::answer(6), FixedRateEngine::answer(6)]);
    assert_eq!(finishes, [1, 1]);
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(12)));

    let wrong = |key: &str, value: Value| {
        let mut body = ask(4);
        body[key] = value;
        failure(proxy.post("/chat/completions", &body))
    };
    let invalid = "invalid_request_error".to_owned();
    let missing = wrong("model", json!("nobody-has-it")).await;
    assert_eq!(missing, (404, invalid.clone(), "model_not_found".to_owned()));
    assert_eq!(wrong("messages", json!("hello")).await, (400, invalid.clone(), "bad_input".into()));
    assert_eq!(wrong("messages", json!([])).await.2, "empty_prompt");
    assert_eq!(wrong("stop", json!(["\0"])).await.0, 400, "PostgreSQL has no NUL");
    assert_eq!(wrong("tomperature", json!(1)).await, (400, invalid, "bad_input".into()));
    assert_eq!(wrong("max_tokens", json!(1_000_000)).await.0, 400);
    let long = json!([{"role": "user", "content": "x".repeat(300_000)}]);
    assert_eq!(wrong("messages", long).await.2, "context_length_exceeded");
    // What only the engine's side refuses arrives with its words, before any head.
    let image = json!([{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]);
    let mut image = json!({"model": "fixed", "messages": image, "stream": true});
    assert_eq!(failure(proxy.post("/chat/completions", &image)).await.0, 400);
    image["stream"] = json!(false);
    assert_eq!(failure(proxy.post("/chat/completions", &image)).await.0, 400);

    let poor = TestProxy::start_with_credit(&world, "0.000001", &[]).await;
    let response = poor.post("/chat/completions", &ask(500)).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert!(response.text().await.unwrap().contains("insufficient_quota"));

    // An engine that keeps dying is no answer, in a stream as an event.
    world.set("fault_limit", json!(0)).await;
    engine.behaviour.broken_answers.store(u64::MAX, Ordering::Relaxed);
    let mut broken = ask(20);
    let answer = failure(proxy.post("/chat/completions", &broken)).await;
    assert_eq!((answer.0, answer.1.as_str()), (500, "server_error"));
    broken["stream"] = json!(true);
    let response = proxy.post("/chat/completions", &broken).send().await.unwrap();
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert!(status == 200 || status == 500, "{status}");
    assert!(text.contains("server_error") && !text.contains("[DONE]"), "{text}");
    assert!(agent.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_of_the_market_reach_the_job() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(Duration::from_millis(5)).await;
    let (attic, cellar) =
        (world.enrol("attic", &engine, 4).await, world.enrol("cellar", &engine, 4).await);
    let (mut attic, mut cellar) = (attic.start().await, cellar.start().await);
    let proxy = TestProxy::start(&world, &["--max-cost", "0.01", "--deadline", "60s"]).await;
    let asked = async |terms: Value| {
        let mut body = ask(4);
        body["infernet"] = terms;
        let response = proxy.post("/chat/completions", &body).send().await.unwrap();
        let id = response.headers()["x-request-id"].to_str().unwrap().parse().unwrap();
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        proxy.rpc.get_job(id).await.unwrap()
    };
    let node = |job: &Job| job.attempt.as_ref().unwrap().node.id;
    let first = node(&asked(Value::Null).await);
    let second = node(&asked(json!({"needs": {"exclude": [first]}})).await);
    assert_ne!(second, first);
    assert_eq!(node(&asked(json!({"needs": {"prefer": [first]}})).await), first);
    let job = asked(json!({
        "needs": {"exclude": [second]}, "max_cost": "0.002", "deadline_secs": 300, "priority": -1,
        "title": "asked",
    }))
    .await;
    assert_eq!((node(&job), job.title.as_deref()), (first, Some("asked")));
    assert_eq!(job.held, "0.002".parse().unwrap());
    let lasts = job.deadline_at.unwrap().duration_since(job.created_at);
    assert_eq!(lasts.as_secs(), 300);

    for (terms, code) in [
        (json!({"need": {}}), "invalid_value"),
        (json!({"needs": {"label": ["ssd"]}}), "invalid_value"),
        (json!({"priority": 1}), "bad_priority"),
        (json!({"needs": {"labels": vec!["x"; 33]}}), "bad_needs"),
    ] {
        let mut body = ask(4);
        body["infernet"] = terms;
        let response = proxy.post("/chat/completions", &body).send().await.unwrap();
        assert_eq!(response.status(), 400, "{body}");
        let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        let error = &answer["error"];
        assert_eq!(error["type"], "invalid_request_error", "{answer}");
        assert_eq!((&error["param"], &error["code"]), (&json!("infernet"), &json!(code)));
    }
    assert!(attic.stop().await.success() && cellar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_cancels_its_job() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(Duration::from_millis(100)).await;
    let node = world.enrol("attic", &engine, 4).await;
    let mut agent = node.start().await;
    let mut proxy = TestProxy::start(&world, &[]).await;
    for stream in [true, false] {
        let mut body = ask(500);
        body["stream"] = json!(stream);
        body["n"] = json!(2);
        let begun = engine.behaviour.begun.load(Ordering::Relaxed) + 2;
        let request = proxy.post("/chat/completions", &body);
        if stream {
            let mut response = request.send().await.unwrap();
            // Some text is there before the client leaves.
            let mut text = String::new();
            while !text.contains("word2") {
                let chunk = response.chunk().await.unwrap().unwrap();
                text.push_str(&String::from_utf8_lossy(&chunk));
            }
        } else {
            let waiting = tokio::spawn(request.send());
            engine.wait_until_begun(begun).await;
            waiting.abort();
            assert!(waiting.await.unwrap_err().is_cancelled());
        }
        expect_cancelled(&proxy, 2).await;
    }
    assert_eq!(engine.behaviour.ended.load(Ordering::Relaxed), 0, "the engine was stopped");
    // A proxy that stops cuts off what takes long, and cancels it as well.
    let mut body = ask(500);
    body["stream"] = json!(true);
    let mut response = proxy.post("/chat/completions", &body).send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    assert!(proxy.stop().await);
    expect_cancelled(&proxy, 1).await;
    world.prove_ledger().await;
    assert!(agent.stop().await.success());
}

/// Waits until the newest jobs are cancelled and settled.
async fn expect_cancelled(proxy: &TestProxy, count: u32) {
    let limit = Instant::now() + PATIENCE;
    loop {
        let jobs = proxy.rpc.jobs(count, None).await.unwrap();
        if jobs.iter().all(|job| job.state == JobState::Cancelled) {
            assert_eq!(jobs.len(), usize::try_from(count).unwrap());
            return;
        }
        assert!(Instant::now() < limit, "not cancelled: {jobs:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
