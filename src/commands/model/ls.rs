//! `infernet model ls`.

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::table::{cell, maybe};
use crate::control::rpc::Rpc;

/// The arguments of `infernet model ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Lists what can be asked for; needs no key.
pub(crate) async fn run(_args: &Args, context: &Context) -> Result<(), CommandError> {
    let control = context.control(&context.config()?).await?;
    let overview = Rpc::anonymous(control).overview().await?;
    let heading = ["model", "online", "offers", "input $/M", "output $/M"];
    let nothing = "Nobody offers a model here yet.";
    context.output.list(&overview.models, &heading, nothing, |model| {
        vec![
            cell(&model.name),
            cell(model.online),
            cell(model.offers),
            maybe(model.lowest_input),
            maybe(model.lowest_output),
        ]
    })?;
    Ok(())
}
