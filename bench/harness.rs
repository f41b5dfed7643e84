//! What the benchmarks share: the engine with a fixed rate, the market that they
//! measure (a control plane and a node as processes of their own), and the report.
//!
//! Each benchmark is an example of the package, so that it is built with the very
//! profile of the released binary and finds that binary beside itself. All clocks
//! that are compared are of one process, or of one machine where a row's time of
//! the database is used.

#![allow(dead_code, reason = "each benchmark uses its own part of the harness")]

pub(crate) mod direct;
#[path = "../tests/it/support/fixed_rate.rs"]
pub(crate) mod engine;
pub(crate) mod market;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod statistics;
