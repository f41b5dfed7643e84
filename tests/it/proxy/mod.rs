//! `infernet proxy`.

mod clients;
mod server;
