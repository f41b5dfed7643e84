//! `infernet status`.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;

use super::Context;
use super::table::{Cell, Table, Tone, cell, offer_table};
use crate::agent::admin;
use crate::agent::process::{self, ProcessFiles};
use crate::agent::status::{self, AgentStatus, Phase, Wakeups};
use crate::command_error::{CommandError, RelayedError};
use crate::control::rpc::{NodeStatus, OwnerEarnings, Rpc};
use crate::id::UserId;

/// How long the control plane may take; what this machine knows is shown anyway.
const ANSWER_TIME: Duration = Duration::from_secs(4);

/// The arguments of `infernet status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// What is known of this machine's node, from both sides.
#[derive(Serialize)]
struct Report {
    /// The process, if the agent runs.
    running: Option<i32>,
    /// The agent's own view; only while it runs.
    agent: Option<AgentStatus>,
    /// The control plane's view.
    node: Option<NodeStatus>,
    /// What all nodes of the node's owner earned, where the owner's key is here.
    owner: Option<OwnerEarnings>,
    /// Why there is no view of the control plane.
    trouble: Option<RelayedError>,
    /// Where a background agent logs.
    log: String,
}

/// Shows how the node is.
pub(crate) async fn run(_args: &Args, context: &Context) -> Result<(), CommandError> {
    context.config()?.node()?;
    let files = context.process_files();
    let running = process::running(&files)?;
    // A file that another process left says nothing about this one.
    let agent = running.and_then(|pid| {
        status::read(&files.status()).filter(|status| i64::from(status.pid) == i64::from(pid))
    });
    let person = async { person_earnings(owner(context).await.as_ref()).await };
    let (seen, person) = tokio::join!(standing(running.is_some(), &files, context), person);
    let (node, trouble) = match seen {
        Ok(node) => (Some(node), None),
        Err(error) => (None, Some(error)),
    };
    let report = Report {
        running,
        agent,
        owner: of_owner(person, node.as_ref()),
        node,
        trouble: trouble.as_ref().map(RelayedError::from),
        log: files.log().display().to_string(),
    };
    if context.output.is_json() {
        context.output.object(&report)?;
        return Ok(());
    }
    let output = context.output;
    output.line(&sheet(&report).text(&output))?;
    if let Some(offers) = report.node.as_ref().map(|node| &node.offers).filter(|o| !o.is_empty()) {
        output.line(&format!("\n{}", offer_table(offers).text(&output)))?;
    }
    if let Some(trouble) = trouble {
        context.output.warn(&format!("\n{}", trouble.words()));
    }
    if report.running.is_none() {
        context.output.talk("\nStart it with: infernet start");
    }
    Ok(())
}

/// Asks how the control plane sees the node: by the agent, which is signed in, or
/// else by the node's own key.
async fn standing(
    runs: bool,
    files: &ProcessFiles,
    context: &Context,
) -> Result<NodeStatus, CommandError> {
    if runs && let Ok(Ok(status)) = timeout(ANSWER_TIME, admin::standing(files)).await {
        return Ok(status);
    }
    ask(&context.node().await?).await
}

/// Acts as the owner, where its key is on this machine.
pub(super) async fn owner(context: &Context) -> Option<Rpc> {
    if !context.directories.owner_key().exists() {
        return None;
    }
    timeout(ANSWER_TIME, context.user(None)).await.ok()?.ok()
}

/// What all nodes of a person earned.
#[derive(Clone, Copy, Debug)]
pub(super) struct PersonEarnings {
    person: UserId,
    earnings: OwnerEarnings,
}

/// Asks what all nodes of the person of this machine earned; none while the control
/// plane is away, which is told with the node.
pub(super) async fn person_earnings(person: Option<&Rpc>) -> Option<PersonEarnings> {
    let person = person?;
    let earnings = timeout(ANSWER_TIME, person.my_earnings()).await.ok()?.ok()?;
    let signed_in = person.session()?.signed_in()?;
    Some(PersonEarnings { person: UserId::from_uuid(signed_in.subject), earnings })
}

/// Returns what the owner of a node earned, if that is the person of this machine.
pub(super) fn of_owner(
    person: Option<PersonEarnings>,
    node: Option<&NodeStatus>,
) -> Option<OwnerEarnings> {
    let PersonEarnings { person, earnings } = person?;
    (node?.node.owner.as_str()? == person.to_string()).then_some(earnings)
}

/// Asks the control plane, not for longer than a person likes to wait.
async fn ask(rpc: &Rpc) -> Result<NodeStatus, CommandError> {
    match timeout(ANSWER_TIME, rpc.node_status()).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(CommandError::unavailable(format!(
            "The control plane at {} cannot be reached, or does not answer within {} s.",
            rpc.control().base_url(),
            ANSWER_TIME.as_secs()
        ))),
    }
}

fn sheet(report: &Report) -> Table {
    let mut sheet = Table::sheet();
    match (report.running, &report.agent) {
        (None, _) => sheet.fact_cell("Agent", cell("not running").tone(Tone::Warning)),
        (Some(pid), None) => sheet.fact("Agent", format!("starting, process {pid}")),
        (Some(pid), Some(agent)) => {
            let words = cell(format!("{}, process {pid}", phase_words(agent.phase)));
            sheet.fact_cell("Agent", words.tone(phase_tone(agent.phase)));
            if let Some(message) = &agent.message {
                sheet.fact("", message);
            }
            sheet.fact("Since", ago(agent.started_at));
            sheet.fact("Jobs in work", agent.running);
            sheet.fact("Hears of work", wakeup_words(agent.wakeups));
            sheet.fact_if("Last heartbeat", agent.last_heartbeat.map(ago));
            sheet.fact_if("Clock", agent.clock_ahead_ms.map(clock_words));
            sheet.fact("Control plane", &agent.introduction.control_plane);
        }
    }
    if let Some(status) = &report.node {
        let node = &status.node;
        sheet.fact("Node", format!("{} ({}), {}", node.name, node.role, node.id));
        sheet.fact("Standing", standing_words(node.approval.as_deref(), &node.status));
        for stop in &node.stops {
            sheet.fact("", stop);
            sheet.fact("", &stop.hint);
        }
        sheet.fact("Earned today", status.earnings.today);
        sheet.fact("In 30 days", status.earnings.days30);
        sheet.fact("In all", status.earnings.total);
        sheet.fact_cell("Not paid out", pending(report.owner));
    }
    sheet.fact("Log", &report.log);
    sheet
}

/// Says what is not paid out, or who knows.
fn pending(owner: Option<OwnerEarnings>) -> Cell {
    match owner {
        Some(owner) => cell(format!("{}, of all nodes of the owner", owner.pending)),
        None => cell("told where the owner's key is: infernet owner show").tone(Tone::Dim),
    }
}

/// Returns the colour of what the agent does.
pub(super) const fn phase_tone(phase: Phase) -> Tone {
    match phase {
        Phase::Running => Tone::Good,
        Phase::Draining | Phase::Stopped | Phase::Unreachable => Tone::Warning,
        Phase::Suspended | Phase::Refused => Tone::Bad,
    }
}

/// Says what the agent does.
pub(super) fn phase_words(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => "running",
        Phase::Draining => "ending: takes no more work and finishes what it holds",
        Phase::Stopped => "running, but gets no new work",
        Phase::Suspended => "suspended by the control plane, gets no work",
        Phase::Refused => "refused by the control plane, gets no work",
        Phase::Unreachable => "running, but the control plane cannot be reached",
    }
}

/// Says how the agent hears of work.
pub(super) fn wakeup_words(wakeups: Wakeups) -> &'static str {
    match wakeups {
        Wakeups::Realtime => "at once, by Realtime",
        Wakeups::Heartbeat => "by heartbeat, because Realtime is not to be had",
    }
}

fn clock_words(ahead_ms: i64) -> String {
    let off = ahead_ms.unsigned_abs();
    let amount = if off < 1000 { format!("{off} ms") } else { format!("{} s", off / 1000) };
    let direction = if ahead_ms < 0 { "behind" } else { "ahead of" };
    format!("{amount} {direction} the control plane's")
}

fn standing_words(approval: Option<&str>, status: &str) -> String {
    match approval {
        Some("pending") => format!("{status}, waits for an operator's approval and gets no work"),
        Some("suspended") => format!("{status}, suspended by an operator and gets no work"),
        Some(approval) => format!("{status}, {approval}"),
        None => status.to_owned(),
    }
}

/// Says how long ago it was, in its largest unit.
pub(super) fn ago(time: Timestamp) -> String {
    let secs = Timestamp::now().as_second().saturating_sub(time.as_second()).max(0);
    let (count, unit) = match secs {
        0..60 => (secs, "s"),
        60..3600 => (secs / 60, "min"),
        3600..172_800 => (secs / 3600, "h"),
        _ => (secs / 86_400, "days"),
    };
    format!("{count} {unit} ago")
}
