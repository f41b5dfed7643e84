//! Lives in batches: a hundred jobs are submitted, fetched, started and completed with
//! one call each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use uuid::Uuid;

use super::database::Database;
use super::life::Lane;
use super::lives::{LANES, open_lanes};
use super::world::{SeededMarket, Size};
use crate::harness::market::Failure;

/// Jobs of a batch.
const BATCH: usize = 100;
/// As many models as connections, each served by one node with room for a batch:
/// what the tick hands out goes to a node that asks for it.
const SIZE: Size =
    Size { consumers: 1000, nodes: LANES as i32, models: LANES as i32, offers: 1, slots: 256 };

/// The connections that live in batches, each with its model and its node.
pub(crate) struct BatchLanes(Vec<(Lane, String, Uuid)>);

impl BatchLanes {
    /// Makes a market for batches and connects to it.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn open(database: &Database) -> Result<Self, Failure> {
        let world: Arc<SeededMarket> = SeededMarket::make(database, "batch", SIZE).await?;
        let owner = database.superuser().await?;
        let mut lanes = Vec::with_capacity(LANES);
        for (lane, model) in open_lanes(database, &world).await?.into_iter().zip(&world.models) {
            let query = "select provider_id from load.offers where model_name = $1";
            let node = owner.query_one(query, &[model]).await?.get(0);
            lanes.push((lane, model.clone(), node));
        }
        Ok(Self(lanes))
    }

    /// Lives in batches for a while; returns how many lives ended and how long it took.
    ///
    /// # Errors
    /// A call is refused.
    pub(crate) async fn live_for(
        &mut self,
        length: Duration,
    ) -> Result<(usize, Duration), Failure> {
        let begin = Instant::now();
        let mut tasks: JoinSet<Result<_, Failure>> = JoinSet::new();
        for (mut lane, model, node) in std::mem::take(&mut self.0) {
            tasks.spawn(async move {
                let mut lives = 0;
                while begin.elapsed() < length {
                    lives += live_batch(&mut lane, &model, node).await?;
                }
                Ok(((lane, model, node), lives))
            });
        }
        let mut lives = 0;
        while let Some(ended) = tasks.join_next().await {
            let (lane, own) = ended??;
            self.0.push(lane);
            lives += own;
        }
        Ok((lives, begin.elapsed()))
    }
}

/// Submits one batch and runs whatever its node is given until nothing is left;
/// returns how many jobs were completed.
async fn live_batch(lane: &mut Lane, model: &str, node: Uuid) -> Result<usize, Failure> {
    let consumer = lane.consumer();
    lane.submit_batch(consumer, model, BATCH).await?;
    let mut lives = 0;
    while lives < BATCH {
        let mut attempts = lane.claim(node).await?;
        if attempts.is_empty() {
            // The tick is just handing them out.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while !attempts.is_empty() {
            let begun = lane.start_all(node, &attempts).await?;
            attempts = lane.complete_all(node, &begun).await?;
            lives += begun.len();
        }
    }
    Ok(lives)
}
