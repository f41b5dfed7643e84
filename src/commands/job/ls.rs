//! `infernet job ls`.

use clap::ValueEnum;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::moment;
use crate::commands::table::{cell, maybe, state};
use crate::control::rpc::{JobState, Rpc};

/// The arguments of `infernet job ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// List jobs in this state only
    #[arg(long, value_enum)]
    state: Option<State>,
}

/// A state that can be asked for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    Unpaid,
    Queued,
    Assigned,
    Running,
    Completed,
    Failed,
    Cancelling,
    Cancelled,
    Expired,
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Unpaid => Self::Unpaid,
            State::Queued => Self::Queued,
            State::Assigned => Self::Assigned,
            State::Running => Self::Running,
            State::Completed => Self::Completed,
            State::Failed => Self::Failed,
            State::Cancelling => Self::Cancelling,
            State::Cancelled => Self::Cancelled,
            State::Expired => Self::Expired,
        }
    }
}

/// Lists the jobs.
pub(super) async fn run(args: &Args, rpc: &Rpc, context: &Context) -> Result<(), CommandError> {
    let jobs = rpc.jobs(args.limit, args.state.map(JobState::from)).await?;
    let heading = ["job", "state", "model", "tokens", "cost", "submitted", "title"];
    let nothing = "There are no jobs. Ask something: infernet run MODEL \"prompt\"";
    context.output.list(&jobs, &heading, nothing, |job| {
        vec![
            cell(job.id),
            state(job.state),
            maybe(job.model_name.as_ref()),
            maybe(job.output_tokens),
            maybe(job.cost),
            cell(moment(job.created_at)),
            maybe(job.title.as_ref()),
        ]
    })?;
    Ok(())
}
