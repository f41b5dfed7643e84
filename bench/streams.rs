//! 64 streams of 50 tokens a second from one node, at the same time: whether every
//! token arrives, how late, and what the agent needs for it.
//!
//! Engine and consumer are in this process, so that a token's write and its arrival
//! are read from one clock. What a token waits for beside the project's own work is
//! its node's share of Realtime's messages: the embedded control plane gives each of
//! 64 streams more than 50 messages a second, so that the next allowed flush is never
//! later than the write, and the added delay of a token is its arrival less its write.

mod harness;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use harness::engine::{FixedRateEngine, MODEL, token};
use harness::market::{BenchMarket, Failure, Seen};
use harness::process;
use harness::report::{Floor, Report};
use harness::statistics::{millis, percentile};
use serde_json::json;

/// Streams at one time.
const STREAMS: u32 = 64;
/// Tokens of each: 20 seconds.
const TOKENS: u32 = 1000;
/// Fifty tokens a second.
const INTERVAL: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::from_arguments("streams");
    if let Err(error) = measure(&mut report).await {
        eprintln!("Error: {error}");
        return ExitCode::FAILURE;
    }
    report.end()
}

async fn measure(report: &mut Report) -> Result<(), Failure> {
    let engine = FixedRateEngine::start(INTERVAL).await;
    let market = BenchMarket::start(&[engine.config(STREAMS)]).await?;
    let result = run(report, &engine, &market).await;
    market.stop().await?;
    result
}

async fn run(
    report: &mut Report,
    engine: &FixedRateEngine,
    market: &BenchMarket,
) -> Result<(), Failure> {
    // Connections, plans and caches are warm before anything is measured.
    let warm = (0..STREAMS).map(|number| ask(market, format!("Warm-up {number}"), 10));
    try_join_all(warm).await?;
    let pid = market.agent_pid().ok_or("The agent ended.")?;
    let (before, since) = (process::processor_time(pid)?, Instant::now());
    let seen = try_join_all((0..STREAMS).map(|number| ask(market, prompt(number), TOKENS))).await?;
    let used = process::processor_time(pid)?.saturating_sub(before).as_secs_f64();
    let share = 100.0 * used / since.elapsed().as_secs_f64();
    let memory = process::memory(pid, "VmHWM")?;

    let whole = FixedRateEngine::answer(u64::from(TOKENS));
    let (mut delays, mut gaps, mut lost) = (Vec::new(), 0, 0);
    for (number, seen) in (0..STREAMS).zip(&seen) {
        let record = engine.take_record(&prompt(number)).ok_or("The engine saw no such prompt.")?;
        gaps += seen.gaps;
        let (late, missing) = delays_of(seen, &record.writes);
        lost += missing;
        if seen.job.output.as_deref() != Some(whole.as_str()) {
            return Err(format!("The answer of stream {number} is not what was written.").into());
        }
        report.sample(json!({
            "stream": number,
            "messages": seen.pieces.len(),
            "delay_p50_ms": percentile(&late, 0.5),
            "delay_p99_ms": percentile(&late, 0.99),
            "delay_max_ms": percentile(&late, 1.0),
            // Where in the answer the late ones are: index and milliseconds.
            "late": late.iter().enumerate().filter(|(_index, delay)| **delay > 5.0).map(|(index, delay)| json!([index, delay.round()])).collect::<Vec<_>>(),
        }));
        delays.extend(late);
    }
    report.add_with_floor("gaps", gaps as f64, "count", Floor::AtMost(0.0));
    report.add_with_floor("tokens_lost", lost as f64, "count", Floor::AtMost(0.0));
    report.add("token_delay_p50", percentile(&delays, 0.5), "ms");
    report.add_with_goal(
        "token_delay_p99",
        percentile(&delays, 0.99),
        "ms",
        Some(Floor::AtMost(5.0)),
        Floor::AtMost(1.0),
    );
    report.add("token_delay_max", percentile(&delays, 1.0), "ms");
    report.add("agent_cpu_share", share, "%");
    report.add("agent_rss", memory as f64 / 1e6, "MB");
    Ok(())
}

fn prompt(number: u32) -> String {
    format!("Stream {number}")
}

async fn ask(market: &BenchMarket, prompt: String, tokens: u32) -> Result<Seen, Failure> {
    market.consumer.ask(MODEL, &prompt, tokens).await
}

/// Milliseconds from each token's write to the arrival of the message that has its
/// end, and how many never arrived while the answer was streamed.
fn delays_of(seen: &Seen, writes: &[Instant]) -> (Vec<f64>, usize) {
    let mut pieces = seen.pieces.iter().peekable();
    let (mut end, mut lost) = (0, 0);
    let mut delays = Vec::with_capacity(writes.len());
    for (index, written) in (0..).zip(writes) {
        end += token(index).len();
        while pieces.next_if(|(_at, reached)| *reached < end).is_some() {}
        match pieces.peek() {
            Some((at, _reached)) => delays.push(millis(at.saturating_duration_since(*written))),
            None => lost += 1,
        }
    }
    (delays, lost)
}
