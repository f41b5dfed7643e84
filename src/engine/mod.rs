//! Engines: the servers that run models, in containers that can do nothing else.
//!
//! In reading order: [`catalogue`] says which engines exist and how each is started,
//! [`sandbox`] turns an entry into a container without network, rights or room to
//! grow, [`docker`] talks to Docker or Podman, [`pool`] hands out engines and
//! `supervisor` starts them on demand, keeps them warm and restarts them, `room` divides
//! the machine's memory among them, `slots` keeps the prompts of consumers apart,
//! [`request`] says what they are asked, [`openai`] streams their answers over the
//! connections of [`transport`], through a [`relay`] where an engine knows ports only. [`container_job`]
//! runs one fresh container a job and `output_files` takes out what it left.
//! [`model_file`] knows the digests of models, [`pull`] and [`fetch`] get what is not here,
//! [`found`] finds servers that are here already, [`escapes`] the ways out of containers that
//! this machine has not closed, [`error`] names what goes wrong.
//!
//! The agent uses [`EnginePool`] alone. Nothing here knows of jobs, prices or control
//! planes: a request comes in as JSON, an answer goes out as text.
//!
//! Invariants: every container is made by [`sandbox::Sandbox::container`]; every call
//! to Docker or to an engine has a timeout; dropping a stream closes its connection,
//! by which the engine stops computing.

pub mod catalogue;
pub mod container_job;
pub mod docker;
pub mod error;
pub mod escapes;
pub mod fetch;
pub mod found;
pub mod model_file;
pub mod openai;
mod output_files;
pub mod pool;
pub mod pull;
pub mod relay;
pub mod request;
mod room;
pub mod sandbox;
mod slots;
mod supervised;
mod supervisor;
mod tool_calls;
pub mod transport;

pub use catalogue::{Catalogue, EngineEntry, EngineKind, ServedModel};
pub use container_job::{ContainerRequest, JobImage, JobInput, JobOutput};
pub use error::EngineError;
pub use fetch::Progress;
pub use openai::{EngineEvent, EngineStream, Finish, Usage};
pub use pool::{EngineConfig, EnginePool, EngineState, Work};
pub use pull::Pulled;
pub use request::{EngineRequest, RequestKind};
pub use room::Budget;
pub use supervised::Engine;
pub use tool_calls::TOOL_CALLS_MARK;
