//! Infernet turns any machine with a GPU, or only a CPU, into a paid inference
//! node, with a Supabase project as its whole control plane.
//!
//! The brain is SQL (`supabase/migrations`), this library is hands. In reading
//! order: `id` and `money` (the words of the wire), `identity` (keys, login
//! events, receipts), `config`, `control` (the control plane as a client sees
//! it), `engine` (containers that serve models), `hardware`, `agent` (the
//! daemon), `proxy` (OpenAI's API in front of the market), `stack` (the embedded
//! control plane behind `infernet up`), `http_server` (what both listen with),
//! `commands` and `command_error` (the command line).
//!
//! What the command line does, a program can do:
//!
//! ```no_run
//! use infernet::control::rpc::Rpc;
//! use infernet::control::session::{LoginKind, Session};
//! use infernet::control::{ControlPlane, PlainHttp, install_tls_provider};
//! use infernet::identity::Keys;
//!
//! # async fn ask() -> Result<(), Box<dyn std::error::Error>> {
//! install_tls_provider();
//! let url = "http://127.0.0.1:54321";
//! let (control, _info) = ControlPlane::discover(url, PlainHttp::PrivateOnly).await?;
//! let session = Session::new(control, Keys::generate(), LoginKind::User);
//! println!("{} to spend", Rpc::new(session).balance().await?.available);
//! # Ok(())
//! # }
//! ```

pub mod agent;
pub mod command_error;
pub mod commands;
pub mod config;
pub mod control;
pub mod engine;
pub mod hardware;
#[cfg(any(feature = "proxy", feature = "stack"))]
mod http_server;
pub mod id;
pub mod identity;
pub mod money;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "stack")]
pub mod stack;
