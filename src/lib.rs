//! Infernet turns any machine with a GPU, or only a CPU, into a paid inference
//! node, with a Supabase project as its whole control plane.
//!
//! The brain is SQL (`supabase/migrations`), this library is hands. In reading
//! order: `id` and `money` (the words of the wire), `identity` (keys, login
//! events, receipts), `config`, `control` (the control plane as a client sees
//! it), `engine` (containers that serve models), `hardware`, `agent` (the
//! daemon), `stack` (the embedded control plane behind `infernet up`),
//! `commands` and `command_error` (the command line).

pub mod command_error;
pub mod commands;
pub mod config;
pub mod control;
pub mod id;
pub mod identity;
pub mod money;
#[cfg(feature = "stack")]
pub mod stack;
