//! Integration tests, one binary: each module is a topic.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the value")]

#[cfg(feature = "stack")]
mod agent_commands;
#[cfg(feature = "stack")]
mod agent_containers;
#[cfg(feature = "stack")]
mod agent_daemon;
#[cfg(feature = "stack")]
mod agent_engine;
#[cfg(feature = "stack")]
mod agent_faults;
#[cfg(feature = "stack")]
#[allow(dead_code, reason = "tests/chaos uses the rest")]
mod agent_gate;
#[cfg(feature = "stack")]
mod agent_jobs;
#[cfg(feature = "stack")]
mod agent_llama;
#[cfg(feature = "stack")]
mod agent_service;
#[cfg(feature = "stack")]
mod agent_start;
#[cfg(feature = "stack")]
#[allow(dead_code, reason = "tests/chaos uses the rest")]
mod agent_world;

#[cfg(feature = "stack")]
mod cluster;
#[cfg(feature = "stack")]
mod control_plane;
#[cfg(feature = "stack")]
mod golden_rest;
#[cfg(feature = "stack")]
mod rest_server;
#[cfg(feature = "stack")]
mod stack_database;
#[cfg(feature = "stack")]
mod stack_functions;
#[cfg(feature = "stack")]
mod stack_gateway;
#[cfg(feature = "stack")]
mod stack_lifecycle;

#[cfg(feature = "stack")]
mod login;
#[cfg(feature = "stack")]
mod login_deno;
#[cfg(feature = "stack")]
mod login_vectors;

mod supabase_functions;

#[cfg(feature = "stack")]
mod golden_realtime;
#[cfg(feature = "stack")]
mod lossy_proxy;
#[cfg(feature = "stack")]
mod realtime_client;
#[cfg(feature = "stack")]
mod realtime_feed;
#[cfg(feature = "stack")]
mod realtime_limits;
#[cfg(feature = "stack")]
mod realtime_server;

#[cfg(feature = "stack")]
mod cli;
#[cfg(feature = "stack")]
mod cli_batch;
#[cfg(feature = "stack")]
mod cli_config;
#[cfg(feature = "stack")]
mod cli_ids;
#[cfg(feature = "stack")]
mod cli_model;
#[cfg(feature = "stack")]
mod cli_top;
#[cfg(feature = "stack")]
mod consumer;
mod engine_apart;
mod engine_docker_away;
mod engine_endpoint;
#[cfg(feature = "stack")]
mod engine_escapes;
mod engine_image;
mod engine_jobs;
mod engine_llama;
#[cfg(feature = "stack")]
mod engine_pull;
mod engine_sandbox;
#[cfg(feature = "stack")]
mod hardware;
#[cfg(feature = "stack")]
mod packaging;

#[cfg(all(feature = "proxy", feature = "stack"))]
mod proxy;
#[cfg(all(feature = "proxy", feature = "stack"))]
mod proxy_clients;
#[cfg(all(feature = "proxy", feature = "stack"))]
mod proxy_world;

#[cfg(feature = "stack")]
mod actors;
#[cfg(feature = "stack")]
mod job_stream;
#[cfg(feature = "stack")]
mod market;
#[cfg(feature = "stack")]
mod market_collisions;
#[cfg(feature = "stack")]
mod market_model;
#[cfg(feature = "stack")]
mod market_property;
#[cfg(feature = "stack")]
mod market_races;
#[cfg(feature = "stack")]
mod market_steps;
#[cfg(feature = "stack")]
mod outages;
#[cfg(feature = "stack")]
mod retention;
#[cfg(feature = "stack")]
mod secrets;
#[cfg(feature = "stack")]
mod still_market;
