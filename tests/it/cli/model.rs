//! What a machine serves, changed on the command line: `infernet model`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::test_market::run;

const CONFIG: &str = "# Of this house.\nlog = \"info\" # quiet\n";

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("config")).unwrap();
    fs::write(home.path().join("config/config.toml"), CONFIG).unwrap();
    fs::write(home.path().join("m.gguf"), "abc").unwrap();
    home
}

fn config(home: &Path) -> String {
    fs::read_to_string(home.join("config/config.toml")).unwrap()
}

async fn json(home: &Path, arguments: &[&str]) -> Value {
    let said = run(home, &[arguments, &["--json"]].concat()).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    serde_json::from_str(&said.stdout).unwrap()
}

#[tokio::test]
async fn a_model_is_added_priced_and_removed() {
    let home = home();
    let file = home.path().join("m.gguf");
    let path = file.to_str().unwrap();
    let add = ["model", "add", "m:1", "--path", path, "--price-input", "0.05"];
    let said = run(home.path(), &[&add[..], &["--price-output", "0.1"]].concat()).await;
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), "Added m:1.\n"), "{said:?}");
    assert!(said.stderr.contains("infernet restart"), "{said:?}");
    let text = config(home.path());
    assert!(text.starts_with(CONFIG), "{text}");
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert!(text.contains(&format!("sha256 = \"{sha256}\"")), "{text}");
    assert!(text.contains("engine = \"llama.cpp\""), "{text}");

    let asked = json(home.path(), &["model", "price", "m:1"]).await;
    assert_eq!(asked, json!({"name": "m:1", "price_input": "0.05", "price_output": "0.1"}));
    let asked = json(home.path(), &["model", "price", "m:1", "--output", "0.25"]).await;
    assert_eq!(asked, json!({"name": "m:1", "price_input": "0.05", "price_output": "0.25"}));
    assert!(config(home.path()).starts_with(CONFIG));

    let said = run(home.path(), &["model", "rm", "m:1", "--file"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("Removed m:1. Deleted "), "{said:?}");
    assert!(!file.exists());
    assert_eq!(config(home.path()), CONFIG);
}

#[tokio::test]
async fn a_server_of_its_own_needs_no_file_and_keeps_it() {
    let home = home();
    let url = "http://127.0.0.1:11434/v1";
    let prices = ["--price-input", "1", "--price-output", "2"];
    let add = ["model", "add", "far", "--endpoint", url, "--engine", "ollama"];
    let said = run(home.path(), &[&add[..], &prices, &["--share-prefix-cache"]].concat()).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let text = config(home.path());
    assert!(text.contains("share_prefix_cache = true") && text.contains(url), "{text}");
    // Nothing of it is fetched: it is somebody else's affair.
    let said = run(home.path(), &["model", "pull"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), ""), "{said:?}");
    let said = run(home.path(), &["model", "pull", "far"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("a server of its own"), "{said:?}");
    assert_eq!(json(home.path(), &["model", "rm", "far"]).await["removed"], "far");
}

#[tokio::test]
async fn what_cannot_be_is_told_and_changes_nothing() {
    let home = home();
    let path = home.path().join("m.gguf");
    let path = path.to_str().unwrap();
    let prices = ["--price-input", "1", "--price-output", "2"];
    let add = |name: &'static str, path: &'static str| ["model", "add", name, "--path", path];
    let there =
        |path: &str| [&["model", "add", "m", "--path", path][..], &prices].concat().join(" ");
    let words = there(path);
    let added = run(home.path(), &words.split(' ').collect::<Vec<_>>()).await;
    assert_eq!(added.code, Some(0), "{added:?}");
    let before = config(home.path());
    for (arguments, code, part) in [
        (words.split(' ').collect::<Vec<_>>(), 1, "the model m is there twice"),
        ([&add("x", "/nowhere.gguf")[..], &prices].concat(), 1, "cannot be used"),
        (vec!["model", "add", "x", "--price-input", "1", "--price-output", "1"], 2, "required"),
        (vec!["model", "add", "-x", "--path", "/x"], 2, "unexpected argument"),
        (vec!["model", "price", "other"], 1, "does not serve other"),
        (vec!["model", "price", "other", "--input", "1"], 1, "It serves: m"),
        (vec!["model", "price", "m", "--second", "1"], 2, "m has no such price"),
        (vec!["model", "price", "m", "--input", "cheap"], 2, "not an amount of money"),
        (vec!["model", "rm", "other"], 1, "It serves: m"),
        (vec!["model", "pull", "other"], 1, "It serves: m"),
        (vec!["model", "ps"], 4, "There is no key"),
    ] {
        let said = run(home.path(), &arguments).await;
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(part), "{arguments:?}: {said:?}");
        assert_eq!(config(home.path()), before, "{arguments:?}");
    }
}
