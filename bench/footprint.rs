//! How large the released binary is, and how much memory an idle agent needs.

mod harness;

use std::process::ExitCode;
use std::time::Duration;

use harness::engine::FixedRateEngine;
use harness::market::{Failure, Market, released_binary};
use harness::report::{Floor, Report};
use serde_json::json;

/// How long the agent is left alone before its memory is read: several heartbeats.
const REST: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::from_arguments("footprint");
    if let Err(error) = measure(&mut report).await {
        eprintln!("Error: {error}");
        return ExitCode::FAILURE;
    }
    report.end()
}

async fn measure(report: &mut Report) -> Result<(), Failure> {
    let size = std::fs::metadata(released_binary())?.len();
    report.sample(json!({ "binary": "infernet", "bytes": size }));
    report.add_with_floor("binary_size", size as f64 / 1e6, "MB", Floor::AtMost(25.0));

    let engine = FixedRateEngine::start(Duration::ZERO).await;
    let market = Market::start(&[engine.config(1)]).await?;
    tokio::time::sleep(REST).await;
    let memory = market.agent_pid().map(resident_bytes).transpose();
    market.stop().await?;
    let memory = memory?.ok_or("The agent ended while it was idle.")?;
    report.sample(json!({ "agent": "idle", "resident_bytes": memory }));
    report.add_with_floor("agent_idle_rss", memory as f64 / 1e6, "MB", Floor::AtMost(30.0));
    Ok(())
}

/// The resident memory of a process, in bytes.
fn resident_bytes(pid: u32) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
        .ok_or("The system does not say how much memory the agent has.")?
        .parse()?;
    Ok(kilobytes * 1024)
}
