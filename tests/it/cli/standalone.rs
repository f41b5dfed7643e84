//! The command line by itself: files, flags, words and exit codes, without a
//! control plane.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use infernet::identity::Keys;
use tokio::io::AsyncReadExt as _;

use crate::support::test_market::{infernet, run};

/// An address at which nobody answers.
const NOBODY: &str = "http://127.0.0.1:1";

#[tokio::test]
async fn what_makes_no_sense_exits_with_2() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [&[][..], &["walk"], &["job"], &["run"], &["job", "show", "nonsense"]] {
        let said = run(home.path(), arguments).await;
        assert_eq!(said.code, Some(2), "{arguments:?}: {said:?}");
        assert_eq!(said.stdout, "");
    }
    let said = run(home.path(), &["run", "m", "hi", "--max-cost", "much"]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("not an amount of money"), "{}", said.stderr);
}

#[tokio::test]
async fn without_a_key_one_is_not_signed_in() {
    let home = tempfile::tempdir().unwrap();
    let said = run(home.path(), &["balance", "--url", NOBODY]).await;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.stderr.contains("There is no key at "), "{}", said.stderr);
    assert!(said.stderr.contains("infernet init"), "{}", said.stderr);
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config/owner.key");
    Keys::generate().store(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let said = run(home.path(), &["balance", "--url", NOBODY]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("can be read or written by others (mode 0644)"), "{said:?}");
    assert!(said.stderr.contains("chmod 600"), "{}", said.stderr);
}

#[tokio::test]
async fn a_file_that_holds_no_key_is_named() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config/owner.key");
    Keys::generate().store(&path).unwrap();
    fs::write(&path, "hunter2").unwrap();
    let said = run(home.path(), &["balance", "--url", NOBODY]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("does not hold a secret key"), "{}", said.stderr);
    assert!(said.stderr.contains(path.to_str().unwrap()), "{}", said.stderr);
    assert!(!said.stderr.contains("hunter2"), "{}", said.stderr);
}

#[tokio::test]
async fn a_control_plane_that_is_away_is_named() {
    let home = tempfile::tempdir().unwrap();
    Keys::generate().store(&home.path().join("config/owner.key")).unwrap();
    for arguments in [
        &["balance", "--url", NOBODY][..],
        &["balance", "--url", NOBODY, "--publishable-key", "sb_publishable_x"],
        &["model", "ls", "--url", NOBODY],
        &["init", "--yes", "--url", NOBODY],
    ] {
        let said = run(home.path(), arguments).await;
        assert_eq!(said.code, Some(69), "{arguments:?}: {said:?}");
        assert!(
            said.stderr.contains(&format!("The control plane at {NOBODY} cannot be reached")),
            "{}",
            said.stderr
        );
        assert!(said.stderr.contains("infernet up"), "{}", said.stderr);
    }
    assert!(!home.path().join("config/config.toml").exists(), "init wrote nothing");
    let said = run(home.path(), &["balance", "--url", NOBODY, "--json"]).await;
    let error: serde_json::Value = serde_json::from_str(&said.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "unavailable");
    assert_eq!(error["error"]["exit_code"], 69);
}

#[tokio::test]
async fn a_corrupt_configuration_is_named_with_its_line() {
    let home = tempfile::tempdir().unwrap();
    Keys::generate().store(&home.path().join("config/owner.key")).unwrap();
    let path = home.path().join("config/config.toml");
    for (text, line, expected) in [
        ("[control]\nport = 1\n", 2, "unknown field `port`"),
        ("[control]\nurl = \"https://x.example\n", 2, "invalid basic string"),
        ("[control]\nurl = \"ftp://x.example\"\n", 2, "only https and http"),
        ("[control]\nurl = \"http://8.8.8.8\"\n", 2, "in the clear"),
        ("log = \"info\"\n\n[node]\nrole = \"provider\"\n", 3, "missing field `name`"),
        (
            "[[model]]\nname = \"m\"\nengine = \"llama.cpp\"\nprice_input = \"x\"\nprice_output = 1\n",
            4,
            "is not an amount of money",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let said = run(home.path(), &["balance"]).await;
        assert_eq!(said.code, Some(1), "{said:?}");
        let place = format!("{} is wrong at line {line}:", path.display());
        assert!(said.stderr.contains(&place), "{text}: {}", said.stderr);
        assert!(said.stderr.contains(expected), "{text}: {}", said.stderr);
        assert!(said.stderr.contains("Correct that line"), "{}", said.stderr);
    }
}

#[tokio::test]
async fn a_flag_goes_before_a_variable_before_the_file() {
    let home = tempfile::tempdir().unwrap();
    Keys::generate().store(&home.path().join("config/owner.key")).unwrap();
    let nothing = run(home.path(), &["balance"]).await;
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.stderr.contains("No control plane is known"), "{}", nothing.stderr);
    fs::write(
        home.path().join("config/config.toml"),
        "[control]\nurl = \"http://127.0.0.1:2\"\npublishable_key = \"sb_publishable_x\"\n",
    )
    .unwrap();
    let file = run(home.path(), &["balance"]).await;
    assert!(file.stderr.contains("http://127.0.0.1:2 "), "{}", file.stderr);
    let variable = infernet(home.path(), &["balance"])
        .env("INFERNET_URL", "http://127.0.0.1:3")
        .output()
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&variable.stderr).contains("http://127.0.0.1:3 "));
    let flag = infernet(home.path(), &["balance", "--url", "http://127.0.0.1:4"])
        .env("INFERNET_URL", "http://127.0.0.1:3")
        .output()
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&flag.stderr).contains("http://127.0.0.1:4 "));
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_fault() {
    let home = tempfile::tempdir().unwrap();
    let mut child = infernet(home.path(), &["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(3));
    assert_eq!(said, "");
}

#[tokio::test]
async fn init_writes_files_of_this_user_alone_and_replaces_none_unasked() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("Small Model.Q4.gguf");
    fs::write(&model, "weights").unwrap();
    let arguments = [
        "init",
        "--offline",
        "--yes",
        "--url",
        "http://127.0.0.1:54321",
        "--name",
        "attic",
        "--path",
        model.to_str().unwrap(),
        "--price-output",
        "0.25",
    ];
    let said = run(home.path(), &arguments).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("Back it up"), "{}", said.stderr);
    let config = home.path().join("config");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&config), 0o700);
    for file in ["config.toml", "owner.key", "node.key"] {
        assert_eq!(mode(&config.join(file)), 0o600, "{file}");
    }
    let text = fs::read_to_string(config.join("config.toml")).unwrap();
    for part in [
        "url = \"http://127.0.0.1:54321\"",
        "name = \"small-model.q4\"",
        "engine = \"llama.cpp\"",
        "price_output = \"0.25\"",
        // sha256 of "weights"
        &infernet::identity::sha256_hex(b"weights"),
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    for key in ["owner.key", "node.key"] {
        let secret = fs::read_to_string(config.join(key)).unwrap();
        assert!(!text.contains(secret.trim()), "{key} is in the configuration");
        assert!(!said.stdout.contains(secret.trim()) && !said.stderr.contains(secret.trim()));
    }

    let again = run(home.path(), &arguments).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.stderr.contains("is there already, and nothing was changed"), "{again:?}");
    assert_eq!(fs::read_to_string(config.join("config.toml")).unwrap(), text);

    let keys: Vec<String> =
        ["owner.key", "node.key"].map(|key| fs::read_to_string(config.join(key)).unwrap()).to_vec();
    let forced: Vec<&str> = arguments.iter().copied().chain(["--force"]).collect();
    let forced = run(home.path(), &forced).await;
    assert_eq!(forced.code, Some(0), "{forced:?}");
    assert_eq!(fs::read_to_string(config.join("config.toml.old")).unwrap(), text);
    let kept: Vec<String> =
        ["owner.key", "node.key"].map(|key| fs::read_to_string(config.join(key)).unwrap()).to_vec();
    assert_eq!(keys, kept, "keys are never replaced");
}

#[tokio::test]
async fn init_names_what_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let said = run(home.path(), &["init", "--yes", "--offline"]).await;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.stderr.contains("--url or --cloud"), "{}", said.stderr);
    let arguments =
        ["init", "--yes", "--offline", "--url", NOBODY, "--path", "/nowhere/model.gguf"];
    let said = run(home.path(), &arguments).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("The model file /nowhere/model.gguf"), "{}", said.stderr);
    assert!(!home.path().join("config").exists(), "nothing was written");
}

#[tokio::test]
async fn a_receipt_is_checked_offline() {
    let home = tempfile::tempdir().unwrap();
    let keys = Keys::generate();
    let receipt = infernet::identity::Receipt {
        url: "https://plane.example".into(),
        job: uuid::Uuid::from_u128(1),
        attempt: uuid::Uuid::from_u128(2),
        node: keys.public_hex(),
        model: "m".into(),
        model_digest: None,
        input_sha256: "0".repeat(64),
        output_sha256: infernet::identity::sha256_hex(b"answer"),
        input_tokens: 1,
        output_tokens: 2,
        price_input: "0.1".into(),
        price_output: "0.2".into(),
        seconds: None,
        price_second: None,
        finish: "stop".into(),
    };
    let file = home.path().join("receipt.json");
    let mut event = receipt.sign(&keys, 1_790_000_000);
    fs::write(&file, event.to_string()).unwrap();
    let output = home.path().join("answer.txt");
    fs::write(&output, "answer").unwrap();
    let arguments = ["verify", file.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let said = run(home.path(), &arguments).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains(&keys.public_hex()), "{}", said.stdout);
    fs::write(&output, "another").unwrap();
    let said = run(home.path(), &arguments).await;
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("is for another output"), "{}", said.stderr);
    event["created_at"] = 1.into();
    fs::write(&file, event.to_string()).unwrap();
    let said = run(home.path(), &["verify", file.to_str().unwrap()]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("not genuine"), "{}", said.stderr);
}
