//! A job that is running: what most tests of an agent begin with.

use std::time::Duration;

use super::agent_world::{AgentNode, Consumer, Process, Running, World};
use super::fixed_rate::FixedRateEngine;

/// A control plane, one node with one slot, and a job of which the consumer has heard
/// some pieces.
pub(crate) struct RunningJob {
    pub(crate) world: World,
    pub(crate) engine: FixedRateEngine,
    pub(crate) node: AgentNode,
    pub(crate) agent: Process,
    pub(crate) consumer: Consumer,
    pub(crate) running: Running,
}

impl RunningJob {
    /// Starts all of it: an engine that pauses before each token, asked for so many.
    pub(crate) async fn start(pause: Duration, tokens: u32) -> Self {
        Self::start_with(pause, tokens, &[]).await
    }

    /// The same with arguments for the agent.
    pub(crate) async fn start_with(pause: Duration, tokens: u32, arguments: &[&str]) -> Self {
        let world = World::start().await;
        let engine = FixedRateEngine::start(pause).await;
        let node = world.enrol("attic", &engine, 1).await;
        let agent = node.start_with(arguments).await;
        let consumer = world.consumer().await;
        let mut running = consumer.submit(tokens).await;
        running.hear(None, |heard| heard.deltas > 1).await;
        Self { world, engine, node, agent, consumer, running }
    }
}
