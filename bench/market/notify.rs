//! From the commit of a submit to the notification at the node: a node that is
//! enrolled and listens over the gateway's websocket as an agent does, and consumers
//! that submit at a fixed rate, all in this process and on its clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use infernet::control::realtime::{Channel, ChannelEvent, JoinOptions, Realtime, RealtimeEndpoint};
use infernet::control::rpc::Rpc;
use infernet::control::session::{Enrolment, LoginKind, Session};
use infernet::control::{ControlPlane, PlainHttp};
use infernet::identity::Keys;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::database::Database;
use super::life::{Lane, uuid_in};
use super::world::SeededMarket;
use crate::harness::market::{Failure, wait_joined};
use crate::harness::report::{Floor, Report};
use crate::harness::statistics::percentile;

/// The time from one submit to the next: 100 a second.
const EVERY: Duration = Duration::from_millis(10);
/// Jobs that are not counted, and jobs that are.
const JOBS: (usize, usize) = (200, 2000);
/// Connections that submit in turn, so that none waits for another's answer.
const SUBMITTERS: usize = 4;
/// Connections on which the node runs what it hears of, so that it keeps up.
const RUNNERS: usize = 4;
/// How long the last notifications may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The model of the one node.
const MODEL: &str = "notify/model";
/// What the node offers.
const SLOTS: u32 = 256;

/// Measures `notify_p50` and `notify_p99`.
///
/// # Errors
/// The node cannot be enrolled, a call is refused, or notifications are missing.
pub(crate) async fn measure(
    database: &Database,
    base: &Arc<SeededMarket>,
    report: &mut Report,
) -> Result<(), Failure> {
    let (session, node) = enrol(database).await?;
    let world = Arc::new(SeededMarket {
        consumers: base.consumers.clone(),
        nodes: HashMap::from([(node, session.keys().public_hex())]),
        models: vec![MODEL.to_owned()],
    });
    let shutdown = CancellationToken::new();
    let endpoint = RealtimeEndpoint::new(
        &url::Url::parse(database.stack().url())?,
        session.control().publishable_key(),
    )?;
    let realtime = Realtime::spawn(endpoint, session.newest_token(), shutdown.child_token());
    let lane = Lane::open(database, &world).await?;
    lane.register(node, MODEL, SLOTS).await?;
    let mut channel = realtime.join(&format!("node:{node}"), JoinOptions::default());
    wait_joined(&mut channel).await?;

    drop(lane);
    let mut attempts = Vec::with_capacity(RUNNERS);
    let mut tasks: JoinSet<Result<(), Failure>> = JoinSet::new();
    for _ in 0..RUNNERS {
        let (sender, to_run) = mpsc::unbounded_channel();
        tasks.spawn(run_attempts(Lane::open(database, &world).await?, node, to_run));
        attempts.push(sender);
    }
    let mut listening: JoinSet<Result<HashMap<Uuid, Instant>, Failure>> = JoinSet::new();
    let heard = CancellationToken::new();
    listening.spawn(listen(channel, attempts, heard.clone()));
    let submitted = submit_at_rate(database, &world).await?;
    tokio::time::sleep(PATIENCE).await;
    heard.cancel();
    let notified = listening.join_next().await.ok_or("The listener is gone.")??;
    // When the node broke off, the listener's own failure is only that.
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let notified = notified?;
    shutdown.cancel();
    realtime.closed().await;

    let counted = &submitted[JOBS.0..];
    let times: Vec<f64> = counted
        .iter()
        .filter_map(|(job, committed)| Some(signed_millis(*committed, *notified.get(job)?)))
        .collect();
    let missing = counted.len() - times.len();
    report.sample(json!({ "notify_ms": times, "missing": missing }));
    if times.is_empty() || missing > counted.len() / 100 {
        return Err(format!("{missing} of {} notifications never came.", counted.len()).into());
    }
    let limits = (Floor::AtMost(5.0), Floor::AtMost(1.5));
    report.add_with_goal("notify_p50", percentile(&times, 0.5), "ms", Some(limits.0), limits.1);
    let limits = (Floor::AtMost(20.0), Floor::AtMost(5.0));
    report.add_with_goal("notify_p99", percentile(&times, 0.99), "ms", Some(limits.0), limits.1);
    Ok(())
}

/// Enrols a node with a key of its own, and signs it in.
async fn enrol(database: &Database) -> Result<(Session, Uuid), Failure> {
    let (plane, _info) =
        ControlPlane::discover(database.stack().url(), PlainHttp::PrivateOnly).await?;
    let operator = database.stack().operator().clone();
    let operator = Rpc::new(Session::new(plane.clone(), operator, LoginKind::User));
    let enrolment = operator.make_enrolment("provider", Some(900)).await?;
    let session = Session::new(plane, Keys::generate(), LoginKind::Node);
    let signed_in = session
        .enrol(&Enrolment {
            role: "provider".to_owned(),
            code: enrolment.code,
            name: Some("listener".to_owned()),
        })
        .await?;
    Ok((session, signed_in.subject))
}

/// A job by its number in the row, with its id and when its submit was answered.
type Submitted = (usize, Uuid, Instant);

/// Submits at the fixed rate; returns each job with the moment at which its submit
/// was answered, which is when it had just been committed.
async fn submit_at_rate(
    database: &Database,
    world: &Arc<SeededMarket>,
) -> Result<Vec<(Uuid, Instant)>, Failure> {
    let begin = Instant::now();
    let mut tasks: JoinSet<Result<Vec<Submitted>, Failure>> = JoinSet::new();
    for first in 0..SUBMITTERS {
        let mut lane = Lane::open(database, world).await?;
        tasks.spawn(async move {
            let mut submitted = Vec::new();
            for number in (first..JOBS.0 + JOBS.1).step_by(SUBMITTERS) {
                let due = begin + EVERY * u32::try_from(number)?;
                tokio::time::sleep_until(due.into()).await;
                let consumer = lane.consumer();
                let job = lane.submit(consumer, MODEL).await?;
                let answered = Instant::now();
                submitted.push((number, uuid_in(&job, "id")?, answered));
            }
            Ok(submitted)
        });
    }
    let mut all = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        all.extend(ended??);
    }
    all.sort_by_key(|(number, ..)| *number);
    Ok(all.into_iter().map(|(_, job, answered)| (job, answered)).collect())
}

/// Notes when each job was heard of, and passes its attempt on to be run.
async fn listen(
    mut channel: Channel,
    attempts: Vec<mpsc::UnboundedSender<Uuid>>,
    end: CancellationToken,
) -> Result<HashMap<Uuid, Instant>, Failure> {
    let mut heard = HashMap::new();
    loop {
        let event = tokio::select! {
            event = channel.recv() => event.ok_or("The node's channel was closed.")?,
            () = end.cancelled() => return Ok(heard),
        };
        let at = Instant::now();
        if let ChannelEvent::Broadcast { event, payload, .. } = event
            && event == "attempt"
        {
            // One message may name several attempts.
            for (job, attempt) in named(&payload)? {
                heard.insert(job, at);
                attempts[heard.len() % attempts.len()].send(attempt)?;
            }
        }
    }
}

/// The jobs and attempts that a message names.
fn named(payload: &Value) -> Result<Vec<(Uuid, Uuid)>, Failure> {
    let items = match payload.get("attempts").and_then(Value::as_array) {
        Some(items) => items.clone(),
        None => vec![payload.clone()],
    };
    items.iter().map(|item| Ok((uuid_in(item, "job")?, uuid_in(item, "attempt")?))).collect()
}

/// Runs what the node was told of, so that its slots do not fill up.
async fn run_attempts(
    lane: Lane,
    node: Uuid,
    mut attempts: mpsc::UnboundedReceiver<Uuid>,
) -> Result<(), Failure> {
    while let Some(attempt) = attempts.recv().await {
        let mut begun = match lane.start(node, attempt).await {
            Ok(begun) => begun,
            // On a machine that cannot keep up it was offered elsewhere meanwhile.
            Err(error) if is_gone(error.as_ref()) => continue,
            Err(error) => return Err(error),
        };
        // What is free goes to whoever waits, and is told in the answer.
        loop {
            let ended = lane.complete(node, &begun).await?;
            match ended.get("next").filter(|next| next.is_object()) {
                Some(next) => begun = lane.start(node, uuid_in(next, "attempt")?).await?,
                None => break,
            }
        }
    }
    Ok(())
}

/// Whether the market says that an attempt is not the node's to start any more.
fn is_gone(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    error
        .downcast_ref::<tokio_postgres::Error>()
        .and_then(tokio_postgres::Error::as_db_error)
        .is_some_and(|refusal| refusal.detail() == Some("gone"))
}

/// Milliseconds to a moment, less than zero when the notification overtook the answer.
fn signed_millis(from: Instant, to: Instant) -> f64 {
    match to.checked_duration_since(from) {
        Some(later) => 1000.0 * later.as_secs_f64(),
        None => -1000.0 * from.duration_since(to).as_secs_f64(),
    }
}
