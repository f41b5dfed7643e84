//! The engine image and the model that tests of real engines use, and Docker's command
//! line, with which they look at containers from outside.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use infernet::engine::{
    Budget, Catalogue, EngineConfig, EnginePool, EngineRequest, RequestKind, ServedModel,
};
use serde_json::{Value, json};

/// The name of the model that is served.
pub(crate) const MODEL: &str = "smollm2:135m";

/// What `scripts/build-engine-image` made or found.
#[derive(Debug)]
pub(crate) struct EngineImage {
    pub(crate) image_id: String,
    pub(crate) model_path: PathBuf,
    pub(crate) model_sha256: String,
}

/// Builds the image and fetches the model, or finds that both are there.
pub(crate) fn engine_image() -> EngineImage {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/build-engine-image");
    let output = Command::new(&script).output().unwrap();
    assert!(
        output.status.success(),
        "{} failed:\n{}",
        script.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |key: &str| made[key].as_str().unwrap().to_owned();
    EngineImage {
        image_id: text("image_id"),
        model_path: PathBuf::from(text("model_path")),
        model_sha256: text("model_sha256"),
    }
}

impl EngineImage {
    /// Returns the model as an owner would configure it.
    pub(crate) fn model(&self) -> ServedModel {
        let mut model = ServedModel::file(MODEL, &self.model_path);
        model.sha256 = Some(self.model_sha256.clone());
        model.slots = 1;
        model.context_length = 2048;
        // Two threads wait for each other at every step, which takes ages on a machine
        // whose processors are busy with other tests.
        model.threads = Some(1);
        model
    }
}

/// A node's engines in directories of its own. What they leave behind, a test that
/// fails included, is removed when this goes.
pub(crate) struct EngineNode {
    pub(crate) pool: EnginePool,
    pub(crate) name: String,
    _folder: tempfile::TempDir,
    pub(crate) config: EngineConfig,
}

impl EngineNode {
    /// Makes a node that serves these models; `change` may change anything else.
    pub(crate) fn new(models: Vec<ServedModel>, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("test-{:x}", fastrand::u64(..));
        let mut config = EngineConfig {
            node: name.clone(),
            catalogue: Catalogue::built_in(),
            models,
            images: Vec::new(),
            runtime_dir: folder.path().join("run"),
            cache_dir: Some(folder.path().join("cache")),
            keep_alive: None,
            docker_host: None,
            budget: Budget::default(),
            relay_program: Some(PathBuf::from(env!("CARGO_BIN_EXE_infernet"))),
        };
        change(&mut config);
        Self { pool: EnginePool::new(config.clone()).unwrap(), name, _folder: folder, config }
    }

    /// Returns the ids of the node's containers, running or not.
    pub(crate) fn containers(&self) -> Vec<String> {
        let filter = format!("label=infernet.node={}", self.name);
        let found = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]);
        assert!(found.status.success(), "{found:?}");
        String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// Returns the names in the directory of sockets.
    pub(crate) fn sockets(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.config.runtime_dir) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for EngineNode {
    fn drop(&mut self) {
        for container in self.containers() {
            docker(&["rm", "--force", "--volumes", &container]);
        }
    }
}

/// Runs Docker's command line.
pub(crate) fn docker(arguments: &[&str]) -> Output {
    Command::new("docker").args(arguments).output().expect("docker's command line is installed")
}

/// Makes a request whose answer has `max_tokens` tokens whatever the model says: it may not
/// say that it has finished, which is its token 2.
pub(crate) fn long_chat(max_tokens: u32) -> EngineRequest {
    let mut request = chat("Count from one to one thousand in words.", max_tokens);
    request.body["logit_bias"] = json!({ "2": -100 });
    request
}

/// Makes a request of one message.
pub(crate) fn chat(text: &str, max_tokens: u32) -> EngineRequest {
    EngineRequest {
        kind: RequestKind::Chat,
        body: json!({"messages": [{"role": "user", "content": text}], "temperature": 0}),
        max_tokens,
        consumer: None,
    }
}
