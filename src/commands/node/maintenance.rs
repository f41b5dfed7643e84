//! `infernet node maintenance`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::moment;
use crate::commands::prompt::parse_duration;
use crate::control::rpc::{Maintenance, Rpc};

/// The arguments of `infernet node maintenance`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Times are RFC 3339, such as 2026-11-01T22:00:00Z. The window begins and ends by itself:
  infernet node maintenance attic --for 2h --note \"new fans\"
  infernet node maintenance attic --from 2026-11-01T22:00:00Z --until 2026-11-02T02:00:00Z
  infernet node maintenance attic --clear")]
pub(crate) struct Args {
    /// The node
    node: String,
    /// Begin then instead of now
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// End then
    #[arg(long, value_name = "TIME", required_unless_present_any = ["for_", "clear"])]
    until: Option<Timestamp>,
    /// End so long after the beginning, such as 30m or 2h
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, conflicts_with = "until")]
    for_: Option<Duration>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Take the window back that there is
    #[arg(long, conflicts_with_all = ["from", "until", "for_", "note"])]
    clear: bool,
}

/// Plans the window, or takes it back.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let until = end(args)?;
    let node = rpc.find_node(&args.node).await?;
    let answer = rpc.set_maintenance(node, args.from, until, args.note.as_deref()).await?;
    super::tell(&answer, context)
}

/// Works out the end; none takes the window back.
fn end(args: &Args) -> Result<Option<Timestamp>, CommandError> {
    let Some(length) = args.for_ else { return Ok(args.until) };
    let too_far = || CommandError::user("The window ends too far away.");
    let length = SignedDuration::try_from(length).map_err(|_error| too_far())?;
    let from = args.from.unwrap_or_else(Timestamp::now);
    from.checked_add(length).map(Some).map_err(|_error| too_far())
}

/// Writes a window for people.
pub(super) fn window(maintenance: &Maintenance) -> String {
    let times = format!("{} to {}", moment(maintenance.from), moment(maintenance.until));
    match &maintenance.note {
        Some(note) => format!("{times} ({note})"),
        None => times,
    }
}
