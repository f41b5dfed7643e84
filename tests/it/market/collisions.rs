//! Calls that collide: the same result many times, the same submit many times,
//! cancel against complete, sweep against heartbeat, drain against assign. They
//! run at once over connections of their own; the clock is the test's, so that a
//! lease ends when the test wants it to. Each collision is also seen without the
//! guard that it is about, and then goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::support::frozen_market::{
    Answer, BEGINNING, FrozenMarket, FrozenServer, Millis, completion, result, sha256,
};

type Outcome = Result<Answer, tokio_postgres::Error>;

/// What a function is made to do without.
type Weakness = (&'static str, &'static str, &'static str);

/// A market with a consumer, and connections for calls that collide.
struct Arena {
    server: FrozenServer,
    market: FrozenMarket,
    consumer: Uuid,
    owner: Uuid,
    nodes: Vec<Uuid>,
    lanes: Vec<FrozenMarket>,
    faults: Vec<String>,
}

impl Arena {
    /// Starts a market, weakened if wanted, with nodes of one owner.
    async fn start(lanes: usize, nodes: usize, slots: u32, weaknesses: &[Weakness]) -> Self {
        let server = FrozenServer::start().await;
        let market = server.original().await;
        for (function, guard, without) in weaknesses {
            market.weaken(function, guard, without).await;
        }
        let consumer = market.person("ada", "100").await;
        let owner = market.person("ben", "1").await;
        let mut arena = Self {
            server,
            market,
            consumer,
            owner,
            nodes: Vec::new(),
            lanes: Vec::new(),
            faults: Vec::new(),
        };
        for _ in 0..lanes {
            arena.lanes.push(arena.server.original().await);
        }
        for index in 0..nodes {
            let node = arena.market.node(&format!("node-{index}"), owner).await;
            arena.nodes.push(node);
            arena.register(node, slots).await;
        }
        arena.market.tick().await;
        arena
    }

    async fn register(&self, node: Uuid, slots: u32) {
        let offer = format!(
            r#"[{{"model": "m", "slots": {slots}, "price_input": "1", "price_output": "1"}}]"#
        );
        self.market.act(node, &format!("public.register_node('{{}}', '{offer}', 'test')")).await;
    }

    async fn set_clock(&mut self, now: Millis) {
        self.market.set_clock(now).await;
        for lane in &mut self.lanes {
            lane.set_clock(now).await;
        }
    }

    /// Makes calls at once, each on a lane; those of nobody are the platform's own.
    async fn at_once(&mut self, calls: Vec<(Option<Uuid>, String)>) -> Vec<Outcome> {
        assert!(calls.len() <= self.lanes.len());
        let barrier = Arc::new(Barrier::new(calls.len()));
        let mut running = JoinSet::new();
        let count = calls.len();
        for (index, (subject, call)) in calls.into_iter().enumerate() {
            let lane = self.lanes.remove(0);
            let barrier = Arc::clone(&barrier);
            running.spawn(async move {
                barrier.wait().await;
                let outcome = match subject {
                    Some(subject) => lane.try_act(subject, &call).await,
                    None => lane.try_read(&format!("select to_jsonb({call})")).await,
                };
                (index, lane, outcome)
            });
        }
        let mut outcomes: Vec<Option<Outcome>> = (0..count).map(|_| None).collect();
        for (index, lane, outcome) in running.join_all().await {
            self.lanes.push(lane);
            if let Err(error) = &outcome {
                let why =
                    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                self.faults.push(format!("a call broke: {why}"));
            }
            outcomes[index] = Some(outcome);
        }
        outcomes.into_iter().flatten().collect()
    }

    async fn submit(&self, job: Uuid) -> Value {
        self.market.act(self.consumer, &submission(job)).await
    }

    async fn begin(&self, node: Uuid, attempt: &str) -> Value {
        let call = format!("public.start_attempt('{attempt}', '{}')", Uuid::new_v4());
        self.market.act(node, &call).await
    }

    fn complete(&self, node: Uuid, begun: &Value) -> String {
        let index = self.nodes.iter().position(|n| *n == node).unwrap();
        let arguments = completion(&format!("node-{index}"), begun, "done", "stop", (9, 4));
        format!("public.complete_attempt({arguments})")
    }

    fn check(&mut self, is_right: bool, fault: impl FnOnce() -> String) {
        if !is_right {
            self.faults.push(fault());
        }
    }

    async fn count(&self, query: &str) -> i64 {
        self.market.read(&format!("select count(*) from {query}")).await
    }

    /// Says what went wrong, with what is wrong with the books.
    async fn end(mut self) -> Vec<String> {
        if let Some(proof) = self.market.fault_in_books().await {
            self.faults.push(proof.to_string());
        }
        let live = "select count(*) from infernet.live_attempts l full join
            (select * from public.job_attempts where state in ('offered', 'running')) a on a.id = l.attempt_id
            where a.id is null or l.attempt_id is null";
        let differing: i64 = self.market.read(live).await;
        self.check(differing == 0, || {
            format!("{differing} attempts take a slot too much or too little")
        });
        drop((self.market, self.lanes));
        self.server.stop().await;
        self.faults
    }
}

fn submission(job: Uuid) -> String {
    format!(r#"public.submit_job('{job}', 'm', '{{"prompt":"x"}}', 'completion', 5, 0.01)"#)
}

/// The same result, 16 times at once.
async fn duplicate_results(rounds: usize, weaknesses: &[Weakness]) -> Vec<String> {
    let mut arena = Arena::start(16, 1, 1, weaknesses).await;
    let node = arena.nodes[0];
    for _ in 0..rounds {
        let job = arena.submit(Uuid::now_v7()).await;
        let begun = arena.begin(node, job["attempt"]["id"].as_str().unwrap()).await;
        let call = arena.complete(node, &begun);
        let outcomes = arena.at_once(vec![(Some(node), call); 16]).await;
        let answers: Vec<Value> = outcomes.into_iter().flatten().flatten().collect();
        let first = answers.iter().filter(|answer| answer["reason"].is_null()).count();
        let repeated = answers.iter().filter(|answer| answer["reason"] == "repeated").count();
        arena.check((first, repeated) == (1, 15), || {
            format!("{first} were first, {repeated} repeated")
        });
        if !arena.faults.is_empty() {
            break;
        }
    }
    let paid = arena.count("public.ledger_transfers where kind = 'capture'").await;
    arena.check(paid == i64::try_from(rounds).unwrap(), || {
        format!("{paid} payments for {rounds} jobs")
    });
    arena.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_handed_in_many_times_at_once_is_paid_once() {
    assert_eq!(duplicate_results(10, &[]).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_at_once_go_wrong_without_the_lock_of_the_attempt() {
    let weaknesses = [("infernet.complete_one", " for update of j, a", "")];
    assert_ne!(duplicate_results(10, &weaknesses).await, Vec::<String>::new());
}

/// Many results a call, from four nodes at once: each call pays into accounts that the
/// others pay into, in the order of its own results.
async fn many_results(rounds: usize, weaknesses: &[Weakness]) -> Vec<String> {
    const EACH: usize = 12;
    let mut arena = Arena::start(4, 4, 12, weaknesses).await;
    let nodes = arena.nodes.clone();
    for _ in 0..rounds {
        let mut results: Vec<Vec<Value>> = vec![Vec::new(); nodes.len()];
        for _ in 0..nodes.len() * EACH {
            let attempt = arena.submit(Uuid::now_v7()).await["attempt"].take();
            let node = attempt["node"]["id"].as_str().unwrap().parse().unwrap();
            let begun = arena.begin(node, attempt["id"].as_str().unwrap()).await;
            let index = nodes.iter().position(|other| *other == node).unwrap();
            let name = format!("node-{index}");
            results[index].push(result(&name, &begun, "done", "stop", (9, 4)));
        }
        let calls = nodes.iter().zip(results).map(|(node, results)| {
            (Some(*node), format!("public.complete_attempts('{}')", Value::from(results)))
        });
        let outcomes = arena.at_once(calls.collect()).await;
        let answers = outcomes.into_iter().flatten().flatten();
        let accepted: usize = answers
            .map(|answer| {
                let results = answer["results"].as_array().unwrap();
                results.iter().filter(|result| result["accepted"] == true).count()
            })
            .sum();
        arena.check(accepted == nodes.len() * EACH, || format!("only {accepted} were accepted"));
        if !arena.faults.is_empty() {
            break;
        }
    }
    arena.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_hand_in_many_results_at_once_do_not_wait_for_each_other_for_ever() {
    assert_eq!(many_results(3, &[]).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_results_at_once_go_wrong_without_the_order_of_their_accounts() {
    let weaknesses = [(
        "infernet.complete_attempts",
        "perform infernet.lock_capture_accounts(v_node.id, v_ids);",
        "",
    )];
    let faults = many_results(12, &weaknesses).await;
    assert!(faults.iter().any(|fault| fault.contains("deadlock")), "{faults:?}");
}

/// The same submit, 16 times at once.
async fn equal_submits(rounds: usize, weaknesses: &[Weakness]) -> Vec<String> {
    let mut arena = Arena::start(16, 1, 64, weaknesses).await;
    let consumer = arena.consumer;
    for _ in 0..rounds {
        let call = submission(Uuid::now_v7());
        let outcomes = arena.at_once(vec![(Some(consumer), call); 16]).await;
        let answers: Vec<Value> = outcomes.into_iter().flatten().flatten().collect();
        let created = answers.iter().filter(|answer| answer["created"] == true).count();
        let mut attempts: Vec<_> =
            answers.iter().map(|answer| answer["attempt"]["id"].to_string()).collect();
        attempts.sort_unstable();
        attempts.dedup();
        arena.check((answers.len(), created, attempts.len()) == (16, 1, 1), || {
            format!("{} answers, {created} created, attempts {attempts:?}", answers.len())
        });
        if !arena.faults.is_empty() {
            break;
        }
    }
    let jobs = arena.count("public.jobs").await;
    let holds = arena.count("public.ledger_transfers where kind = 'hold'").await;
    let rounds = i64::try_from(rounds).unwrap();
    arena.check((jobs, holds) == (rounds, rounds), || format!("{jobs} jobs, {holds} holds"));
    arena.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_submitted_many_times_at_once_is_one_job() {
    assert_eq!(equal_submits(10, &[]).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_submits_go_wrong_when_a_known_id_is_not_passed_by() {
    let weaknesses = [("infernet.hold", "on conflict (id) do nothing", "")];
    assert_ne!(equal_submits(10, &weaknesses).await, Vec::<String>::new());
}

/// A cancellation against the result of the same job.
async fn cancel_against_complete(rounds: usize, weaknesses: &[Weakness]) -> Vec<String> {
    let mut arena = Arena::start(2, 1, 1, weaknesses).await;
    let (consumer, node) = (arena.consumer, arena.nodes[0]);
    for round in 0..rounds {
        let id = Uuid::now_v7();
        let job = arena.submit(id).await;
        let begun = arena.begin(node, job["attempt"]["id"].as_str().unwrap()).await;
        let cancel = (Some(consumer), format!("public.cancel_job('{id}')"));
        let complete = (Some(node), arena.complete(node, &begun));
        // Whose call is sent first decides nothing, but moves the odds.
        let is_swapped = round % 2 == 1;
        let calls = if is_swapped { vec![complete, cancel] } else { vec![cancel, complete] };
        arena.at_once(calls).await;
        let state: String = arena
            .market
            .read(&format!("select state::text from public.jobs where id = '{id}'"))
            .await;
        let paid = arena
            .count(&format!("public.ledger_transfers where kind = 'capture' and job_id = '{id}'"))
            .await;
        arena.check(paid == 1 && (state == "completed" || state == "cancelled"), || {
            format!("the job is {state} and was paid {paid} times")
        });
        if !arena.faults.is_empty() {
            break;
        }
    }
    arena.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_cancelled_while_its_result_comes_ends_once_and_is_paid_once() {
    assert_eq!(cancel_against_complete(60, &[]).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_against_complete_goes_wrong_without_the_lock_of_the_job() {
    let weaknesses =
        [("infernet.own_job", "p_consumer for update;", "p_consumer; perform pg_sleep(0.05);")];
    assert_ne!(cancel_against_complete(10, &weaknesses).await, Vec::<String>::new());
}

/// Heartbeats that come when their leases end, against the sweep.
async fn heartbeat_against_sweep(rounds: usize, weaknesses: &[Weakness]) -> Vec<String> {
    let mut arena = Arena::start(8, 13, 1, weaknesses).await;
    let nodes = arena.nodes.clone();
    // The last seven are never late: with fewer, it would be an outage of ours.
    let (late, punctual) = nodes.split_at(6);
    let mut now = BEGINNING;
    let mut outcomes = [0, 0]; // Kept, lost.
    for _ in 0..rounds {
        let mut running = Vec::new();
        for node in punctual {
            arena.market.act(*node, "public.heartbeat(p_draining => true)").await;
        }
        arena.market.tick().await;
        for node in late {
            arena.register(*node, 1).await;
            let job = arena.submit(Uuid::now_v7()).await;
            let on = job["attempt"]["node"]["id"].as_str().unwrap().to_owned();
            let begun =
                arena.begin(on.parse().unwrap(), job["attempt"]["id"].as_str().unwrap()).await;
            running
                .push((on.parse::<Uuid>().unwrap(), begun["attempt"].as_str().unwrap().to_owned()));
        }
        // A second before the leases end; and with ticks, so that it is no outage.
        for passed in [7_000, 14_000] {
            arena.set_clock(now + passed).await;
            for node in punctual {
                arena.market.act(*node, "public.heartbeat(p_draining => true)").await;
            }
            arena.market.tick().await;
        }
        now += 15_000;
        arena.set_clock(now).await;
        let mut calls: Vec<_> = running
            .iter()
            .map(|(node, attempt)| (Some(*node), format!("public.heartbeat('{{{attempt}}}')")))
            .collect();
        calls.insert(3, (None, "infernet.tick()".to_owned()));
        calls.push((None, "infernet.tick()".to_owned()));
        let mut answers = arena.at_once(calls).await;
        drop(answers.remove(3));
        for ((_, attempt), answer) in running.iter().zip(answers) {
            let Ok(Ok(answer)) = answer else { continue };
            let is_told = answer["lost"].as_array().unwrap().iter().any(|lost| lost == attempt);
            let state: String = arena
                .market
                .read(&format!(
                    "select state::text from public.job_attempts where id = '{attempt}'"
                ))
                .await;
            outcomes[usize::from(is_told)] += 1;
            arena.check(is_told == (state == "lost") && (is_told || state == "running"), || {
                format!("attempt {attempt} is {state}, and its node was told so: {is_told}")
            });
        }
        // Nothing is left for the next round.
        for node in late {
            arena.market.act(*node, "public.leave()").await;
        }
        let consumer = arena.consumer;
        let open = "select coalesce(array_agg(id), '{}') from public.jobs where ended_at is null";
        let open: Vec<Uuid> = arena.market.read(open).await;
        for job in open {
            arena.market.act(consumer, &format!("public.cancel_job('{job}')")).await;
        }
        if !arena.faults.is_empty() {
            break;
        }
    }
    if weaknesses.is_empty() {
        assert!(outcomes[0] > 0 && outcomes[1] > 0, "it was no race: {outcomes:?}");
    }
    arena.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_and_a_sweep_at_once_agree_on_who_is_lost() {
    assert_eq!(heartbeat_against_sweep(20, &[]).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeat_against_sweep_goes_wrong_without_the_lock_of_the_node() {
    let weaknesses = [(
        "infernet.sweep_nodes",
        "perform from public.node_liveness n where n.node_id = v_node and n.lease_until <= p_now for update skip locked;\n    continue when not found;",
        "perform pg_sleep(0.02);",
    )];
    assert_ne!(heartbeat_against_sweep(10, &weaknesses).await, Vec::<String>::new());
}

/// Logins of one new key and of several with the same enrolment code.
async fn logins_with_one_code(rounds: usize, weaknesses: &[Weakness]) -> Vec<String> {
    let mut arena = Arena::start(8, 0, 1, weaknesses).await;
    let owner = arena.owner;
    for round in 0..rounds {
        let code = arena.market.act(owner, "public.make_enrolment()").await;
        let code = code["code"].as_str().unwrap().to_owned();
        // Four tries with one key, four with keys of their own.
        let calls = (0..8).map(|lane: usize| {
            let key = sha256(&format!("machine-{round}-{}", lane.saturating_sub(3)));
            let event = sha256(&format!("login-{round}-{lane}"));
            let at = BEGINNING / 1000;
            let call = format!(
                "infernet.consume_login('{event}', '{key}', {at}, 'node', 'provider', '{code}', 'x', '10.0.0.{lane}')"
            );
            (None, call)
        });
        let outcomes = arena.at_once(calls.collect()).await;
        let mut subjects: Vec<String> = outcomes
            .into_iter()
            .filter_map(|outcome| Some(outcome.ok()?.ok()?["sub"].as_str()?.to_owned()))
            .collect();
        let let_in = subjects.len();
        subjects.sort_unstable();
        subjects.dedup();
        arena.check(subjects.len() == 1, || {
            format!("{let_in} logins became the nodes {subjects:?}")
        });
        if !arena.faults.is_empty() {
            break;
        }
    }
    let nodes = arena.count("public.providers").await;
    let rounds = i64::try_from(rounds).unwrap();
    arena.check(nodes == rounds, || format!("{rounds} codes let {nodes} nodes in"));
    arena.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_enrolment_code_binds_one_key_however_many_come_at_once() {
    assert_eq!(logins_with_one_code(10, &[]).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolments_at_once_go_wrong_without_the_lock_of_the_code() {
    let weaknesses = [("infernet.enrol_node", "for update;", "; perform pg_sleep(0.02);")];
    assert_ne!(logins_with_one_code(10, &weaknesses).await, Vec::<String>::new());
}

/// How a node is taken out of the market.
#[derive(Clone, Copy)]
enum Drain {
    /// Its own wish, in a heartbeat.
    Wish,
    /// Its owner's call.
    Order,
}

/// Submits against the drain of the cheapest node.
async fn drain_against_assign(rounds: usize, drain: Drain, weaknesses: &[Weakness]) -> Vec<String> {
    let mut arena = Arena::start(9, 2, 64, weaknesses).await;
    let (drained, other, owner) = (arena.nodes[0], arena.nodes[1], arena.owner);
    let dear = r#"[{"model": "m", "slots": 64, "price_input": "9", "price_output": "9"}]"#;
    arena.market.act(other, &format!("public.register_node('{{}}', '{dear}', 'test')")).await;
    let mut landed = [0, 0];
    for _ in 0..rounds {
        let is_drained = Arc::new(AtomicBool::new(false));
        let barrier = Arc::new(Barrier::new(9));
        let mut running = JoinSet::new();
        for (index, lane) in std::mem::take(&mut arena.lanes).into_iter().enumerate() {
            let (is_drained, barrier) = (Arc::clone(&is_drained), Arc::clone(&barrier));
            let consumer = arena.consumer;
            running.spawn(async move {
                let mut answers = Vec::new();
                barrier.wait().await;
                if index == 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    let (subject, call) = match drain {
                        Drain::Wish => (drained, "public.heartbeat(p_draining => true)".to_owned()),
                        Drain::Order => (owner, format!("public.drain_node('{drained}')")),
                    };
                    answers.push((false, lane.try_act(subject, &call).await));
                    is_drained.store(true, Ordering::SeqCst);
                } else {
                    for _ in 0..4 {
                        let is_after = is_drained.load(Ordering::SeqCst);
                        let call = submission(Uuid::now_v7());
                        answers.push((is_after, lane.try_act(consumer, &call).await));
                    }
                    // Once more, when the drain is certainly over.
                    while !is_drained.load(Ordering::SeqCst) {
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    }
                    let call = submission(Uuid::now_v7());
                    answers.push((true, lane.try_act(consumer, &call).await));
                }
                (lane, answers)
            });
        }
        for (lane, answers) in running.join_all().await {
            arena.lanes.push(lane);
            for (is_after, answer) in answers {
                let answer = match answer {
                    Ok(answer) => answer.unwrap(),
                    Err(error) => {
                        arena.faults.push(format!("a call broke: {error}"));
                        continue;
                    }
                };
                let is_on_drained = answer["attempt"]["node"]["id"] == drained.to_string();
                landed[usize::from(is_on_drained)] += 1;
                arena.check(!(is_after && is_on_drained), || {
                    format!("job {} was given to a node that had been drained", answer["id"])
                });
            }
        }
        // What it got before, it is told, and finishes; then it comes back.
        for node in [drained, other] {
            let draining = node == drained && matches!(drain, Drain::Wish);
            let work = arena
                .market
                .act(node, &format!("public.heartbeat(p_draining => {draining})"))
                .await;
            for offered in work["attempts"].as_array().unwrap() {
                let begun = arena.begin(node, offered["attempt"].as_str().unwrap()).await;
                let call = arena.complete(node, &begun);
                let answer = arena.market.act(node, &call).await;
                arena.check(answer["reason"].is_null(), || {
                    format!("a result was answered {answer}")
                });
            }
        }
        match drain {
            Drain::Wish => drop(arena.market.act(drained, "public.heartbeat()").await),
            Drain::Order => {
                arena.market.act(owner, &format!("public.resume_node('{drained}')")).await;
            }
        }
        if !arena.faults.is_empty() {
            break;
        }
    }
    assert!(landed[0] > 0, "the drain never came in time");
    let open = arena.count("public.jobs where state <> 'completed'").await;
    arena.check(open == 0, || format!("{open} jobs were left behind"));
    arena.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_drains_itself_gets_no_job_that_comes_later() {
    assert_eq!(drain_against_assign(10, Drain::Wish, &[]).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_its_owner_drains_gets_no_job_that_comes_later() {
    assert_eq!(drain_against_assign(10, Drain::Order, &[]).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_against_assign_goes_wrong_when_matching_does_not_look() {
    let weaknesses = [("infernet.candidates", "when n.draining then 'takes no new work'", "")];
    assert_ne!(drain_against_assign(3, Drain::Order, &weaknesses).await, Vec::<String>::new());
}

/// The tick while a submit of the same consumer holds its accounts and is taking a turn:
/// whether the tick ended, and how many delayed jobs joined their lines then and afterwards.
async fn turn_against_tick(weaknesses: &[Weakness]) -> Option<(Value, Value)> {
    let mut arena = Arena::start(1, 1, 1, weaknesses).await;
    let submit = submission(Uuid::now_v7());
    let delayed = format!("{}, p_delay_secs => 5)", submit.strip_suffix(')').unwrap());
    arena.market.act(arena.consumer, &delayed).await;
    arena.market.pass(6_000).await;

    let submitting = &arena.lanes[0];
    submitting.execute("begin").await;
    submitting
        .execute(
            "select from public.ledger_accounts where kind in ('available', 'held') for update;
             insert into infernet.turns (consumer_id, model_id, priority, tag, updated_at)
             select consumer_id, model_id, priority, 0, now() from infernet.queue",
        )
        .await;
    arena.market.execute("set lock_timeout = '500ms'").await;
    let passed = arena.market.try_tick().await;
    submitting.execute("commit").await;
    let joined = arena.market.tick().await["joined"].clone();
    assert_eq!(arena.end().await, Vec::<String>::new());
    passed.ok().map(|tick| (tick["joined"].clone(), joined))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tick_passes_by_a_consumer_who_is_taking_a_turn() {
    assert_eq!(turn_against_tick(&[]).await, Some((0.into(), 1.into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tick_waits_for_a_turn_without_a_look_at_the_accounts() {
    let weaknesses = [("infernet.join_lines", "continue when not", "perform")];
    assert_eq!(turn_against_tick(&weaknesses).await, None);
}
