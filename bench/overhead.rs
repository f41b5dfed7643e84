//! What the way through the market costs: first token and tokens a second of a job,
//! against the same engine asked directly, in pairs of alternating order. First an
//! engine with a fixed rate, in this process; then, for comparison, llama.cpp with
//! a small model in the node's container, asked directly over its unix socket.
//!
//! With `--proxy` the same, through OpenAI's API of `infernet proxy`, and with the
//! fixed rate alone.

mod harness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use harness::direct;
use harness::engine::{self, FixedRateEngine};
use harness::market::{BenchMarket, Failure, Proxy, Seen};
use harness::report::{Floor, Report};
use harness::statistics::{median, millis};
use serde_json::json;
use tokio::net::{TcpStream, UnixStream};

/// Pairs of a direct request and a job.
const PAIRS: usize = 30;
/// Tokens of an answer of the fixed rate: three seconds.
const TOKENS: u32 = 150;
/// Fifty tokens a second.
const INTERVAL: Duration = Duration::from_millis(20);
/// Pairs with llama.cpp.
const LLAMA_PAIRS: usize = 10;
/// Tokens of an answer of llama.cpp.
const LLAMA_TOKENS: u32 = 96;

/// First token and rate of one answer.
struct Measured {
    first: Duration,
    per_second: f64,
}

/// Both sides of the pairs of one engine.
#[derive(Default)]
struct Pairs {
    direct_first: Vec<f64>,
    market_first: Vec<f64>,
    added: Vec<f64>,
    direct_rate: Vec<f64>,
    market_rate: Vec<f64>,
    ratio: Vec<f64>,
}

/// Where an engine listens.
enum Address<'a> {
    Tcp(&'a FixedRateEngine),
    Unix(&'a Path),
}

/// How the market is asked.
enum Way<'a> {
    /// By jobs of the library's own consumer.
    Jobs(&'a BenchMarket),
    /// Over OpenAI's API.
    Proxy(&'a Proxy),
}

#[tokio::main]
async fn main() -> ExitCode {
    let through_proxy = std::env::args().skip(1).any(|argument| argument == "--proxy");
    let name = if through_proxy { "overhead-proxy" } else { "overhead" };
    let mut report = Report::from_arguments(name);
    let measured = if through_proxy {
        Box::pin(measure_proxy(&mut report)).await
    } else {
        Box::pin(measure(&mut report)).await
    };
    if let Err(error) = measured {
        eprintln!("Error: {error}");
        return ExitCode::FAILURE;
    }
    report.end()
}

async fn measure(report: &mut Report) -> Result<(), Failure> {
    let engine = FixedRateEngine::start(INTERVAL).await;
    let llama = llama_from_environment();
    let mut models = vec![engine.config(1)];
    models.extend(llama.as_ref().map(|(_name, config)| config.clone()));
    let market = BenchMarket::start(&models).await?;
    let result = async {
        run_fixed_rate(report, &engine, &Way::Jobs(&market)).await?;
        match &llama {
            Some((name, _config)) => run_llama(report, name, &market).await,
            None => {
                eprintln!("llama.cpp is left out: INFERNET_MODEL_PATH is not set.");
                Ok(())
            }
        }
    }
    .await;
    market.stop().await?;
    result
}

async fn measure_proxy(report: &mut Report) -> Result<(), Failure> {
    let engine = FixedRateEngine::start(INTERVAL).await;
    let market = BenchMarket::start(&[engine.config(1)]).await?;
    let result = async {
        let proxy = market.start_proxy().await?;
        let result = run_fixed_rate(report, &engine, &Way::Proxy(&proxy)).await;
        proxy.stop().await?;
        result
    }
    .await;
    market.stop().await?;
    result
}

/// The name and the configuration of the small model that
/// `scripts/build-engine-image --env` names.
fn llama_from_environment() -> Option<(String, String)> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (name, path, digest) = (
        variable("INFERNET_MODEL")?,
        variable("INFERNET_MODEL_PATH")?,
        variable("INFERNET_MODEL_SHA256")?,
    );
    let config = format!(
        "name = \"{name}\"\nengine = \"llama.cpp\"\npath = \"{path}\"\nsha256 = \"{digest}\"\nslots = 1\ncontext_length = 2048\nprice_input = \"0.05\"\nprice_output = \"0.10\"\n"
    );
    Some((name, config))
}

async fn run_fixed_rate(
    report: &mut Report,
    engine: &FixedRateEngine,
    market: &Way<'_>,
) -> Result<(), Failure> {
    let address = Address::Tcp(engine);
    let prompt = |what: &str| format!("{what}, {}", uuid::Uuid::now_v7());
    let pairs = run_pairs(report, &address, market, engine::MODEL, (PAIRS, TOKENS), prompt).await?;
    report.add_with_floor("ttft_added_p50", median(&pairs.added), "ms", Floor::AtMost(25.0));
    let ratio = median(&pairs.ratio);
    report.add_with_floor("tokens_per_second_ratio", ratio, "ratio", Floor::AtLeast(0.97));
    report.add("ttft_direct_p50", median(&pairs.direct_first), "ms");
    report.add("ttft_market_p50", median(&pairs.market_first), "ms");
    report.add("pairs", PAIRS as f64, "count");
    Ok(())
}

async fn run_llama(report: &mut Report, model: &str, market: &BenchMarket) -> Result<(), Failure> {
    // The first job starts the container; then its socket is there.
    let way = Way::Jobs(market);
    ask_market(&way, model, "Say hello.", 8).await?;
    let socket = find_socket(&market.node_directory())
        .ok_or("The socket of llama.cpp is not below the node's directory.")?;
    let address = Address::Unix(&socket);
    let prompt = |what: &str| format!("{} {what}: count from one to fifty.", uuid::Uuid::now_v7());
    let size = (LLAMA_PAIRS, LLAMA_TOKENS);
    let pairs = run_pairs(report, &address, &way, model, size, prompt).await?;
    report.add("llama_ttft_added_p50", median(&pairs.added), "ms");
    report.add("llama_tokens_per_second_ratio", median(&pairs.ratio), "ratio");
    report.add("llama_ttft_direct_p50", median(&pairs.direct_first), "ms");
    report.add("llama_ttft_market_p50", median(&pairs.market_first), "ms");
    report.add("llama_tokens_per_second_direct_p50", median(&pairs.direct_rate), "1/s");
    report.add("llama_tokens_per_second_market_p50", median(&pairs.market_rate), "1/s");
    Ok(())
}

/// Runs pairs in alternating order, after a few of both for warmth.
async fn run_pairs(
    report: &mut Report,
    address: &Address<'_>,
    market: &Way<'_>,
    model: &str,
    (count, tokens): (usize, u32),
    prompt: impl Fn(&str) -> String,
) -> Result<Pairs, Failure> {
    for _ in 0..2 {
        ask_market(market, model, &prompt("Warm-up"), tokens).await?;
        ask_directly(address, model, &prompt("Warm-up"), tokens).await?;
    }
    let mut pairs = Pairs::default();
    for number in 0..count {
        let (way, over) = (format!("Pair {number} directly"), format!("Pair {number} by job"));
        let (direct, through) = if number % 2 == 0 {
            let direct = ask_directly(address, model, &prompt(&way), tokens).await?;
            (direct, ask_market(market, model, &prompt(&over), tokens).await?)
        } else {
            let through = ask_market(market, model, &prompt(&over), tokens).await?;
            (ask_directly(address, model, &prompt(&way), tokens).await?, through)
        };
        report.sample(json!({
            "model": model,
            "direct_ttft_ms": millis(direct.first),
            "market_ttft_ms": millis(through.first),
            "direct_tokens_per_second": direct.per_second,
            "market_tokens_per_second": through.per_second,
        }));
        pairs.added.push(millis(through.first) - millis(direct.first));
        pairs.ratio.push(through.per_second / direct.per_second);
        pairs.direct_first.push(millis(direct.first));
        pairs.market_first.push(millis(through.first));
        pairs.direct_rate.push(direct.per_second);
        pairs.market_rate.push(through.per_second);
    }
    Ok(pairs)
}

/// Asks the engine itself; the connection is a part of the asking.
async fn ask_directly(
    address: &Address<'_>,
    model: &str,
    prompt: &str,
    tokens: u32,
) -> Result<Measured, Failure> {
    let sent = Instant::now();
    let answer = match address {
        Address::Tcp(engine) => {
            let stream = TcpStream::connect(engine.address).await?;
            stream.set_nodelay(true)?;
            direct::ask(stream, model, prompt, tokens, "").await?
        }
        Address::Unix(path) => {
            direct::ask(UnixStream::connect(path).await?, model, prompt, tokens, "").await?
        }
    };
    // Both engines send one event for each token.
    rate(sent, &answer.pieces, answer.pieces.len() as f64)
}

/// Asks through the market.
async fn ask_market(
    market: &Way<'_>,
    model: &str,
    prompt: &str,
    tokens: u32,
) -> Result<Measured, Failure> {
    let market = match market {
        Way::Jobs(market) => market,
        Way::Proxy(proxy) => {
            // As OpenAI's clients do, a connection is made for the first request and
            // kept; one for each is the worse case.
            let sent = Instant::now();
            let stream = TcpStream::connect(proxy.address).await?;
            stream.set_nodelay(true)?;
            let answer = direct::ask(stream, model, prompt, tokens, &proxy.key).await?;
            return rate(sent, &answer.pieces, f64::from(tokens));
        }
    };
    let Seen { sent, pieces, job, .. } = market.consumer.ask(model, prompt, tokens).await?;
    let streamed = pieces.last().map_or(0, |(_at, length)| *length);
    let whole = job.output.as_deref().map_or(0, str::len);
    if streamed != whole {
        return Err(format!("Of {whole} bytes of output {streamed} were streamed.").into());
    }
    let usage = job.usage.ok_or("A job ended without its usage.")?;
    rate(sent, &pieces, usage.output_tokens as f64)
}

/// First token and rate of an answer. The rate is that of all the text after the
/// first piece, over the time from the first piece to the last, so that a piece that
/// carries several tokens counts for what it is.
fn rate(sent: Instant, pieces: &[(Instant, usize)], tokens: f64) -> Result<Measured, Failure> {
    let ((first, first_length), (last, length)) = match pieces {
        [first, .., last] => (*first, *last),
        _ => return Err("An answer came in fewer than two pieces.".into()),
    };
    let tokens_after_first = tokens * (length - first_length) as f64 / length as f64;
    Ok(Measured {
        first: first.duration_since(sent),
        per_second: tokens_after_first / last.duration_since(first).as_secs_f64(),
    })
}

/// Finds the unix socket of an engine below a directory.
fn find_socket(directory: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let kind = entry.file_type().ok()?;
        let path = entry.path();
        if kind.is_dir() {
            find_socket(&path)
        } else {
            let is_engine = path.file_name().is_some_and(|name| name == "engine.sock");
            (kind.is_socket() && is_engine).then_some(path)
        }
    })
}
