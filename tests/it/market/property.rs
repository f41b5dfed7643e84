//! Random lives of a market against `market_model`: submits, claims, starts,
//! completions, failures, cancellations, nodes that leave or fall silent, ticks
//! and jumps of the clock.
//!
//! Each case has a database of its own, made from a template, one connection
//! that acts as everybody, and a clock that stands still between the steps. What
//! fails is shortened and printed as a list of steps, with the seed:
//! `INFERNET_PROPERTY_SEED=N cargo nextest run market::property` does it again.
//! `INFERNET_PROPERTY_CASES=48` is the long run, of more than 10,000 steps.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::market::model::{
    AttemptState, Call, Fault, JobState, Model, RUNNING_LIMIT, Seen, Submission,
};
use crate::market::steps::{Maximum, Named, Step, Steps};
use crate::support::frozen_market::{
    Answer, BEGINNING, FrozenMarket, FrozenServer, Millis, completion, result,
};

/// Cases, each with a seed's own steps, where nobody asks for more.
const CASES: u32 = 16;
const STEPS: usize = 215;

/// Seeds that once found a fault; they are lived through in every run. What a seed
/// means is the generator's business: a change there makes these lives others.
const SEEDS_THAT_FAILED: &[u64] = &[];

/// How long a planted defect is narrowed down: not at all, finding it is enough.
const SHRINK_DEFECTS: u32 = 0;

/// What `{"prompt": "x"}` and a template can be, in tokens.
pub(crate) const INPUT_BOUND: u64 = 15 + 64;

const MODELS: [&str; 2] = ["apple", "birch"];

/// A server, and who there is on it.
struct Arena {
    server: FrozenServer,
    people: Vec<Uuid>,
    operator: Uuid,
    nodes: Vec<Uuid>,
    steps: Cell<usize>,
    failed_at: Rc<Cell<usize>>,
}

impl Arena {
    /// Starts a server.
    async fn open() -> Self {
        let server = FrozenServer::start().await;
        let market = server.original().await;
        market.execute(include_str!("model.sql")).await;
        let mut people = Vec::new();
        for name in ["ada", "ben", "cleo"] {
            people.push(market.person(name, "0.02").await);
        }
        let operator = market.operator("olga").await;
        let mut nodes = Vec::new();
        // One consumer may run but a few jobs at a time.
        let limit = "update public.users set running_limit";
        market.execute(&format!("{limit} = {RUNNING_LIMIT} where id = '{}'", people[2])).await;
        // Two nodes have one owner, and consumers have nodes too.
        for (index, owner) in [people[0], people[1], people[1], operator].iter().enumerate() {
            nodes.push(market.node(&format!("node-{index}"), *owner).await);
        }
        Self { server, people, operator, nodes, steps: Cell::new(0), failed_at: Rc::default() }
    }

    /// Plants a defect into the markets of the cases that follow, and returns
    /// what heals it.
    async fn plant(&self, defect: &Defect) -> String {
        let market = self.server.original().await;
        market.weaken(defect.function, defect.guard, defect.without).await
    }

    /// Lives through the steps in a market of its own.
    async fn live(&self, steps: &[Step]) -> Result<(), Fault> {
        let market = self.server.copy().await;
        let result = Box::pin(self.live_in(market, steps)).await;
        self.server.remove_copy().await;
        result
    }

    async fn live_in(&self, market: FrozenMarket, steps: &[Step]) -> Result<(), Fault> {
        let mut life = Life::begin(self, market).await?;
        for (index, step) in steps.iter().enumerate() {
            self.steps.set(self.steps.get() + 1);
            let what = |fault: Fault| {
                self.failed_at.set(index + 1);
                format!("step {}: {fault}", index + 1)
            };
            Box::pin(life.step(step)).await.map_err(what)?;
            if index % 40 == 39 {
                life.prove().await.map_err(what)?;
            }
        }
        self.failed_at.set(0);
        Box::pin(life.end()).await.map_err(|fault| format!("at the end: {fault}"))
    }
}

/// One case.
struct Life<'a> {
    arena: &'a Arena,
    market: FrozenMarket,
    model: Model,
    /// In the order in which they were submitted.
    submissions: Vec<Submission>,
    batches: Vec<(Submission, u8)>,
    ids: u128,
    calls: u32,
    /// What `start_attempt` answered.
    begun: BTreeMap<Uuid, Value>,
    silent: Vec<Uuid>,
    leases: u128,
}

impl<'a> Life<'a> {
    async fn begin(arena: &'a Arena, market: FrozenMarket) -> Result<Self, Fault> {
        let mut model = Model::new(BEGINNING, &look(&market, true).await);
        model.limited = Some(arena.people[2]);
        let mut life = Self {
            arena,
            market,
            model,
            submissions: Vec::new(),
            batches: Vec::new(),
            ids: 0,
            calls: 0,
            begun: BTreeMap::new(),
            silent: Vec::new(),
            leases: 0,
        };
        life.set_clock(BEGINNING).await;
        life.make(Call::Tick).await?;
        for (index, node) in arena.nodes.iter().enumerate() {
            let slots = u32::try_from(index % 2 + 1).unwrap();
            let offers =
                MODELS[..=index % 2].iter().map(|m| ((*m).to_owned(), slots, slots)).collect();
            life.make(Call::Register { node: *node, labels: Vec::new(), offers }).await?;
        }
        Ok(life)
    }

    async fn set_clock(&mut self, now: Millis) {
        self.model.now = now;
        self.market.set_clock(now).await;
    }

    /// Makes a call, and lets the model follow.
    async fn call(&mut self, call: Call) -> Result<Answer, Fault> {
        let answer = match sql(&call) {
            None => self.market.try_tick().await.map(Ok),
            Some((subject, sql)) => self.market.try_act(subject, &sql).await,
        };
        let answer = answer.map_err(|error| {
            let why = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
            format!("{call:?} broke: {why}")
        })?;
        self.calls += 1;
        let seen = look(&self.market, self.calls.is_multiple_of(10)).await;
        let followed = self.model.follow(&call, &answer, &seen);
        followed.map_err(|fault| format!("{call:?} answered {answer:?}\n  {fault}"))?;
        Ok(answer)
    }

    /// Makes a call whose answer only the model needs.
    async fn make(&mut self, call: Call) -> Result<(), Fault> {
        self.call(call).await.map(drop)
    }

    fn node(&self, node: u8) -> Uuid {
        self.arena.nodes[usize::from(node) % self.arena.nodes.len()]
    }

    fn named(&self, node: Uuid, named: Named) -> Vec<Uuid> {
        let mut running = self.model.of_node(node, AttemptState::Running);
        running.append(&mut self.model.of_node(node, AttemptState::Offered));
        match named {
            Named::All => running,
            Named::ButOne => running.split_off(running.len().min(1)),
            Named::None => Vec::new(),
        }
    }

    /// Chooses an attempt: of the given state, or any if `any` or there is none.
    fn attempt(&self, chosen: u8, any: bool, state: AttemptState) -> Option<Uuid> {
        let attempts = &self.model.attempts;
        let mut ids: Vec<Uuid> =
            attempts.iter().filter(|(_, a)| any || a.state == state).map(|(id, _)| *id).collect();
        // Their ids are random; who was offered what, and when, is not.
        let order = |a: &Uuid| (attempts[a].offered, attempts[a].job, attempts[a].number);
        ids.sort_unstable_by_key(order);
        ids.get(usize::from(chosen) % ids.len().max(1)).copied()
    }

    fn lease(&self, attempt: Uuid, is_wrong: bool) -> Uuid {
        let lease = self.model.attempts[&attempt].lease.unwrap_or(Uuid::max());
        if is_wrong { Uuid::from_u128(1) } else { lease }
    }

    /// Makes an id for a job or a batch.
    fn next_id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128((7 << 76) + (2 << 62) + self.ids)
    }

    fn submission(&mut self, step: &Step) -> Option<Submission> {
        let people = &self.arena.people;
        match *step {
            Step::SubmitBatch { consumer, model, tokens, ref terms, takes_id, .. } => {
                let (maximum, deadline_secs) = (Maximum::Unsaid, 600);
                let terms = terms.clone();
                let submit =
                    Step::Submit { consumer, model, tokens, maximum, deadline_secs, terms };
                let mut submission = self.submission(&submit)?;
                if takes_id && let Some(known) = self.submissions.last() {
                    submission.job = known.job;
                }
                Some(submission)
            }
            Step::Submit { consumer, model, tokens, maximum, deadline_secs, ref terms } => {
                Some(Submission {
                    consumer: people[usize::from(consumer) % people.len()],
                    job: self.next_id(),
                    model: MODELS[usize::from(model) % MODELS.len()].to_owned(),
                    tokens,
                    max_cost: match maximum {
                        Maximum::Unsaid => None,
                        Maximum::Low => Some(Decimal::new(3, 4)),
                        Maximum::Enough => Some(Decimal::new(2, 3)),
                        Maximum::TooMuch => Some(Decimal::from(1000)),
                    },
                    deadline_secs,
                    priority: terms.priority,
                    delay_secs: terms.delay_secs,
                    exclude: terms.excluded.map(|node| self.node(node)).into_iter().collect(),
                    labels: terms.wants_label.then(|| "ssd".to_owned()).into_iter().collect(),
                })
            }
            Step::SubmitAgain { job, is_changed, is_other } => {
                let count = self.submissions.len();
                let mut again = self.submissions.get(usize::from(job) % count.max(1))?.clone();
                again.tokens += u16::from(is_changed);
                again.consumer = self.caller(again.consumer, is_other);
                Some(again)
            }
            _ => None,
        }
    }

    /// Carries one step out; one that has nothing to work on does nothing.
    async fn step(&mut self, step: &Step) -> Result<(), Fault> {
        match *step {
            Step::Submit { .. } | Step::SubmitAgain { .. } => {
                let Some(submission) = self.submission(step) else { return Ok(()) };
                let answer = self.call(Call::Submit(submission.clone())).await?;
                if answer.is_ok_and(|answer| answer["created"] == true) {
                    self.submissions.push(submission);
                }
            }
            Step::SubmitBatch { items, .. } => {
                let Some(submission) = self.submission(step) else { return Ok(()) };
                let answer = self.call(Call::SubmitBatch(submission.clone(), items)).await?;
                if answer.is_ok_and(|answer| answer["created"] == true) {
                    self.batches.push((submission, items));
                }
            }
            Step::SubmitBatchAgain { batch, is_changed, is_other } => {
                if let Some((mut again, items)) = self.batch(batch) {
                    again.consumer = self.caller(again.consumer, is_other);
                    self.make(Call::SubmitBatch(again, items + u8::from(is_changed))).await?;
                }
            }
            Step::CancelBatch { batch, is_other } => {
                if let Some((known, _)) = self.batch(batch) {
                    let consumer = self.caller(known.consumer, is_other);
                    self.make(Call::CancelBatch { consumer, batch: known.job }).await?;
                }
            }
            Step::Claim { node, named, restart } => {
                let node = self.node(node);
                let named = self.named(node, named);
                self.make(Call::Claim { node, named, restart }).await?;
            }
            Step::Heartbeat { node, named, draining } => {
                let node = self.node(node);
                let named = self.named(node, named);
                self.make(Call::Heartbeat { node, named, draining }).await?;
            }
            Step::Start { attempt, any, lease, is_other } => {
                let Some(attempt) = self.attempt(attempt, any, AttemptState::Offered) else {
                    return Ok(());
                };
                let node = self.model.attempts[&attempt].node;
                let node = if is_other { self.another(node) } else { node };
                self.leases += 1;
                let lease = match lease {
                    0 => self.lease(attempt, false),
                    _ => Uuid::from_u128((4 << 76) + (2 << 62) + self.leases),
                };
                let answer = self.call(Call::Start { node, attempt, lease }).await?;
                if let Ok(begun) = answer {
                    self.begun.insert(attempt, begun);
                }
            }
            Step::Complete { attempt, any, is_wrong_lease, bytes, tokens, is_stop } => {
                let Some(id) = self.attempt(attempt, any, AttemptState::Running) else {
                    return Ok(());
                };
                let finish = if is_stop { "stop" } else { "cancelled" };
                self.complete(id, is_wrong_lease, usize::from(bytes), u64::from(tokens), finish)
                    .await?;
            }
            Step::StartMany { node, other } => {
                let node = self.node(node);
                let chosen = self.with_another(node, AttemptState::Offered, other);
                let mut attempts = Vec::new();
                for id in chosen {
                    self.leases += 1;
                    let lease = Uuid::from_u128((4 << 76) + (2 << 62) + self.leases);
                    attempts.push((id, lease));
                }
                let answer = self.call(Call::StartMany { node, attempts }).await?;
                for begun in answer.unwrap_or_default()["started"].as_array().into_iter().flatten()
                {
                    if begun["refused"].is_null() {
                        let id = begun["attempt"].as_str().unwrap().parse().unwrap();
                        self.begun.insert(id, begun.clone());
                    }
                }
            }
            Step::CompleteMany { node, other, is_wrong_lease, bytes, tokens } => {
                let node = self.node(node);
                let chosen = self.with_another(node, AttemptState::Running, other);
                let is_wrong = |index: usize| is_wrong_lease && index == 0;
                let attempts: Vec<_> = chosen
                    .iter()
                    .enumerate()
                    .map(|(index, id)| (*id, self.lease(*id, is_wrong(index))))
                    .collect();
                if attempts.is_empty() {
                    return Ok(());
                }
                let (bytes, tokens) = (usize::from(bytes), u64::from(tokens));
                let (output, usage) = ("y".repeat(bytes), (tokens * 3, tokens));
                let name = self.name(node);
                let results = attempts.iter().map(|(id, lease)| {
                    result(&name, &self.begun(*id, *lease), &output, "stop", usage)
                });
                let results = Value::from_iter(results);
                self.make(Call::CompleteMany { node, attempts, bytes, usage, results }).await?;
            }
            Step::Fail { attempt, any, is_wrong_lease, code, retry } => {
                let Some(attempt) = self.attempt(attempt, any, AttemptState::Running) else {
                    return Ok(());
                };
                let codes =
                    ["engine_failed", "engine_unavailable", "bad_request", "shutdown", "deadline"];
                let code = codes[usize::from(code) % codes.len()];
                let node = self.model.attempts[&attempt].node;
                let lease = self.lease(attempt, is_wrong_lease);
                self.make(Call::Fail { node, attempt, lease, code, retry }).await?;
            }
            Step::Cancel { job, any, is_other } => {
                if let Some((consumer, job)) = self.job(job, is_other, |j| any || !j.is_ended()) {
                    self.make(Call::Cancel { consumer, job }).await?;
                }
            }
            Step::Retry { job, any, is_other } => {
                let has_failed = |j| any || matches!(j, JobState::Failed | JobState::Expired);
                if let Some((consumer, job)) = self.job(job, is_other, has_failed) {
                    self.make(Call::Retry { consumer, job }).await?;
                }
            }
            Step::Discard { job, any, is_other } => {
                let has_failed = |j| any || matches!(j, JobState::Failed | JobState::Expired);
                if let Some((consumer, job)) = self.job(job, is_other, has_failed) {
                    self.make(Call::Discard { consumer, job }).await?;
                }
            }
            Step::Leave { node } => {
                self.make(Call::Leave { node: self.node(node) }).await?;
            }
            Step::Register { node, slots, price, both, is_labelled } => {
                let node = self.node(node);
                self.silent.retain(|silent| *silent != node);
                let models = &MODELS[..=usize::from(both)];
                let offer =
                    |model: &&str| ((*model).to_owned(), u32::from(slots), u32::from(price));
                let offers = models.iter().map(offer).collect();
                let labels = is_labelled.then(|| "ssd".to_owned()).into_iter().collect();
                self.make(Call::Register { node, labels, offers }).await?;
            }
            Step::Silence { node } => self.silent.push(self.node(node)),
            Step::Approve { node, is_approved } => {
                let approval = if is_approved { "approved" } else { "suspended" };
                let (operator, node) = (self.arena.operator, self.node(node));
                self.make(Call::Approve { operator, node, approval }).await?;
            }
            Step::Drain { node, is_operator } => {
                let node = self.node(node);
                let (person, is_operator) = self.stopper(node, is_operator);
                self.make(Call::Drain { person, is_operator, node }).await?;
            }
            Step::Resume { node, is_operator } => {
                let node = self.node(node);
                let (person, is_operator) = self.stopper(node, is_operator);
                self.make(Call::Resume { person, is_operator, node }).await?;
            }
            Step::Beat { secs } => {
                self.set_clock(self.model.now + 1000 * Millis::from(secs)).await;
                for node in self.arena.nodes.clone() {
                    // A node that has left does not come back by itself.
                    if self.silent.contains(&node)
                        || self.model.nodes[&node].lease_until < self.model.now
                    {
                        continue;
                    }
                    let named = self.named(node, Named::All);
                    let draining = self.model.nodes[&node].wants_drain;
                    self.make(Call::Heartbeat { node, named, draining }).await?;
                }
                self.make(Call::Tick).await?;
            }
            Step::Wait { secs } => {
                for _ in 0..secs.div_ceil(3) {
                    self.set_clock(self.model.now + 3000).await;
                    self.make(Call::Tick).await?;
                }
            }
            Step::Tick => {
                self.make(Call::Tick).await?;
            }
            Step::Jump { secs } => self.set_clock(self.model.now + 1000 * Millis::from(secs)).await,
        }
        Ok(())
    }

    /// Chooses a job in one of some states, and who calls about it.
    fn job(
        &self,
        chosen: u8,
        is_other: bool,
        fits: impl Fn(JobState) -> bool,
    ) -> Option<(Uuid, Uuid)> {
        let jobs = self.model.jobs.iter().filter(|(_, job)| fits(job.state));
        let jobs: Vec<_> = jobs.map(|(id, job)| (job.consumer, *id)).collect();
        let (consumer, job) = jobs.get(usize::from(chosen) % jobs.len().max(1)).copied()?;
        Some((self.caller(consumer, is_other), job))
    }

    fn batch(&self, chosen: u8) -> Option<(Submission, u8)> {
        self.batches.get(usize::from(chosen) % self.batches.len().max(1)).cloned()
    }

    /// A person, or somebody else.
    fn caller(&self, person: Uuid, is_other: bool) -> Uuid {
        let people = &self.arena.people;
        let same = people.iter().position(|other| *other == person).unwrap_or(0);
        if is_other { people[(same + 1) % people.len()] } else { person }
    }

    /// Who stops or resumes a node: an operator, or a person who may not own it.
    fn stopper(&self, node: Uuid, is_operator: bool) -> (Uuid, bool) {
        let owner = self.model.nodes[&node].owner;
        if is_operator || owner == self.arena.operator {
            (self.arena.operator, true)
        } else {
            (owner, false)
        }
    }

    fn another(&self, node: Uuid) -> Uuid {
        let same = self.arena.nodes.iter().position(|n| *n == node).unwrap_or(0);
        self.arena.nodes[(same + 1) % self.arena.nodes.len()]
    }

    /// What the start of an attempt answered, if it ever started, under a lease.
    fn begun(&self, attempt: Uuid, lease: Uuid) -> Value {
        let mut begun = self.begun.get(&attempt).cloned().unwrap_or(json!({}));
        begun["attempt"] = json!(attempt);
        begun["lease"] = json!(lease);
        begun
    }

    fn name(&self, node: Uuid) -> String {
        let index = self.arena.nodes.iter().position(|n| *n == node).unwrap_or(0);
        format!("node-{index}")
    }

    /// All attempts of a node in a state, and one more of the node's.
    fn with_another(&self, node: Uuid, state: AttemptState, other: u8) -> Vec<Uuid> {
        let mut chosen = self.model.of_node(node, state);
        let of_node = self.model.attempts.iter().filter(|(_, attempt)| attempt.node == node);
        let of_node: Vec<Uuid> = of_node.map(|(id, _)| *id).collect();
        let other = of_node.get(usize::from(other) % of_node.len().max(1));
        chosen.extend(other.filter(|other| !chosen.contains(other)).copied().as_slice());
        chosen
    }

    /// Completes an attempt with the receipt that an honest node would send.
    async fn complete(
        &mut self,
        attempt: Uuid,
        is_wrong_lease: bool,
        bytes: usize,
        tokens: u64,
        finish: &'static str,
    ) -> Result<(), Fault> {
        let node = self.model.attempts[&attempt].node;
        let lease = self.lease(attempt, is_wrong_lease);
        let (begun, usage) = (self.begun(attempt, lease), (tokens * 3, tokens));
        let arguments = completion(&self.name(node), &begun, &"y".repeat(bytes), finish, usage);
        self.make(Call::Complete { node, attempt, lease, bytes, usage, finish, arguments }).await
    }

    /// Lets everything run out, and checks that nothing is left over.
    async fn end(&mut self) -> Result<(), Fault> {
        self.set_clock(self.model.now + 4_000_000).await;
        self.make(Call::Tick).await?;
        self.model.check_is_over(&look(&self.market, true).await)?;
        self.prove().await
    }

    async fn prove(&self) -> Result<(), Fault> {
        match self.market.fault_in_books().await {
            None => Ok(()),
            Some(proof) => Err(format!("the books are not whole: {proof}")),
        }
    }
}

async fn look(market: &FrozenMarket, whole: bool) -> Seen {
    let seen = market.read(&format!("select tests.seen({whole})")).await;
    serde_json::from_value(seen).unwrap()
}

/// Every job's input.
const PROMPT: &str = r#"{"prompt":"x"}"#;

fn submission_sql(function: &str, s: &Submission, input: &str) -> String {
    let max_cost = s.max_cost.map_or("null".to_owned(), |cost| cost.to_string());
    let needs = json!({"exclude": s.exclude, "labels": s.labels});
    format!(
        "public.{function}('{}', '{}', '{input}', 'completion', {}, {max_cost}, {}, null, '{needs}', {}, {})",
        s.job, s.model, s.tokens, s.deadline_secs, s.priority, s.delay_secs
    )
}

/// Who makes a call, and how it reads in SQL; the tick is nobody's.
fn sql(call: &Call) -> Option<(Uuid, String)> {
    let array = |ids: &[Uuid]| {
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        format!("'{{{}}}'", ids.join(","))
    };
    Some(match call {
        Call::Submit(s) => (s.consumer, submission_sql("submit_job", s, PROMPT)),
        Call::SubmitBatch(s, items) => {
            let inputs = vec![PROMPT; usize::from(*items)].join(",");
            (s.consumer, submission_sql("submit_batch", s, &format!("[{inputs}]")))
        }
        Call::CancelBatch { consumer, batch } => {
            (*consumer, format!("public.cancel_batch('{batch}')"))
        }
        Call::Claim { node, named, restart } => {
            (*node, format!("public.claim_attempts({}, {restart})", array(named)))
        }
        Call::Heartbeat { node, named, draining } => {
            (*node, format!("public.heartbeat({}, true, {draining})", array(named)))
        }
        Call::Start { node, attempt, lease } => {
            (*node, format!("public.start_attempt('{attempt}', '{lease}')"))
        }
        Call::StartMany { node, attempts } => {
            let (ids, leases): (Vec<_>, Vec<_>) = attempts.iter().copied().unzip();
            (*node, format!("public.start_attempts({}, {})", array(&ids), array(&leases)))
        }
        Call::CompleteMany { node, results, .. } => {
            (*node, format!("public.complete_attempts('{results}')"))
        }
        Call::Complete { node, arguments, .. } => {
            (*node, format!("public.complete_attempt({arguments})"))
        }
        Call::Fail { node, attempt, lease, code, retry } => (
            *node,
            format!("public.fail_attempt('{attempt}', '{lease}', '{code}', 'It broke.', {retry})"),
        ),
        Call::Cancel { consumer, job } => (*consumer, format!("public.cancel_job('{job}')")),
        Call::Retry { consumer, job } => (*consumer, format!("public.retry_job('{job}')")),
        Call::Discard { consumer, job } => (*consumer, format!("public.discard_job('{job}')")),
        Call::Leave { node } => (*node, "public.leave()".to_owned()),
        Call::Register { node, labels, offers } => {
            let inventory = json!({"labels": labels});
            let offers: Vec<_> = offers
                .iter()
                .map(|(model, slots, price)| {
                    json!({"model": model, "slots": slots, "price_input": price, "price_output": price})
                })
                .collect();
            (
                *node,
                format!("public.register_node('{inventory}', '{}', 'test')", Value::from(offers)),
            )
        }
        Call::Approve { operator, node, approval } => {
            (*operator, format!("public.set_node_approval('{node}', '{approval}')"))
        }
        Call::Drain { person, node, .. } => {
            (*person, format!("public.drain_node('{node}', 'Dust.')"))
        }
        Call::Resume { person, node, .. } => (*person, format!("public.resume_node('{node}')")),
        Call::Tick => return None,
    })
}

/// A guard that is taken out of a function of the schema.
struct Defect {
    function: &'static str,
    guard: &'static str,
    without: &'static str,
}

/// What the model must notice. A test fails when a guard is written otherwise
/// now, and its text here has to follow.
const DEFECTS: &[Defect] = &[
    Defect {
        function: "infernet.close_attempt",
        guard: "delete from infernet.live_attempts where job_id = v_job;",
        without: "",
    },
    Defect {
        function: "infernet.complete_one",
        guard: "v_attempt.state <> 'running' or v_attempt.lease is distinct from p_lease",
        without: "v_attempt.state <> 'running'",
    },
    Defect {
        function: "infernet.abandon_attempt",
        guard: "v_job.attempts >= v_job.max_attempts",
        without: "false",
    },
    Defect {
        function: "infernet.end_job",
        guard: "perform infernet.release_hold(v_job);",
        without: "",
    },
    Defect {
        function: "infernet.next_ids",
        guard: "order by q.priority desc, q.tag, q.job_id",
        without: "order by q.job_id",
    },
    Defect {
        function: "infernet.next_ids",
        guard: "and p_offer.provider_id <> all (q.exclude)",
        without: "",
    },
    Defect {
        function: "infernet.submit_batch",
        guard: "perform infernet.refuse(409, 'id_conflict'",
        without: "perform format('%s %s'",
    },
    Defect { function: "infernet.tick", guard: "v_pulse.grace_until <= v_now", without: "true" },
];

/// Runs cases until one fails. Returns how many steps were taken, or the
/// shortest list that fails, as text.
fn explore(
    runtime: &Runtime,
    arena: &Arena,
    cases: u32,
    seed: u64,
    shrink_millis: u32,
) -> Result<usize, String> {
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: if shrink_millis == 0 { 0 } else { 2_000 },
        max_shrink_time: shrink_millis,
        ..Config::default()
    };
    let before = arena.steps.get();
    let steps = Steps { len: STEPS, failed_at: Rc::clone(&arena.failed_at) };
    let result = TestRunner::new(config).run(&steps, |steps| {
        runtime.block_on(Box::pin(arena.live(&steps))).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => Ok(arena.steps.get() - before),
        Err(TestError::Fail(fault, list)) => {
            let list: Vec<_> =
                list.iter().enumerate().map(|(i, step)| format!("{:4}. {step:?}", i + 1)).collect();
            Err(format!("seed {seed}: {fault}\n{}", list.join("\n")))
        }
        Err(TestError::Abort(reason)) => Err(format!("seed {seed}: {reason}")),
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn random_steps_do_what_the_model_does() {
    let runtime = runtime();
    let arena = runtime.block_on(Box::pin(Arena::open()));
    let asked = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = asked("INFERNET_PROPERTY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let cases = asked("INFERNET_PROPERTY_CASES").map_or(CASES, |cases| cases.try_into().unwrap());
    let old = SEEDS_THAT_FAILED.iter().map(|seed| (*seed, CASES));
    let lived: Result<Vec<_>, _> = old
        .chain([(seed, cases)])
        .map(|(seed, cases)| explore(&runtime, &arena, cases, seed, 90_000))
        .collect();
    runtime.block_on(arena.server.stop());
    let steps = lived.unwrap_or_else(|fault| panic!("{fault}")).pop().unwrap();
    println!("{steps} steps, seed {seed}");
    let wanted = usize::try_from(cases).unwrap() * STEPS;
    assert!(steps >= wanted, "only {steps} steps of {wanted} were taken");
}

#[test]
fn the_model_notices_each_guard_that_is_missing() {
    let runtime = runtime();
    let arena = runtime.block_on(Box::pin(Arena::open()));
    for defect in DEFECTS {
        let whole = runtime.block_on(arena.plant(defect));
        let found = explore(&runtime, &arena, 20, 7, SHRINK_DEFECTS);
        let steps = arena.steps.replace(0);
        match found {
            Ok(_) => panic!("{} without {:?} went unnoticed", defect.function, defect.guard),
            Err(fault) => println!("{} after {steps} steps: {fault}\n", defect.function),
        }
        runtime.block_on(async { arena.server.original().await.execute(&whole).await });
    }
    runtime.block_on(arena.server.stop());
}
