//! `infernet operator setting`.

use serde_json::Value;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::control::rpc::Rpc;

/// The arguments of `infernet operator setting`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The setting
    key: String,
    /// Its new value as JSON; what is not JSON is taken as text
    value: String,
}

/// Changes the setting.
pub(crate) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let value = serde_json::from_str(&args.value)
        .unwrap_or_else(|_not_json| Value::String(args.value.clone()));
    let answer = rpc.set_setting(&args.key, &value).await?;
    context.output.show(&answer, || format!("{} is {value} now.", args.key))?;
    Ok(())
}
