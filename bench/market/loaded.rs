//! Lives a second in a market with a long history and a long queue, against an empty
//! one in a control plane of its own, in turn: at once on models with free slots, and
//! through the lines of models that have none.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::database::Database;
use super::life::{Lane, uuid_in};
use super::lives::{
    LANES, MEASURED, ROUNDS, WARM_UP, live_for, open_lanes, open_warm_lanes, ratio,
};
use super::world::{SeededMarket, Size, write_plan};
use crate::harness::market::Failure;
use crate::harness::report::{Floor, Report};

/// The large market. Each node has two offers, one of a model in the first half and
/// one in the second.
const BIG: Size = Size { consumers: 1000, nodes: 10_000, models: 1000, offers: 20, slots: 3 };
/// Models from here on have lines: each slot of them runs a job, three a node.
const FIRST_BUSY: i32 = BIG.models / 2;
/// Jobs that have been completed.
const FINISHED: i32 = 1_000_000;
/// Jobs that wait.
const QUEUED: i32 = 100_000;
/// With `--small`, the history and the queue are so many times shorter.
const SMALLER: i32 = 10;
/// Running jobs that each connection takes over to pass their slots on.
const TAKEN_OVER: i64 = 50;

/// The large market, loaded.
pub(crate) struct Loaded {
    pub(crate) world: Arc<SeededMarket>,
    /// The models that have free slots.
    free: Arc<Vec<String>>,
}

impl Loaded {
    /// Makes the large market and fills it.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn load(
        database: &Database,
        small: bool,
        report: &mut Report,
    ) -> Result<Self, Failure> {
        let begin = Instant::now();
        let world = SeededMarket::make(database, "big", BIG).await?;
        let share = if small { SMALLER } else { 1 };
        let owner = database.superuser().await?;
        let last = BIG.models - 1;
        owner.execute("select load.plan_finished('big', $1)", &[&(FINISHED / share)]).await?;
        owner
            .execute(
                "select load.plan_running('big', $1, $2, $3)",
                &[&FIRST_BUSY, &last, &BIG.slots],
            )
            .await?;
        owner
            .execute(
                "select load.plan_queued('big', $1, $2, $3)",
                &[&FIRST_BUSY, &last, &(QUEUED / share)],
            )
            .await?;
        write_plan(database).await?;
        let row =
            owner.query_one("select pg_database_size(current_database())::float8", &[]).await?;
        let size: f64 = row.get(0);
        let seconds = begin.elapsed().as_secs_f64();
        eprintln!("Loaded {:.1} GB in {seconds:.0} s.", size / 1e9);
        report.sample(json!({ "loaded_secs": seconds, "loaded_bytes": size, "small": small }));
        let free = world.models[..usize::try_from(FIRST_BUSY)?].to_vec();
        Ok(Self { world, free: Arc::new(free) })
    }
}

/// Measures `loaded_ratio` and `loaded_queue_ratio`, both to the rate of an empty
/// market, in alternating rounds.
///
/// # Errors
/// A life goes wrong.
pub(crate) async fn measure(
    database: &Database,
    loaded: &Loaded,
    empty: &Database,
    world: &Arc<SeededMarket>,
    report: &mut Report,
) -> Result<(), Failure> {
    let models = Arc::new(world.models.clone());
    let mut empty_lanes = open_warm_lanes(empty, world, &models).await?;
    let mut lanes = open_warm_lanes(database, &loaded.world, &loaded.free).await?;
    let (mut empty_rates, mut rates, mut queue_rates) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let quiet = database.pause_tick().await?;
        (empty_lanes, _) = live_for(empty_lanes, &models, WARM_UP).await?;
        let in_empty;
        (empty_lanes, in_empty) = live_for(empty_lanes, &models, MEASURED).await?;
        drop(quiet);
        let quiet = empty.pause_tick().await?;
        (lanes, _) = live_for(lanes, &loaded.free, WARM_UP).await?;
        let in_loaded;
        (lanes, in_loaded) = live_for(lanes, &loaded.free, MEASURED).await?;
        let queue_rate = rate_through_lines(database, loaded, round).await?;
        drop(quiet);
        report.sample(json!({
            "round": round,
            "empty_rate": in_empty.rate(), "empty_calls": in_empty.calls(),
            "loaded_rate": in_loaded.rate(), "loaded_calls": in_loaded.calls(),
            "loaded_queue_rate": queue_rate,
        }));
        empty_rates.push(in_empty.rate());
        rates.push(in_loaded.rate());
        queue_rates.push(queue_rate);
    }
    report.add_with_goal(
        "loaded_ratio",
        ratio(&rates, &empty_rates),
        "ratio",
        Some(Floor::AtLeast(0.7)),
        Floor::AtLeast(0.9),
    );
    let queue_ratio = ratio(&queue_rates, &empty_rates);
    report.add_with_floor("loaded_queue_ratio", queue_ratio, "ratio", Floor::AtLeast(0.5));
    Ok(())
}

/// Lives a second through lines. In each, a consumer submits a job, which joins its
/// line; a node completes a job of that model, is handed the next in the line with
/// the answer, and starts it.
async fn rate_through_lines(
    database: &Database,
    loaded: &Loaded,
    round: usize,
) -> Result<f64, Failure> {
    let mut tasks: JoinSet<Result<usize, Failure>> = JoinSet::new();
    let mut lanes = Vec::new();
    for lane in open_lanes(database, &loaded.world).await? {
        let number = i64::try_from(round * LANES + lanes.len())?;
        lanes.push((lane, running_jobs(database, number).await?));
    }
    let begin = Instant::now() + WARM_UP;
    for (lane, running) in lanes {
        tasks.spawn(live_through_lines(lane, running, begin, begin + MEASURED));
    }
    let mut lives = 0;
    while let Some(ended) = tasks.join_next().await {
        lives += ended??;
    }
    Ok(lives as f64 / MEASURED.as_secs_f64())
}

/// The running jobs that one connection takes over: each with its node and with what
/// its start answered.
async fn running_jobs(database: &Database, number: i64) -> Result<Vec<(Uuid, Value)>, Failure> {
    let rows = database
        .superuser()
        .await?
        .query(
            "select a.provider_id, jsonb_build_object('attempt', a.id, 'lease', a.lease, 'job', j.id,
                      'model', j.model_name, 'input_sha256', c.input_sha256,
                      'price_input', infernet.usd(a.price_input), 'price_output', infernet.usd(a.price_output))
             from infernet.live_attempts l
             join public.job_attempts a on a.id = l.attempt_id
             join public.jobs j on j.id = a.job_id
             join public.job_contents c on c.job_id = j.id
             where j.state = 'running' and j.model_name like 'big/%'
             order by md5(j.id::text) offset $1 limit $2",
            &[&(number * TAKEN_OVER), &TAKEN_OVER],
        )
        .await?;
    if rows.is_empty() {
        return Err("No job runs in the loaded market.".into());
    }
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Lives through lines on one connection until `end`; returns the lives that ended
/// after `begin`.
async fn live_through_lines(
    mut lane: Lane,
    mut running: Vec<(Uuid, Value)>,
    begin: Instant,
    end: Instant,
) -> Result<usize, Failure> {
    let mut lives = 0;
    while Instant::now() < end {
        let (node, begun) = running.swap_remove(lane.random(running.len()));
        let model = begun["model"].as_str().ok_or("A running job has no model.")?.to_owned();
        let consumer = lane.consumer();
        let job = lane.submit(consumer, &model).await?;
        let mut given = vec![job["attempt"].clone()];
        let ended = lane.complete(node, &begun).await?;
        given.push(ended["next"].clone());
        for attempt in given.into_iter().filter(Value::is_object) {
            // The answer to the submit names the node of a job that found a free slot;
            // a next job is for the node that asked.
            let of =
                if attempt["node"].is_object() { uuid_in(&attempt["node"], "id")? } else { node };
            let id = uuid_in(&attempt, if attempt["id"].is_string() { "id" } else { "attempt" })?;
            running.push((of, lane.start(of, id).await?));
        }
        if running.is_empty() {
            return Err("The lines of the loaded market are used up.".into());
        }
        if Instant::now() >= begin {
            lives += 1;
        }
    }
    Ok(lives)
}
