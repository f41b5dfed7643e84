//! Integration tests, one binary: a folder a subject, a module a topic. Helpers are in
//! `support`. `.config/nextest.toml` groups the tests by these folders.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the value")]

mod agent;
mod cli;
mod control;
mod engine;
mod market;
mod proxy;
mod stack;
#[allow(dead_code, reason = "tests/chaos uses the rest")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

/// A file that no module names is compiled by nobody: its tests would be gone in silence.
#[test]
fn every_file_is_in_a_module() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let roots = ["src/lib.rs", "src/main.rs", "tests/it/main.rs", "tests/chaos/main.rs"];
    let forgotten: Vec<_> = ["src", "tests/it", "tests/chaos"]
        .into_iter()
        .flat_map(|folder| rust_files(&package.join(folder)))
        .filter(|file| {
            let named = file.strip_prefix(package).unwrap();
            let is_root = roots.iter().any(|root| named == Path::new(root));
            !is_root && !named.starts_with("src/bin") && !is_declared(file)
        })
        .collect();
    assert!(forgotten.is_empty(), "No module names these files: {forgotten:#?}");
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// Says whether the file of the parent module has a `mod` line for this one.
fn is_declared(file: &Path) -> bool {
    let is_folder = file.file_name().unwrap() == "mod.rs";
    let module = if is_folder { file.parent().unwrap() } else { file };
    let line = format!("mod {};", module.file_stem().unwrap().to_str().unwrap());
    let folder = module.parent().unwrap();
    let parents = [folder.join("mod.rs"), folder.with_extension("rs")]
        .into_iter()
        .chain(["lib.rs", "main.rs"].map(|root| folder.join(root)));
    parents
        .filter_map(|parent| fs::read_to_string(parent).ok())
        .any(|text| text.lines().any(|said| said.trim().trim_start_matches("pub").ends_with(&line)))
}
