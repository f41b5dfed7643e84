//! `infernet model pull`.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;

use super::not_served;
use crate::agent;
use crate::command_error::CommandError;
use crate::commands::Context;
use crate::config::{Config, ModelSource};
use crate::engine::Progress;

/// How often it is said how far a fetch is.
const TALK_INTERVAL: Duration = Duration::from_secs(2);

/// The arguments of `infernet model pull`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Fetches the image of a model's engine, and its file from the url in config.toml, and checks both. A
fetch that broke off is gone on with.")]
pub(crate) struct Args {
    /// The model, or the image of container jobs; all of them when absent
    name: Option<String>,
}

/// Fetches what is missing.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let config = context.config()?;
    let catalogue = agent::catalogue(&context.directories)?;
    // No container is made, so that none needs a label.
    let engines = agent::engines(&config, catalogue, "pull", &context.directories)?;
    let names: Vec<String> = match &args.name {
        Some(name) => vec![name.clone()],
        // Servers of their own are somebody else's affair.
        None => config
            .offers()
            .iter()
            .map(|offer| offer.name().to_owned())
            .filter(|name| !is_endpoint(&config, name))
            .collect(),
    };
    for name in names {
        if !config.offers().iter().any(|offer| offer.name() == name) {
            return Err(not_served(&name, &config));
        }
        let told = Mutex::new(Instant::now());
        let tell = |what: &str, progress: Progress| {
            let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if told.elapsed() >= TALK_INTERVAL {
                *told = Instant::now();
                context.output.talk(&format!("{what}: {}", amount(progress)));
            }
        };
        let pulled = engines.pull(&name, &tell).await?;
        if context.output.is_json() {
            context.output.object(
                &json!({"name": name, "digest": pulled.digest, "fetched": pulled.fetched}),
            )?;
        } else {
            let how = if pulled.fetched { "was fetched" } else { "was there already" };
            context.output.line(&format!("{name} {how}."))?;
        }
    }
    Ok(())
}

fn is_endpoint(config: &Config, name: &str) -> bool {
    let mut models = config.models().iter();
    models.any(|model| model.name == name && matches!(model.source, ModelSource::Endpoint { .. }))
}

/// Says how far a fetch is, in MB and percent.
fn amount(progress: Progress) -> String {
    let megabytes = progress.done / 1_000_000;
    match progress.total {
        Some(total) if total > 0 => {
            let percent = progress.done.saturating_mul(100) / total;
            format!("{megabytes} of {} MB, {percent} %", total / 1_000_000)
        }
        _ => format!("{megabytes} MB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_megabytes() {
        let progress = |done, total| amount(Progress { done, total });
        assert_eq!(progress(5_000_000, Some(20_000_000)), "5 of 20 MB, 25 %");
        assert_eq!(progress(5_999_999, None), "5 MB");
        assert_eq!(progress(0, Some(0)), "0 MB");
    }
}
