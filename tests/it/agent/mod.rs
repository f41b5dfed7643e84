//! The agent as a daemon: its jobs, its faults, its owner's commands, the machine it
//! runs on and what is handed out beside it.

pub(crate) mod commands;
mod containers;
pub(crate) mod daemon;
mod faults;
mod hardware;
mod jobs;
mod llama;
mod packaging;
mod secrets;
mod service;
mod start;
