//! The terms of a job: what it may cost, when it runs, and on which nodes.

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::money::Usd;

/// What [`SubmitJob`](super::SubmitJob) and [`SubmitBatch`](super::SubmitBatch) have in
/// common; for a batch, the terms of each of its items.
///
/// Written as the arguments of those calls (`p_max_cost`, …), and read under the names
/// of its fields, as a client of the proxy writes them. What is not set is not sent:
/// the control plane has its own defaults.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobTerms {
    /// The most it may cost.
    #[serde(rename(serialize = "p_max_cost"), skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<Usd>,
    /// Seconds from its start, which a delay puts off, until it expires.
    #[serde(rename(serialize = "p_deadline_secs"), skip_serializing_if = "Option::is_none")]
    pub deadline_secs: Option<u32>,
    /// A name for people.
    #[serde(rename(serialize = "p_title"), skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What a node must have.
    #[serde(rename(serialize = "p_needs"), skip_serializing_if = "Needs::is_empty")]
    pub needs: Needs,
    /// Jobs of a higher priority go first; from -9 to what an operator allows, 0 at first.
    #[serde(rename(serialize = "p_priority"), skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Seconds from now until it may be given to a node.
    #[serde(rename(serialize = "p_delay_secs"), skip_serializing_if = "Option::is_none")]
    pub delay_secs: Option<u32>,
}

/// Which nodes a job may be given to.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Needs {
    /// Gigabytes of GPU memory that a node has at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_gb: Option<u32>,
    /// Labels that a node has, every one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The region that a node is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Nodes that are rather taken than others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<NodeId>,
    /// Nodes that are never taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<NodeId>,
}

impl Needs {
    /// Says whether any node will do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::control::rpc::{JobKind, SubmitBatch, SubmitJob};

    const NODE: &str = "0192f3a4-5b6c-7d8e-9f00-112233445566";

    /// Returns what a job and a batch of the same terms send, without their ids.
    fn sent(terms: &JobTerms) -> [Value; 2] {
        let mut job = SubmitJob::chat("m", json!({}));
        job.terms = terms.clone();
        let mut batch = SubmitBatch::new("m", JobKind::Chat, vec![json!({})]);
        batch.terms = terms.clone();
        let mut sent = [serde_json::to_value(job).unwrap(), serde_json::to_value(batch).unwrap()];
        for call in &mut sent {
            assert!(call.as_object_mut().unwrap().remove("p_id").is_some());
        }
        sent
    }

    #[test]
    fn only_what_is_set_is_sent() {
        let [job, batch] = sent(&JobTerms::default());
        assert_eq!(job, json!({"p_model": "m", "p_kind": "chat", "p_input": {}}));
        assert_eq!(batch, json!({"p_model": "m", "p_kind": "chat", "p_items": [{}]}));
        let needs = Needs { vram_gb: Some(24), ..Needs::default() };
        let [job, batch] = sent(&JobTerms { needs, ..JobTerms::default() });
        assert_eq!(job["p_needs"], json!({"vram_gb": 24}));
        assert_eq!(batch["p_needs"], json!({"vram_gb": 24}));
    }

    #[test]
    fn terms_are_read_by_their_names_and_sent_as_arguments() {
        let needs = json!({
            "vram_gb": 24, "labels": ["ssd"], "region": "eu", "prefer": [NODE], "exclude": [NODE],
        });
        let terms: JobTerms = serde_json::from_value(json!({
            "max_cost": "0.5", "deadline_secs": 60, "title": "t", "needs": needs, "priority": -3,
            "delay_secs": 5,
        }))
        .unwrap();
        for call in sent(&terms) {
            for (argument, value) in [
                ("p_max_cost", json!("0.5")),
                ("p_deadline_secs", json!(60)),
                ("p_title", json!("t")),
                ("p_needs", needs.clone()),
                ("p_priority", json!(-3)),
                ("p_delay_secs", json!(5)),
            ] {
                assert_eq!(call[argument], value, "{argument}");
            }
        }
    }

    #[test]
    fn a_misspelt_term_is_refused() {
        for wrong in [
            json!({"p_priority": 1}),
            json!({"need": {}}),
            json!({"needs": {"label": ["ssd"]}}),
            json!({"needs": {"exclude": ["attic"]}}),
            json!({"delay_secs": -1}),
        ] {
            assert!(serde_json::from_value::<JobTerms>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
