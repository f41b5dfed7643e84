//! Random lives of a market against `market_model`: submits, claims, starts,
//! completions, failures, cancellations, nodes that leave or fall silent, ticks
//! and jumps of the clock.
//!
//! Each case has a database of its own, made from a template, one connection
//! that acts as everybody, and a clock that stands still between the steps. What
//! fails is shortened and printed as a list of steps, with the seed:
//! `INFERNET_PROPERTY_SEED=N cargo nextest run market_property` does it again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use infernet::stack::data_dir::{DataDir, DataDirLock};
use infernet::stack::postgres::{Connection, Postgres, SUPERUSER};
use infernet::stack::secrets::Secrets;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use ring::digest::{SHA256, digest};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::control_plane::{copy_template, reachable_dir};
use crate::market_model::{Answer, AttemptState, Call, Fault, Millis, Model, Seen, Submission};
use crate::market_steps::{Maximum, Named, Step, Steps};

/// Cases and steps of the long run; at least 10,000 steps together.
const CASES: u32 = 48;
const STEPS: usize = 215;

/// How long a planted defect is narrowed down: not at all, finding it is enough.
const SHRINK_DEFECTS: u32 = 0;

/// What `{"prompt": "x"}` and a template can be, in tokens.
pub(crate) const INPUT_BOUND: u64 = 15 + 64;

const MODELS: [&str; 2] = ["apple", "birch"];

/// When each case begins: 2026-12-01 12:00:00 UTC.
const BEGINNING: Millis = 1_796_126_400_000;

/// How the test acts and looks: apart from the calls of the API, all that it
/// knows of the schema.
const WATCHER: &str = r#"
    create schema tests;
    create function tests.act(p_subject uuid, p_sql text) returns jsonb
    language plpgsql set search_path = '' as $$
    declare
      v_answer jsonb;
      v_state  text;
      v_detail text;
      v_text   text;
    begin
      perform set_config('request.jwt.claims', jsonb_build_object('sub', p_subject, 'role', 'authenticated')::text, true);
      perform set_config('role', 'authenticated', true);
      begin
        execute 'select to_jsonb(' || p_sql || ')' into v_answer;
        v_answer := jsonb_build_object('ok', v_answer);
      exception when others then
        get stacked diagnostics v_state = returned_sqlstate, v_detail = pg_exception_detail, v_text = message_text;
        if v_state not like 'PT%' then
          raise;
        end if;
        v_answer := jsonb_build_object('refused', v_detail, 'message', v_text);
      end;
      perform set_config('role', 'none', true);
      return v_answer;
    end $$;
    -- Ids that are the same in each run, since rows are also taken in their order.
    create sequence tests.ids;
    create function tests.next_id() returns uuid
    language sql set search_path = '' as $$
      select lpad(nextval('tests.ids')::text, 32, '0')::uuid
    $$;
    alter table public.offers alter column id set default tests.next_id();
    alter table public.job_attempts alter column id set default tests.next_id();
    create function tests.ms(p_at timestamptz) returns bigint
    language sql immutable as $$ select (extract(epoch from p_at) * 1000)::bigint $$;
    create function tests.seen() returns jsonb
    language plpgsql as $$
    begin
      return (select jsonb_build_object(
        'last_tick', tests.ms(p.last_tick), 'grace_until', tests.ms(p.grace_until),
        'jobs', (select coalesce(jsonb_object_agg(j.id, jsonb_build_object(
            'consumer', j.consumer_id, 'model', j.model_name, 'state', j.state, 'attempts', j.attempts,
            'max_attempts', j.max_attempts, 'cap', j.price_cap::text, 'input_bound', j.input_bound,
            'max_tokens', j.max_tokens, 'deadline', tests.ms(j.deadline_at), 'failed_on', j.failed_on,
            'retry_after', tests.ms(j.retry_after), 'cancel_at', tests.ms(j.cancel_at), 'ended', tests.ms(j.ended_at),
            'cost', j.cost::text, 'code', j.error_code, 'hold', h.state, 'captured', h.captured::text)), '{}')
          from public.jobs j left join public.ledger_holds h on h.job_id = j.id),
        'attempts', (select coalesce(jsonb_object_agg(a.id, jsonb_build_object(
            'job', a.job_id, 'number', a.number, 'offer', a.offer_id, 'node', a.provider_id, 'state', a.state,
            'lease', a.lease, 'price_input', a.price_input::text, 'price_output', a.price_output::text,
            'offered', tests.ms(a.offered_at), 'started', tests.ms(a.started_at), 'ended', tests.ms(a.ended_at),
            'cost', a.cost::text, 'earned', a.earned::text, 'code', a.error_code)), '{}')
          from public.job_attempts a),
        'offers', (select coalesce(jsonb_object_agg(o.id, jsonb_build_object(
            'node', o.provider_id, 'model', m.name, 'slots', l.slots, 'busy', l.busy, 'enabled', o.enabled,
            'approved', o.approved, 'price_input', o.price_input::text, 'price_output', o.price_output::text)), '{}')
          from public.offers o join infernet.offer_load l on l.offer_id = o.id join public.models m on m.id = o.model_id),
        'nodes', (select jsonb_object_agg(n.node_id, jsonb_build_object(
            'owner', n.owner_id, 'lease_until', tests.ms(n.lease_until), 'approval', p.approval,
            'wants_drain', n.wants_drain, 'stopped', n.stopped, 'draining', n.draining,
            'drained_by', s.drained_by, 'paused_until', tests.ms(s.paused_until)))
          from public.node_liveness n join public.providers p on p.id = n.node_id
          left join public.node_stops s on s.node_id = n.node_id),
        'balances', (select jsonb_object_agg(party_id, money) from (
          select a.party_id, jsonb_object_agg(a.kind, a.balance::text) as money
          from public.ledger_accounts a where a.kind in ('available', 'held', 'earned') group by 1) x),
        'fees', (select sum(a.balance)::text from public.ledger_accounts a where a.kind = 'fee'))
      from infernet.pulse p);
    end $$;
    create function tests.person(p_name text, p_key text, p_credit numeric) returns uuid
    language plpgsql as $$
    declare
      v_user uuid := infernet.ensure_user(p_key, p_name);
    begin
      perform infernet.post_transfer(gen_random_uuid(), 'grant',
        array[infernet.account('goodwill', null), infernet.account('available', v_user)],
        array[-p_credit, p_credit]);
      return v_user;
    end $$;
    create function tests.node(p_name text, p_key text, p_owner uuid) returns uuid
    language plpgsql as $$
    declare
      v_key infernet.keys;
    begin
      insert into infernet.keys values (p_key, tests.next_id(), 'provider') returning * into v_key;
      perform infernet.make_node(v_key, p_owner, p_name);
      update public.providers set approval = 'approved' where id = v_key.subject;
      return v_key.subject;
    end $$;"#;

fn key(name: &str) -> String {
    hex::encode(digest(&SHA256, name.as_bytes()))
}

/// A server with the database that those of the cases are copied from.
struct Arena {
    postgres: RefCell<Postgres>,
    secrets: Secrets,
    superuser: Connection,
    people: Vec<Uuid>,
    operator: Uuid,
    nodes: Vec<Uuid>,
    databases: Cell<u32>,
    steps: Cell<usize>,
    failed_at: Rc<Cell<usize>>,
    _lock: DataDirLock,
    _directory: tempfile::TempDir,
}

impl Arena {
    /// Starts a server.
    async fn open() -> Self {
        let directory = reachable_dir();
        let path = directory.path().join("data");
        copy_template(&path).await;
        let data = DataDir::create(path).unwrap();
        let lock = data.lock().unwrap();
        let secrets = Secrets::load_or_create(&data).unwrap();
        let postgres = Postgres::start(&data, None, &secrets.superuser_password).await.unwrap();
        let mut config = postgres.endpoint().config(SUPERUSER, &secrets.superuser_password);
        let superuser = Connection::open(config.dbname("template1")).await.unwrap();
        // The data are not kept.
        superuser.batch_execute("alter system set fsync = off").await.unwrap();
        superuser.batch_execute("select pg_reload_conf()").await.unwrap();

        let config = postgres.endpoint().config("postgres", &secrets.postgres_password);
        let owner = Connection::open(&config).await.unwrap();
        owner.batch_execute(WATCHER).await.unwrap();
        let id = async |sql: String| -> Uuid { owner.query_one(&sql, &[]).await.unwrap().get(0) };
        let mut people = Vec::new();
        for name in ["ada", "ben", "cleo"] {
            people.push(id(format!("select tests.person('{name}', '{}', 0.02)", key(name))).await);
        }
        let operator =
            id(format!("select infernet.ensure_operator('{}', 'olga')", key("olga"))).await;
        let mut nodes = Vec::new();
        // Two nodes have one owner, and one belongs to a consumer.
        let owners = [&people[0], &people[1], &people[1], &operator];
        for (index, person) in owners.iter().enumerate() {
            let name = format!("node-{index}");
            nodes.push(
                id(format!("select tests.node('{name}', '{}', '{person}')", key(&name))).await,
            );
        }
        Self {
            postgres: RefCell::new(postgres),
            secrets,
            superuser,
            people,
            operator,
            nodes,
            databases: Cell::new(0),
            steps: Cell::new(0),
            failed_at: Rc::default(),
            _lock: lock,
            _directory: directory,
        }
    }

    /// Plants a defect into the databases of the cases that follow, and returns
    /// what heals it.
    async fn plant(&self, defect: &Defect) -> String {
        let owner = self.template().await;
        let read = "select pg_get_functiondef($1::text::regproc)";
        let whole: String = owner.query_one(read, &[&defect.function]).await.unwrap().get(0);
        let planted = whole.replace(defect.guard, defect.without);
        assert_ne!(planted, whole, "{} has no {:?} any more", defect.function, defect.guard);
        owner.batch_execute(&planted).await.unwrap();
        whole
    }

    /// Connects to the database that the others are copied from.
    async fn template(&self) -> Connection {
        let password = &self.secrets.postgres_password;
        let config = self.postgres.borrow().endpoint().config("postgres", password);
        Connection::open(&config).await.unwrap()
    }

    /// Lives through the steps in a database of its own.
    async fn live(&self, steps: &[Step]) -> Result<(), Fault> {
        let number = self.databases.replace(self.databases.get() + 1);
        let create = format!("create database case_{number} template postgres strategy file_copy");
        self.superuser.batch_execute(&create).await.unwrap();
        let mut config =
            self.postgres.borrow().endpoint().config("postgres", &self.secrets.postgres_password);
        let client = Connection::open(config.dbname(format!("case_{number}"))).await.unwrap();
        let result = Box::pin(self.live_on(client, steps)).await;
        let drop = format!("drop database case_{number} with (force)");
        self.superuser.batch_execute(&drop).await.unwrap();
        result
    }

    async fn live_on(&self, client: Connection, steps: &[Step]) -> Result<(), Fault> {
        // The same chance in each run of a case, so that it can be shortened.
        client.batch_execute("select setseed(0.25)").await.unwrap();
        let mut life = Life::begin(self, client).await?;
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

    async fn close(self) {
        self.postgres.into_inner().stop().await;
    }
}

/// One case.
struct Life<'a> {
    arena: &'a Arena,
    client: Connection,
    model: Model,
    /// In the order in which they were submitted.
    submissions: Vec<Submission>,
    /// What `start_attempt` answered.
    begun: BTreeMap<Uuid, Value>,
    silent: Vec<Uuid>,
    leases: u128,
}

impl<'a> Life<'a> {
    async fn begin(arena: &'a Arena, client: Connection) -> Result<Self, Fault> {
        let model = Model::new(BEGINNING, &look(&client).await);
        let mut life = Self {
            arena,
            client,
            model,
            submissions: Vec::new(),
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
            life.make(Call::Register { node: *node, offers }).await?;
        }
        Ok(life)
    }

    async fn set_clock(&mut self, now: Millis) {
        self.model.now = now;
        let clock = format!(
            "select set_config('infernet.clock', to_timestamp({}.{:03})::text, false)",
            now / 1000,
            now % 1000
        );
        self.client.batch_execute(&clock).await.unwrap();
    }

    /// Makes a call, and lets the model follow.
    async fn call(&mut self, call: Call) -> Result<Answer, Fault> {
        let answer = match sql(&call) {
            None => self.client.query_one("select infernet.tick()", &[]).await,
            Some((subject, sql)) => {
                self.client.query_one("select tests.act($1, $2)", &[&subject, &sql]).await
            }
        };
        let answer: Value = match answer {
            Ok(row) => row.get(0),
            Err(error) => {
                let why =
                    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                return Err(format!("{call:?} broke: {why}"));
            }
        };
        let answer = match answer.get("refused") {
            Some(word) => Err(word.as_str().unwrap_or_default().to_owned()),
            None => Ok(answer.get("ok").unwrap_or(&answer).clone()),
        };
        let seen = look(&self.client).await;
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

    fn submission(&self, step: &Step) -> Option<Submission> {
        let people = &self.arena.people;
        match *step {
            Step::Submit { consumer, model, tokens, maximum, deadline_secs } => Some(Submission {
                consumer: people[usize::from(consumer) % people.len()],
                job: Uuid::from_u128((7 << 76) + (2 << 62) + self.submissions.len() as u128),
                model: MODELS[usize::from(model) % MODELS.len()].to_owned(),
                tokens,
                max_cost: match maximum {
                    Maximum::Unsaid => None,
                    Maximum::Low => Some(Decimal::new(3, 4)),
                    Maximum::Enough => Some(Decimal::new(2, 3)),
                    Maximum::TooMuch => Some(Decimal::from(1000)),
                },
                deadline_secs,
            }),
            Step::SubmitAgain { job, is_changed, is_other } => {
                let count = self.submissions.len();
                let mut again = self.submissions.get(usize::from(job) % count.max(1))?.clone();
                again.tokens += u16::from(is_changed);
                if is_other {
                    let same = people.iter().position(|person| *person == again.consumer)?;
                    again.consumer = people[(same + 1) % people.len()];
                }
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
                let jobs = &self.model.jobs;
                let mut ids: Vec<Uuid> = jobs
                    .iter()
                    .filter(|(_, job)| any || !job.state.is_ended())
                    .map(|(id, _)| *id)
                    .collect();
                ids.sort_unstable();
                let Some(job) = ids.get(usize::from(job) % ids.len().max(1)).copied() else {
                    return Ok(());
                };
                let mut consumer = jobs[&job].consumer;
                if is_other {
                    let same = self.arena.people.iter().position(|p| *p == consumer).unwrap_or(0);
                    consumer = self.arena.people[(same + 1) % self.arena.people.len()];
                }
                self.make(Call::Cancel { consumer, job }).await?;
            }
            Step::Leave { node } => {
                self.make(Call::Leave { node: self.node(node) }).await?;
            }
            Step::Register { node, slots, price, both } => {
                let node = self.node(node);
                self.silent.retain(|silent| *silent != node);
                let models = &MODELS[..=usize::from(both)];
                let offer =
                    |model: &&str| ((*model).to_owned(), u32::from(slots), u32::from(price));
                self.make(Call::Register { node, offers: models.iter().map(offer).collect() })
                    .await?;
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
        let output = "y".repeat(bytes);
        let input_tokens = tokens * 3;
        let begun = self.begun.get(&attempt).cloned().unwrap_or_default();
        let index = self.arena.nodes.iter().position(|n| *n == node).unwrap_or(0);
        let public_key = key(&format!("node-{index}"));
        let content = json!({
            "job": begun["job"], "attempt": attempt, "node": public_key, "model": begun["model"],
            "input_sha256": begun["input_sha256"], "output_sha256": key(&output), "finish": finish,
            "input_tokens": input_tokens, "output_tokens": tokens,
            "price_input": begun["price_input"], "price_output": begun["price_output"],
        });
        let receipt = json!({"kind": 27237, "pubkey": public_key, "content": content.to_string()});
        let usage = (input_tokens, tokens);
        self.make(Call::Complete { node, attempt, lease, output, usage, finish, receipt }).await?;
        Ok(())
    }

    /// Lets everything run out, and checks that nothing is left over.
    async fn end(&mut self) -> Result<(), Fault> {
        self.set_clock(self.model.now + 4_000_000).await;
        self.make(Call::Tick).await?;
        self.model.check_is_over(&look(&self.client).await)?;
        self.prove().await
    }

    async fn prove(&self) -> Result<(), Fault> {
        let row = self.client.query_one("select infernet.prove_ledger()", &[]).await.unwrap();
        let proof: Value = row.get(0);
        if proof["ok"] == true { Ok(()) } else { Err(format!("the books are not whole: {proof}")) }
    }
}

async fn look(client: &Connection) -> Seen {
    let row = client.query_one("select tests.seen()", &[]).await.unwrap();
    serde_json::from_value(row.get(0)).unwrap()
}

/// Who makes a call, and how it reads in SQL; the tick is nobody's.
fn sql(call: &Call) -> Option<(Uuid, String)> {
    let array = |ids: &[Uuid]| {
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        format!("'{{{}}}'", ids.join(","))
    };
    Some(match call {
        Call::Submit(s) => {
            let max_cost = s.max_cost.map_or("null".to_owned(), |cost| cost.to_string());
            let input = r#"{"prompt":"x"}"#;
            let arguments = format!(
                "'{}', '{}', '{input}', 'completion', {}, {max_cost}, {}",
                s.job, s.model, s.tokens, s.deadline_secs
            );
            (s.consumer, format!("public.submit_job({arguments})"))
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
        Call::Complete { node, attempt, lease, output, usage, finish, receipt } => {
            let usage = json!({"input_tokens": usage.0, "output_tokens": usage.1});
            let arguments =
                format!("'{attempt}', '{lease}', '{output}', '{finish}', '{usage}', '{receipt}'");
            (*node, format!("public.complete_attempt({arguments})"))
        }
        Call::Fail { node, attempt, lease, code, retry } => (
            *node,
            format!("public.fail_attempt('{attempt}', '{lease}', '{code}', 'It broke.', {retry})"),
        ),
        Call::Cancel { consumer, job } => (*consumer, format!("public.cancel_job('{job}')")),
        Call::Leave { node } => (*node, "public.leave()".to_owned()),
        Call::Register { node, offers } => {
            let offers: Vec<_> = offers
                .iter()
                .map(|(model, slots, price)| {
                    json!({"model": model, "slots": slots, "price_input": price, "price_output": price})
                })
                .collect();
            (*node, format!("public.register_node('{{}}', '{}', 'test')", Value::from(offers)))
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
        function: "infernet.cancel_job",
        guard: "perform infernet.release_slot(v_attempt.offer_id);",
        without: "",
    },
    Defect {
        function: "infernet.complete_attempt",
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
        guard: "perform infernet.release_hold(p_job);",
        without: "",
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
fn ten_thousand_random_steps_do_what_the_model_does() {
    let runtime = runtime();
    let arena = runtime.block_on(Box::pin(Arena::open()));
    let seed = std::env::var("INFERNET_PROPERTY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let result = explore(&runtime, &arena, CASES, seed, 90_000);
    runtime.block_on(arena.close());
    let steps = result.unwrap_or_else(|fault| panic!("{fault}"));
    println!("{steps} steps, seed {seed}");
    assert!(steps >= 10_000, "only {steps} steps were taken");
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
        runtime.block_on(async { arena.template().await.batch_execute(&whole).await.unwrap() });
    }
    runtime.block_on(arena.close());
}
