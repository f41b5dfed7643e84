//! `infernet owner enrol`.

use std::time::Duration;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::moment;
use crate::commands::prompt::parse_duration;
use crate::config::NodeRole;
use crate::control::rpc::Rpc;

/// The arguments of `infernet owner enrol`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Let a node of this role use the code
    #[arg(long, value_enum, default_value_t)]
    role: NodeRole,
    /// Let the code expire after this time, such as 15m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "15m")]
    expires: Duration,
}

/// Makes the code.
pub(super) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let seconds = u32::try_from(args.expires.as_secs()).unwrap_or(u32::MAX);
    let enrolment = rpc.make_enrolment(args.role.as_str(), Some(seconds)).await?;
    context.output.show(&enrolment, || enrolment.code.clone())?;
    context.output.talk(&format!(
        "Good for one {} until {}. On that machine run: infernet init --url {} --enrolment CODE",
        enrolment.role,
        moment(enrolment.expires_at),
        rpc.control().base_url()
    ));
    Ok(())
}
