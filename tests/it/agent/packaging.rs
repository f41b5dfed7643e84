//! What is handed out beside the program: the agent in an image, the systemd unit,
//! engine entries, job specs and snippets. Each is used here as its reader would.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use infernet::config::{Config, ModelSource, Overrides};
use infernet::control::rpc::{JobState, JobTerms, SubmitJob};
use infernet::engine::Catalogue;
use infernet::engine::catalogue::{GpuNeed, ServedModel};
use infernet::id::JobId;
use serde_json::Value;

use crate::support::agent_world::{PATIENCE, World};
use crate::support::engine_image::docker;
use crate::support::fixed_rate::FixedRateEngine;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn example(name: &str) -> PathBuf {
    repository().join("examples").join(name)
}

/// Runs a program that must succeed.
fn success(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

/// Reads the arguments of `submit_job` from an example, with another model.
fn job_spec(name: &str, model: &str) -> SubmitJob {
    let text = fs::read_to_string(example(name)).unwrap();
    let mut spec: Value = serde_json::from_str(&text).unwrap();
    spec["p_model"] = model.into();
    let number = |key: &str| spec[key].as_u64().map(|number| u32::try_from(number).unwrap());
    let job = SubmitJob {
        id: JobId::generate(),
        model: model.to_owned(),
        input: spec["p_input"].clone(),
        kind: serde_json::from_value(spec["p_kind"].clone()).unwrap(),
        max_tokens: number("p_max_tokens"),
        terms: JobTerms {
            max_cost: spec["p_max_cost"].as_str().map(|cost| cost.parse().unwrap()),
            deadline_secs: number("p_deadline_secs"),
            title: spec["p_title"].as_str().map(str::to_owned),
            ..JobTerms::default()
        },
        max_seconds: number("p_max_seconds"),
    };
    let mut sent = serde_json::to_value(&job).unwrap();
    sent.as_object_mut().unwrap().remove("p_id");
    assert_eq!(sent, spec, "the example says what a client sends");
    job
}

/// An image of a test's own, removed with it.
struct TestImage(String);

impl Drop for TestImage {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.0]);
    }
}

impl TestImage {
    fn new(what: &str) -> Self {
        Self(format!("infernet-test/{what}:{:x}", fastrand::u64(..)))
    }

    /// Makes a base with this machine's C library and nothing else: what the image's
    /// usual base brings, without a registry.
    fn base(program: &Path) -> Self {
        let image = Self::new("base");
        let folder = tempfile::tempdir().unwrap();
        let listed = success(Command::new("ldd").arg(program));
        let listed = String::from_utf8(listed.stdout).unwrap();
        let mut files: Vec<PathBuf> = listed
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .map(PathBuf::from)
            .collect();
        assert!(files.len() >= 3, "{listed}");
        files.extend(["/etc/ssl/certs/ca-certificates.crt".into()]);
        for file in files.iter().filter(|file| file.exists()) {
            let target = folder.path().join(file.strip_prefix("/").unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            // Follows links, so that each library is there under the name it is asked by.
            fs::copy(file, target).unwrap();
        }
        let outside = tempfile::tempdir().unwrap();
        let tarball = outside.path().join("base.tar");
        let mut tar = Command::new("tar");
        tar.args(["--create", "--owner=0", "--group=0", "--file"]).arg(&tarball);
        success(tar.arg("--directory").arg(folder.path()).arg("."));
        success(Command::new("docker").arg("import").arg(&tarball).arg(&image.0));
        image
    }

    /// Builds the agent's image around the program that is tested.
    fn agent(base: &Self) -> Self {
        let image = Self::new("agent");
        let context = tempfile::tempdir().unwrap();
        let program = context.path().join("infernet");
        success(Command::new("strip").arg("-o").arg(&program).arg(env!("CARGO_BIN_EXE_infernet")));
        let mut build = Command::new("docker");
        // The builder that every Docker has; the newer one is a plugin.
        build.env("DOCKER_BUILDKIT", "0");
        build.args(["build", "--quiet", "--target", "prebuilt", "--tag", &image.0]);
        build.arg("--build-arg").arg(format!("BASE={}", base.0));
        build.arg("--file").arg(repository().join("Dockerfile"));
        success(build.arg(context.path()));
        image
    }
}

/// A container that is removed with the test.
struct Agent(String);

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = docker(&["logs", &self.0]);
            eprintln!("{}", String::from_utf8_lossy(&log.stderr));
        }
        docker(&["rm", "--force", "--volumes", &self.0]);
    }
}

#[tokio::test]
async fn the_agent_in_an_image_serves_the_example_job() {
    let base = TestImage::base(Path::new(env!("CARGO_BIN_EXE_infernet")));
    let image = TestImage::agent(&base);
    let version = docker(&["run", "--rm", "--network", "none", &image.0, "--version"]);
    let said = String::from_utf8_lossy(&version.stdout);
    assert_eq!(said.trim(), concat!("infernet ", env!("CARGO_PKG_VERSION")), "{version:?}");

    let world = World::start().await;
    let engine = FixedRateEngine::start(Duration::from_millis(1)).await;
    let node = world.enrol("boxed", &engine, 2).await;
    for folder in ["state", "run"] {
        fs::create_dir_all(node.folder.join(folder)).unwrap();
    }
    let name = format!("infernet-test-{:x}", fastrand::u64(..));
    let user = format!("{}:{}", nix::unistd::getuid(), nix::unistd::getgid());
    let mut arguments: Vec<String> = "run --detach --network host --read-only --cap-drop ALL \
         --security-opt no-new-privileges"
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    arguments.extend(["--name".to_owned(), name.clone(), "--user".to_owned(), user]);
    for (ours, theirs) in
        [("config", "/etc/infernet"), ("state", "/var/lib/infernet"), ("run", "/run/infernet")]
    {
        let volume = format!("{}:{theirs}", node.folder.join(ours).display());
        arguments.extend(["--volume".to_owned(), volume]);
    }
    arguments.push(image.0.clone());
    let started = docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let agent = Agent(name);
    assert!(started.status.success(), "{started:?}");
    let limit = Instant::now() + PATIENCE;
    while node.status().await.node.status != "online" {
        assert!(Instant::now() < limit, "the agent in the image is not online");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let consumer = world.consumer().await;
    let mut job = job_spec("jobs/chat.json", "fixed");
    job.terms.max_cost = Some("1".parse().unwrap());
    consumer.rpc.submit_job(&job).await.unwrap();
    let job = consumer.ended(job.id).await;
    assert_eq!(job.state, JobState::Completed, "{job:?}");

    let stopped = docker(&["stop", "--time", "45", &agent.0]);
    assert!(stopped.status.success(), "{stopped:?}");
    let code = docker(&["inspect", "--format", "{{.State.ExitCode}}", &agent.0]);
    assert_eq!(String::from_utf8_lossy(&code.stdout).trim(), "0", "it ended in order");
    world.prove_ledger().await;
}

#[test]
fn job_specs_say_what_clients_send() {
    let job = job_spec("jobs/chat.json", "m");
    assert_eq!(job.max_tokens, Some(120));
    let folder = fs::read_dir(example("jobs")).unwrap();
    for entry in folder {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let spec: Value = serde_json::from_str(&text).unwrap();
        let kinds = ["chat", "completion", "embedding", "container"];
        assert!(kinds.contains(&spec["p_kind"].as_str().unwrap()), "{spec}");
        assert!(spec["p_input"].is_object() && spec["p_model"].is_string(), "{spec}");
    }
}

/// Splits an example of engines into the two files of a machine.
fn split_files(name: &str) -> (String, String) {
    let all: toml::Table = fs::read_to_string(example(name)).unwrap().parse().unwrap();
    let part = |key: &str| {
        let table = toml::Table::from_iter([(key.to_owned(), all[key].clone())]);
        toml::to_string(&table).unwrap()
    };
    assert_eq!(all.keys().collect::<Vec<_>>(), ["engine", "model"]);
    (part("engine"), part("model"))
}

#[test]
fn engine_entries_for_cards_of_24_and_80_gb_are_valid() {
    for (name, gigabytes) in [("engines/24gb.toml", 24_u64), ("engines/80gb.toml", 80)] {
        let (engines, config) = split_files(name);
        let catalogue = Catalogue::parse(&engines, name).unwrap();
        let config = Config::read(Path::new(name), &config, &Overrides::default()).unwrap();
        for model in config.models() {
            let entry = catalogue.get(&model.engine).unwrap();
            assert_eq!(entry.gpu, GpuNeed::Required);
            let ModelSource::File { path, .. } = &model.source else { panic!("{model:?}") };
            let mut served = ServedModel::file(&model.name, path);
            served.slots = model.slots;
            served.context_length = model.context_length.unwrap();
            let line = entry.command_line(&served);
            assert!(!line.iter().any(|word| word.contains(['{', '}'])), "{line:?}");
            assert!(line.contains(&model.name), "{line:?}");
            assert!(line.iter().any(|word| word.contains("/run/engine/engine.sock")), "{line:?}");
        }
        assert!(name.contains(&format!("{gigabytes}gb")));
    }
}

#[test]
fn the_systemd_unit_is_valid_and_hardened() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(example("infernet.service")).unwrap();
    // Where the program lies is the machine's; that it understands its arguments is not.
    let installed = "/usr/local/bin/infernet";
    let command = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let arguments: Vec<&str> =
        command.strip_prefix(installed).unwrap().split_whitespace().collect();
    success(Command::new(env!("CARGO_BIN_EXE_infernet")).args(arguments).arg("--help"));
    let unit = folder.path().join("infernet.service");
    let local = text
        .replace(installed, env!("CARGO_BIN_EXE_infernet"))
        .replace("User=infernet\n", "User=daemon\n");
    fs::write(&unit, local).unwrap();
    let verified = success(Command::new("systemd-analyze").arg("verify").arg(&unit));
    let complaints = String::from_utf8_lossy(&verified.stderr).into_owned();
    let ours: Vec<&str> =
        complaints.lines().filter(|line| line.contains("infernet.service")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    // systemd's own judgement: 0 is a locked box, 10 is no limit at all.
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=true", "--threshold=30"]).arg(&unit);
    success(&mut security);
}

#[test]
fn snippets_are_valid_programs() {
    let folder = tempfile::tempdir().unwrap();
    let compiled = format!("cfile={:?}", folder.path().join("chat.pyc").display().to_string());
    let script = format!(
        "import py_compile, sys; py_compile.compile(sys.argv[1], {compiled}, doraise=True)"
    );
    success(Command::new("python3").args(["-c", &script]).arg(example("openai/chat.py")));
    success(Command::new("bash").arg("-n").arg(example("openai/chat.sh")));
    let snippet = fs::read_to_string(example("openai/chat.mjs")).unwrap();
    assert!(snippet.contains("new OpenAI({"));
}

#[test]
fn the_list_of_examples_is_whole() {
    fn files(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                files(&entry.path(), found);
            } else {
                let path = entry.path();
                let name = path.strip_prefix(example("")).unwrap();
                found.insert(name.display().to_string());
            }
        }
    }
    let mut found = BTreeSet::new();
    files(&example(""), &mut found);
    found.remove("README.md");
    let readme = fs::read_to_string(example("README.md")).unwrap();
    for name in found {
        let folder = name.split('/').next().unwrap();
        let named =
            readme.contains(&format!("`{name}`")) || readme.contains(&format!("`{folder}/`"));
        assert!(named, "examples/README.md does not name {name}");
    }
}
