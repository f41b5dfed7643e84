//! The command line.

mod batch;
mod config;
mod consumer;
mod ids;
mod model;
mod standalone;
mod top;
