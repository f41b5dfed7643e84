//! `infernet model price`.

use serde_json::json;

use super::{AFTER_CHANGE, not_served};
use crate::command_error::{CommandError, Kind};
use crate::commands::Context;
use crate::commands::table::Table;
use crate::config::ConfigDocument;
use crate::money::Usd;

/// The arguments of `infernet model price`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a price, shows what is asked. Changes are written to config.toml. A running agent asks them
after: infernet restart

Examples:
  infernet model price llama3.2:3b
  infernet model price llama3.2:3b --input 0.05 --output 0.10")]
pub(crate) struct Args {
    /// The model, or the image of container jobs
    name: String,
    /// Ask this many USD per million tokens of input
    #[arg(long, value_name = "USD")]
    input: Option<Usd>,
    /// Ask this many USD per million tokens of output
    #[arg(long, value_name = "USD")]
    output: Option<Usd>,
    /// Ask this many USD per second of a container
    #[arg(long, value_name = "USD", conflicts_with_all = ["input", "output"])]
    second: Option<Usd>,
}

/// Shows or changes the prices.
pub(crate) fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let mut config = context.config()?;
    let prices = [
        ("model", "price_input", args.input),
        ("model", "price_output", args.output),
        ("container", "price_second", args.second),
    ];
    let changes = prices.iter().any(|(_kind, _key, price)| price.is_some());
    if changes {
        let served = |kind: &str| match kind {
            "model" => config.models().iter().any(|model| model.name == args.name),
            _ => config.containers().iter().any(|container| container.image.name == args.name),
        };
        let mut file = ConfigDocument::open(&context.directories)?;
        for (kind, key, price) in prices {
            let Some(price) = price else { continue };
            if !served(kind) {
                return Err(if served("model") || served("container") {
                    CommandError::new(Kind::Usage, format!("{} has no such price.", args.name))
                        .hint("A model has --input and --output, an image of container jobs --second.")
                } else {
                    not_served(&args.name, &config)
                });
            }
            let price = price.as_decimal().normalize().to_string();
            file.set(&format!("{kind}.{}.{key}", args.name), &price)?;
        }
        file.save()?;
        config = context.config()?;
    }
    let model = config.models().iter().find(|model| model.name == args.name);
    let container = config.containers().iter().find(|other| other.image.name == args.name);
    let mut sheet = Table::sheet();
    let object = match (model, container) {
        (Some(model), _) => {
            sheet.fact("input $/M", model.price_input);
            sheet.fact("output $/M", model.price_output);
            json!({"name": model.name, "price_input": model.price_input, "price_output": model.price_output})
        }
        (None, Some(container)) => {
            sheet.fact("second $", container.price_second);
            json!({"name": container.image.name, "price_second": container.price_second})
        }
        (None, None) => return Err(not_served(&args.name, &config)),
    };
    context.output.show(&object, || sheet.text(&context.output))?;
    if changes {
        context.output.talk(AFTER_CHANGE);
    }
    Ok(())
}
