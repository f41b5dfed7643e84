//! `infernet model rm`.

use serde_json::json;

use super::not_served;
use crate::command_error::CommandError;
use crate::commands::Context;
use crate::config::{ConfigDocument, ModelSource};

/// The arguments of `infernet model rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Takes it out of config.toml. A running agent stops offering it after: infernet restart")]
pub(crate) struct Args {
    /// The model, or the image of container jobs
    name: String,
    /// Delete the model's file as well
    #[arg(long)]
    file: bool,
}

/// Removes the model.
pub(crate) fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let config = context.config()?;
    let mut file = ConfigDocument::open(&context.directories)?;
    if !file.remove_served(&args.name)? {
        return Err(not_served(&args.name, &config));
    }
    file.save()?;
    let model = config.models().iter().find(|model| model.name == args.name);
    let path = model.and_then(|model| match &model.source {
        ModelSource::File { path, .. } => Some(path),
        ModelSource::Endpoint { .. } => None,
    });
    let mut said = format!("Removed {}.", args.name);
    match path {
        Some(path) if args.file && path.is_file() => {
            std::fs::remove_file(path).map_err(|error| {
                CommandError::user(format!("{} cannot be deleted ({error}).", path.display()))
            })?;
            said = format!("{said} Deleted {}.", path.display());
        }
        Some(path) if path.exists() => said = format!("{said} {} is kept.", path.display()),
        _ => {}
    }
    super::changed(context, &json!({"removed": args.name, "file": path}), &said)
}
