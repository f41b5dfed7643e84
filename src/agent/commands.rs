//! Commands of the node's owner or an operator, as heartbeats bring them.
//!
//! [`run_commands`] goes about them one after another, says so, does them, and
//! says what came of it. A heartbeat brings a command until it has ended, so that
//! an answer that got lost is given again; nothing is done twice for it. What the
//! machine's own configuration does not allow, no command allows: a command is
//! refused with the reason.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::control::rpc::{CommandArgs, CommandKind, NodeCommand, Rpc};
use crate::engine::{EngineError, EnginePool, Progress};
use crate::id::CommandId;

/// The most time for restarting one engine, running answers included.
const RESTART_TIME: Duration = Duration::from_secs(600);

/// The most time for fetching what a model needs.
const PULL_TIME: Duration = Duration::from_secs(3600);

/// What came of a command: a result, or why it failed.
type Outcome = Result<Value, String>;

/// What commands act on.
#[derive(Debug)]
pub(super) struct CommandContext {
    /// The control plane's calls.
    pub(super) rpc: Rpc,
    /// The engines.
    pub(super) engines: EnginePool,
    /// Whether this node wants no new work, until it is resumed or restarted.
    pub(super) drained: watch::Sender<bool>,
}

/// Does what is brought until it is told to end.
pub(super) async fn run_commands(
    context: CommandContext,
    mut brought: watch::Receiver<Vec<NodeCommand>>,
    shutdown: CancellationToken,
) {
    let mut outcomes = HashMap::new();
    loop {
        let commands = tokio::select! {
            () = shutdown.cancelled() => return,
            changed = brought.changed() => match changed {
                Ok(()) => brought.borrow_and_update().clone(),
                // Nobody is left to bring any.
                Err(_gone) => return,
            },
        };
        outcomes.retain(|id, _outcome| commands.iter().any(|command| command.id == *id));
        for command in &commands {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = context.go_about(command, &mut outcomes) => {}
            }
        }
    }
}

impl CommandContext {
    /// Acknowledges a command, does it, and reports; a command that was done before
    /// is only reported again.
    async fn go_about(&self, command: &NodeCommand, outcomes: &mut HashMap<CommandId, Outcome>) {
        let outcome = match outcomes.get(&command.id) {
            Some(outcome) => outcome.clone(),
            None if self.acknowledge(command).await => {
                info!(command = %command.id, kind = %command.command, "going about a command");
                let outcome = self.execute(command).await;
                outcomes.insert(command.id, outcome.clone());
                outcome
            }
            None => return,
        };
        match self.rpc.finish_command(command.id, outcome).await {
            Ok(answer) => {
                info!(command = %command.id, state = answer.command.state, "a command has ended");
            }
            Err(error) => {
                warn!(command = %command.id, error = %error, "what came of a command could not be reported");
            }
        }
    }

    /// Says that this node goes about a command; answers whether it still is to.
    async fn acknowledge(&self, command: &NodeCommand) -> bool {
        match self.rpc.acknowledge_command(command.id).await {
            Ok(answer) if answer.accepted => true,
            Ok(answer) => {
                info!(command = %command.id, state = answer.command.state, "a command had ended before");
                false
            }
            Err(error) => {
                warn!(command = %command.id, error = %error, "a command could not be acknowledged");
                false
            }
        }
    }

    async fn execute(&self, command: &NodeCommand) -> Outcome {
        match command.command {
            CommandKind::Drain => {
                self.drained.send_replace(true);
                Ok(json!({"draining": true}))
            }
            CommandKind::Resume => {
                self.drained.send_replace(false);
                Ok(json!({"draining": false}))
            }
            CommandKind::RestartEngine => self.restart(command.args.model.as_deref()).await,
            CommandKind::PullModel => self.pull(&command.args).await,
            CommandKind::RemoveModel => {
                Err("What this node serves is written on the machine itself; take a model out \
                 there with: infernet model rm"
                    .to_owned())
            }
            CommandKind::Unknown => Err(format!(
                "Version {} of the agent does not know this command.",
                env!("CARGO_PKG_VERSION")
            )),
        }
    }

    /// Gets what one of the machine's own models needs and is not here; another one is
    /// refused, and so is a file of another digest than the command names.
    async fn pull(&self, args: &CommandArgs) -> Outcome {
        let name = args.model.as_deref().unwrap_or_default();
        let told = |what: &str, progress: Progress| {
            debug!(what, done = progress.done, total = progress.total, "fetching");
        };
        let pulled = match timeout(PULL_TIME, self.engines.pull(name, &told)).await {
            Ok(Ok(pulled)) => pulled,
            Ok(Err(error)) => return Err(format!("{name}: {}", error.public_message())),
            Err(_slow) => {
                return Err(format!("{name}: It was not there within {} s.", PULL_TIME.as_secs()));
            }
        };
        if args.digest.is_some() && args.digest != pulled.digest {
            return Err(format!(
                "{name}: The machine's own configuration names another digest than the command."
            ));
        }
        Ok(json!({"model": name, "digest": pulled.digest, "fetched": pulled.fetched}))
    }

    /// Restarts one model's engine, or that of each model that has one here.
    async fn restart(&self, model: Option<&str>) -> Outcome {
        let models: Vec<String> = match model {
            Some(model) => vec![model.to_owned()],
            None => self.engines.models().map(|model| model.name.clone()).collect(),
        };
        let mut restarted = Vec::with_capacity(models.len());
        for name in &models {
            match timeout(RESTART_TIME, self.engines.restart(name)).await {
                Ok(Ok(())) => restarted.push(name),
                Ok(Err(EngineError::NotOurs { .. })) if model.is_none() => {}
                Ok(Err(error)) => return Err(format!("{name}: {}", error.public_message())),
                Err(_slow) => {
                    return Err(format!(
                        "{name}: The engine was not ready again within {} s.",
                        RESTART_TIME.as_secs()
                    ));
                }
            }
        }
        if restarted.is_empty() {
            return Err("None of this node's engines was started by its agent.".to_owned());
        }
        Ok(json!({"restarted": restarted}))
    }
}
