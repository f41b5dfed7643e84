//! OpenAI's own clients, from PyPI and from npm, before the proxy: with an engine
//! whose words are known, and with a real model in a container.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::agent_world::World;
use crate::support::engine_image::{MODEL, engine_image};
use crate::support::fixed_rate::FixedRateEngine;
use crate::support::proxy_world::TestProxy;

/// A program of the tools that `scripts/test` installs.
fn tool(variable: &str, usual: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools").join(usual),
        PathBuf::from,
    );
    assert!(path.exists(), "there is no {}; scripts/test installs it", path.display());
    path
}

fn python() -> Command {
    let mut command = Command::new(tool("INFERNET_TEST_PYTHON", "venv/bin/python"));
    command.arg("client.py");
    command
}

fn npm() -> Command {
    let usual = format!(
        "npm/node_modules/node-linux-{}/bin/node",
        if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" }
    );
    let mut command = Command::new(tool("INFERNET_TEST_NODE", &usual));
    command
        .arg("client.cjs")
        .env("NODE_PATH", tool("INFERNET_TEST_NODE_MODULES", "npm/node_modules"));
    command
}

/// Runs a client to its end and returns what it saw.
async fn run(mut client: Command, proxy: &TestProxy, model: &str, more: &[(&str, &str)]) -> Value {
    client
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai"))
        .env("OPENAI_BASE_URL", &proxy.base_url)
        .env("OPENAI_API_KEY", &proxy.key)
        .env("MODEL", model)
        .env("NO_PROXY", "*")
        .envs(more.iter().copied());
    let output = tokio::task::spawn_blocking(move || client.output().unwrap()).await.unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{complaint}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{complaint}"))
}

/// What both clients must see of refusals, in their own classes.
fn check_refusals(seen: &Value) {
    for (what, class, status, code) in [
        ("wrong_key", "AuthenticationError", 401, "invalid_api_key"),
        ("wrong_model", "NotFoundError", 404, "model_not_found"),
        ("wrong_key_of_request", "BadRequestError", 400, "bad_input"),
        ("logprobs", "BadRequestError", 400, "unsupported_parameter"),
    ] {
        assert_eq!(seen[what], json!({"class": class, "status": status, "code": code}), "{what}");
    }
}

/// Vectors are the same as numbers and as bytes, of unit length, and of their text.
fn check_vectors(seen: &Value) {
    let vectors = |key: &str| -> Vec<Vec<f64>> {
        serde_json::from_value(seen[key].clone()).unwrap_or_else(|_| panic!("{}", seen[key]))
    };
    let (floats, bytes, one) =
        (vectors("embeddings_float"), vectors("embeddings_base64"), vectors("embeddings"));
    assert_eq!((floats.len(), bytes.len(), one.len()), (2, 2, 1));
    let product = |one: &[f64], other: &[f64]| -> f64 {
        assert_eq!(one.len(), other.len());
        one.iter().zip(other).map(|(one, other)| one * other).sum()
    };
    for (number, bytes) in floats.iter().zip(&bytes) {
        assert!((product(number, number) - 1.0).abs() < 1e-4);
        assert!((product(number, bytes) - 1.0).abs() < 1e-4);
    }
    assert!((product(&floats[0], &one[0]) - 1.0).abs() < 1e-2);
    assert!(product(&floats[0], &floats[1]) < 0.999);
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_clients_get_every_token_in_its_place() {
    let world = World::start().await;
    let engine = FixedRateEngine::start(Duration::from_millis(5)).await;
    let node = world.enrol("attic", &engine, 4).await;
    let mut agent = node.start().await;
    let proxy = TestProxy::start(&world, &[]).await;
    for client in [python(), npm()] {
        let seen = run(client, &proxy, "fixed", &[("TOOLS", "1")]).await;
        assert_eq!(seen["models"], json!(["fixed"]));
        assert_eq!(seen["model"], "fixed");
        assert_eq!(seen["chat"]["text"], FixedRateEngine::answer(5));
        assert_eq!(seen["chat"]["finish"], "stop");
        assert_eq!(seen["chat"]["request"], true);
        assert_eq!(seen["chat"]["usage"]["completion_tokens"], 5);
        assert_eq!(seen["stream"]["text"], FixedRateEngine::answer(5));
        assert_eq!(seen["stream"]["tokens"], 5);
        assert_eq!(seen["stream"]["finish"], "stop");
        assert_eq!(seen["n"], json!([[0, true], [1, true], [2, true]]));
        let four = FixedRateEngine::answer(4);
        assert_eq!(seen["completions"], json!([four, four]));
        assert_eq!(seen["completion"], four);
        let words = vec!["w"; 64].join(" ");
        assert_eq!(
            seen["tools"],
            json!({"finish": "tool_calls", "names": ["note"], "arguments": [{"words": words}]})
        );
        assert_eq!(seen["streamed_tools"], json!(["note"]));
        assert_eq!(seen["after_tools"], true);
        check_refusals(&seen);
    }
    world.prove_ledger().await;
    assert!(agent.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_model_answers_openais_clients() {
    let image = tokio::task::spawn_blocking(engine_image).await.unwrap();
    let world = World::start().await;
    let models = format!(
        "[[model]]\nname = \"{MODEL}\"\nengine = \"llama.cpp\"\npath = \"{}\"\nsha256 = \"{}\"\n\
         context_length = 1024\nslots = 2\nprice_input = \"1\"\nprice_output = \"100\"\n\n\
         [[model]]\nname = \"vectors\"\nengine = \"llama.cpp-embedding\"\npath = \"{}\"\n\
         context_length = 512\nprice_input = \"1\"\nprice_output = \"1\"\n",
        image.model_path.display(),
        image.model_sha256,
        image.model_path.display(),
    );
    let provider = world.enrol_with("attic", &models).await;
    let mut agent = provider.start().await;
    let proxy = TestProxy::start(&world, &[]).await;
    for client in [python(), npm()] {
        let more = [("RESPONSE_FORMAT", "1"), ("EMBEDDINGS", "vectors")];
        let seen = run(client, &proxy, MODEL, &more).await;
        assert_eq!(seen["models"], json!([MODEL, "vectors"]));
        assert_eq!(seen["chat"]["finish"], "length");
        assert_eq!(seen["chat"]["usage"]["completion_tokens"], 5);
        // The same seed, and the strictest choice: the same words.
        assert_eq!(seen["stream"]["text"], seen["chat"]["text"]);
        assert_eq!(seen["stream"]["tokens"], 5);
        assert_eq!(seen["n"], json!([[0, true], [1, true], [2, true]]));
        assert!(seen["format"]["n"].is_i64(), "{}", seen["format"]);
        check_vectors(&seen);
        check_refusals(&seen);
    }
    assert!(agent.stop().await.success());
}
