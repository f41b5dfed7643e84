//! How large the released binary is, and how much memory an idle agent needs.

mod harness;

use std::path::PathBuf;
use std::process::ExitCode;

use harness::report::{Floor, Report};
use serde_json::json;

fn main() -> ExitCode {
    let mut report = Report::from_arguments("footprint");
    let binary = released_binary();
    let size = std::fs::metadata(&binary).expect("the binary lies beside the benchmarks").len();
    report.sample(json!({ "binary": "infernet", "bytes": size }));
    report.add_with_floor("binary_size", size as f64 / 1e6, "MB", Floor::AtMost(25.0));
    match report.finish() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("The raw run cannot be written: {error}.");
            ExitCode::FAILURE
        }
    }
}

/// The path of `infernet`, which the same build put next to this program.
fn released_binary() -> PathBuf {
    let own = std::env::current_exe().expect("the system names the running program");
    own.parent()
        .and_then(|examples| examples.parent())
        .expect("it lies in examples/")
        .join("infernet")
}
