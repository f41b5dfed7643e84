//! The control plane as a client sees it.

pub mod realtime;
