//! The engine with a fixed rate as a program of its own, for a container or for
//! another machine.
//!
//! `fixed-rate-engine [--socket PATH | --port PORT] [--interval-ms N]` serves until it
//! is told to stop. `GET /record` tells when it wrote what.

#[path = "../tests/it/support/fixed_rate.rs"]
mod engine;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use engine::FixedRateEngine;
use tokio::signal::unix::{SignalKind, signal};

/// An OpenAI-compatible server that writes tokens at exact times
#[derive(Debug, Parser)]
struct Args {
    /// Listen on this unix socket
    #[arg(long, conflicts_with = "port")]
    socket: Option<PathBuf>,
    /// Listen on this port of the loopback interface; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Milliseconds from one token to the next
    #[arg(long, default_value_t = 20)]
    interval_ms: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout, reason = "the address is what is asked for")]
async fn serve(args: &Args) -> std::io::Result<()> {
    let interval = Duration::from_millis(args.interval_ms);
    let _engine = match &args.socket {
        Some(path) => FixedRateEngine::start_on_socket(interval, path)?,
        None => {
            let engine = FixedRateEngine::start_at(interval, args.port).await?;
            println!("{}", engine.url());
            engine
        }
    };
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
