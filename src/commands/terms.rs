//! The terms of what a consumer asks: the arguments that `run`, `job submit` and
//! `batch submit` share.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;

use super::prompt::parse_duration;
use crate::control::rpc::{JobTerms, Needs};
use crate::id::NodeId;
use crate::money::Usd;

/// What a job may cost, when it runs, and on which nodes.
#[derive(Debug, clap::Args)]
pub(crate) struct TermsArgs {
    /// Hold at most this many USD for each job, and take only offers that fit
    #[arg(long, value_name = "USD")]
    max_cost: Option<Usd>,
    /// Let jobs expire after this time, such as 90s, 10m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
    /// Begin only after this time, such as 10m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    delay: Option<Duration>,
    /// Go before jobs of a lower priority, from -9 to what an operator allows
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-9..=9))]
    priority: Option<i32>,
    /// Give it a name for people
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// Take only nodes with at least this much GPU memory
    #[arg(long, value_name = "GB", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    vram_gb: Option<u32>,
    /// Take only nodes that have this label; may be repeated
    #[arg(long = "label", value_name = "LABEL", value_parser = NonEmptyStringValueParser::new())]
    labels: Vec<String>,
    /// Take only nodes in this region
    #[arg(long, value_name = "REGION", value_parser = NonEmptyStringValueParser::new())]
    region: Option<String>,
    /// Prefer the node with this id; may be repeated
    #[arg(long, value_name = "NODE", value_parser = parse_node)]
    prefer: Vec<NodeId>,
    /// Never take the node with this id; may be repeated
    #[arg(long, value_name = "NODE", value_parser = parse_node)]
    exclude: Vec<NodeId>,
}

impl TermsArgs {
    /// Returns the terms as the control plane takes them.
    pub(crate) fn terms(&self) -> JobTerms {
        JobTerms {
            max_cost: self.max_cost,
            deadline_secs: self.deadline.map(seconds),
            title: self.title.clone(),
            needs: Needs {
                vram_gb: self.vram_gb,
                labels: self.labels.clone(),
                region: self.region.clone(),
                prefer: self.prefer.clone(),
                exclude: self.exclude.clone(),
            },
            priority: self.priority,
            delay_secs: self.delay.map(seconds),
        }
    }
}

/// Returns a time in whole seconds.
pub(super) fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

/// Reads the id of a node. Nodes of others cannot be looked up by less than that.
fn parse_node(text: &str) -> Result<NodeId, String> {
    text.parse().map_err(|_error| {
        format!("\"{text}\" is not the whole id of a node; see: infernet job explain JOB --json")
    })
}
