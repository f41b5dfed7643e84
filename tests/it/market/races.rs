//! Races in the market, over real parallel connections: many nodes for many jobs,
//! and everything that can end a job at once. The guards that they are about are
//! also taken away, to see that the same race then goes wrong. Collisions of two
//! calls are in `market_collisions`.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::support::control_plane::TestControlPlane;
use crate::support::sql_actors::{Actor, SqlMarket};

/// Attempts that were given to an offer while all its slots were taken, by the times
/// that the database wrote. A slot is free only after the end of the attempt that had
/// it was committed, so the next one's time is always a later one.
const OVERSUBSCRIBED: &str = "
    select count(*) from public.job_attempts a join public.offers o on o.id = a.offer_id
    where o.slots < (
      select count(*) from public.job_attempts b
      where b.offer_id = a.offer_id and b.offered_at <= a.offered_at
        and (b.ended_at is null or b.ended_at > a.offered_at))";

/// Slots that are counted without the lock of their offer.
const UNGUARDED_SLOT: &str = "
    create or replace function infernet.take_slots(p_offer uuid, p_count int, p_wait boolean) returns int
    language plpgsql volatile security definer set search_path = '' as $$
    declare v_free int;
    begin
      select least(p_count, l.slots - infernet.busy(p_offer)) into v_free from infernet.offer_load l where l.offer_id = p_offer;
      perform pg_sleep(0.002);
      return greatest(0, v_free);
    end $$";

/// An attempt that is looked at and started without the lock of its job.
const UNGUARDED_START: &str = "
    do $$
    declare
      v_whole text := pg_get_functiondef('infernet.start_one'::regproc);
      v_weak  text := replace(replace(v_whole, ' for update of j, a', ''), 'with started as', 'perform pg_sleep(0.002); with started as');
    begin
      assert v_weak not like '%for update%' and v_weak like '%pg_sleep%' and v_whole like '%for update of j, a%';
      execute v_weak;
    end $$";

/// What went on in a race of nodes for jobs.
#[derive(Debug, Default)]
struct Verdict {
    completed: usize,
    /// Attempts that were given to an offer without a free slot.
    oversubscribed: usize,
    /// Attempts that more than one agent was allowed to start.
    started_twice: usize,
    deadlocks: usize,
}

/// Lets 16 connections of one node and 16 other nodes race for `jobs` jobs that
/// are submitted over 8 connections meanwhile.
async fn race(jobs: usize, sabotage: &[&str]) -> Verdict {
    let plane = TestControlPlane::start().await;
    let market = SqlMarket::open(&plane).await;
    market.stop_time().await;
    for sql in sabotage {
        market.owner().batch_execute(sql).await.unwrap();
    }
    // The cheapest offer is the one that everybody wants.
    let shared = market.provider("shared", "owner").await;
    market.register(shared, "m", 4, "1").await;
    let mut nodes = vec![shared; 16];
    for index in 0..16 {
        // Owners and consumers of their own: a shared account would put
        // everybody in a row before they reach the slots.
        let node = market.provider(&format!("node-{index}"), &format!("owner-{index}")).await;
        market.register(node, "m", 2, "2").await;
        nodes.push(node);
    }

    let done = Arc::new(AtomicUsize::new(0));
    let started = Arc::new(std::sync::Mutex::new(Vec::new()));
    let deadlocks = Arc::new(AtomicUsize::new(0));
    let is_over = Arc::new(AtomicBool::new(false));

    let mut workers = JoinSet::new();
    for part in 0..8 {
        let consumer = market.user(&format!("consumer-{part}")).await;
        market.credit(consumer, "1000").await;
        let mut actor = market.connect(consumer).await;
        let deadlocks = Arc::clone(&deadlocks);
        workers.spawn(async move {
            for _ in (part..jobs).step_by(8) {
                let submitted = submit(&mut actor, Uuid::now_v7()).await;
                submitted.inspect_err(|error| count_deadlock(error, &deadlocks)).unwrap();
            }
        });
    }
    for node in nodes {
        let mut actor = market.connect(node).await;
        let (done, started) = (Arc::clone(&done), Arc::clone(&started));
        let (deadlocks, is_over) = (Arc::clone(&deadlocks), Arc::clone(&is_over));
        workers.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let claimed = match actor.call("claim_attempts", "'{}'").await {
                    Ok(claimed) => claimed,
                    Err(error) => {
                        count_deadlock(&error, &deadlocks);
                        continue;
                    }
                };
                for offered in claimed["attempts"].as_array().unwrap() {
                    let mut next = Some(offered["attempt"].as_str().unwrap().to_owned());
                    while let Some(attempt) = next.take() {
                        let lease = Uuid::new_v4();
                        let begun =
                            actor.call("start_attempt", &format!("'{attempt}', '{lease}'")).await;
                        let Ok(begun) = begun.inspect_err(|e| count_deadlock(e, &deadlocks)) else {
                            continue;
                        };
                        started.lock().unwrap().push(attempt.clone());
                        match actor.complete(&begun, "ok", "stop", 1, 1).await {
                            Ok(answer) => {
                                if answer["reason"].is_null() {
                                    done.fetch_add(1, Ordering::Relaxed);
                                }
                                next = answer["next"]["attempt"].as_str().map(str::to_owned);
                            }
                            Err(error) => count_deadlock(&error, &deadlocks),
                        }
                    }
                }
                if done.load(Ordering::Relaxed) >= jobs {
                    break;
                }
            }
        });
    }
    let finished = tokio::time::timeout(Duration::from_secs(120), async {
        while done.load(Ordering::Relaxed) < jobs && !workers.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    is_over.store(true, Ordering::Relaxed);
    workers.join_all().await;
    let oversubscribed = usize::try_from(market.number(OVERSUBSCRIBED).await).unwrap();
    if sabotage.is_empty() {
        assert!(finished.is_ok(), "{} of {jobs} jobs were completed", done.load(Ordering::Relaxed));
        market.prove().await;
        let left: i64 = market.number("select count(*) from infernet.live_attempts").await;
        assert_eq!(left, 0, "a slot is left taken");
        let captures = "select count(*) from public.ledger_transfers where kind = 'capture'";
        assert_eq!(market.number(captures).await, i64::try_from(jobs).unwrap());
    }
    let started = started.lock().unwrap().clone();
    let distinct: HashSet<_> = started.iter().collect();
    let verdict = Verdict {
        completed: done.load(Ordering::Relaxed),
        oversubscribed,
        started_twice: started.len() - distinct.len(),
        deadlocks: deadlocks.load(Ordering::Relaxed),
    };
    plane.stop().await;
    verdict
}

fn count_deadlock(error: &tokio_postgres::Error, deadlocks: &AtomicUsize) {
    if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) {
        deadlocks.fetch_add(1, Ordering::Relaxed);
    }
}

async fn submit(actor: &mut Actor, id: Uuid) -> Result<Value, tokio_postgres::Error> {
    let arguments = format!("'{id}', 'm', '{{\"prompt\":\"x\"}}', 'completion', 5, 0.01");
    actor.call("submit_job", &arguments).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_race_for_jobs_and_no_slot_is_given_twice() {
    let verdict = Box::pin(race(1000, &[])).await;
    assert_eq!(verdict.completed, 1000);
    assert_eq!(verdict.oversubscribed, 0, "{verdict:?}");
    assert_eq!(verdict.started_twice, 0, "{verdict:?}");
    assert_eq!(verdict.deadlocks, 0, "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_race_goes_wrong_without_the_lock_of_the_slot() {
    goes_wrong(UNGUARDED_SLOT, |verdict| verdict.oversubscribed > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_race_goes_wrong_without_the_lock_of_the_attempt() {
    goes_wrong(UNGUARDED_START, |verdict| verdict.started_twice > 0).await;
}

/// Races without a guard until it goes wrong: on a busy machine the nodes may not meet in
/// every race.
async fn goes_wrong(weakness: &'static str, did: impl Fn(&Verdict) -> bool) {
    let mut verdicts = Vec::new();
    for _race in 0..4 {
        let verdict = Box::pin(race(300, &[weakness])).await;
        if did(&verdict) {
            return;
        }
        verdicts.push(verdict);
    }
    panic!("the guard was not missed: {verdicts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_complete_fail_and_sweep_at_once_end_each_job_once() {
    let plane = TestControlPlane::start().await;
    let market = SqlMarket::open(&plane).await;
    market.set("lease_secs", json!(1)).await;
    let consumer = market.user("consumer").await;
    market.credit(consumer, "100").await;
    let mut nodes = Vec::new();
    for index in 0..4 {
        let node = market.provider(&format!("node-{index}"), "owner").await;
        market.register(node, "m", 4, "1").await;
        nodes.push(node);
    }
    let deadlocks = Arc::new(AtomicUsize::new(0));
    let mut actors = JoinSet::new();
    for index in 0..8_usize {
        let mut consumer = market.connect(consumer).await;
        let mut node = market.connect(nodes[index % 4]).await;
        let mut other = market.connect(nodes[index % 4]).await;
        let deadlocks = Arc::clone(&deadlocks);
        actors.spawn(async move {
            for round in 0..40 {
                let id = Uuid::now_v7();
                if let Err(error) = submit(&mut consumer, id).await {
                    count_deadlock(&error, &deadlocks);
                }
                let beat = node.call("heartbeat", "'{}'").await;
                let work = beat.inspect_err(|e| count_deadlock(e, &deadlocks)).unwrap_or_default();
                for offered in work["attempts"].as_array().into_iter().flatten() {
                    let attempt = offered["attempt"].as_str().unwrap();
                    let lease = Uuid::new_v4();
                    let begun =
                        node.call("start_attempt", &format!("'{attempt}', '{lease}'")).await;
                    let Ok(begun) = begun.inspect_err(|e| count_deadlock(e, &deadlocks)) else {
                        continue;
                    };
                    let cancel = format!("'{}'", begun["job"].as_str().unwrap());
                    let fail = format!("'{attempt}', '{lease}', 'engine_failed', 'x'");
                    let (completed, cancelled, failed) = tokio::join!(
                        node.complete(&begun, "ok", "stop", 1, 1),
                        consumer.call("cancel_job", &cancel),
                        async {
                            if round % 2 == 0 {
                                other.call("fail_attempt", &fail).await
                            } else {
                                other.call("heartbeat", "'{}'").await
                            }
                        },
                    );
                    for result in [completed, cancelled, failed] {
                        if let Err(error) = result {
                            count_deadlock(&error, &deadlocks);
                        }
                    }
                }
            }
        });
    }
    let owner = market.another_owner().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let ticking = Arc::clone(&is_over);
    let ticker = tokio::spawn(async move {
        let mut rounds = 0;
        while !ticking.load(Ordering::Relaxed) {
            owner.query_one("select infernet.tick()", &[]).await.unwrap();
            rounds += 1;
        }
        rounds
    });
    actors.join_all().await;
    is_over.store(true, Ordering::Relaxed);
    assert!(ticker.await.unwrap() > 0);
    assert_eq!(deadlocks.load(Ordering::Relaxed), 0);
    market.prove().await;
    let paid_twice = "select count(*) from (select job_id from public.ledger_transfers
                      where kind = 'capture' group by 1 having count(*) > 1) x";
    assert_eq!(market.number(paid_twice).await, 0);
    let slots = "select count(*) from infernet.live_attempts l full join
                 (select * from public.job_attempts where state in ('offered', 'running')) a on a.id = l.attempt_id
                 where a.id is null or l.attempt_id is null";
    assert_eq!(market.number(slots).await, 0, "slots and live attempts differ");
    plane.stop().await;
}
