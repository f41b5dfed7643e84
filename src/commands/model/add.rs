//! `infernet model add`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::ArgGroup;
use serde_json::json;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::init::{digest, existing, model_name};
use crate::config::{ConfigDocument, RawModel};
use crate::money::Usd;

/// The arguments of `infernet model add`.
#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("weights").args(["path", "endpoint"]).required(true),
    after_help = "\
Writes to config.toml. A running agent offers it after: infernet restart

Examples:
  infernet model add smollm2:135m --path /models/smollm2.gguf --price-input 0.05 --price-output 0.1
  infernet model add llama3.2:3b --endpoint http://127.0.0.1:11434/v1 --engine ollama \\
    --share-prefix-cache --price-input 0.05 --price-output 0.1"
)]
pub(crate) struct Args {
    /// Its name on the market
    #[arg(value_parser = model_name)]
    name: String,
    /// Serve this file, or folder
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// Fetch the file from here when it is pulled; it need not be there yet
    #[arg(long, value_name = "URL", requires = "path")]
    url: Option<url::Url>,
    /// Serve the file only while it has this sha256 [default: what it has now]
    #[arg(long, value_name = "HEX", requires = "path")]
    sha256: Option<String>,
    /// Serve what this OpenAI-compatible server on this host serves
    #[arg(long, value_name = "URL")]
    endpoint: Option<url::Url>,
    /// The name that the server knows it by, when it is another
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    endpoint_model: Option<String>,
    /// Serve it with this entry of the engine catalogue
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Serve it although its engine cannot keep the prompts of consumers apart
    #[arg(long)]
    share_prefix_cache: bool,
    /// Ask this many USD per million tokens of input
    #[arg(long, value_name = "USD")]
    price_input: Usd,
    /// Ask this many USD per million tokens of output
    #[arg(long, value_name = "USD")]
    price_output: Usd,
    /// Serve this many jobs at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: Option<u32>,
    /// Let this many tokens fit the context
    #[arg(long, value_name = "N")]
    context_length: Option<NonZeroU32>,
}

/// Adds the model.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let path = match (&args.path, &args.url) {
        // What is to be fetched need not be there.
        (Some(path), Some(_)) if !path.exists() => Some(std::path::absolute(path)?),
        (Some(path), _) => Some(existing(path)?),
        (None, _) => None,
    };
    let sha256 = match (&args.sha256, &path) {
        (Some(sha256), _) => Some(sha256.clone()),
        (None, Some(path)) if path.is_file() => Some(digest(path).await?),
        (None, _) => None,
    };
    let engine = if path.is_some() { "llama.cpp" } else { "external" };
    let mut file = ConfigDocument::open(&context.directories)?;
    file.add_model(&RawModel {
        name: toml::Spanned::new(0..0, args.name.clone()),
        engine: args.engine.clone().unwrap_or_else(|| engine.to_owned()),
        path,
        sha256,
        url: args.url.clone(),
        endpoint: args.endpoint.clone(),
        endpoint_model: args.endpoint_model.clone(),
        threads: None,
        memory_mb: None,
        gpus: Vec::new(),
        gpu_memory_mb: None,
        share_prefix_cache: args.share_prefix_cache.then_some(true),
        slots: args.slots,
        context_length: args.context_length,
        price_input: args.price_input,
        price_output: args.price_output,
    })?;
    file.save()?;
    super::changed(context, &json!({"added": args.name}), &format!("Added {}.", args.name))
}
