//! Sets up what is logged: to stderr, never a secret.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

use super::output::colour_is_wanted;
use crate::command_error::{CommandError, Kind};

/// Starts logging with a filter such as `info` or `infernet=debug,warn`.
/// `INFERNET_LOG_FORMAT=json` makes each event one JSON object.
pub(super) fn start(filter: &str) -> Result<(), CommandError> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        CommandError::new(Kind::Config, error)
            .hint("Use error, warn, info, debug or trace, or a filter such as infernet=debug,warn.")
    })?;
    let colour = io::stderr().is_terminal() && colour_is_wanted();
    let builder = SubscriberBuilder::default()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour);
    let json = std::env::var_os("INFERNET_LOG_FORMAT").is_some_and(|format| format == "json");
    // A process that logs already keeps its subscriber (tests).
    if json {
        drop(builder.json().try_init());
    } else {
        drop(builder.with_target(false).try_init());
    }
    Ok(())
}
