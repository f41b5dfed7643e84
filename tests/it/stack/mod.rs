//! The embedded control plane: its database, gateway, REST and Realtime. All of it but
//! the gateway's own parts runs on each version of PostgreSQL.

mod database;
mod functions;
mod gateway;
mod lifecycle;
mod realtime_feed;
mod realtime_golden;
mod realtime_limits;
mod rest_golden;
mod rest_server;
