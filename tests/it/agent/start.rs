//! What `infernet start`, `stop` and `status` say when they cannot do what was
//! asked: no control plane is needed for these.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use infernet::identity::Keys;
use tempfile::TempDir;

use crate::support::agent_world::{run, talk};

/// Makes a node's folder: a key and a configuration.
fn node(config: &str) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("config");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    Keys::load_or_create(&folder.join("node.key")).unwrap();
    fs::write(folder.join("config.toml"), config).unwrap();
    home
}

/// The configuration of a node whose control plane does not listen.
fn lonely_node(more: &str) -> String {
    format!("{}[node]\nname = \"attic\"\n{more}", nobody())
}

/// A control plane at a port where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    format!("[control]\nurl = \"{url}\"\npublishable_key = \"sb_publishable_x\"\n\n")
}

fn model(path: &Path, more: &str) -> String {
    format!(
        "\n[[model]]\nname = \"small\"\nengine = \"llama.cpp\"\npath = \"{}\"\n\
         price_input = \"0.1\"\nprice_output = \"0.2\"\n{more}",
        path.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_no_node_is_told_to_become_one() {
    let home = node(&nobody());
    for command in [&["start"][..], &["start", "--foreground"], &["status"]] {
        let output = run(home.path(), command).await;
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let talk = talk(&output);
        assert!(talk.contains("This machine is not set up as a node."), "{talk}");
        assert!(talk.contains("infernet init"), "{talk}");
    }
}

#[test]
fn the_agents_own_binary_is_start_in_the_foreground() {
    let home = node(&nobody());
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_infernet-agent"))
        .env("INFERNET_CONFIG_DIR", home.path().join("config"))
        .env("INFERNET_STATE_DIR", home.path().join("state"))
        .env("INFERNET_RUNTIME_DIR", home.path().join("run"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(talk(&output).contains("This machine is not set up as a node."), "{}", talk(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_control_plane_is_named_in_both_ways_of_starting() {
    let home = node(&lonely_node(""));
    for command in [&["start"][..], &["start", "--foreground"]] {
        let output = run(home.path(), command).await;
        let talk = talk(&output);
        assert_eq!(output.status.code(), Some(69), "{talk}");
        assert!(talk.contains("Error: The control plane at http://127.0.0.1:"), "{talk}");
        assert!(talk.contains("cannot be reached"), "{talk}");
    }
    let output = run(home.path(), &["status"]).await;
    let shown = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(shown.contains("not running"), "{shown}");
    assert!(talk(&output).contains("cannot be reached"), "{}", talk(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_failed_start_is_private() {
    let home = node(&lonely_node(""));
    run(home.path(), &["start"]).await;
    let log = home.path().join("state/agent.log");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(home.path().join("config/node.key")).unwrap();
    assert!(!fs::read_to_string(&log).unwrap().contains(secret.trim()));
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_that_does_not_run_is_told_with_the_command_that_starts_it() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("model.gguf");
    fs::write(&file, "weights").unwrap();
    let socket = home.path().join("no-docker.sock");
    let docker = format!("[docker]\nsocket = \"{}\"\n", socket.display());
    let home = node(&lonely_node(&format!("{docker}{}", model(&file, ""))));
    let output = run(home.path(), &["start"]).await;
    let talk = talk(&output);
    assert_eq!(output.status.code(), Some(69), "{talk}");
    assert!(talk.contains("Docker is not running"), "{talk}");
    assert!(talk.contains("systemctl start docker"), "{talk}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_told_with_the_command_that_gets_it() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("model.gguf");
    fs::write(&file, "weights").unwrap();
    let home = node(&lonely_node(&model(&file, "")));
    let catalogue = "[engine.\"llama.cpp\"]\nimage = \"infernet-test/not-there:1\"\n\
        install = \"make the-image\"\nlicence = \"MIT\"\ncommand = [\"/bin/server\"]\n\
        args = [\"{socket}\"]\n";
    fs::write(home.path().join("config/engines.toml"), catalogue).unwrap();
    let output = run(home.path(), &["start"]).await;
    let talk = talk(&output);
    assert_eq!(output.status.code(), Some(1), "{talk}");
    assert!(talk.contains("The image infernet-test/not-there:1 is not on this machine."), "{talk}");
    assert!(talk.contains("make the-image"), "{talk}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_model_file_is_named() {
    let home = tempfile::tempdir().unwrap();
    let missing = home.path().join("missing.gguf");
    let first = node(&lonely_node(&model(&missing, "")));
    let output = run(first.path(), &["start"]).await;
    let said = talk(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("The file of model small is missing"), "{said}");

    let file = home.path().join("model.gguf");
    fs::write(&file, "weights").unwrap();
    let digest = format!("sha256 = \"{}\"\n", "ab".repeat(32));
    let second = node(&lonely_node(&model(&file, &digest)));
    let output = run(second.path(), &["start"]).await;
    let said = talk(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is not the one that is allowed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_others_can_read_is_refused() {
    let home = node(&lonely_node(""));
    let key = home.path().join("config/node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let output = run(home.path(), &["start"]).await;
    let talk = talk(&output);
    assert_eq!(output.status.code(), Some(1), "{talk}");
    assert!(talk.contains("node.key"), "{talk}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_what_does_not_run_is_no_failure() {
    let home = node(&lonely_node(""));
    let output = run(home.path(), &["stop"]).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(talk(&output).contains("No agent is running"), "{}", talk(&output));
    let output = run(home.path(), &["stop", "--json"]).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), r#"{"pid":null,"stopped":false}"#);
}
