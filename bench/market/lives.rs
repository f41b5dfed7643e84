//! Lives a second over several connections, alone and beside other queues.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use super::contender::Contender;
use super::database::Database;
use super::life::{Lane, Times};
use super::world::World;
use crate::harness::market::Failure;
use crate::harness::report::{Floor, Report};
use crate::harness::statistics::{median, millis, percentile};

/// Connections that live lives, and lanes of each contender.
pub(crate) const LANES: usize = 8;
/// Rounds of all contenders in turn; the median counts.
const ROUNDS: usize = 3;
/// How long lives are lived before they are counted.
pub(crate) const WARM_UP: Duration = Duration::from_secs(2);
/// How long each contender is measured in each round.
pub(crate) const MEASURED: Duration = Duration::from_secs(7);

/// Lives that were lived in a while.
pub(crate) struct Lived {
    /// When each ended, from the start, with the times of its calls.
    pub(crate) lives: Vec<(Duration, Times)>,
    /// How long the while was.
    pub(crate) length: Duration,
}

impl Lived {
    /// Lives a second.
    pub(crate) fn rate(&self) -> f64 {
        self.lives.len() as f64 / self.length.as_secs_f64()
    }

    /// Lives a second in a part of the while.
    pub(crate) fn rate_between(&self, from: Duration, to: Duration) -> f64 {
        let within = self.lives.iter().filter(|(ended, _)| (from..to).contains(ended)).count();
        within as f64 / (to - from).as_secs_f64()
    }

    /// The calls' times in milliseconds, by name, as a sample for the raw run.
    pub(crate) fn calls(&self) -> serde_json::Value {
        let of = |time: fn(&Times) -> Duration| {
            let sample: Vec<f64> =
                self.lives.iter().map(|(_, times)| millis(time(times))).collect();
            if sample.is_empty() {
                return json!(null);
            }
            json!({ "p50": percentile(&sample, 0.5), "p99": percentile(&sample, 0.99) })
        };
        json!({
            "submit_ms": of(|times| times.submit),
            "start_ms": of(|times| times.start),
            "complete_ms": of(|times| times.complete),
        })
    }
}

/// Opens the connections that live lives.
///
/// # Errors
/// The database refuses.
pub(crate) async fn open_lanes(
    database: &Database,
    world: &Arc<World>,
) -> Result<Vec<Lane>, Failure> {
    let mut lanes = Vec::with_capacity(LANES);
    for _ in 0..LANES {
        lanes.push(Lane::open(database, world).await?);
    }
    Ok(lanes)
}

/// Opens the connections that live lives, and lives on them until connections, plans
/// and statistics are those of a market that has been open for a while.
///
/// # Errors
/// A life goes wrong.
pub(crate) async fn open_warm_lanes(
    database: &Database,
    world: &Arc<World>,
    models: &Arc<Vec<String>>,
) -> Result<Vec<Lane>, Failure> {
    let lanes = open_lanes(database, world).await?;
    let (lanes, _) = live_for(lanes, models, WARM_UP).await?;
    database.settle().await?;
    let (lanes, _) = live_for(lanes, models, WARM_UP).await?;
    Ok(lanes)
}

/// Lives lives of the given models on all lanes for a while, each lane one after
/// another; gives the lanes back.
///
/// # Errors
/// One life goes wrong.
pub(crate) async fn live_for(
    lanes: Vec<Lane>,
    models: &Arc<Vec<String>>,
    length: Duration,
) -> Result<(Vec<Lane>, Lived), Failure> {
    let start = Instant::now();
    let mut tasks: JoinSet<Result<_, Failure>> = JoinSet::new();
    for mut lane in lanes {
        let models = Arc::clone(models);
        tasks.spawn(async move {
            let mut lives = Vec::new();
            while start.elapsed() < length {
                let times = lane.live(&models).await?;
                lives.push((start.elapsed(), times));
            }
            Ok((lane, lives))
        });
    }
    let mut lanes = Vec::with_capacity(LANES);
    let mut all = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        let (lane, lives) = ended??;
        lanes.push(lane);
        all.extend(lives);
    }
    // A life that was under way at the end is counted with the time that it took.
    Ok((lanes, Lived { lives: all, length: start.elapsed() }))
}

/// Measures `life_rate` and its ratios to the other queues.
///
/// # Errors
/// A life goes wrong, or a contender cannot be run.
pub(crate) async fn measure(
    database: &Database,
    world: &Arc<World>,
    report: &mut Report,
) -> Result<(), Failure> {
    let models = Arc::new(world.models.clone());
    let mut lanes = open_warm_lanes(database, world, &models).await?;
    let graphile = Contender::prepare(database, "graphile-worker").await?;
    let boss = Contender::prepare(database, "pg-boss").await?;
    let (mut rates, mut graphile_rates, mut boss_rates) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        if round > 0 {
            (lanes, _) = live_for(lanes, &models, WARM_UP).await?;
        }
        let lived;
        (lanes, lived) = live_for(lanes, &models, MEASURED).await?;
        let graphile_rate = graphile.rate().await?;
        let boss_rate = boss.rate().await?;
        report.sample(json!({
            "round": round,
            "life_rate": lived.rate(),
            "calls": lived.calls(),
            "graphile_rate": graphile_rate,
            "pgboss_rate": boss_rate,
        }));
        rates.push(lived.rate());
        graphile_rates.push(graphile_rate);
        boss_rates.push(boss_rate);
    }
    let ratios = |others: &[f64]| {
        let ratios: Vec<f64> = rates.iter().zip(others).map(|(own, other)| own / other).collect();
        median(&ratios)
    };
    report.add_with_floor("life_rate", median(&rates), "1/s", Floor::AtLeast(600.0));
    report.add_with_goal(
        "life_vs_graphile",
        ratios(&graphile_rates),
        "ratio",
        None,
        Floor::AtLeast(0.5),
    );
    report.add_with_goal(
        "life_vs_pgboss",
        ratios(&boss_rates),
        "ratio",
        None,
        Floor::MoreThan(1.0),
    );
    report.add("graphile_rate", median(&graphile_rates), "1/s");
    report.add("pgboss_rate", median(&boss_rates), "1/s");
    Ok(())
}
