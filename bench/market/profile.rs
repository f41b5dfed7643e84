//! Where a life goes: the time in each function of the schema, what the connections
//! waited for, and how long the calls took.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use infernet::stack::postgres::Connection;

use super::database::Database;
use super::lives::{LANES, live_for, open_warm_lanes};
use super::processor::processor_time;
use super::world::SeededMarket;
use crate::harness::market::Failure;

/// How long is profiled.
const PROFILED: Duration = Duration::from_secs(10);
/// How often it is asked what the connections do.
const SAMPLED_EVERY: Duration = Duration::from_millis(10);
/// Functions that are printed.
const MOST: i64 = 45;

/// Lives for a while and prints where the time went: on all connections what they waited for,
/// and then on one alone, where nobody waits for another, the time in each function.
///
/// # Errors
/// A life goes wrong, or the database refuses.
#[allow(clippy::print_stdout, reason = "the profile is the output that was asked for")]
pub(crate) async fn print(database: &Database, world: &Arc<SeededMarket>) -> Result<(), Failure> {
    let owner = database.superuser().await?;
    let models = Arc::new(world.models.clone());
    let lanes = open_warm_lanes(database, world, &models).await?;

    let sampler = database.superuser().await?;
    let before = processor_time(&database.cluster())?;
    let (done, (mut lanes, lived)) =
        tokio::try_join!(sample_waits(&sampler), live_for(lanes, &models, PROFILED))?;
    let lives = lived.lives.len() as f64;
    let processor = 1000.0 * (processor_time(&database.cluster())? - before) / lives;
    println!(
        "{:.1} lives a second over {LANES} connections; calls: {}",
        lived.rate(),
        lived.calls()
    );
    println!("{processor:.3} ms of the database's processor time a life");
    println!("\nWhat the connections did:");
    for (what, share) in done {
        println!("{:>8.1} %  {what}", 100.0 * share);
    }

    lanes.truncate(1);
    owner.batch_execute("alter system set track_functions = 'all'").await?;
    owner.batch_execute("select pg_reload_conf()").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    owner.batch_execute("select pg_stat_reset()").await?;
    let before = processor_time(&database.cluster())?;
    let (lanes, lived) = live_for(lanes, &models, PROFILED).await?;
    let processor = processor_time(&database.cluster())? - before;
    // The connections hand in what they counted when they are closed.
    drop(lanes);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lives = lived.lives.len() as f64;
    println!("\n{:.1} lives a second over one connection; calls: {}", lived.rate(), lived.calls());
    println!("{:.3} ms of the database's processor time a life", 1000.0 * processor / lives);
    println!("Its functions, a life each; timing them takes time itself:");
    println!("{:>8} {:>10} {:>10}  function", "calls", "own ms", "whole ms");
    let rows = owner
        .query(
            "select schemaname || '.' || funcname, calls::float8, self_time, total_time
             from pg_stat_user_functions order by self_time desc limit $1",
            &[&MOST],
        )
        .await?;
    for row in rows {
        let (name, calls): (String, f64) = (row.get(0), row.get(1));
        let (own, whole): (f64, f64) = (row.get(2), row.get(3));
        println!("{:>8.2} {:>10.4} {:>10.4}  {name}", calls / lives, own / lives, whole / lives);
    }
    let tables = owner
        .query(
            "select schemaname || '.' || relname, (n_tup_ins + n_tup_upd + n_tup_del)::float8,
                    n_tup_upd::float8, n_tup_hot_upd::float8, seq_scan::float8, coalesce(idx_scan, 0)::float8
             from pg_stat_user_tables where n_tup_ins + n_tup_upd + n_tup_del + seq_scan > $1
             order by 2 desc",
            &[&(lived.lives.len() as i64 / 2)],
        )
        .await?;
    println!("\nTables, a life each:");
    println!(
        "{:>8} {:>8} {:>8} {:>8} {:>8}  table",
        "written", "updates", "of them", "seq", "index"
    );
    println!("{:>8} {:>8} {:>8} {:>8} {:>8}", "", "", "HOT", "scans", "scans");
    for row in tables {
        let name: String = row.get(0);
        let of = |column: usize| row.get::<_, f64>(column) / lives;
        println!(
            "{:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2}  {name}",
            of(1),
            of(2),
            of(3),
            of(4),
            of(5)
        );
    }
    owner.batch_execute("alter system reset track_functions").await?;
    owner.batch_execute("select pg_reload_conf()").await?;
    Ok(())
}

/// Asks again and again, for as long as is profiled, what the callers' connections do;
/// returns the share of each answer, the largest first.
async fn sample_waits(owner: &Connection) -> Result<Vec<(String, f64)>, Failure> {
    let query = owner
        .prepare(
            "select case when state = 'active' then coalesce(wait_event_type || '/' || wait_event, 'running')
                         else 'waiting for the client' end
             from pg_stat_activity
             where usename = 'authenticator' and query ~ 'set_config|submit_job|_attempt'",
        )
        .await?;
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let start = Instant::now();
    while start.elapsed() < PROFILED {
        for row in owner.query(&query, &[]).await? {
            *seen.entry(row.get(0)).or_default() += 1;
        }
        tokio::time::sleep(SAMPLED_EVERY).await;
    }
    let count: u32 = seen.values().sum();
    let mut shares: Vec<(String, f64)> =
        seen.into_iter().map(|(what, times)| (what, f64::from(times) / f64::from(count))).collect();
    shares.sort_by(|left, right| right.1.total_cmp(&left.1));
    Ok(shares)
}
