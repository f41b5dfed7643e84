//! `infernet model ls`.

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::columns;
use crate::control::rpc::Rpc;

/// The arguments of `infernet model ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Lists what can be asked for; needs no key.
pub(crate) async fn run(_args: &Args, context: &Context) -> Result<(), CommandError> {
    let control = context.control(&context.config()?).await?;
    let overview = Rpc::anonymous(control).overview().await?;
    if context.output.is_json() {
        for model in &overview.models {
            context.output.object(model)?;
        }
        return Ok(());
    }
    if overview.models.is_empty() {
        context.output.talk("Nobody offers a model here yet.");
        return Ok(());
    }
    let heading = ["model", "online", "offers", "input $/M", "output $/M"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(overview.models.into_iter().map(|model| {
        let price = |price: Option<crate::money::Usd>| {
            price.map(|price| price.to_string()).unwrap_or_default()
        };
        vec![
            model.name,
            model.online.to_string(),
            model.offers.to_string(),
            price(model.lowest_input),
            price(model.lowest_output),
        ]
    }));
    context.output.line(&columns(&rows))?;
    Ok(())
}
