//! What tests are made of; no test is in here. tests/chaos uses a part of it.

pub(crate) mod agent_gate;
pub(crate) mod agent_world;
pub(crate) mod cluster;
pub(crate) mod control_plane;
pub(crate) mod engine_image;
pub(crate) mod fixed_rate;
pub(crate) mod frozen_market;
pub(crate) mod lossy_proxy;
pub(crate) mod proxy_world;
pub(crate) mod realtime_server;
pub(crate) mod running_job;
pub(crate) mod sql_actors;
pub(crate) mod test_market;
