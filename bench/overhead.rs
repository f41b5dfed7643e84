//! What the way through the market costs: first token and tokens a second of a job,
//! against the same engine asked directly, in pairs of alternating order.

mod harness;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use harness::engine::{Engine, MODEL, Pace};
use harness::market::{Failure, Market, Seen};
use harness::report::{Floor, Report};
use harness::statistics::{median, millis};
use serde_json::{Value, json};

/// Pairs of a direct request and a job.
const PAIRS: usize = 30;
/// Tokens of an answer: three seconds at the engine's rate.
const TOKENS: u32 = 150;
/// Fifty tokens a second.
const INTERVAL: Duration = Duration::from_millis(20);

/// When an answer's first and last token were there, and how many bytes between.
struct Stream {
    first: Duration,
    per_second: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::from_arguments("overhead");
    if let Err(error) = measure(&mut report).await {
        eprintln!("Error: {error}");
        return ExitCode::FAILURE;
    }
    report.end()
}

async fn measure(report: &mut Report) -> Result<(), Failure> {
    let engine = Engine::start(Pace { tokens: TOKENS, interval: INTERVAL }).await?;
    let market = Market::start(&[engine.config()]).await?;
    let result = run_pairs(report, &engine, &market).await;
    market.stop().await?;
    result
}

async fn run_pairs(report: &mut Report, engine: &Engine, market: &Market) -> Result<(), Failure> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    for number in 0..3 {
        ask_market(market, &format!("Warm-up {number}, {}", uuid::Uuid::now_v7())).await?;
        ask_directly(&client, engine, &format!("Warm-up {number} directly")).await?;
    }
    let (mut added, mut ratios) = (Vec::new(), Vec::new());
    let (mut first_direct, mut first_market) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let prompt = |way: &str| format!("Pair {pair} {way}, {}", uuid::Uuid::now_v7());
        let (direct, through) = if pair % 2 == 0 {
            let direct = ask_directly(&client, engine, &prompt("directly")).await?;
            (direct, ask_market(market, &prompt("through the market")).await?)
        } else {
            let through = ask_market(market, &prompt("through the market")).await?;
            (ask_directly(&client, engine, &prompt("directly")).await?, through)
        };
        added.push(millis(through.first) - millis(direct.first));
        ratios.push(through.per_second / direct.per_second);
        first_direct.push(millis(direct.first));
        first_market.push(millis(through.first));
        report.sample(json!({
            "direct_ttft_ms": millis(direct.first),
            "market_ttft_ms": millis(through.first),
            "direct_tokens_per_second": direct.per_second,
            "market_tokens_per_second": through.per_second,
        }));
    }
    report.add_with_floor("ttft_added_p50", median(&added), "ms", Floor::AtMost(25.0));
    report.add_with_floor(
        "tokens_per_second_ratio",
        median(&ratios),
        "ratio",
        Floor::AtLeast(0.97),
    );
    report.add("ttft_direct_p50", median(&first_direct), "ms");
    report.add("ttft_market_p50", median(&first_market), "ms");
    report.add("pairs", PAIRS as f64, "count");
    Ok(())
}

/// Asks the engine itself, over HTTP.
async fn ask_directly(
    client: &reqwest::Client,
    engine: &Engine,
    prompt: &str,
) -> Result<Stream, Failure> {
    let sent = Instant::now();
    let response = client
        .post(format!("{}/v1/chat/completions", engine.url()))
        .timeout(Duration::from_secs(60))
        .json(&json!({
            "model": MODEL,
            "messages": [{ "role": "user", "content": prompt }],
            "max_tokens": TOKENS,
            "stream": true,
        }))
        .send()
        .await?
        .error_for_status()?;
    let mut body = response.bytes_stream();
    let mut waiting = String::new();
    let mut pieces = Vec::new();
    let mut length = 0;
    while let Some(bytes) = body.next().await {
        let now = Instant::now();
        waiting.push_str(std::str::from_utf8(&bytes?)?);
        while let Some(end) = waiting.find("\n\n") {
            let event: String = waiting.drain(..end + 2).collect();
            let Some(data) = event.trim().strip_prefix("data: ") else { continue };
            let Ok(chunk) = serde_json::from_str::<Value>(data) else { continue };
            if let Some(text) = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str) {
                length += text.len();
                pieces.push((now, length));
            }
        }
    }
    rate(sent, &pieces)
}

/// Asks through the market.
async fn ask_market(market: &Market, prompt: &str) -> Result<Stream, Failure> {
    let Seen { sent, pieces, job, .. } = market.consumer.ask(MODEL, prompt, TOKENS).await?;
    let seen = pieces.last().map_or(0, |(_at, length)| *length);
    let whole = job.output.as_deref().map_or(0, str::len);
    if seen != whole {
        return Err(format!("Of {whole} bytes of output {seen} were streamed.").into());
    }
    rate(sent, &pieces)
}

/// First token and rate of a stream. The rate is that of all the text after the
/// first piece, over the time from the first piece to the last, so that pieces that
/// carry several tokens are counted for what they are.
fn rate(sent: Instant, pieces: &[(Instant, usize)]) -> Result<Stream, Failure> {
    let ((first, first_length), (last, length)) = match pieces {
        [first, .., last] => (*first, *last),
        _ => return Err("An answer came in fewer than two pieces.".into()),
    };
    let tokens = (length - first_length) as f64 * f64::from(TOKENS) / length as f64;
    Ok(Stream {
        first: first.duration_since(sent),
        per_second: tokens / last.duration_since(first).as_secs_f64(),
    })
}
