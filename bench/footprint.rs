//! How large the released binary is, what an idle agent needs, and how long starting
//! and asking take.

mod harness;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use harness::engine::FixedRateEngine;
use harness::market::{BenchMarket, Failure, released_binary};
use harness::process;
use harness::report::{Floor, Report};
use harness::statistics::{median, millis};
use serde_json::json;

/// How long the agent is left alone before anything is read.
const SETTLE: Duration = Duration::from_secs(3);
/// How long it is watched then: several heartbeats.
const REST: Duration = Duration::from_secs(40);
/// How often it is started.
const STARTS: usize = 5;
/// How often each command is run.
const COMMANDS: usize = 20;

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
    let mut market = BenchMarket::start(&[engine.config(1)]).await?;
    let result = measure_node(report, &mut market).await;
    market.stop().await?;
    result
}

async fn measure_node(report: &mut Report, market: &mut BenchMarket) -> Result<(), Failure> {
    let pid = market.agent_pid().ok_or("The agent ended.")?;
    // What coming up costs is no part of being idle.
    tokio::time::sleep(SETTLE).await;
    let (before, since) = (process::processor_time(pid)?, Instant::now());
    tokio::time::sleep(REST).await;
    let used = process::processor_time(pid)?.saturating_sub(before).as_secs_f64();
    let share = 100.0 * used / since.elapsed().as_secs_f64();
    let memory = process::memory(pid, "VmRSS")?;
    report.sample(json!({ "agent": "idle", "resident_bytes": memory, "processor_share": share }));
    report.add_with_floor("agent_idle_rss", memory as f64 / 1e6, "MB", Floor::AtMost(25.0));
    report.add_with_floor("agent_idle_cpu", share, "%", Floor::AtMost(0.5));

    let mut subscribed = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        subscribed.push(millis(market.restart_node().await?));
    }
    let mut version = Vec::with_capacity(COMMANDS);
    let mut status = Vec::with_capacity(COMMANDS);
    for _ in 0..COMMANDS {
        version.push(millis(market.time_command(&["--version"]).await?));
        status.push(millis(market.time_command(&["status"]).await?));
    }
    report
        .sample(json!({ "subscribed_ms": subscribed, "version_ms": version, "status_ms": status }));
    let floor = Floor::AtMost(500.0);
    report.add_with_floor("start_to_subscribed", median(&subscribed), "ms", floor);
    report.add_with_floor("version_ms", median(&version), "ms", Floor::AtMost(20.0));
    report.add_with_floor("status_ms", median(&status), "ms", Floor::AtMost(150.0));
    Ok(())
}
