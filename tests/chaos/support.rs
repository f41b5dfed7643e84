//! What the rows share with the integration tests.

#![allow(dead_code, reason = "the integration tests use the rest")]

#[path = "../it/support/agent_gate.rs"]
pub(crate) mod agent_gate;
#[path = "../it/support/agent_world.rs"]
pub(crate) mod agent_world;
#[path = "../it/support/control_plane.rs"]
pub(crate) mod control_plane;
#[path = "../it/support/fixed_rate.rs"]
pub(crate) mod fixed_rate;
