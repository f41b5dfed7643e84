//! `infernet model`: what can be asked, and what this machine serves.

mod add;
mod ls;
mod price;
mod ps;
mod pull;
mod rm;

use clap::Subcommand;
use serde_json::Value;

use super::Context;
use crate::command_error::{CommandError, Kind};
use crate::config::Config;

/// What is said after the configuration was changed.
const AFTER_CHANGE: &str = "A running agent takes it up after: infernet restart";

/// The arguments of `infernet model`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the models that can be asked, and their lowest prices
    Ls(ls::Args),
    /// Fetch the images and files of models that this machine serves
    Pull(pull::Args),
    /// Serve one more model on this machine
    Add(Box<add::Args>),
    /// Serve a model no longer
    Rm(rm::Args),
    /// List the engines and jobs that run on this machine
    Ps(ps::Args),
    /// Show or change what this machine asks for a model
    Price(price::Args),
}

/// Runs the verb.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    match args.command {
        Command::Ls(args) => ls::run(&args, context).await,
        Command::Pull(args) => Box::pin(pull::run(&args, context)).await,
        Command::Add(args) => add::run(&args, context).await,
        Command::Rm(args) => rm::run(&args, context),
        Command::Ps(args) => ps::run(&args, context).await,
        Command::Price(args) => price::run(&args, context),
    }
}

/// Says that the configuration has changed, and what comes next.
fn changed(context: &Context, object: &Value, said: &str) -> Result<(), CommandError> {
    if context.output.is_json() {
        context.output.object(object)?;
    } else {
        context.output.line(said)?;
        context.output.talk(AFTER_CHANGE);
    }
    Ok(())
}

/// Refuses a name that the configuration does not have.
fn not_served(name: &str, config: &Config) -> CommandError {
    let error = CommandError::new(Kind::User, format!("This machine does not serve {name}."))
        .word("unknown_model");
    let served: Vec<String> = config.offers().iter().map(|offer| offer.name().to_owned()).collect();
    if served.is_empty() {
        error.hint("Add a model with: infernet model add")
    } else {
        error.hint(format!("It serves: {}", served.join(", ")))
    }
}
