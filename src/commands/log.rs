//! Sets up what is logged: to stderr, never a secret.

use std::io::{self, IsTerminal};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::output::colour_is_wanted;
use crate::agent::logbook::Logbook;
use crate::command_error::{CommandError, Kind};

/// Starts logging with a filter such as `info` or `infernet=debug,warn`.
/// `INFERNET_LOG_FORMAT=json` makes each event one JSON object.
pub(super) fn start(filter: &str) -> Result<Logbook, CommandError> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| {
        CommandError::new(Kind::Config, error)
            .hint("Use error, warn, info, debug or trace, or a filter such as infernet=debug,warn.")
    })?;
    let colour = io::stderr().is_terminal() && colour_is_wanted();
    let (layer, handle) = reload::Layer::new(parsed);
    let logbook = Logbook::new(filter, Some(handle));
    let lines = fmt::layer::<_>().with_writer(logbook.clone()).with_ansi(colour);
    let json = std::env::var_os("INFERNET_LOG_FORMAT").is_some_and(|format| format == "json");
    let lines = if json { lines.json().boxed() } else { lines.with_target(false).boxed() };
    // A process that logs already keeps its subscriber (tests).
    drop(Registry::default().with(layer).with(lines).try_init());
    Ok(logbook)
}
