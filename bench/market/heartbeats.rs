//! What ten thousand nodes cost when no job moves: the time that the processes of the
//! database are on a processor for their heartbeats, and for the tick alone.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::database::Database;
use super::life::Lane;
use super::lives::open_lanes;
use super::loaded::Loaded;
use super::processor::processor_time;
use crate::harness::market::Failure;
use crate::harness::report::{Floor, Report};
use crate::harness::statistics::{millis, percentile};

/// How often each node sends one.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long heartbeats flow before they are measured.
const SETTLING: Duration = Duration::from_secs(5);
/// How long it is looked at what the database does without them, before and after.
const IDLE: Duration = Duration::from_secs(10);

/// A node and the attempts that it runs.
type Node = (Uuid, Vec<Uuid>);

/// Measures `heartbeat_core_share`, in percent of one core.
///
/// # Errors
/// A heartbeat is refused, or the processor time cannot be read.
pub(crate) async fn measure(
    database: &Database,
    loaded: &Loaded,
    report: &mut Report,
) -> Result<(), Failure> {
    let nodes = nodes_with_leases(database).await?;
    let count = nodes.len();
    let lanes = open_lanes(database, &loaded.world).await?;
    let cluster = database.cluster();
    database.settle().await?;

    let before = share_over(&cluster, IDLE).await?;
    let begin = Instant::now();
    let mut tasks: JoinSet<Result<(Vec<f64>, f64), Failure>> = JoinSet::new();
    let lane_count = lanes.len();
    for (number, lane) in lanes.into_iter().enumerate() {
        let own: Vec<(usize, Node)> =
            nodes.iter().cloned().enumerate().skip(number).step_by(lane_count).collect();
        tasks.spawn(beat(lane, own, count, begin));
    }
    tokio::time::sleep(SETTLING).await;
    let with = share_over(&cluster, INTERVAL).await?;
    let (mut times, mut latest) = (Vec::new(), 0.0_f64);
    while let Some(ended) = tasks.join_next().await {
        let (own, late) = ended??;
        times.extend(own);
        latest = latest.max(late);
    }
    let after = share_over(&cluster, IDLE).await?;

    let idle = f64::midpoint(before, after);
    report.sample(json!({
        "nodes": count, "heartbeats": times.len(), "busy_share": with, "idle_share_before": before,
        "idle_share_after": after, "heartbeat_ms_p50": percentile(&times, 0.5),
        "heartbeat_ms_p99": percentile(&times, 0.99), "latest_ms": latest,
    }));
    report.add_with_goal(
        "heartbeat_core_share",
        100.0 * (with - idle),
        "%",
        Some(Floor::AtMost(25.0)),
        Floor::AtMost(10.0),
    );
    report.add("heartbeat_p99", percentile(&times, 0.99), "ms");
    // Nothing but the tick runs when there are no heartbeats.
    report.add("tick_core_share", 100.0 * idle, "%");
    Ok(())
}

/// The nodes of the large market, each with what it runs.
async fn nodes_with_leases(database: &Database) -> Result<Vec<Node>, Failure> {
    let rows = database
        .superuser()
        .await?
        .query(
            "select l.provider_id, array_agg(l.attempt_id) from infernet.live_attempts l
             join load.offers o on o.id = l.offer_id and o.world = 'big'
             group by 1 order by md5(l.provider_id::text)",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Sends the heartbeats of some nodes, each at its own time of every interval, for as
/// long as is measured. Returns how long each took and how late the latest was sent,
/// in milliseconds.
async fn beat(
    lane: Lane,
    nodes: Vec<(usize, Node)>,
    count: usize,
    begin: Instant,
) -> Result<(Vec<f64>, f64), Failure> {
    let mut times = Vec::new();
    let mut latest = 0.0_f64;
    for round in 0_u32.. {
        for (place, (node, running)) in &nodes {
            let due = INTERVAL * round + INTERVAL.mul_f64(*place as f64 / count as f64);
            if due >= SETTLING + INTERVAL {
                return Ok((times, latest));
            }
            tokio::time::sleep_until((begin + due).into()).await;
            let sent = Instant::now();
            latest = latest.max(millis(sent - (begin + due)));
            lane.heartbeat(*node, running).await?;
            times.push(millis(sent.elapsed()));
        }
    }
    Ok((times, latest))
}

/// The share of one core that the cluster's processes take over a while.
async fn share_over(cluster: &Path, length: Duration) -> Result<f64, Failure> {
    let (begin, before) = (Instant::now(), processor_time(cluster)?);
    tokio::time::sleep(length).await;
    Ok((processor_time(cluster)? - before) / begin.elapsed().as_secs_f64())
}
