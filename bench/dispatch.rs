//! How long a prompt takes to reach an engine: from the client's first byte of
//! `submit_job` to the engine's receipt of the request, and where the time goes.
//!
//! The engine runs in this process, so that both ends share one clock. The moments
//! in between are times of the database, which is on the same machine: a
//! transaction's `now()` is when it began.

mod harness;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use harness::engine::{FixedRateEngine, MODEL};
use harness::market::{BenchMarket, Failure};
use harness::report::{Floor, Report};
use harness::statistics::{median, millis, percentile};
use serde_json::json;

/// Jobs that are measured.
const JOBS: usize = 200;
/// Jobs before them, for connections, plans and caches.
const WARM_UP: usize = 20;

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::from_arguments("dispatch");
    if let Err(error) = measure(&mut report).await {
        eprintln!("Error: {error}");
        return ExitCode::FAILURE;
    }
    report.end()
}

async fn measure(report: &mut Report) -> Result<(), Failure> {
    let engine = FixedRateEngine::start(Duration::ZERO).await;
    let market = BenchMarket::start(&[engine.config(1)]).await?;
    let result = run_jobs(report, &engine, &market).await;
    market.stop().await?;
    result
}

async fn run_jobs(
    report: &mut Report,
    engine: &FixedRateEngine,
    market: &BenchMarket,
) -> Result<(), Failure> {
    let mut total = Vec::with_capacity(JOBS);
    let (mut to_database, mut to_start, mut to_engine) = (Vec::new(), Vec::new(), Vec::new());
    let (mut call, mut whole) = (Vec::new(), Vec::new());
    for number in 0..WARM_UP + JOBS {
        let prompt = format!("Dispatch number {number}, {}", uuid::Uuid::now_v7());
        let seen = market.consumer.ask(MODEL, &prompt, 1).await?;
        let receipt = engine.take_record(&prompt).ok_or("The engine saw no such prompt.")?;
        if number < WARM_UP {
            continue;
        }
        // What both clocks say of the receipt puts the call's start onto the wall's.
        let start = receipt.wall - receipt.at.duration_since(seen.sent);
        let created = wall_clock(seen.job.created_at)?;
        let started = wall_clock(seen.job.started_at.ok_or("A job ended without a start.")?)?;
        let times = [
            millis(receipt.at.duration_since(seen.sent)),
            signed_millis(start, created),
            signed_millis(created, started),
            signed_millis(started, receipt.wall),
            millis(seen.answered.duration_since(seen.sent)),
        ];
        total.push(times[0]);
        to_database.push(times[1]);
        to_start.push(times[2]);
        to_engine.push(times[3]);
        call.push(times[4]);
        if let Some((last, _length)) = seen.pieces.last() {
            whole.push(millis(last.duration_since(seen.sent)));
        }
        report.sample(json!({
            "submit_to_engine_ms": times[0],
            "submit_to_database_ms": times[1],
            "assign_and_wake_ms": times[2],
            "start_to_engine_ms": times[3],
            "submit_call_ms": times[4],
        }));
    }
    let p50 = percentile(&total, 0.5);
    report.add_with_floor("submit_to_engine_p50", p50, "ms", Floor::AtMost(10.0));
    report.add_with_floor(
        "submit_to_engine_p99",
        percentile(&total, 0.99),
        "ms",
        Floor::AtMost(30.0),
    );
    let steps = [
        ("step_submit_to_database_p50", "step_submit_to_database_share", &to_database),
        ("step_assign_and_wake_p50", "step_assign_and_wake_share", &to_start),
        ("step_start_to_engine_p50", "step_start_to_engine_share", &to_engine),
    ];
    for (name, share, sample) in steps {
        report.add(name, median(sample), "ms");
        let sum: f64 = sample.iter().sum();
        report.add(share, 100.0 * sum / total.iter().sum::<f64>(), "%");
    }
    report.add("submit_call_p50", median(&call), "ms");
    if !whole.is_empty() {
        report.add("submit_to_text_p50", median(&whole), "ms");
    }
    Ok(())
}

/// A time of the database on this machine's clock, to the microsecond.
fn wall_clock(time: jiff::Timestamp) -> Result<SystemTime, Failure> {
    Ok(SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(time.as_microsecond())?))
}

/// Milliseconds from one time of the wall clock to a later one; less than zero when
/// it was not later, by the resolution of the database's microseconds.
fn signed_millis(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(later) => millis(later),
        Err(earlier) => -millis(earlier.duration()),
    }
}
