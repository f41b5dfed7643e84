//! Calls of an operator, and those that everyone may make.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{NoArguments, Rpc, RpcError};
use crate::id::{NodeId, TransferId};
use crate::money::Usd;

/// The answer to [`Rpc::grant_credit`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CreditGrant {
    /// The transfer.
    pub transfer: TransferId,
    /// `created`, or `exists` for a repeat.
    pub result: String,
    /// What the user can spend now.
    pub balance: Usd,
}

/// The answer to [`Rpc::prove_ledger`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LedgerProof {
    /// Whether every invariant holds.
    pub ok: bool,
    /// What does not hold.
    pub faults: Vec<Value>,
    /// The totals.
    #[serde(flatten)]
    pub totals: BTreeMap<String, Value>,
}

/// The answer to [`Rpc::overview`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Overview {
    /// How many nodes.
    pub nodes: OverviewNodes,
    /// What can be asked for.
    pub models: Vec<OverviewModel>,
    /// How many jobs, by state.
    pub jobs: BTreeMap<String, Value>,
}

/// Nodes in numbers.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct OverviewNodes {
    /// Heard of lately.
    pub online: u64,
    /// All.
    pub total: u64,
}

/// A model that is or was offered.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct OverviewModel {
    /// Its name.
    pub name: String,
    /// How many offers.
    pub offers: u64,
    /// How many of them can be taken now.
    pub online: u64,
    /// The lowest price per million tokens of input.
    pub lowest_input: Option<Usd>,
    /// The lowest price per million tokens of output.
    pub lowest_output: Option<Usd>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingLevel {
    /// As it should be.
    Ok,
    /// Good to know.
    Info,
    /// Something will go wrong, or goes slowly.
    Warning,
    /// Something does not work.
    Error,
}

impl FindingLevel {
    /// Returns the level's word, as in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something that was found, and what to do about it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: FindingLevel,
    /// What it is, as a sentence.
    pub what: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The answer to [`Rpc::health`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Health {
    /// The worst of the findings.
    pub level: FindingLevel,
    /// What should be known.
    pub findings: Vec<Finding>,
    /// The numbers: queue, nodes, tick, database.
    #[serde(flatten)]
    pub numbers: BTreeMap<String, Value>,
}

impl Rpc {
    /// Grants credit to a user. A repeat with the same id answers `exists`.
    pub async fn grant_credit(
        &self,
        id: TransferId,
        public_key: &str,
        amount: Usd,
        memo: Option<&str>,
    ) -> Result<CreditGrant, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_id: TransferId,
            p_public_key: &'a str,
            p_amount: Usd,
            #[serde(skip_serializing_if = "Option::is_none")]
            p_memo: Option<&'a str>,
        }
        self.call(
            "grant_credit",
            &Arguments { p_id: id, p_public_key: public_key, p_amount: amount, p_memo: memo },
        )
        .await
    }

    /// Sets a node's approval: `approved`, `pending`, `suspended` or `revoked`.
    pub async fn set_node_approval(&self, node: NodeId, approval: &str) -> Result<Value, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_node: NodeId,
            p_approval: &'a str,
        }
        self.call("set_node_approval", &Arguments { p_node: node, p_approval: approval }).await
    }

    /// Sets a user's status: `active` or `suspended`.
    pub async fn set_user_status(&self, public_key: &str, status: &str) -> Result<Value, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_public_key: &'a str,
            p_status: &'a str,
        }
        self.call("set_user_status", &Arguments { p_public_key: public_key, p_status: status })
            .await
    }

    /// Sets one of the control plane's settings.
    pub async fn set_setting(&self, key: &str, value: &Value) -> Result<Value, RpcError> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_key: &'a str,
            p_value: &'a Value,
        }
        self.call("set_setting", &Arguments { p_key: key, p_value: value }).await
    }

    /// Has the ledger's invariants proven.
    pub async fn prove_ledger(&self) -> Result<LedgerProof, RpcError> {
        self.call("prove_ledger", &NoArguments {}).await
    }

    /// Reads how the control plane itself is.
    pub async fn health(&self) -> Result<Health, RpcError> {
        self.call("health", &NoArguments {}).await
    }

    /// Reads what the network offers; needs no key.
    pub async fn overview(&self) -> Result<Overview, RpcError> {
        self.call("overview", &NoArguments {}).await
    }
}
