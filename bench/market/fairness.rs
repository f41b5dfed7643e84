//! How long a consumer with one job waits behind one with a hundred thousand.

use serde_json::{Value, json};

use super::database::Database;
use super::life::{Lane, uuid_in};
use super::world::{SeededMarket, Size, write_plan};
use crate::harness::market::Failure;
use crate::harness::report::{Floor, Report};
use crate::harness::statistics::percentile;

/// One model on one node, one job at a time.
const SIZE: Size = Size { consumers: 21, nodes: 1, models: 1, offers: 1, slots: 1 };
/// Jobs that the first consumer has waiting.
const FLOOD: i32 = 100_000;
/// Where counting ends: no fairness will be found any more.
const PATIENCE: u32 = 100;

/// Measures `fair_wait_jobs`: how many jobs end from a submit until that job starts,
/// the longest of all consumers that were tried.
///
/// # Errors
/// A call is refused.
pub(crate) async fn measure(database: &Database, report: &mut Report) -> Result<(), Failure> {
    let world = SeededMarket::make(database, "fair", SIZE).await?;
    let owner = database.superuser().await?;
    let rows =
        owner.query("select id from load.consumers where world = 'fair' order by n", &[]).await?;
    let consumers: Vec<uuid::Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let lane = Lane::open(database, &world).await?;
    let model = &world.models[0];

    // The slot is taken first, so that what is loaded stays in its line.
    let job = lane.submit(consumers[0], model).await?;
    let attempt = job.get("attempt").filter(|attempt| attempt.is_object());
    let attempt = attempt.ok_or("The first job of a free node was not assigned.")?;
    let node = uuid_in(&attempt["node"], "id")?;
    let mut begun = lane.start(node, uuid_in(attempt, "id")?).await?;
    owner.execute("select load.plan_flood('fair', 0, 0, $1)", &[&FLOOD]).await?;
    write_plan(database).await?;
    // From here on the slot's job is one of the hundred thousand.
    let ended = lane.complete(node, &begun).await?;
    begun = lane.start(node, uuid_in(&ended["next"], "attempt")?).await?;

    let mut waits = Vec::new();
    for consumer in &consumers[1..] {
        let job = lane.submit(*consumer, model).await?;
        let job = uuid_in(&job, "id")?;
        let mut wait = 0;
        while wait < PATIENCE {
            let next = lane.complete(node, &begun).await?;
            wait += 1;
            let next = next.get("next").filter(|next| next.is_object()).cloned();
            let next: Value = next.ok_or("A slot got no job although a hundred thousand wait.")?;
            begun = lane.start(node, uuid_in(&next, "attempt")?).await?;
            if uuid_in(&begun, "job")? == job {
                break;
            }
        }
        waits.push(f64::from(wait));
    }
    report.sample(json!({ "fair_wait_jobs": waits }));
    report.add_with_goal(
        "fair_wait_jobs",
        percentile(&waits, 1.0),
        "job times",
        Some(Floor::AtMost(2.0)),
        Floor::AtMost(1.0),
    );
    Ok(())
}
