//! The control plane as its clients see it: signing in, Realtime, reading a job.

mod job_stream;
mod login;
mod login_deno;
mod login_vectors;
mod realtime_client;
mod supabase_functions;
