//! How soon a message of the database reaches a client, and what sending one costs
//! the transactions that do: over the gateway's RPC and over a connection of one's
//! own, on an embedded control plane in this process.

mod harness;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use harness::market::Failure;
use harness::report::Report;
use harness::statistics::{median, millis, percentile};
use infernet::control::realtime::{Channel, ChannelEvent, JoinOptions, Realtime, RealtimeEndpoint};
use infernet::stack::postgres::Connection;
use infernet::stack::{Stack, StackOptions};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

/// Where everything is sent to.
const TOPIC: &str = "bench:feed";
/// Messages whose time is taken, on each way.
const MESSAGES: i32 = 1000;
/// The time from one to the next.
const INTERVAL: Duration = Duration::from_millis(10);
/// Connections that send as fast as they can.
const CONNECTIONS: usize = 8;
/// For how long they do.
const RUSH: Duration = Duration::from_secs(10);
/// For how long nothing is done, to see what the control plane does by itself.
const REST: Duration = Duration::from_secs(20);
/// The longest wait for a message.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the RPC calls.
const SCHEMA: &str = "
    create function public.bench_send(p_number int) returns void
    language sql security definer set search_path = '' as $$
      select realtime.send(jsonb_build_object('n', p_number), 'n', 'bench:feed', true)
    $$;
    grant execute on function public.bench_send(int) to service_role;
    notify pgrst, 'reload schema';";
/// What a connection of one's own calls.
const SEND: &str =
    "select realtime.send(jsonb_build_object('n', $1::int), 'n', 'bench:feed', true)";

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::from_arguments("feed");
    // Whoever comes first; the other parts want the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Err(error) = Box::pin(measure(&mut report)).await {
        eprintln!("Error: {error}");
        return ExitCode::FAILURE;
    }
    report.end()
}

async fn measure(report: &mut Report) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    let stack = Box::pin(Stack::start(StackOptions::new(folder.path().join("data")))).await?;
    let result = Box::pin(run(report, &stack)).await;
    stack.stop().await;
    result
}

async fn run(report: &mut Report, stack: &Stack) -> Result<(), Failure> {
    let config = stack.database_config_for("postgres").ok_or("There is no role postgres.")?;
    let direct = Connection::open(&config).await?;
    direct.batch_execute(SCHEMA).await?;

    let url = Url::parse(stack.url())?;
    let shutdown = CancellationToken::new();
    let (_tokens, token) = watch::channel(stack.keys().service_role_key.clone());
    let endpoint = RealtimeEndpoint::new(&url, &stack.keys().publishable_key)?;
    let realtime = Realtime::spawn(endpoint, token, shutdown.clone());
    let mut channel = realtime.join(TOPIC, JoinOptions::default());
    match tokio::time::timeout(PATIENCE, channel.recv()).await? {
        Some(ChannelEvent::Joined) => {}
        other => return Err(format!("The channel was not joined: {other:?}.").into()),
    }

    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = processor_secs()?;
    tokio::time::sleep(REST).await;
    let used = processor_secs()? - before;
    report.add("idle_processor", 100.0 * used / REST.as_secs_f64(), "% of core");

    let rpc = url.join("/rest/v1/rpc/bench_send")?;
    let key = stack.keys().service_role_key.clone();
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let call = async |number: i32| -> Result<(), Failure> {
        let request = client.post(rpc.clone()).bearer_auth(&key).header("apikey", &key);
        request.json(&json!({ "p_number": number })).send().await?.error_for_status()?;
        Ok(())
    };
    call(-1).await?;
    take_times(report, &mut channel, ["rpc_p50", "rpc_p99", "rpc_processor"], call).await?;

    let statement = direct.prepare(SEND).await?;
    let send = async |number: i32| -> Result<(), Failure> {
        direct.execute(&statement, &[&number]).await?;
        Ok(())
    };
    take_times(report, &mut channel, ["direct_p50", "direct_p99", "direct_processor"], send)
        .await?;

    let mut senders = JoinSet::new();
    let started = Instant::now();
    for _ in 0..CONNECTIONS {
        let config = config.clone();
        senders.spawn(async move {
            let connection = Connection::open(&config).await?;
            let statement = connection.prepare(SEND).await?;
            let mut sent = 0_u32;
            while started.elapsed() < RUSH {
                connection.execute(&statement, &[&0]).await?;
                sent += 1;
            }
            Ok::<_, tokio_postgres::Error>(sent)
        });
    }
    let mut sent = 0;
    while let Some(one) = senders.join_next().await {
        sent += one??;
    }
    report.add("rush", f64::from(sent) / started.elapsed().as_secs_f64(), "commits/s");
    shutdown.cancel();
    Ok(())
}

/// Sends at a steady rate and reports from the beginning of each call to the
/// delivery of its message.
async fn take_times(
    report: &mut Report,
    channel: &mut Channel,
    names: [&'static str; 3],
    send: impl AsyncFn(i32) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let count = usize::try_from(MESSAGES)?;
    let mut began = vec![None; count];
    let mut calls = Vec::with_capacity(count);
    let processor = processor_secs()?;
    let start = Instant::now();
    let sending = async {
        let mut clock = tokio::time::interval(INTERVAL);
        for number in 0..MESSAGES {
            clock.tick().await;
            let begin = Instant::now();
            began[usize::try_from(number)?] = Some(begin);
            send(number).await?;
            calls.push(millis(begin.elapsed()));
        }
        Ok::<_, Failure>(())
    };
    let receiving = async {
        let mut arrived = Vec::with_capacity(count);
        while arrived.len() < count {
            let event = tokio::time::timeout(PATIENCE, channel.recv()).await?;
            let now = Instant::now();
            match event.ok_or("The channel is over.")? {
                ChannelEvent::Broadcast { payload, .. } => {
                    let number = payload["n"].as_i64().ok_or("A message has no number.")?;
                    if let Ok(number) = usize::try_from(number) {
                        arrived.push((number, now));
                    }
                }
                other => return Err(format!("The channel broke off: {other:?}.").into()),
            }
        }
        Ok::<_, Failure>(arrived)
    };
    let ((), arrived) = tokio::try_join!(sending, receiving)?;
    let times: Vec<f64> = arrived
        .iter()
        .filter_map(|(number, at)| began[*number].map(|begin| millis(*at - begin)))
        .collect();
    let used = processor_secs()? - processor;
    report.sample(json!({ "way": names[0], "call_p50": median(&calls), "times": times }));
    report.add(names[0], median(&times), "ms");
    report.add(names[1], percentile(&times, 0.99), "ms");
    report.add(names[2], 100.0 * used / start.elapsed().as_secs_f64(), "% of core");
    Ok(())
}

/// Seconds of processor time of this process and of the database below it.
fn processor_secs() -> Result<f64, Failure> {
    let own = std::process::id().to_string();
    let mut servers = Vec::new();
    let mut ticks = 0;
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end meanwhile.
        let Ok(text) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = text.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        let used: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        all.push((pid.to_string(), fields[1].to_owned(), used));
    }
    for (pid, parent, used) in &all {
        if *pid == own {
            ticks += used;
        } else if *parent == own {
            servers.push(pid.clone());
            ticks += used;
        }
    }
    for (_, parent, used) in &all {
        if servers.contains(parent) {
            ticks += used;
        }
    }
    // A tick is a hundredth of a second on every Linux.
    Ok(ticks as f64 / 100.0)
}
