//! The engine of the rows: a container whose answers are known beforehand, so that
//! each can be compared byte for byte. `engine.c` is its other half.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The image's name in each row's own Docker.
pub(crate) const IMAGE: &str = "infernet/chaos-engine:local";

/// The name under which it is offered.
pub(crate) const MODEL: &str = "known";

/// The name under which it is offered as a container job.
pub(crate) const JOB: &str = "known/job:1";

/// Time from one word to the next, in milliseconds.
pub(crate) const PAUSE_MS: u64 = 20;

/// The catalogue's entry.
pub(crate) fn catalogue() -> String {
    format!(
        "[engine.known]\nimage = \"{IMAGE}\"\ninstall = \"scripts/chaos\"\nlicence = \"MIT\"\n\
         command = [\"/engine\"]\nargs = [\"{{socket}}\", \"{PAUSE_MS}\"]\n\
         prefix_cache = \"off\"\noverhead_mb = 64\nshm_mb = 1\npids = 64\n\
         tmpfs = [{{ path = \"/tmp\", size_mb = 1 }}]\n\
         paths = [\"/v1/chat/completions\"]\n"
    )
}

/// What a node offers the container job by; the image is allowed by its id.
pub(crate) fn container_offer(image: &str) -> String {
    format!(
        "[[container]]\nname = \"{JOB}\"\nimage = \"{image}\"\n\
         command = [\"/engine\", \"job\", \"{PAUSE_MS}\"]\nmemory_mb = 64\nslots = 2\n\
         price_second = \"0.001\"\n"
    )
}

/// The answer of so many tokens to a message.
pub(crate) fn answer(message: &str, tokens: u32) -> String {
    let hash = mix(14_695_981_039_346_656_037, message);
    (0..tokens)
        .map(|index| format!("{:08x}-{index} ", (mix(hash, &index.to_string()) >> 16) as u32))
        .collect()
}

fn mix(hash: u64, text: &str) -> u64 {
    text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211))
}

/// Builds the image's only layer, as a file for `docker import`.
pub(crate) fn build_layer(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/engine.c");
    let root = folder.join("root");
    for directory in ["tmp", "run/engine", "models"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    run(Command::new("cc")
        .args(["-static", "-O1", "-pthread", "-D_GNU_SOURCE", "-o"])
        .arg(root.join("engine"))
        .arg(source));
    let layer = folder.join("layer.tar");
    run(Command::new("tar")
        .args(["--create", "--owner=0", "--group=0", "--numeric-owner", "--file"])
        .arg(&layer)
        .arg("--directory")
        .arg(&root)
        .arg("."));
    layer
}

/// Runs a program that must succeed; returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
