//! The database that is measured on: that of a control plane which
//! runs in this process, with the settings that every control plane has.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use infernet::stack::postgres::{Connection, SUPERUSER};
use infernet::stack::{Stack, StackOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::market::Failure;

/// Settings for nodes that no operator approves and that send no heartbeats.
const SETTINGS: [(&str, &str); 3] =
    [("node_approval", "\"auto\""), ("lease_secs", "86400"), ("forgotten_secs", "86400")];

/// A control plane and the directory of its data.
pub(crate) struct Database {
    stack: Stack,
    directory: TempDir,
}

impl Database {
    /// Starts a control plane with an empty market.
    ///
    /// # Errors
    /// There is no PostgreSQL, or it does not start.
    pub(crate) async fn start() -> Result<Self, Failure> {
        infernet::control::install_tls_provider();
        let directory = tempfile::Builder::new().prefix("infernet-bench.").tempdir()?;
        // PostgreSQL runs as another user when we are root.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))?;
        let options = StackOptions::new(directory.path().join("data"));
        let stack = Box::pin(Stack::start(options)).await?;
        let database = Self { stack, directory };
        let owner = database.superuser().await?;
        for (key, value) in SETTINGS {
            let value: Value = serde_json::from_str(value)?;
            database.set(&owner, key, &value).await?;
        }
        owner.batch_execute(include_str!("load.sql")).await?;
        Ok(database)
    }

    /// Stops the control plane and removes its data.
    pub(crate) async fn stop(self) {
        self.stack.stop().await;
        drop(self.directory);
    }

    /// The control plane.
    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The directory of the database's own files.
    pub(crate) fn cluster(&self) -> PathBuf {
        self.stack.data().cluster()
    }

    /// Connects as the cluster's superuser.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn superuser(&self) -> Result<Connection, Failure> {
        self.connect(SUPERUSER).await
    }

    /// Connects as whoever makes calls: like the gateway, a login that may do nothing
    /// but take on the role `authenticated`.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn caller(&self) -> Result<Connection, Failure> {
        let connection = self.connect("authenticator").await?;
        connection.batch_execute("set role authenticated").await?;
        Ok(connection)
    }

    async fn connect(&self, role: &str) -> Result<Connection, Failure> {
        let config =
            self.stack.database_config_for(role).ok_or("A role of the database cannot log in.")?;
        Ok(Connection::open(&config).await?)
    }

    /// Keeps the tick of this market from running for as long as what is returned is
    /// kept, so that it takes nothing from another that is measured.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn pause_tick(&self) -> Result<Connection, Failure> {
        let connection = self.superuser().await?;
        connection.batch_execute("begin; select load.stop_tick()").await?;
        Ok(connection)
    }

    /// Makes an empty database beside the market's and returns its URL, which has a
    /// password in it.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn make_neighbour(&self, name: &str) -> Result<String, Failure> {
        self.superuser().await?.batch_execute(&format!("create database \"{name}\"")).await?;
        let url = self.stack.database_url_for(SUPERUSER).ok_or("The superuser has no URL.")?;
        let mut url = url::Url::parse(&url)?;
        url.set_path(name);
        Ok(url.into())
    }

    /// Does what autovacuum would have done a minute later: plans that were made for
    /// empty tables are made again.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn settle(&self) -> Result<(), Failure> {
        Ok(self.superuser().await?.batch_execute("vacuum (analyze, skip_locked)").await?)
    }

    /// Changes a setting of the market.
    ///
    /// # Errors
    /// There is no such setting.
    pub(crate) async fn set(
        &self,
        owner: &Connection,
        key: &str,
        value: &Value,
    ) -> Result<(), Failure> {
        let statement = "update public.settings set value = $2 where key = $1";
        match owner.execute(statement, &[&key, value]).await? {
            1 => Ok(()),
            _ => Err(format!("There is no setting {key}.").into()),
        }
    }

    /// Fails when the books are not whole: what was measured was then no market.
    ///
    /// # Errors
    /// The faults, as the market words them.
    pub(crate) async fn prove_ledger(&self) -> Result<(), Failure> {
        let row = self.superuser().await?.query_one("select infernet.prove_ledger()", &[]).await?;
        let proof: Value = row.get(0);
        if proof.get("ok") == Some(&json!(true)) {
            return Ok(());
        }
        Err(format!("The ledger is not whole after the benchmark: {}", proof["faults"]).into())
    }
}
