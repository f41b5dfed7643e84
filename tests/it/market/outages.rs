//! Outages: of a node, of half of them, of more than half, and of our own. Time
//! is that of a clock which the test moves, second by second, with a tick at
//! each.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use crate::support::frozen_market::{FrozenMarket, FrozenServer, completion};

/// A fleet that runs jobs, with what its agents know.
struct Fleet {
    server: FrozenServer,
    market: FrozenMarket,
    consumer: Uuid,
    nodes: Vec<Uuid>,
    /// What `start_attempt` answered, by node and attempt.
    running: BTreeMap<(Uuid, Uuid), Value>,
    submitted: usize,
    /// Starts that were granted, of one job or another.
    starts: usize,
}

impl Fleet {
    /// Brings nodes online, each with four slots.
    async fn start(nodes: usize) -> Self {
        let server = FrozenServer::start().await;
        let market = server.original().await;
        let consumer = market.person("ada", "100").await;
        let owner = market.person("ben", "1").await;
        let mut fleet = Self {
            server,
            market,
            consumer,
            nodes: Vec::new(),
            running: BTreeMap::new(),
            submitted: 0,
            starts: 0,
        };
        fleet.market.tick().await;
        for index in 0..nodes {
            let node = fleet.market.node(&format!("node-{index}"), owner).await;
            let offer = r#"[{"model": "m", "slots": 4, "price_input": "1", "price_output": "1"}]"#;
            fleet
                .market
                .act(node, &format!("public.register_node('{{}}', '{offer}', 'test')"))
                .await;
            fleet.nodes.push(node);
        }
        fleet
    }

    /// Submits jobs with a deadline in two hours, which start at once where there is a
    /// free slot.
    async fn submit(&mut self, jobs: usize) {
        for _ in 0..jobs {
            let id = Uuid::now_v7();
            let input = r#"{"prompt":"x"}"#;
            let call =
                format!("public.submit_job('{id}', 'm', '{input}', 'completion', 20, 0.01, 7200)");
            self.market.act(self.consumer, &call).await;
            self.submitted += 1;
        }
        self.wake(&self.nodes.clone()).await;
    }

    /// What a node is told by a heartbeat it acts on: it starts what is offered
    /// and drops what it holds in vain.
    async fn beat(&mut self, node: Uuid) -> Value {
        let named: Vec<_> = self.of_node(node).iter().map(ToString::to_string).collect();
        let call = format!("public.heartbeat('{{{}}}')", named.join(","));
        let work = self.market.act(node, &call).await;
        for lost in work["lost"].as_array().unwrap() {
            let lost: Uuid = lost.as_str().unwrap().parse().unwrap();
            self.running.remove(&(node, lost)).expect("only what it named is lost");
        }
        for offered in work["attempts"].as_array().unwrap() {
            self.begin(node, offered["attempt"].as_str().unwrap()).await;
        }
        work
    }

    async fn begin(&mut self, node: Uuid, attempt: &str) {
        let call = format!("public.start_attempt('{attempt}', '{}')", Uuid::new_v4());
        let begun = self.market.act(node, &call).await;
        self.running.insert((node, attempt.parse().unwrap()), begun);
        self.starts += 1;
    }

    fn of_node(&self, node: Uuid) -> Vec<Uuid> {
        self.running.keys().filter(|(of, _)| *of == node).map(|(_, attempt)| *attempt).collect()
    }

    /// Completes an attempt and begins the next one. Returns the reason when the
    /// result does not count.
    async fn complete(&mut self, node: Uuid, attempt: Uuid) -> Option<String> {
        let begun = self.running.remove(&(node, attempt)).unwrap();
        let index = self.nodes.iter().position(|n| *n == node).unwrap();
        let arguments = completion(&format!("node-{index}"), &begun, "done", "stop", (9, 4));
        let answer = self.market.act(node, &format!("public.complete_attempt({arguments})")).await;
        if let Some(next) = answer["next"]["attempt"].as_str() {
            self.begin(node, next).await;
        }
        answer["reason"].as_str().map(str::to_owned)
    }

    /// Lets seconds pass: a tick each, and every fifth a heartbeat of the nodes.
    async fn pass(&mut self, secs: i64, beating: &[Uuid]) {
        for second in 1..=secs {
            self.market.pass(1000).await;
            if second % 5 == 0 {
                for node in beating {
                    self.beat(*node).await;
                }
            }
            self.market.tick().await;
            self.wake(beating).await;
        }
    }

    /// Starts what was offered to these nodes, as their wake-ups have them do.
    async fn wake(&mut self, nodes: &[Uuid]) {
        let offered: Value = self
            .market
            .read(
                "select coalesce(jsonb_agg(jsonb_build_array(provider_id, id) order by job_id), '[]')
                 from public.job_attempts where state = 'offered'",
            )
            .await;
        for pair in offered.as_array().unwrap() {
            let node = pair[0].as_str().unwrap().parse().unwrap();
            if nodes.contains(&node) {
                self.begin(node, pair[1].as_str().unwrap()).await;
            }
        }
    }

    /// Runs everything to its end on these nodes.
    async fn finish(&mut self, nodes: &[Uuid]) {
        for _ in 0..100 {
            for node in nodes {
                self.beat(*node).await;
                for attempt in self.of_node(*node) {
                    assert_eq!(self.complete(*node, attempt).await, None);
                }
            }
            if self.in_state("completed").await == self.submitted {
                break;
            }
            self.pass(1, &[]).await;
        }
    }

    async fn count(&self, query: &str) -> usize {
        let count: i64 = self.market.read(&format!("select count(*) from {query}")).await;
        usize::try_from(count).unwrap()
    }

    async fn in_state(&self, state: &str) -> usize {
        self.count(&format!("public.jobs where state = '{state}'")).await
    }

    async fn lost(&self) -> usize {
        self.count("public.job_attempts where state = 'lost'").await
    }

    async fn offline(&self) -> usize {
        self.count("public.providers where status = 'offline'").await
    }

    /// Checks that each job was completed and paid once, and that the books are
    /// whole.
    async fn settle(self) {
        assert_eq!(self.in_state("completed").await, self.submitted);
        let paid = "public.ledger_transfers where kind = 'capture'";
        assert_eq!(self.count(paid).await, self.submitted);
        let open = "public.ledger_holds where closed_at is null";
        assert_eq!(self.count(open).await, 0);
        let live = "public.job_attempts where state in ('offered', 'running')";
        assert_eq!(self.count(live).await, 0);
        assert_eq!(self.count("infernet.live_attempts").await, 0);
        assert_eq!(self.market.fault_in_books().await, None);
        drop(self.market);
        self.server.stop().await;
    }
}

#[tokio::test]
async fn a_lost_node_is_noticed_within_three_heartbeats() {
    let mut fleet = Fleet::start(2).await;
    let (first, second) = (fleet.nodes[0], fleet.nodes[1]);
    fleet.submit(6).await;
    fleet.pass(5, &[first, second]).await;
    assert_eq!(fleet.running.len(), 6);
    let held = fleet.of_node(first).len();
    assert!(held > 0);

    fleet.pass(14, &[second]).await;
    assert_eq!((fleet.lost().await, fleet.offline().await), (0, 0), "it has missed two heartbeats");
    fleet.pass(1, &[second]).await;
    assert_eq!((fleet.lost().await, fleet.offline().await), (held, 1), "it has missed three");
    fleet.finish(&[second]).await;

    // It comes back with results that somebody else has delivered.
    for attempt in fleet.of_node(first) {
        assert_eq!(fleet.complete(first, attempt).await.as_deref(), Some("fenced"));
    }
    fleet.settle().await;
}

#[tokio::test]
async fn the_silence_of_a_single_node_is_its_own_death() {
    let mut fleet = Fleet::start(1).await;
    let node = fleet.nodes[0];
    fleet.submit(4).await;
    fleet.pass(5, &[node]).await;
    assert_eq!(fleet.running.len(), 4);

    fleet.pass(15, &[]).await;
    assert_eq!((fleet.lost().await, fleet.offline().await), (4, 1));
    assert_eq!(fleet.in_state("queued").await, 4);

    // A node where a job was lost gets it again after a short wait.
    fleet.pass(3, &[]).await;
    fleet.beat(node).await;
    assert_eq!(fleet.offline().await, 0);
    assert_eq!(fleet.of_node(node).len(), 4, "it drops the old attempts and gets the jobs again");
    fleet.finish(&[node]).await;
    assert_eq!(fleet.starts, 8);
    fleet.settle().await;
}

/// How a control plane comes back: what happens first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Tick,
    Heartbeat,
    Completion,
}

/// 200 jobs run on 50 nodes when the control plane is away for an hour.
async fn an_hour_away(first: First) {
    let mut fleet = Fleet::start(50).await;
    let nodes = fleet.nodes.clone();
    fleet.submit(200).await;
    fleet.pass(5, &nodes).await;
    assert_eq!(fleet.running.len(), 200);

    fleet.market.pass(3_600_000).await;
    match first {
        First::Tick => drop(fleet.market.tick().await),
        First::Heartbeat => drop(fleet.beat(nodes[17]).await),
        First::Completion => {
            let attempt = fleet.of_node(nodes[17])[0];
            assert_eq!(fleet.complete(nodes[17], attempt).await, None);
        }
    }
    // The nodes find back one after the other, the last just before its lease
    // would be over.
    fleet.pass(4, &[]).await;
    for part in nodes.chunks(10) {
        for node in part {
            fleet.beat(*node).await;
        }
        fleet.pass(2, &[]).await;
    }
    assert_eq!((fleet.lost().await, fleet.offline().await), (0, 0));
    fleet.finish(&nodes).await;
    assert_eq!(fleet.starts, 200, "no job ran twice");
    fleet.settle().await;
}

#[tokio::test]
async fn an_hour_of_our_own_outage_loses_no_job_when_the_tick_is_first() {
    Box::pin(an_hour_away(First::Tick)).await;
}

#[tokio::test]
async fn an_hour_of_our_own_outage_loses_no_job_when_a_heartbeat_is_first() {
    Box::pin(an_hour_away(First::Heartbeat)).await;
}

#[tokio::test]
async fn an_hour_of_our_own_outage_loses_no_job_when_a_result_is_first() {
    Box::pin(an_hour_away(First::Completion)).await;
}

#[tokio::test]
async fn an_outage_of_our_own_that_nobody_notices_loses_the_jobs() {
    let mut fleet = Fleet::start(4).await;
    let nodes = fleet.nodes.clone();
    let (guard, without) = ("if p_last <> 'epoch'", "if false");
    fleet.market.weaken("infernet.notice_outage", guard, without).await;
    fleet.submit(12).await;
    fleet.pass(5, &nodes).await;
    fleet.market.pass(3_600_000).await;
    fleet.market.tick().await;
    assert_eq!((fleet.lost().await, fleet.offline().await), (12, 4));
    drop(fleet.market);
    fleet.server.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_come_back_after_our_outage_is_lost() {
    let mut fleet = Fleet::start(4).await;
    let nodes = fleet.nodes.clone();
    fleet.submit(12).await;
    fleet.pass(5, &nodes).await;
    let held = fleet.of_node(nodes[0]).len();

    fleet.market.pass(3_600_000).await;
    fleet.pass(1, &[]).await;
    for node in &nodes[1..] {
        fleet.beat(*node).await;
    }
    fleet.pass(14, &nodes[1..]).await;
    assert_eq!(fleet.lost().await, 0, "leases are spared for the time of one");
    fleet.pass(2, &nodes[1..]).await;
    assert_eq!((fleet.lost().await, fleet.offline().await), (held, 1));
    fleet.finish(&nodes[1..]).await;
    fleet.settle().await;
}

#[tokio::test]
async fn when_half_of_the_nodes_vanish_the_others_finish_their_jobs() {
    let mut fleet = Fleet::start(10).await;
    let nodes = fleet.nodes.clone();
    let (gone, left) = nodes.split_at(5);
    fleet.submit(40).await;
    fleet.pass(5, &nodes).await;
    assert_eq!(fleet.running.len(), 40);

    fleet.pass(15, left).await;
    assert_eq!((fleet.lost().await, fleet.offline().await), (20, 5), "half is no outage of ours");
    assert_eq!(fleet.in_state("queued").await, 20, "the others are full");
    fleet.finish(left).await;
    assert_eq!(fleet.starts, 60, "each was started again once, elsewhere");
    for node in gone {
        for attempt in fleet.of_node(*node) {
            assert_eq!(fleet.complete(*node, attempt).await.as_deref(), Some("fenced"));
        }
    }
    fleet.settle().await;
}

#[tokio::test]
async fn when_more_than_half_vanish_together_leases_are_spared_once() {
    let mut fleet = Fleet::start(10).await;
    let nodes = fleet.nodes.clone();
    let (gone, left) = nodes.split_at(7);
    fleet.submit(40).await;
    fleet.pass(5, &nodes).await;

    fleet.pass(15, left).await;
    assert_eq!((fleet.lost().await, fleet.offline().await), (0, 0), "it may be us");
    fleet.pass(14, left).await;
    assert_eq!((fleet.lost().await, fleet.offline().await), (0, 0));
    fleet.pass(3, left).await;
    assert_eq!((fleet.lost().await, fleet.offline().await), (28, 7), "it was not");
    fleet.finish(left).await;
    assert_eq!(fleet.starts, 68);
    for node in gone {
        for attempt in fleet.of_node(*node) {
            assert_eq!(fleet.complete(*node, attempt).await.as_deref(), Some("fenced"));
        }
    }
    fleet.settle().await;
}
