//! The embedded control plane behind `infernet up`: the same URLs, headers,
//! JSON, error codes and frames as the real Supabase, as a stated subset.

pub mod api_key;
pub mod auth;
pub mod data_dir;
pub mod jwt;
pub mod migrate;
pub mod postgres;
pub mod secrets;
