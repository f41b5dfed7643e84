//! `infernet owner enrol`.

use std::path::PathBuf;
use std::time::Duration;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::moment;
use crate::commands::prompt::parse_duration;
use crate::config::NodeRole;

/// The arguments of `infernet owner enrol`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Let a node of this role use the code
    #[arg(long, value_enum, default_value_t)]
    role: NodeRole,
    /// Let the code expire after this time, such as 15m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "15m")]
    expires: Duration,
    /// Make the code with this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Makes the code.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let seconds = u32::try_from(args.expires.as_secs()).unwrap_or(u32::MAX);
    let enrolment = rpc.make_enrolment(args.role.as_str(), Some(seconds)).await?;
    if context.output.is_json() {
        context.output.object(&enrolment)?;
        return Ok(());
    }
    context.output.line(&enrolment.code)?;
    context.output.talk(&format!(
        "Good for one {} until {}. On that machine run: infernet init --url {} --enrolment CODE",
        enrolment.role,
        moment(enrolment.expires_at),
        rpc.control().base_url()
    ));
    Ok(())
}
