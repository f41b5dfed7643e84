//! The engine of the agent's end-to-end tests, which the benchmarks use as well.

#[path = "../engine/fixed_rate.rs"]
mod fixed_rate;

pub(crate) use self::fixed_rate::*;
