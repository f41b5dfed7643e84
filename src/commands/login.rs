//! `infernet login`: signs in the keys of this machine.

use std::path::PathBuf;

use super::Context;
use super::init::MachineKeys;
use super::join;
use crate::command_error::CommandError;
use crate::identity::{KeyFileError, Keys};

/// The arguments of `infernet login`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Signing in proves that the control plane knows the keys of this machine; every command signs in
by itself, and no token is kept. A node that is not enrolled yet is enrolled: with the code, or
by the owner's key if it is on this machine.")]
pub(crate) struct Args {
    /// Join the owner who made this code (infernet owner enrol)
    #[arg(long, value_name = "CODE", env = "INFERNET_ENROLMENT", hide_env_values = true)]
    enrolment: Option<String>,
    /// Sign in the holder of this key alone
    #[arg(long, value_name = "FILE", conflicts_with = "enrolment")]
    key_file: Option<PathBuf>,
}

/// Signs in.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let node = match &args.key_file {
        None => optional(Keys::load(&context.directories.node_key()))?,
        Some(_) => None,
    };
    let Some(node) = node else {
        let user = context.user(args.key_file.as_ref()).await?.whoami().await?;
        if context.output.is_json() {
            context.output.object(&user)?;
        } else {
            context
                .output
                .line(&format!("User: {} ({}, {})", user.id, user.public_key, user.status))?;
        }
        return Ok(());
    };
    let owner = optional(Keys::load(&context.directories.owner_key()))?;
    let config = context.config()?;
    let control = context.control(&config).await?;
    let keys = MachineKeys { owner, node };
    let code = args.enrolment.as_deref().filter(|code| !code.is_empty());
    let joined = Box::pin(join::join(&control, &config, &keys, code, context)).await?;
    if context.output.is_json() {
        context.output.object(&joined.object())?;
        Ok(())
    } else {
        joined.tell(context)
    }
}

/// Takes a key that may be missing; one that is there must be sound.
fn optional(loaded: Result<Keys, KeyFileError>) -> Result<Option<Keys>, CommandError> {
    match loaded {
        Ok(keys) => Ok(Some(keys)),
        Err(KeyFileError::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
