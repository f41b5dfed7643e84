//! Other queues on the same PostgreSQL: npm packages, each driven by a small program
//! beside this file under npm's Node.js, in a database of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use super::database::Database;
use super::lives::{LANES, MEASURED, WARM_UP};
use crate::harness::market::Failure;

/// Where `scripts/bench` has installed the packages: the folder `node_modules`.
const MODULES: &str = "INFERNET_BENCH_MODULES";
/// The Node.js among them.
const NODE: &str = "INFERNET_BENCH_NODE";
/// How long a driver may take beyond what it measures.
const PATIENCE: Duration = Duration::from_secs(30);

/// One other queue.
pub(crate) struct Contender {
    name: &'static str,
    modules: PathBuf,
    node: PathBuf,
    url: String,
}

/// What a contender did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ran {
    /// Jobs a second while it was measured.
    pub(crate) rate: f64,
    /// Jobs in its whole run, warming up included.
    pub(crate) total: f64,
}

impl Contender {
    /// Makes the database of a contender.
    ///
    /// # Errors
    /// The packages are not there, or the database refuses.
    pub(crate) async fn prepare(database: &Database, name: &'static str) -> Result<Self, Failure> {
        let path = |variable: &str| {
            std::env::var_os(variable)
                .map(PathBuf::from)
                .ok_or_else(|| format!("{variable} is not set; run this with `just bench market`."))
        };
        let (modules, node) = (path(MODULES)?, path(NODE)?);
        let url = database.make_neighbour(name).await?;
        Ok(Self { name, modules, node, url })
    }

    /// Runs the contender for a while and counts its jobs, from added to done.
    ///
    /// # Errors
    /// Its driver fails; what it said is on our standard error.
    pub(crate) async fn run(&self) -> Result<Ran, Failure> {
        let driver =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("bench/market/{}.mjs", self.name));
        let run = Command::new(&self.node)
            .arg(driver)
            .env("BENCH_DATABASE_URL", &self.url)
            .env("BENCH_MODULES", &self.modules)
            .env("BENCH_LANES", LANES.to_string())
            .env("BENCH_WARM_UP_SECS", WARM_UP.as_secs().to_string())
            .env("BENCH_SECS", MEASURED.as_secs().to_string())
            .env("NODE_ENV", "production")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(WARM_UP + MEASURED + PATIENCE, run)
            .await
            .map_err(|_elapsed| format!("{} does not end.", self.name))?
            .map_err(|error| format!("Node.js cannot be run for {}: {error}", self.name))?;
        if !output.status.success() {
            return Err(format!("{} ended with {}.", self.name, output.status).into());
        }
        let said: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{} printed no result: {error}", self.name))?;
        let of = |name: &str| said[name].as_f64().filter(|number| *number > 0.0);
        match (of("jobs"), of("seconds"), of("total")) {
            (Some(jobs), Some(seconds), Some(total)) => Ok(Ran { rate: jobs / seconds, total }),
            _ => Err(format!("{} did no job: {said}", self.name).into()),
        }
    }
}
