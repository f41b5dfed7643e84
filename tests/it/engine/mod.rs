//! Engines and their sandbox. Most of these tests start containers; none needs a
//! control plane.

mod apart;
mod breakout;
mod docker_away;
mod endpoint;
mod escapes;
mod jobs;
mod llama;
mod pull;
pub(crate) mod sandbox;
