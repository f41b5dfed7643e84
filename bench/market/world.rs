//! The people, nodes and history of a market, as `load.sql` makes them.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::database::Database;
use crate::harness::market::Failure;

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) consumers: i32,
    pub(crate) nodes: i32,
    pub(crate) models: i32,
    /// Offers of each model.
    pub(crate) offers: i32,
    /// Slots of each offer.
    pub(crate) slots: i32,
}

/// What a benchmark must know of a market to act in it.
pub(crate) struct SeededMarket {
    /// The consumers' ids.
    pub(crate) consumers: Vec<Uuid>,
    /// The nodes' public keys by their ids.
    pub(crate) nodes: HashMap<Uuid, String>,
    /// The names of the models, in order.
    pub(crate) models: Vec<String>,
}

impl SeededMarket {
    /// Makes a market of this size; its name goes before all names in it.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn make(
        database: &Database,
        name: &str,
        size: Size,
    ) -> Result<Arc<Self>, Failure> {
        let owner = database.superuser().await?;
        owner.execute("select load.people($1, $2)", &[&name, &size.consumers]).await?;
        let nodes = "select load.nodes($1, $2, $3, $4, $5)";
        owner
            .execute(nodes, &[&name, &size.nodes, &size.models, &size.offers, &size.slots])
            .await?;
        database.settle().await?;
        let consumers =
            owner.query("select id from load.consumers where world = $1", &[&name]).await?;
        let nodes = owner
            .query(
                "select distinct provider_id, public_key from load.offers where world = $1",
                &[&name],
            )
            .await?;
        let models = owner
            .query(
                "select distinct model, model_name from load.offers where world = $1 order by model",
                &[&name],
            )
            .await?;
        Ok(Arc::new(Self {
            consumers: consumers.iter().map(|row| row.get(0)).collect(),
            nodes: nodes.iter().map(|row| (row.get(0), row.get(1))).collect(),
            models: models.iter().map(|row| row.get(1)).collect(),
        }))
    }
}

/// Writes what was planned in `load.sql`: jobs and money at the same time.
///
/// # Errors
/// The database refuses.
pub(crate) async fn write_plan(database: &Database) -> Result<(), Failure> {
    let (jobs, money) = (database.superuser().await?, database.superuser().await?);
    jobs.batch_execute("analyze load.plan").await?;
    tokio::try_join!(
        jobs.batch_execute("select load.write_jobs()"),
        money.batch_execute("select load.write_money()"),
    )?;
    jobs.batch_execute("select load.forget_plan()").await?;
    jobs.batch_execute("checkpoint").await?;
    database.settle().await
}
