//! What `init`, `login` and `register` share: signing in whoever lives on this
//! machine, enrolling its node, and telling the control plane what it is.

use serde_json::{Value, json};

use super::Context;
use super::init::MachineKeys;
use crate::command_error::{CommandError, Kind};
use crate::config::Config;
use crate::control::ControlPlane;
use crate::control::membership::{self, MembershipError, Sponsor};
use crate::control::rpc::{Inventory, NodeStanding, Registration, Rpc, Whoami};
use crate::control::session::{LoginKind, Session};
use crate::hardware;

/// Who is signed in, and how the node stands.
pub(crate) struct Joined {
    /// The person, if the key is here.
    pub(crate) user: Option<Whoami>,
    /// The node.
    pub(crate) node: NodeStanding,
    /// Whether it was enrolled now.
    pub(crate) enrolled: bool,
}

/// Signs in the person and the node, enrols the node if it is new, and registers
/// it.
pub(crate) async fn join(
    control: &ControlPlane,
    config: &Config,
    keys: &MachineKeys,
    code: Option<&str>,
    context: &Context,
) -> Result<Joined, CommandError> {
    let node_config = config.node()?;
    let owner = keys
        .owner
        .as_ref()
        .map(|keys| Rpc::new(Session::new(control.clone(), keys.clone(), LoginKind::User)));
    let user = match &owner {
        Some(owner) => Some(owner.whoami().await?),
        None => None,
    };
    let session = Session::new(control.clone(), keys.node.clone(), LoginKind::Node);
    let sponsor = match (code, owner) {
        (Some(code), _) => Sponsor::Code(code.to_owned()),
        (None, Some(owner)) => Sponsor::Owner(owner),
        (None, None) => Sponsor::Nobody,
    };
    let enrolled =
        membership::join(&session, &sponsor, node_config.role.as_str(), &node_config.name)
            .await
            .map_err(|error| match error {
                MembershipError::Session(error) => CommandError::from(error),
                MembershipError::Owner(error) => CommandError::from(error),
            })?;
    let rpc = Rpc::new(session);
    register(&rpc, config, context).await?;
    let node = rpc.node_status().await?.node;
    Ok(Joined { user, node, enrolled })
}

/// Tells the control plane what this node is and offers, but not that it is
/// there: that is for an agent to say.
pub(crate) async fn register(
    rpc: &Rpc,
    config: &Config,
    context: &Context,
) -> Result<Registration, CommandError> {
    let node_config = config.node()?;
    let mut inventory = tokio::task::spawn_blocking(|| Inventory::from(hardware::inventory()))
        .await
        .map_err(|error| CommandError::new(Kind::Internal, error))?;
    inventory.region.clone_from(&node_config.region);
    inventory.labels.clone_from(&node_config.labels);
    let registration = rpc.register_node(&inventory, &config.offers(), false).await?;
    if config.models().is_empty() && registration.role == "provider" {
        context.output.talk(&format!(
            "This node offers no model yet. Add a [[model]] to {}, then run: infernet register",
            context.directories.config_file().display()
        ));
    }
    Ok(registration)
}

impl Joined {
    /// Returns who is signed in as a JSON object.
    pub(crate) fn object(&self) -> Value {
        json!({"user": self.user, "node": self.node, "enrolled": self.enrolled})
    }

    /// Tells who is signed in, and what comes next.
    pub(crate) fn tell(&self, context: &Context) -> Result<(), CommandError> {
        let output = context.output;
        if let Some(user) = &self.user {
            output.line(&format!("User: {} ({}, {})", user.id, user.public_key, user.status))?;
        }
        let node = &self.node;
        let approval = node.approval.as_deref().unwrap_or("approved");
        output.line(&format!("Node: {} ({}, {}, {approval})", node.id, node.name, node.role))?;
        if self.enrolled {
            output.talk("The node is enrolled.");
        }
        match (approval, node.role.as_str()) {
            ("pending", _) => output.talk(&format!(
                "It gets work once an operator approves it: infernet operator approve {}",
                node.id
            )),
            (_, "provider") => output.talk("To take work, run: infernet start"),
            _ => {}
        }
        Ok(())
    }
}
