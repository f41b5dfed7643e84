//! `infernet status`.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;

use super::Context;
use super::output::columns;
use crate::agent::process;
use crate::agent::status::{self, AgentStatus, Phase, Wakeups};
use crate::command_error::{CommandError, RelayedError};
use crate::control::rpc::{NodeStatus, Rpc};

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
    let seen = match context.node().await {
        Ok(rpc) => ask(&rpc).await,
        Err(error) => Err(error),
    };
    let (node, trouble) = match seen {
        Ok(node) => (Some(node), None),
        Err(error) => (None, Some(error)),
    };
    let report = Report {
        running,
        agent,
        node,
        trouble: trouble.as_ref().map(RelayedError::from),
        log: files.log().display().to_string(),
    };
    if context.output.is_json() {
        context.output.object(&report)?;
        return Ok(());
    }
    context.output.line(&columns(&rows(&report)))?;
    if let Some(offers) = report.node.as_ref().map(|node| &node.offers).filter(|o| !o.is_empty()) {
        let mut table = vec![
            ["Model", "Slots", "Input per million tokens", "Output per million tokens"]
                .map(str::to_owned)
                .to_vec(),
        ];
        table.extend(offers.iter().map(|offer| {
            vec![
                offer.model.clone(),
                offer.slots.to_string(),
                offer.price_input.to_string(),
                offer.price_output.to_string(),
            ]
        }));
        context.output.line(&format!("\n{}", columns(&table)))?;
    }
    if let Some(trouble) = trouble {
        context.output.warn(&format!("\n{}", trouble.words()));
    }
    if report.running.is_none() {
        context.output.talk("\nStart it with: infernet start");
    }
    Ok(())
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

fn rows(report: &Report) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    match (report.running, &report.agent) {
        (None, _) => row("Agent", "not running".to_owned()),
        (Some(pid), None) => row("Agent", format!("starting, process {pid}")),
        (Some(pid), Some(agent)) => {
            row("Agent", format!("{}, process {pid}", phase_words(agent.phase)));
            if let Some(message) = &agent.message {
                row("", message.clone());
            }
            row("Since", ago(agent.started_at));
            row("Jobs in work", agent.running.to_string());
            row("Hears of work", wakeup_words(agent.wakeups).to_owned());
            if let Some(at) = agent.last_heartbeat {
                row("Last heartbeat", ago(at));
            }
            if let Some(ahead) = agent.clock_ahead_ms {
                row("Clock", clock_words(ahead));
            }
            row("Control plane", agent.introduction.control_plane.clone());
        }
    }
    if let Some(status) = &report.node {
        let node = &status.node;
        row("Node", format!("{} ({}), {}", node.name, node.role, node.id));
        row("Standing", standing_words(node.approval.as_deref(), &node.status));
        for stop in &node.stops {
            row("", stop.to_string());
            row("", stop.hint.clone());
        }
        row("Earned today", status.earnings.today.to_string());
        row("In 30 days", status.earnings.days30.to_string());
        row("In all", status.earnings.total.to_string());
    }
    row("Log", report.log.clone());
    rows
}

fn phase_words(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => "running",
        Phase::Draining => "ending: takes no more work and finishes what it holds",
        Phase::Stopped => "running, but gets no new work",
        Phase::Suspended => "suspended by the control plane, gets no work",
        Phase::Refused => "refused by the control plane, gets no work",
        Phase::Unreachable => "running, but the control plane cannot be reached",
    }
}

fn wakeup_words(wakeups: Wakeups) -> &'static str {
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
fn ago(time: Timestamp) -> String {
    let secs = Timestamp::now().as_second().saturating_sub(time.as_second()).max(0);
    let (count, unit) = match secs {
        0..60 => (secs, "s"),
        60..3600 => (secs / 60, "min"),
        3600..172_800 => (secs / 3600, "h"),
        _ => (secs / 86_400, "days"),
    };
    format!("{count} {unit} ago")
}
