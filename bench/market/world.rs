//! The people and nodes of a market, as `load.sql` makes them.

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
pub(crate) struct World {
    /// The consumers' ids.
    pub(crate) consumers: Vec<Uuid>,
    /// The nodes' public keys by their ids.
    pub(crate) nodes: HashMap<Uuid, String>,
    /// The names of the models.
    pub(crate) models: Vec<String>,
}

impl World {
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
        Ok(Arc::new(Self::read(database, name).await?))
    }

    /// Reads the market of a name.
    ///
    /// # Errors
    /// The database refuses.
    async fn read(database: &Database, name: &str) -> Result<Self, Failure> {
        let owner = database.superuser().await?;
        let consumers = owner
            .query("select id from public.users where name like $1 || ' consumer %'", &[&name])
            .await?;
        let nodes = owner
            .query(
                "select id, public_key from public.providers where name like $1 || ' node %'",
                &[&name],
            )
            .await?;
        let models = owner
            .query(
                "select name from public.models where name like $1 || '/%' order by name",
                &[&name],
            )
            .await?;
        Ok(Self {
            consumers: consumers.iter().map(|row| row.get(0)).collect(),
            nodes: nodes.iter().map(|row| (row.get(0), row.get(1))).collect(),
            models: models.iter().map(|row| row.get(0)).collect(),
        })
    }
}
