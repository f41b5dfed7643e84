//! `infernet completion`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Context};
use crate::command_error::CommandError;

/// The arguments of `infernet completion`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell that reads the script
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "infernet", &mut script);
    context.output.data(&String::from_utf8_lossy(&script))?;
    Ok(())
}
