//! The market in SQL: how many jobs live their whole life in a second, beside other
//! queues on the same PostgreSQL, with a history behind it, with a snapshot held,
//! with ten thousand nodes; and how fast and how fairly work reaches a node.
//!
//! One control plane is started in this process, and all that is compared runs on
//! its database, one after another; only the empty market beside the loaded one has a
//! control plane of its own. The market's calls are made over connections of
//! their own as the role `authenticated`, each with the claims of whoever acts: what
//! is measured is SQL, without HTTP.

mod harness;

mod market {
    //! The parts of the benchmark.

    pub(crate) mod batched;
    pub(crate) mod contender;
    pub(crate) mod database;
    pub(crate) mod fairness;
    pub(crate) mod heartbeats;
    pub(crate) mod held;
    pub(crate) mod life;
    pub(crate) mod lives;
    pub(crate) mod loaded;
    pub(crate) mod notify;
    pub(crate) mod processor;
    pub(crate) mod profile;
    pub(crate) mod world;
}

use std::process::ExitCode;

use harness::market::Failure;
use harness::report::Report;
use market::database::Database;
use market::loaded::Loaded;
use market::world::{SeededMarket, Size};
use market::{fairness, heartbeats, held, lives, loaded, notify, profile};

/// The market that most measures are taken on.
const BASE: Size = Size { consumers: 1000, nodes: 100, models: 5, offers: 20, slots: 8 };

/// The groups of measures, by the name that `--only` knows them by.
const GROUPS: [&str; 6] = ["life", "notify", "fair_wait", "held_snapshot", "loaded", "heartbeat"];

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::from_arguments("market");
    let chosen = match Chosen::from_arguments() {
        Ok(chosen) => chosen,
        Err(error) => {
            eprintln!("Error: {error}");
            return ExitCode::from(2);
        }
    };
    if chosen.is_partial() {
        report.keep_nothing();
    }
    if let Err(error) = measure(&mut report, &chosen).await {
        eprintln!("Error: {}", in_full(error.as_ref()));
        return ExitCode::FAILURE;
    }
    report.end()
}

/// What is to be measured.
struct Chosen {
    only: Option<String>,
    profile: bool,
    small: bool,
}

impl Chosen {
    /// Reads `--only MEASURE`, `--profile` and `--small`. A measure chooses its whole
    /// group.
    fn from_arguments() -> Result<Self, Failure> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let only = arguments.iter().position(|argument| argument == "--only").map(|at| {
            let name = arguments.get(at + 1).ok_or("--only needs the name of a measure.")?;
            GROUPS
                .iter()
                .find(|group| name.starts_with(*group))
                .map(|group| (*group).to_owned())
                .ok_or_else(|| {
                    format!("There is no measure {name}; they begin with {}.", GROUPS.join(", "))
                })
        });
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        Ok(Self { only: only.transpose()?, profile: has("--profile"), small: has("--small") })
    }

    fn has(&self, group: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == group)
    }

    /// Whether the run is less than the whole, and not to be kept.
    fn is_partial(&self) -> bool {
        self.only.is_some() || self.profile || self.small
    }
}

async fn measure(report: &mut Report, chosen: &Chosen) -> Result<(), Failure> {
    let database = Database::start().await?;
    let result = Box::pin(measure_on(&database, report, chosen)).await;
    database.stop().await;
    result
}

async fn measure_on(
    database: &Database,
    report: &mut Report,
    chosen: &Chosen,
) -> Result<(), Failure> {
    let base = SeededMarket::make(database, "base", BASE).await?;
    if chosen.profile {
        return profile::print(database, &base).await;
    }
    if chosen.has("life") {
        lives::measure(database, &base, report).await?;
    }
    if chosen.has("notify") {
        notify::measure(database, &base, report).await?;
    }
    if chosen.has("fair_wait") {
        fairness::measure(database, report).await?;
    }
    if chosen.has("held_snapshot") {
        held::measure(database, &base, report).await?;
    }
    if chosen.has("loaded") || chosen.has("heartbeat") {
        let big = Loaded::load(database, chosen.small, report).await?;
        if chosen.has("loaded") {
            let empty = Database::start().await?;
            let world = SeededMarket::make(&empty, "base", BASE).await?;
            let measured = loaded::measure(database, &big, &empty, &world, report).await;
            empty.stop().await;
            measured?;
        }
        if chosen.has("heartbeat") {
            heartbeats::measure(database, &big, report).await?;
        }
    }
    database.prove_ledger().await
}

/// An error with its causes, in one line.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
