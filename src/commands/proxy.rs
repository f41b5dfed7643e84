//! `infernet proxy`: OpenAI's API on this machine, answered by the market.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use super::prompt::parse_duration;
use crate::command_error::CommandError;
use crate::money::Usd;
use crate::proxy::{ApiKey, DEFAULT_PORT, Proxy, ProxyError, ProxyOptions};

/// Answer OpenAI's API on this machine
///
/// Any client of OpenAI's API can ask the market: point it at the URL that is
/// printed, with the key of the file that is named. Serves until Ctrl-C. Whoever has
/// the key spends what the owner's key may spend.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  infernet proxy --max-cost 0.01
  export OPENAI_BASE_URL=http://127.0.0.1:8434/v1
  export OPENAI_API_KEY=\"$(cat ~/.config/infernet/proxy.key)\"")]
pub(crate) struct Args {
    /// Listen on this port of 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// Hold at most this many USD for one answer, and take only offers that fit
    #[arg(long, value_name = "USD")]
    max_cost: Option<Usd>,
    /// Let an answer expire after this time, such as 90s, 10m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
    /// Make a new key for clients; the old one opens nothing any more
    #[arg(long)]
    new_api_key: bool,
    /// Ask as the holder of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Serves until it is told to stop.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let rpc = context.user(args.key_file.as_ref()).await?;
    // That the key is not believed is better said here than to every client.
    rpc.whoami().await?;
    let path = context.directories.proxy_key();
    let key = if args.new_api_key { ApiKey::replace(&path) } else { ApiKey::load_or_create(&path) };
    let key = key.map_err(ProxyError::from)?;
    let options = ProxyOptions {
        max_cost: args.max_cost,
        deadline_secs: args.deadline.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
    };
    let proxy = Proxy::start(rpc, args.port, key, options).await?;
    let url = proxy.base_url();
    if context.output.is_json() {
        context.output.object(&json!({ "base_url": url, "api_key_file": path }))?;
    } else {
        context.output.line(&url)?;
        context.output.talk(&format!(
            "OpenAI's API answers there, with the key in {}. Ctrl-C stops it.",
            path.display()
        ));
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    context.output.talk("Stopping (again: at once) …");
    tokio::select! {
        () = proxy.stop() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
