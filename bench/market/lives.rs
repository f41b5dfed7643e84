//! Lives a second over several connections, alone and beside other queues.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use super::batched::BatchLanes;
use super::contender::Contender;
use super::database::Database;
use super::life::{Lane, Times};
use super::processor::processor_time;
use super::world::SeededMarket;
use crate::harness::market::Failure;
use crate::harness::report::{Floor, Report};
use crate::harness::statistics::{median, millis, percentile};

/// Connections that live lives, and lanes of each contender.
pub(crate) const LANES: usize = 8;
/// Rounds of all that is compared in turn; the median counts.
pub(crate) const ROUNDS: usize = 3;
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
    world: &Arc<SeededMarket>,
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
    world: &Arc<SeededMarket>,
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
    world: &Arc<SeededMarket>,
    report: &mut Report,
) -> Result<(), Failure> {
    let models = Arc::new(world.models.clone());
    let mut lanes = open_warm_lanes(database, world, &models).await?;
    let graphile = Contender::prepare(database, "graphile-worker").await?;
    let boss = Contender::prepare(database, "pg-boss").await?;
    let mut batches = BatchLanes::open(database).await?;
    let cluster = database.cluster();
    let mut batched = Rounds::default();
    let mut rounds: [Rounds; 3] = Default::default();
    for round in 0..ROUNDS {
        if round > 0 {
            (lanes, _) = live_for(lanes, &models, WARM_UP).await?;
        }
        let before = processor_time(&cluster)?;
        let lived;
        (lanes, lived) = live_for(lanes, &models, MEASURED).await?;
        rounds[0].add(lived.rate(), lived.lives.len() as f64, processor_time(&cluster)? - before);
        batches.live_for(WARM_UP).await?;
        let before = processor_time(&cluster)?;
        let (jobs, length) = batches.live_for(MEASURED).await?;
        let rate = jobs as f64 / length.as_secs_f64();
        batched.add(rate, jobs as f64, processor_time(&cluster)? - before);
        for (rounds, contender) in rounds[1..].iter_mut().zip([&graphile, &boss]) {
            let before = processor_time(&cluster)?;
            let ran = contender.run().await?;
            rounds.add(ran.rate, ran.total, processor_time(&cluster)? - before);
        }
        let [own, graphile, boss] = &rounds;
        report.sample(json!({
            "round": round, "calls": lived.calls(),
            "life_rate": own.rates[round], "life_cpu_ms": own.processor[round],
            "batched_rate": batched.rates[round], "batched_cpu_ms": batched.processor[round],
            "graphile_rate": graphile.rates[round], "graphile_cpu_ms": graphile.processor[round],
            "pgboss_rate": boss.rates[round], "pgboss_cpu_ms": boss.processor[round],
        }));
    }
    let busy_rate = busy_consumer_rate(database, world, &models).await?;
    let [own, graphile, boss] = &rounds;
    // Rates are the machine's as much as ours; floors are ratios within one run.
    report.add("life_rate", median(&own.rates), "1/s");
    let (floor, goal) = (Some(Floor::AtLeast(0.55)), Floor::AtLeast(1.0));
    report.add_with_goal("life_vs_graphile", own.ratio_to(graphile), "ratio", floor, goal);
    report.add_with_goal("life_vs_pgboss", own.ratio_to(boss), "ratio", floor, goal);
    report.add_with_goal(
        "life_cpu_ratio",
        own.processor_to(graphile),
        "ratio",
        Some(Floor::AtMost(2.4)),
        Floor::AtMost(1.5),
    );
    let batched_ratio = batched.ratio_to(own);
    report.add_with_floor("life_batched_ratio", batched_ratio, "ratio", Floor::AtLeast(3.0));
    report.add("busy_consumer_rate", busy_rate, "1/s");
    report.add("graphile_rate", median(&graphile.rates), "1/s");
    report.add("pgboss_rate", median(&boss.rates), "1/s");
    report.add("life_cpu", median(&own.processor), "ms");
    report.add("batched_cpu", median(&batched.processor), "ms");
    report.add("graphile_cpu", median(&graphile.processor), "ms");
    report.add("pgboss_cpu", median(&boss.processor), "ms");
    Ok(())
}

/// Lives a second of one consumer alone, whose account every life locks.
async fn busy_consumer_rate(
    database: &Database,
    world: &Arc<SeededMarket>,
    models: &Arc<Vec<String>>,
) -> Result<f64, Failure> {
    let alone = Arc::new(SeededMarket {
        consumers: world.consumers[..1].to_vec(),
        nodes: world.nodes.clone(),
        models: world.models.clone(),
    });
    let lanes = open_warm_lanes(database, &alone, models).await?;
    let (_, lived) = live_for(lanes, models, MEASURED).await?;
    Ok(lived.rate())
}

/// The median of the ratios of what was measured in the same rounds.
pub(crate) fn ratio(own: &[f64], other: &[f64]) -> f64 {
    let ratios: Vec<f64> = own.iter().zip(other).map(|(own, other)| own / other).collect();
    median(&ratios)
}

/// What one of the compared did in each round.
#[derive(Default)]
struct Rounds {
    /// Jobs a second.
    rates: Vec<f64>,
    /// Processor time of the database for each job, in milliseconds.
    processor: Vec<f64>,
}

impl Rounds {
    fn add(&mut self, rate: f64, jobs: f64, processor_secs: f64) {
        self.rates.push(rate);
        self.processor.push(1000.0 * processor_secs / jobs);
    }

    /// The median of the ratios of the rounds' rates.
    fn ratio_to(&self, other: &Self) -> f64 {
        ratio(&self.rates, &other.rates)
    }

    /// The median of the ratios of the rounds' processor time for a job.
    fn processor_to(&self, other: &Self) -> f64 {
        ratio(&self.processor, &other.processor)
    }
}
