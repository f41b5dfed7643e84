//! Calls about nodes by those who answer for them: their owner, and operators.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Offer, Rpc, RpcError};
use crate::id::{CommandId, NodeId, UserId};

/// Why a node takes no new work, although it is there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stop {
    /// `drained`, `maintenance` or `paused`.
    pub why: String,
    /// `owner`, `operator`, or `market` for a pause.
    pub by: String,
    /// In the words of whoever stopped it.
    pub reason: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
    /// How the node comes back.
    pub hint: String,
}

impl fmt::Display for Stop {
    /// Writes it as a sentence, without the hint.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.why.as_str(), self.by.as_str()) {
            ("drained", by) => write!(formatter, "Drained by its {by}")?,
            ("maintenance", "operator") => formatter.write_str("In maintenance by an operator")?,
            ("maintenance", _) => formatter.write_str("In maintenance")?,
            ("paused", _) => formatter.write_str("Paused")?,
            (other, _) => write!(formatter, "Stopped ({other})")?,
        }
        if let Some(until) = self.until {
            write!(formatter, " until {}", until.strftime("%Y-%m-%d %H:%M:%SZ"))?;
        }
        match &self.reason {
            Some(reason) if reason.ends_with('.') => write!(formatter, ": {reason}"),
            Some(reason) => write!(formatter, ": {reason}."),
            None => formatter.write_str("."),
        }
    }
}

/// A window in which a node takes no new work.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Maintenance {
    /// When it begins.
    pub from: Timestamp,
    /// When it ends.
    pub until: Timestamp,
    /// What it is for.
    pub note: Option<String>,
}

/// What a node is told to do.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandKind {
    /// Fetch a model.
    PullModel,
    /// Remove a model.
    RemoveModel,
    /// Take no new work.
    Drain,
    /// Take work again.
    Resume,
    /// Restart an engine, or all.
    RestartEngine,
    /// A command that this version does not know.
    #[serde(other)]
    Unknown,
}

impl CommandKind {
    /// Returns the command's word, as in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PullModel => "pull_model",
            Self::RemoveModel => "remove_model",
            Self::Drain => "drain",
            Self::Resume => "resume",
            Self::RestartEngine => "restart_engine",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for CommandKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// The arguments of a command.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CommandArgs {
    /// The model that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Hex sha256 of that model's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What this version does not know.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A command to a node.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeCommand {
    /// Its id.
    pub id: CommandId,
    /// The node.
    pub node: NodeId,
    /// What to do.
    pub command: CommandKind,
    /// With what.
    #[serde(default)]
    pub args: CommandArgs,
    /// `pending`, `acknowledged`, `done`, `failed`, `expired` or `cancelled`.
    pub state: String,
    /// What the node answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was given.
    pub created_at: Timestamp,
    /// When the node went about it.
    #[serde(default)]
    pub acknowledged_at: Option<Timestamp>,
    /// When it expires.
    pub expires_at: Timestamp,
    /// When it ended.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
}

/// The answer to [`Rpc::command_node`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct GivenCommand {
    /// False: the same command waits already, and is this one.
    pub created: bool,
    /// The command.
    #[serde(flatten)]
    pub command: NodeCommand,
}

/// A node after it was stopped or resumed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StoppedNode {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `online`, `offline`, `draining` or `paused`.
    pub status: String,
    /// Attempts that it still finishes.
    pub running: u32,
    /// Why it takes no new work.
    pub stops: Vec<Stop>,
    /// The window that is planned or open.
    pub maintenance: Option<Maintenance>,
}

/// A node as its owner, and an operator, sees it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct OwnedNode {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `online`, `offline`, `draining` or `paused`.
    pub status: String,
    /// `approved`, `pending`, `suspended` or `revoked`.
    pub approval: String,
    /// Whose it is.
    pub owner: UserId,
    /// Where it is.
    pub region: Option<String>,
    /// Words that jobs may ask for.
    pub labels: Vec<String>,
    /// Memory of all its GPUs, in GB.
    pub vram_gb: u64,
    /// The version of its agent.
    pub version: Option<String>,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
    /// Attempts in work.
    pub running: u32,
    /// Why it takes no new work.
    pub stops: Vec<Stop>,
    /// The window that is planned or open.
    pub maintenance: Option<Maintenance>,
}

/// The answer to [`Rpc::get_node`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeDetails {
    /// The node.
    #[serde(flatten)]
    pub node: OwnedNode,
    /// What it offers.
    pub offers: Vec<Offer>,
    /// Its last commands, the newest first.
    pub commands: Vec<NodeCommand>,
}

#[derive(Deserialize)]
struct NodeList {
    nodes: Vec<OwnedNode>,
}

#[derive(Serialize)]
struct NodeArgument {
    p_node: NodeId,
}

impl Rpc {
    /// Lists the caller's nodes, an operator's everybody's; those of one status or
    /// all, at most `limit`.
    pub async fn list_nodes(
        &self,
        status: Option<&str>,
        limit: u32,
    ) -> Result<Vec<OwnedNode>, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_status: Option<&'a str>,
            p_limit: u32,
        }
        let list: NodeList =
            self.call("list_nodes", &Arguments { p_status: status, p_limit: limit }).await?;
        Ok(list.nodes)
    }

    /// Reads one node, by its id or its name.
    pub async fn get_node(&self, node: &str) -> Result<NodeDetails, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_node: &'a str,
        }
        self.call("get_node", &Arguments { p_node: node }).await
    }

    /// Gives a node no new work until it is resumed.
    pub async fn drain_node(
        &self,
        node: NodeId,
        reason: Option<&str>,
    ) -> Result<StoppedNode, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_node: NodeId,
            p_reason: Option<&'a str>,
        }
        self.call("drain_node", &Arguments { p_node: node, p_reason: reason }).await
    }

    /// Ends a node's drain, its pause and an open maintenance window.
    pub async fn resume_node(&self, node: NodeId) -> Result<StoppedNode, RpcError> {
        self.call("resume_node", &NodeArgument { p_node: node }).await
    }

    /// Plans a window without new work, from now when it has no beginning; without an
    /// end, takes the window back.
    pub async fn set_maintenance(
        &self,
        node: NodeId,
        from: Option<Timestamp>,
        until: Option<Timestamp>,
        note: Option<&str>,
    ) -> Result<StoppedNode, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_node: NodeId,
            p_from: Option<Timestamp>,
            p_until: Option<Timestamp>,
            p_note: Option<&'a str>,
        }
        self.call(
            "set_maintenance",
            &Arguments { p_node: node, p_from: from, p_until: until, p_note: note },
        )
        .await
    }

    /// Gives a node a command, which expires after so many seconds.
    pub async fn command_node(
        &self,
        node: NodeId,
        command: CommandKind,
        args: &CommandArgs,
        expires_secs: Option<u32>,
    ) -> Result<GivenCommand, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_node: NodeId,
            p_command: CommandKind,
            p_args: &'a CommandArgs,
            p_expires_secs: Option<u32>,
        }
        self.call(
            "command_node",
            &Arguments {
                p_node: node,
                p_command: command,
                p_args: args,
                p_expires_secs: expires_secs,
            },
        )
        .await
    }

    /// Takes a command back that has not ended.
    pub async fn cancel_command(&self, id: CommandId) -> Result<NodeCommand, RpcError> {
        #[derive(Serialize)]
        struct Arguments {
            p_id: CommandId,
        }
        self.call("cancel_command", &Arguments { p_id: id }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(text: &str) -> String {
        serde_json::from_str::<Stop>(text).unwrap().to_string()
    }

    #[test]
    fn a_stop_reads_as_a_sentence() {
        let rest = r#""since":"2026-11-01T12:00:00Z","hint":"x""#;
        assert_eq!(
            stop(&format!(
                r#"{{"why":"drained","by":"owner","reason":"new disk","until":null,{rest}}}"#
            )),
            "Drained by its owner: new disk."
        );
        assert_eq!(
            stop(&format!(
                r#"{{"why":"paused","by":"market","reason":"It failed.","until":"2026-11-01T12:01:00Z",{rest}}}"#
            )),
            "Paused until 2026-11-01 12:01:00Z: It failed."
        );
        assert_eq!(
            stop(&format!(
                r#"{{"why":"maintenance","by":"operator","reason":null,"until":null,{rest}}}"#
            )),
            "In maintenance by an operator."
        );
    }

    #[test]
    fn a_command_of_a_later_version_is_still_read() {
        let command: NodeCommand = serde_json::from_str(
            r#"{"id":"0192f3a4-5b6c-7d8e-9f00-112233445566","node":"0192f3a4-5b6c-7d8e-9f00-112233445566",
                "command":"dance","args":{"model":"m","style":"slow"},"state":"pending",
                "created_at":"2026-11-01T12:00:00Z","expires_at":"2026-11-01T13:00:00Z"}"#,
        )
        .unwrap();
        assert_eq!(command.command, CommandKind::Unknown);
        assert_eq!(command.args.model.as_deref(), Some("m"));
    }
}
