//! `infernet relay`: what runs beside an engine that can only listen on a port.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::command_error::{CommandError, Kind};
use crate::engine::relay::run_relay;

/// The arguments of `infernet relay`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Make this unix socket
    #[arg(long, value_name = "PATH")]
    listen: PathBuf,
    /// Hand its connections on to this address of the loopback interface
    #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
    to: SocketAddr,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => Err("only the loopback interface is relayed to".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Relays until the socket fails, which is when its container ends.
pub(crate) async fn run(args: &Args) -> Result<(), CommandError> {
    run_relay(&args.listen, args.to).await.map_err(|error| {
        CommandError::new(
            Kind::User,
            format!("The socket {} cannot be listened at ({error}).", args.listen.display()),
        )
    })
}
