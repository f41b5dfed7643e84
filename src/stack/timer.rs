//! The clock of an embedded control plane: calls the tick of the schema every
//! second and keeps the partitions of `realtime.messages`.
//!
//! On Supabase pg_cron does the first and Realtime the second. What a tick does
//! is decided in SQL; a tick that fails or is late is made good by the next one,
//! so failures are only logged, the first of a row as a warning.

use std::time::Duration;

use deadpool_postgres::Pool;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::commits::Commits;

/// How often the schema's tick is called.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the partitions are looked after.
const PARTITION_INTERVAL: Duration = Duration::from_secs(3600);
/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Why a call of the clock did not work.
#[derive(Debug, thiserror::Error)]
enum TimerError {
    /// No connection could be had.
    #[error("No connection to the database")]
    Pool(#[from] deadpool_postgres::PoolError),
    /// The database refused.
    #[error("The database refused")]
    Database(#[from] tokio_postgres::Error),
    /// The call took too long.
    #[error("The call took longer than {} s", CALL_LIMIT.as_secs())]
    Slow,
}

/// Calls `public.tick()` every second until `shutdown`, and tells of each, as it
/// may have sent messages.
pub(super) async fn run_tick(pool: Pool, commits: Commits, shutdown: CancellationToken) {
    run_every(TICK_INTERVAL, "select public.tick()", &pool, &commits, &shutdown).await;
}

/// Calls `realtime.keep_partitions()` every hour until `shutdown`.
pub(super) async fn run_partitions(pool: Pool, shutdown: CancellationToken) {
    let nobody = Commits::default();
    let statement = "select realtime.keep_partitions()";
    run_every(PARTITION_INTERVAL, statement, &pool, &nobody, &shutdown).await;
}

/// Runs a statement at an interval.
async fn run_every(
    interval: Duration,
    statement: &'static str,
    pool: &Pool,
    commits: &Commits,
    shutdown: &CancellationToken,
) {
    let mut clock = tokio::time::interval(interval);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures: u64 = 0;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = clock.tick() => {}
        }
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = tokio::time::timeout(CALL_LIMIT, call(pool, statement)) => outcome,
        };
        match outcome.unwrap_or(Err(TimerError::Slow)) {
            Ok(()) => {
                commits.tell();
                if failures > 0 {
                    tracing::info!(statement, failures, "the clock works again");
                }
                failures = 0;
            }
            Err(error) => {
                failures += 1;
                let error: &dyn std::error::Error = &error;
                if failures == 1 {
                    tracing::warn!(error, statement, "a call of the clock failed");
                } else {
                    tracing::debug!(error, statement, failures, "a call of the clock failed again");
                }
            }
        }
    }
}

/// Runs a statement as `service_role`, in one transaction.
async fn call(pool: &Pool, statement: &str) -> Result<(), TimerError> {
    let mut connection = pool.get().await?;
    let transaction = connection.transaction().await?;
    transaction
        .batch_execute(&format!(
            "set local role service_role; set local statement_timeout = '{}s'; {statement}",
            CALL_LIMIT.as_secs()
        ))
        .await?;
    transaction.commit().await?;
    Ok(())
}
