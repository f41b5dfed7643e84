//! A job that is running: what most tests of an agent begin with.

use std::time::Duration;

use super::agent_world::{AgentNode, Consumer, Heard, Process, Running, World};
use super::fixed_rate::FixedRateEngine;

/// A control plane, one node with one slot, and a job of which the consumer has heard
/// a part.
pub(crate) struct RunningJob {
    pub(crate) world: World,
    pub(crate) engine: FixedRateEngine,
    pub(crate) node: AgentNode,
    pub(crate) agent: Process,
    pub(crate) consumer: Consumer,
    pub(crate) running: Running,
}

impl RunningJob {
    /// Starts all of it: an engine that pauses before each token is asked for so many,
    /// and the consumer listens until it has heard what is wanted.
    pub(crate) async fn start(
        pause: Duration,
        tokens: u32,
        wanted: impl Fn(&Heard) -> bool,
    ) -> Self {
        let world = World::start().await;
        let engine = FixedRateEngine::start(pause).await;
        let node = world.enrol("attic", &engine, 1).await;
        let agent = node.start().await;
        let consumer = world.consumer().await;
        let mut running = consumer.submit(tokens).await;
        running.hear(None, wanted).await;
        Self { world, engine, node, agent, consumer, running }
    }
}
