//! `infernet config` and `infernet completion`: no control plane is needed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::support::test_market::{infernet, run};

#[tokio::test]
async fn a_key_is_set_shown_and_taken_out_again() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("config/config.toml");
    let path = run(home.path(), &["config", "path"]).await;
    assert_eq!(path.stdout, format!("{}\n", file.display()));
    let set = run(home.path(), &["config", "set", "node.name", "attic"]).await;
    assert_eq!((set.code, set.stdout.as_str()), (Some(0), "node.name is attic\n"), "{set:?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("# Mine.\n{text}slots = 2 # enough\n")).unwrap();
    let set = run(home.path(), &["config", "set", "node.slots", "4"]).await;
    assert_eq!(set.code, Some(0), "{set:?}");
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text, "# Mine.\n[node]\nname = \"attic\"\nslots = 4 # enough\n");

    let wrong = run(home.path(), &["config", "set", "node.slots", "many"]).await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.stderr.contains("invalid type"), "{wrong:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), text, "nothing was written");

    let got = run(home.path(), &["config", "get", "node.grace_secs"]).await;
    assert_eq!(got.stdout, "30\n", "{got:?}");
    let none = run(home.path(), &["config", "get", "node.region", "--json"]).await;
    assert_eq!(none.code, Some(1), "{none:?}");
    let error: Value = serde_json::from_str(none.stderr.trim()).unwrap();
    assert_eq!(error["error"]["code"], "not_set");

    let shown = infernet(home.path(), &["config", "show"])
        .env("INFERNET_URL", "http://127.0.0.1:1")
        .output()
        .await
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("control.url\thttp://127.0.0.1:1\tflag or variable\n"), "{shown}");
    assert!(shown.contains("node.slots\t4\tfile\n"), "{shown}");

    let unset = run(home.path(), &["config", "unset", "node.slots", "--json"]).await;
    assert!(unset.stdout.contains("\"removed\":true"), "{unset:?}");
    let again = run(home.path(), &["config", "unset", "node.slots"]).await;
    assert_eq!(again.stdout, "node.slots was not in the file.\n");
    let needed = run(home.path(), &["config", "unset", "node.name"]).await;
    assert_eq!(needed.code, Some(1), "{needed:?}");
    assert!(needed.stderr.contains("missing field `name`"), "{needed:?}");
}

#[tokio::test]
async fn each_shell_gets_a_script_that_knows_the_commands() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let said = run(home.path(), &["completion", shell]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        for word in ["batch", "discard", "enrol"] {
            assert!(said.stdout.contains(word), "{shell}: {word}");
        }
    }
    let said = run(home.path(), &["completion", "csh", "--json"]).await;
    assert_eq!(said.code, Some(2), "{said:?}");
    let error: Value = serde_json::from_str(said.stderr.trim()).unwrap();
    assert_eq!(error["error"]["kind"], "usage", "{said:?}");
}
