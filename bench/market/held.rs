//! Lives a second while somebody holds a snapshot, so that no dead row can be
//! removed: what a forgotten transaction or a long report does to a queue.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::database::Database;
use super::lives::{MEASURED, live_for, open_warm_lanes};
use super::world::SeededMarket;
use crate::harness::market::Failure;
use crate::harness::report::{Floor, Report};

/// How long the snapshot is held.
const HELD: Duration = Duration::from_secs(60);
/// The end of it that is looked at alone.
const END: Duration = Duration::from_secs(10);

/// Measures `held_snapshot_ratio`.
///
/// # Errors
/// A life goes wrong, or the database refuses.
pub(crate) async fn measure(
    database: &Database,
    world: &Arc<SeededMarket>,
    report: &mut Report,
) -> Result<(), Failure> {
    let models = Arc::new(world.models.clone());
    let lanes = open_warm_lanes(database, world, &models).await?;
    let (lanes, before) = live_for(lanes, &models, MEASURED).await?;
    let holder = database.superuser().await?;
    holder
        .batch_execute(
            "begin isolation level repeatable read read only; select count(*) from public.models",
        )
        .await?;
    let (_, held) = live_for(lanes, &models, HELD).await?;
    holder.batch_execute("rollback").await?;
    let end = held.rate_between(HELD - END, HELD);
    report.sample(json!({
        "before_rate": before.rate(), "before_calls": before.calls(),
        "held_rate": held.rate(), "held_calls": held.calls(), "held_end_rate": end,
    }));
    report.add_with_goal(
        "held_snapshot_ratio",
        held.rate() / before.rate(),
        "ratio",
        Some(Floor::AtLeast(0.8)),
        Floor::AtLeast(0.9),
    );
    report.add("held_snapshot_end_ratio", end / before.rate(), "ratio");
    Ok(())
}
