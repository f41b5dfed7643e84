//! Calls of a node: register, heartbeat, claim, start, complete, fail, leave, and
//! what it says to commands.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::fleet::{NodeCommand, Stop};
use super::{JobKind, JobState, NoArguments, Rpc, RpcError, Usage};
use crate::hardware;
use crate::id::{AttemptId, CommandId, JobId, LeaseId, NodeId, OfferId};
use crate::money::Usd;

/// A coarse description of the machine; nothing that identifies it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Inventory {
    /// Such as `linux-x86_64`.
    pub platform: String,
    /// Logical processors.
    pub cpus: usize,
    /// Memory, rounded to whole GiB, where it can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_gb: Option<u64>,
    /// The GPUs.
    pub gpus: Vec<InventoryGpu>,
    /// Where it is, if its owner wants that known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Words of its owner that jobs may ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// One GPU, coarsely.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InventoryGpu {
    /// Such as `nvidia`.
    pub vendor: String,
    /// Such as `H100`.
    pub model: String,
    /// Its memory as a class, such as `80GB`.
    pub vram_tier: String,
}

impl From<hardware::Inventory> for Inventory {
    fn from(machine: hardware::Inventory) -> Self {
        Self {
            platform: machine.platform,
            cpus: machine.cpus,
            ram_gb: machine.ram_gb,
            gpus: machine
                .gpus
                .into_iter()
                .map(|gpu| InventoryGpu {
                    vendor: gpu.vendor,
                    model: gpu.model,
                    vram_tier: gpu.vram_tier,
                })
                .collect(),
            region: None,
            labels: Vec::new(),
        }
    }
}

/// What a node offers to serve, as it registers it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OfferedModel {
    /// The model's name on the market.
    pub model: String,
    /// How many jobs at once.
    pub slots: u32,
    /// USD per million tokens of input.
    pub price_input: Usd,
    /// USD per million tokens of output.
    pub price_output: Usd,
    /// Hex sha256 of the model's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Tokens that fit the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
}

/// What a node offers to run container jobs with, as it registers it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OfferedImage {
    /// The image's name on the market.
    pub image: String,
    /// How many jobs at once.
    pub slots: u32,
    /// USD per second.
    pub price_second: Usd,
    /// Hex sha256 that pins the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What a node registers: models that it serves and images that it runs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Offering {
    /// A model.
    Model(OfferedModel),
    /// An image.
    Image(OfferedImage),
}

impl Offering {
    /// Returns the name on the market.
    pub fn name(&self) -> &str {
        match self {
            Self::Model(model) => &model.model,
            Self::Image(image) => &image.image,
        }
    }
}

/// An offer as the control plane keeps it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Offer {
    /// Its id.
    pub id: OfferId,
    /// The model's name on the market.
    pub model: String,
    /// How many jobs at once.
    pub slots: u32,
    /// USD per million tokens of input.
    pub price_input: Usd,
    /// USD per million tokens of output.
    pub price_output: Usd,
}

/// The answer to [`Rpc::register_node`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Registration {
    /// The node's id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `provider`, `aggregator` or `client`.
    pub role: String,
    /// `online`, `offline`, …
    pub status: String,
    /// `approved`, `pending`, `suspended` or `revoked`; a pending node gets no work.
    pub approval: String,
    /// The private topic of its wake-ups, `node:ID`.
    pub topic: String,
    /// Seconds between heartbeats.
    pub heartbeat_secs: f64,
    /// Seconds until an attempt without a heartbeat is lost.
    pub lease_secs: f64,
    /// What it offers.
    pub offers: Vec<Offer>,
    /// The server's clock.
    pub server_time: Timestamp,
}

/// An attempt that waits for the node to start it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OfferedAttempt {
    /// Its id.
    pub attempt: AttemptId,
    /// Its job.
    pub job: JobId,
    /// The model.
    pub model: String,
    /// What kind of work it is.
    pub kind: JobKind,
    /// Since when.
    pub offered_at: Timestamp,
}

/// The answer to [`Rpc::heartbeat`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Heartbeat {
    /// The server's clock.
    pub server_time: Timestamp,
    /// Seconds until the next one.
    pub heartbeat_secs: f64,
    /// Attempts to start.
    pub attempts: Vec<OfferedAttempt>,
    /// Attempts to stop: the consumer cancelled.
    pub cancel: Vec<AttemptId>,
    /// Attempts that are the node's no more.
    pub lost: Vec<AttemptId>,
    /// What the operator or owner asks of the node.
    #[serde(default)]
    pub commands: Vec<NodeCommand>,
    /// Why the node gets no new work, although it is there.
    #[serde(default)]
    pub stops: Vec<Stop>,
    /// The node's share of stream messages, a second.
    pub stream_rate: f64,
}

/// The answer to [`Rpc::claim_attempts`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Claim {
    /// Attempts to start.
    pub attempts: Vec<OfferedAttempt>,
    /// Attempts to stop: the consumer cancelled.
    pub cancel: Vec<AttemptId>,
    /// Attempts that are the node's no more.
    pub lost: Vec<AttemptId>,
    /// What the operator or owner asks of the node.
    #[serde(default)]
    pub commands: Vec<NodeCommand>,
    /// The node's share of stream messages, a second.
    pub stream_rate: f64,
}

/// The answer to [`Rpc::start_attempt`]: the work.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StartedAttempt {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its job.
    pub job: JobId,
    /// The lease that was taken.
    pub lease: LeaseId,
    /// The private topic of its stream, `job:UID:ID`.
    pub topic: String,
    /// What kind of work it is.
    pub kind: JobKind,
    /// The model.
    pub model: String,
    /// The OpenAI request without its model, byte for byte as SQL wrote it.
    pub input: Box<RawValue>,
    /// Hex sha256 of the input, as SQL computed it.
    pub input_sha256: String,
    /// Hex sha256 of the model's file, as it was offered.
    #[serde(default)]
    pub model_digest: Option<String>,
    /// The most tokens of output.
    pub max_tokens: u32,
    /// The most seconds that a container may run.
    #[serde(default)]
    pub max_seconds: u32,
    /// The most bytes of output that are taken.
    #[serde(default)]
    pub output_bytes: Option<u64>,
    /// Seconds that the attempt may take.
    pub deadline_secs: f64,
    /// USD per million tokens of input.
    pub price_input: Usd,
    /// USD per million tokens of output.
    pub price_output: Usd,
    /// USD per second of a container.
    #[serde(default)]
    pub price_second: Usd,
    /// The node's share of stream messages, a second.
    pub stream_rate: f64,
}

/// What [`Rpc::complete_attempt`] sends.
#[derive(Clone, Debug, Serialize)]
pub struct CompleteAttempt {
    /// The attempt.
    #[serde(rename = "p_attempt")]
    pub attempt: AttemptId,
    /// The lease under which it ran.
    #[serde(rename = "p_lease")]
    pub lease: LeaseId,
    /// The whole output.
    #[serde(rename = "p_output")]
    pub output: String,
    /// `stop`, `length` or `cancelled`.
    #[serde(rename = "p_finish")]
    pub finish: String,
    /// What the engine counted.
    #[serde(rename = "p_usage")]
    pub usage: Usage,
    /// The signed receipt, a Nostr event.
    #[serde(rename = "p_receipt")]
    pub receipt: Value,
}

/// The answer to [`Rpc::complete_attempt`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Completion {
    /// Whether this call settled the attempt.
    pub accepted: bool,
    /// `fenced` or `repeated` when it did not.
    pub reason: Option<String>,
    /// Where the job stands now.
    pub job_state: JobState,
    /// What was captured.
    pub usage: Option<Usage>,
    /// What the owner earned.
    pub earned: Option<Usd>,
    /// The node's next attempt.
    pub next: Option<OfferedAttempt>,
}

/// The answer to [`Rpc::fail_attempt`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Failure {
    /// Whether this call ended the attempt.
    pub accepted: bool,
    /// Where the job stands now.
    pub job_state: JobState,
    /// The node's next attempt.
    pub next: Option<OfferedAttempt>,
}

/// Why a node gives an attempt up.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The engine broke while it worked.
    EngineFailed,
    /// The engine could not be started.
    EngineUnavailable,
    /// The consumer's request cannot be served by anybody.
    BadRequest,
    /// The node stops; the attempt is handed back and not counted.
    Shutdown,
    /// The attempt's time is over.
    Deadline,
}

/// What [`Rpc::fail_attempt`] sends.
#[derive(Clone, Debug, Serialize)]
pub struct FailAttempt {
    /// The attempt.
    #[serde(rename = "p_attempt")]
    pub attempt: AttemptId,
    /// The lease under which it ran.
    #[serde(rename = "p_lease")]
    pub lease: LeaseId,
    /// The stable word.
    #[serde(rename = "p_code")]
    pub code: FailureCode,
    /// A sentence for the consumer.
    #[serde(rename = "p_message")]
    pub message: String,
    /// Whether another node may try.
    #[serde(rename = "p_retry")]
    pub retry: bool,
}

/// The answer to [`Rpc::leave`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Leave {
    /// `offline`.
    pub status: String,
    /// How many attempts were handed back.
    pub handed_back: u32,
}

/// The answer to what a node says to a command.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CommandAnswer {
    /// Whether it counted: a command that has ended is left as it is.
    pub accepted: bool,
    /// The command.
    #[serde(flatten)]
    pub command: NodeCommand,
}

/// A node as itself sees it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeStanding {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `provider`, `aggregator` or `client`.
    pub role: String,
    /// `online`, `offline`, …
    pub status: String,
    /// `approved`, `pending`, `suspended` or `revoked`.
    pub approval: Option<String>,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
    /// Whose it is.
    #[serde(default)]
    pub owner: Value,
    /// Why it gets no new work, although it is there.
    #[serde(default)]
    pub stops: Vec<Stop>,
}

/// The answer to [`Rpc::node_status`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeStanding,
    /// Attempts that run now.
    pub running: u32,
    /// What it earned for its owner.
    pub earnings: Earnings,
    /// What it offers.
    pub offers: Vec<Offer>,
}

/// What a node earned.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Earnings {
    /// Since midnight UTC.
    pub today: Usd,
    /// In 30 days.
    pub days30: Usd,
    /// Ever.
    pub total: Usd,
}

impl Rpc {
    /// Tells the control plane what this node is and serves; with `online`, also
    /// that an agent is there to work.
    pub async fn register_node(
        &self,
        inventory: &Inventory,
        offers: &[Offering],
        online: bool,
    ) -> Result<Registration, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_inventory: &'a Inventory,
            p_offers: &'a [Offering],
            p_version: &'a str,
            p_online: bool,
        }
        self.call(
            "register_node",
            &Arguments {
                p_inventory: inventory,
                p_offers: offers,
                p_version: env!("CARGO_PKG_VERSION"),
                p_online: online,
            },
        )
        .await
    }

    /// Renews all leases and catches up with what was missed. Not repeated by
    /// itself: the next heartbeat is the repeat.
    pub async fn heartbeat(
        &self,
        running: &[AttemptId],
        realtime: bool,
        draining: bool,
    ) -> Result<Heartbeat, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_running: &'a [AttemptId],
            p_realtime: bool,
            p_draining: bool,
        }
        self.call_once(
            "heartbeat",
            &Arguments { p_running: running, p_realtime: realtime, p_draining: draining },
        )
        .await
    }

    /// Asks for attempts; with `restart`, running attempts that are not named
    /// are lost at once.
    pub async fn claim_attempts(
        &self,
        running: &[AttemptId],
        restart: bool,
    ) -> Result<Claim, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_running: &'a [AttemptId],
            p_restart: bool,
        }
        self.call("claim_attempts", &Arguments { p_running: running, p_restart: restart }).await
    }

    /// Takes an attempt under a lease of the agent's own making; a repeat with
    /// the same lease answers the same.
    pub async fn start_attempt(
        &self,
        attempt: AttemptId,
        lease: LeaseId,
    ) -> Result<StartedAttempt, RpcError> {
        #[derive(Serialize)]
        struct Arguments {
            p_attempt: AttemptId,
            p_lease: LeaseId,
        }
        self.call("start_attempt", &Arguments { p_attempt: attempt, p_lease: lease }).await
    }

    /// Hands in the result; settles, and returns the next attempt.
    pub async fn complete_attempt(
        &self,
        completion: &CompleteAttempt,
    ) -> Result<Completion, RpcError> {
        self.call("complete_attempt", completion).await
    }

    /// Gives an attempt up.
    pub async fn fail_attempt(&self, failure: &FailAttempt) -> Result<Failure, RpcError> {
        self.call("fail_attempt", failure).await
    }

    /// Says that this node goes about a command. May be repeated.
    pub async fn acknowledge_command(&self, id: CommandId) -> Result<CommandAnswer, RpcError> {
        #[derive(Serialize)]
        struct Arguments {
            p_id: CommandId,
        }
        self.call("acknowledge_command", &Arguments { p_id: id }).await
    }

    /// Says what came of a command: a result, or why it failed. A repeat changes
    /// nothing.
    pub async fn finish_command(
        &self,
        id: CommandId,
        outcome: Result<Value, String>,
    ) -> Result<CommandAnswer, RpcError> {
        #[derive(Serialize)]
        struct Arguments {
            p_id: CommandId,
            p_ok: bool,
            p_result: Option<Value>,
            p_error: Option<String>,
        }
        let (ok, result, error) = match outcome {
            Ok(result) => (true, Some(result), None),
            Err(error) => (false, None, Some(error)),
        };
        self.call(
            "finish_command",
            &Arguments { p_id: id, p_ok: ok, p_result: result, p_error: error },
        )
        .await
    }

    /// Marks the node offline and hands its attempts back.
    pub async fn leave(&self) -> Result<Leave, RpcError> {
        self.call("leave", &NoArguments {}).await
    }

    /// Reads how the node stands.
    pub async fn node_status(&self) -> Result<NodeStatus, RpcError> {
        self.call("node_status", &NoArguments {}).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_of_an_attempt_is_kept_byte_for_byte() {
        let text = r#"{"attempt":"0192f3a4-5b6c-7d8e-9f00-112233445566",
            "job":"0192f3a4-5b6c-7d8e-9f00-112233445566","lease":"0192f3a4-5b6c-4d8e-9f00-112233445566",
            "topic":"job:a:b","kind":"chat","model":"m","input":{"messages": [ ],"z" :1},
            "input_sha256":"00","max_tokens":16,"deadline_secs":300,"price_input":"0.1",
            "price_output":"0.2","stream_rate":20}"#;
        let started: StartedAttempt = serde_json::from_str(text).unwrap();
        assert_eq!(started.input.get(), r#"{"messages": [ ],"z" :1}"#);
    }
}
