//! `infernet config`: what this machine was told, key by key.

use clap::Subcommand;
use serde_json::json;

use super::Context;
use super::table::{Tone, cell};
use crate::command_error::CommandError;
use crate::config::{ConfigDocument, Origin, Setting};

/// The arguments of `infernet config`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys are written with points: log, node.region, model.llama3.2:3b.price_output. A running agent reads
the file when it starts: infernet restart")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what holds, and whether a flag, the file or a default says so
    Show,
    /// Print the value of a key
    Get(OneKey),
    /// Change a key in the file; its comments and other lines stay
    Set(SetArgs),
    /// Take a key out of the file, so that its default holds
    Unset(OneKey),
    /// Print where the file is
    Path,
}

/// The key that a verb is about.
#[derive(Debug, clap::Args)]
struct OneKey {
    /// The key, such as node.region
    key: String,
}

/// The arguments of `infernet config set`.
#[derive(Debug, clap::Args)]
struct SetArgs {
    /// The key, such as node.region
    key: String,
    /// Its value: a text, a number, true or false, or a list such as '["ssd"]'
    #[arg(allow_hyphen_values = true)]
    value: String,
}

/// Runs the verb.
pub(crate) fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let output = context.output;
    match args.command {
        Command::Path => {
            let path = context.directories.config_file().display().to_string();
            output.show(&json!({"path": path}), || path.clone())?;
            Ok(())
        }
        Command::Show => {
            let settings = settings(context)?;
            output.list(&settings, &["key", "value", "from"], "", |setting| {
                let origin = cell(setting.origin);
                let dim = setting.origin == Origin::Default;
                vec![
                    cell(&setting.key),
                    cell(&setting.value),
                    if dim { origin.tone(Tone::Dim) } else { origin },
                ]
            })?;
            Ok(())
        }
        Command::Get(OneKey { key }) => {
            let setting = settings(context)?.into_iter().find(|setting| setting.key == key);
            let setting = setting.ok_or_else(|| {
                CommandError::user(format!("{key} is not set, and has no default."))
                    .word("not_set")
                    .hint("See what is: infernet config show")
            })?;
            output.show(&setting, || setting.value.clone())?;
            Ok(())
        }
        Command::Set(SetArgs { key, value }) => {
            let mut document = ConfigDocument::open(&context.directories)?;
            document.set(&key, &value)?;
            document.save()?;
            let value = document.get(&key).unwrap_or_default();
            output.show(
                &Setting { key: key.clone(), value: value.clone(), origin: Origin::File },
                || format!("{key} is {value}"),
            )?;
            Ok(())
        }
        Command::Unset(OneKey { key }) => {
            let mut document = ConfigDocument::open(&context.directories)?;
            let removed = document.unset(&key)?;
            if removed {
                document.save()?;
            }
            output.show(&json!({"key": key, "removed": removed}), || match removed {
                true => format!("{key} is no longer in the file."),
                false => format!("{key} was not in the file."),
            })?;
            Ok(())
        }
    }
}

/// Lists what holds.
fn settings(context: &Context) -> Result<Vec<Setting>, CommandError> {
    let document = ConfigDocument::open(&context.directories)?;
    Ok(document.settings(&context.config()?, &context.overrides))
}
