//! `infernet job ls`.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::command_error::CommandError;
use crate::commands::Context;
use crate::commands::output::{columns, moment};
use crate::control::rpc::JobState;

/// The arguments of `infernet job ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// List jobs in this state only
    #[arg(long, value_enum)]
    state: Option<State>,
    /// List the jobs of this key instead of owner.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
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
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    let rpc = context.user(args.key_file.as_ref()).await?;
    let jobs = rpc.jobs(args.limit, args.state.map(JobState::from)).await?;
    if context.output.is_json() {
        for job in &jobs {
            context.output.object(job)?;
        }
        return Ok(());
    }
    if jobs.is_empty() {
        context.output.talk("There are no jobs. Ask something: infernet run MODEL \"prompt\"");
        return Ok(());
    }
    let heading = ["job", "state", "model", "tokens", "cost", "submitted", "title"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(jobs.into_iter().map(|job| {
        vec![
            job.id.to_string(),
            job.state.to_string(),
            job.model_name.unwrap_or_default(),
            job.output_tokens.map(|tokens| tokens.to_string()).unwrap_or_default(),
            job.cost.map(|cost| cost.to_string()).unwrap_or_default(),
            moment(job.created_at),
            job.title.unwrap_or_default(),
        ]
    }));
    context.output.line(&columns(&rows))?;
    Ok(())
}
