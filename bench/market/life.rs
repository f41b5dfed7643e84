//! The whole life of a job over one connection: submitted by a consumer, assigned by
//! the market, started and completed by the node that got it, paid.

use std::sync::Arc;
use std::time::{Duration, Instant};

use infernet::stack::postgres::Connection;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::database::Database;
use super::world::SeededMarket;
use crate::harness::market::Failure;

/// A prompt of ordinary length.
const PROMPT: &str = "Explain in a few sentences why the sky is blue during the day and red in \
                      the evening, for somebody who has never heard of scattering. Number: ";
/// An answer of ordinary length.
const OUTPUT: &str = "Sunlight is a mixture of all colours. On its way through the air the short \
                      waves, which we see as blue, are thrown about in all directions far more \
                      than the long ones, and so they reach our eyes from every part of the sky. \
                      In the evening the light comes a longer way through the air; most of the \
                      blue has been scattered out of it by then, and what is left is red.";
/// What the node says it used.
const TOKENS: (u32, u32) = (40, 90);

/// How long the three calls of a life took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) submit: Duration,
    pub(crate) start: Duration,
    pub(crate) complete: Duration,
}

/// One connection that acts as everybody in turn.
pub(crate) struct Lane {
    connection: Connection,
    world: Arc<SeededMarket>,
    claim: Statement,
    submit: Statement,
    start: Statement,
    complete: Statement,
    heartbeat: Statement,
    submit_batch: Statement,
    claim_attempts: Statement,
    start_all: Statement,
    complete_all: Statement,
    random: fastrand::Rng,
}

impl Lane {
    /// Connects and prepares the calls.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn open(
        database: &Database,
        world: &Arc<SeededMarket>,
    ) -> Result<Self, Failure> {
        let connection = database.caller().await?;
        let claim =
            connection.prepare("select set_config('request.jwt.claims', $1, false)").await?;
        let submit = connection
            .prepare(
                "select public.submit_job(p_id => $1, p_model => $2, p_input => $3, p_max_tokens => 256)",
            )
            .await?;
        let start = connection.prepare("select public.start_attempt($1, $2)").await?;
        let complete = connection
            .prepare("select public.complete_attempt($1, $2, $3, 'stop', $4, $5)")
            .await?;
        let heartbeat = connection.prepare("select public.heartbeat(p_running => $1)").await?;
        let submit_batch = connection
            .prepare("select public.submit_batch(p_id => $1, p_model => $2, p_items => $3, p_max_tokens => 256)")
            .await?;
        let claim_attempts = connection.prepare("select public.claim_attempts()").await?;
        let start_all = connection.prepare("select public.start_attempts($1, $2)").await?;
        let complete_all = connection.prepare("select public.complete_attempts($1)").await?;
        Ok(Self {
            connection,
            world: Arc::clone(world),
            claim,
            submit,
            start,
            complete,
            heartbeat,
            submit_batch,
            claim_attempts,
            start_all,
            complete_all,
            random: fastrand::Rng::new(),
        })
    }

    /// Makes a call as somebody: the claims and the call go out in one round trip.
    async fn call(
        &self,
        subject: Uuid,
        statement: &Statement,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Value, Failure> {
        let claims = format!("{{\"sub\":\"{subject}\",\"role\":\"authenticated\"}}");
        let claims: [&(dyn ToSql + Sync); 1] = [&claims];
        let claim = self.connection.execute(&self.claim, &claims);
        let call = self.connection.query_one(statement, arguments);
        let (_, row) = tokio::try_join!(claim, call)?;
        Ok(row.get(0))
    }

    /// A random number below a bound.
    pub(crate) fn random(&mut self, below: usize) -> usize {
        self.random.usize(..below)
    }

    /// A random consumer.
    pub(crate) fn consumer(&mut self) -> Uuid {
        let number = self.random.usize(..self.world.consumers.len());
        self.world.consumers[number]
    }

    /// Submits a job for a model as a consumer.
    ///
    /// # Errors
    /// The market refuses.
    pub(crate) async fn submit(&self, consumer: Uuid, model: &str) -> Result<Value, Failure> {
        let id = Uuid::now_v7();
        self.call(consumer, &self.submit, &[&id, &model, &input(&id.to_string())]).await
    }

    /// Starts an attempt as its node.
    ///
    /// # Errors
    /// The market refuses.
    pub(crate) async fn start(&self, node: Uuid, attempt: Uuid) -> Result<Value, Failure> {
        self.call(node, &self.start, &[&attempt, &Uuid::new_v4()]).await
    }

    /// Completes an attempt as its node, from what its start answered.
    ///
    /// # Errors
    /// The market refuses, or does not accept the result.
    pub(crate) async fn complete(&self, node: Uuid, begun: &Value) -> Result<Value, Failure> {
        let (usage, receipt) = self.account(node, begun)?;
        let (attempt, lease) = (uuid_in(begun, "attempt")?, uuid_in(begun, "lease")?);
        let ended =
            self.call(node, &self.complete, &[&attempt, &lease, &OUTPUT, &usage, &receipt]).await?;
        accepted(ended)
    }

    /// The usage and the receipt of an attempt that brought the usual output.
    fn account(&self, node: Uuid, begun: &Value) -> Result<(Value, Value), Failure> {
        let key = self.world.nodes.get(&node).ok_or("A node is of another world.")?;
        let content = json!({
            "job": begun["job"], "attempt": begun["attempt"], "node": key, "model": begun["model"],
            "input_sha256": begun["input_sha256"],
            "output_sha256": hex::encode(digest(&SHA256, OUTPUT.as_bytes())),
            "finish": "stop", "input_tokens": TOKENS.0, "output_tokens": TOKENS.1,
            "price_input": begun["price_input"], "price_output": begun["price_output"],
        });
        // The signature is not looked at by SQL, but stored like any other.
        let receipt = json!({
            "id": "0".repeat(64), "kind": 27237, "pubkey": key, "created_at": 1_700_000_000,
            "tags": [], "content": content.to_string(), "sig": "0".repeat(128),
        });
        Ok((json!({ "input_tokens": TOKENS.0, "output_tokens": TOKENS.1 }), receipt))
    }

    /// Submits a batch of so many jobs for a model as a consumer.
    ///
    /// # Errors
    /// The market refuses.
    pub(crate) async fn submit_batch(
        &self,
        consumer: Uuid,
        model: &str,
        jobs: usize,
    ) -> Result<Value, Failure> {
        let id = Uuid::now_v7();
        let items: Vec<Value> = (0..jobs).map(|number| input(&format!("{id} {number}"))).collect();
        let items = Value::from(items);
        self.call(consumer, &self.submit_batch, &[&id, &model, &items]).await
    }

    /// Fetches what is offered to a node now.
    ///
    /// # Errors
    /// The market refuses.
    pub(crate) async fn claim(&self, node: Uuid) -> Result<Vec<Uuid>, Failure> {
        let work = self.call(node, &self.claim_attempts, &[]).await?;
        list(&work, "attempts")?.iter().map(|offered| uuid_in(offered, "attempt")).collect()
    }

    /// Starts several attempts as their node with one call; all must start.
    ///
    /// # Errors
    /// The market refuses one.
    pub(crate) async fn start_all(
        &self,
        node: Uuid,
        attempts: &[Uuid],
    ) -> Result<Vec<Value>, Failure> {
        let leases: Vec<Uuid> = attempts.iter().map(|_| Uuid::new_v4()).collect();
        let answer = self.call(node, &self.start_all, &[&attempts, &leases]).await?;
        let started = list(&answer, "started")?;
        match started.iter().find(|begun| !begun["refused"].is_null()) {
            Some(refused) => Err(format!("An attempt was not started: {refused}").into()),
            None => Ok(started.clone()),
        }
    }

    /// Completes several attempts as their node with one call; returns the next ones
    /// that the answer names.
    ///
    /// # Errors
    /// The market refuses, or does not accept a result.
    pub(crate) async fn complete_all(
        &self,
        node: Uuid,
        begun: &[Value],
    ) -> Result<Vec<Uuid>, Failure> {
        let results: Result<Vec<Value>, Failure> = begun
            .iter()
            .map(|begun| {
                let (usage, receipt) = self.account(node, begun)?;
                Ok(json!({
                    "attempt": begun["attempt"], "lease": begun["lease"], "output": OUTPUT,
                    "finish": "stop", "usage": usage, "receipt": receipt,
                }))
            })
            .collect();
        let answer = self.call(node, &self.complete_all, &[&Value::from(results?)]).await?;
        let mut next = Vec::new();
        for ended in list(&answer, "results")? {
            let ended = accepted(ended.clone())?;
            if ended["next"].is_object() {
                next.push(uuid_in(&ended["next"], "attempt")?);
            }
        }
        Ok(next)
    }

    /// Sends a node's heartbeat.
    ///
    /// # Errors
    /// The market refuses.
    pub(crate) async fn heartbeat(&self, node: Uuid, running: &[Uuid]) -> Result<Value, Failure> {
        self.call(node, &self.heartbeat, &[&running]).await
    }

    /// Registers a node with one offer, at the default price.
    ///
    /// # Errors
    /// The market refuses.
    pub(crate) async fn register(
        &self,
        node: Uuid,
        model: &str,
        slots: u32,
    ) -> Result<(), Failure> {
        let register = self
            .connection
            .prepare("select public.register_node('{\"platform\":\"linux\"}', $1, 'bench')")
            .await?;
        let offers = json!([{ "model": model, "slots": slots }]);
        self.call(node, &register, &[&offers]).await?;
        Ok(())
    }

    /// Lives one life: a random consumer, a random one of the models, and whatever
    /// node the market chooses.
    ///
    /// # Errors
    /// The market refuses, or has no free slot.
    pub(crate) async fn live(&mut self, models: &[String]) -> Result<Times, Failure> {
        let consumer = self.consumer();
        let model = &models[self.random(models.len())];
        let begin = Instant::now();
        let job = self.submit(consumer, model).await?;
        let submitted = Instant::now();
        let attempt =
            job.get("attempt").filter(|attempt| attempt.is_object()).ok_or_else(|| {
                format!("A job was not assigned although there are free slots: {job}")
            })?;
        let node = uuid_in(&attempt["node"], "id")?;
        let begun = self.start(node, uuid_in(attempt, "id")?).await?;
        let started = Instant::now();
        self.complete(node, &begun).await?;
        Ok(Times {
            submit: submitted - begin,
            start: started - submitted,
            complete: started.elapsed(),
        })
    }
}

/// The input of a job, which no other has.
fn input(number: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": format!("{PROMPT}{number}") }] })
}

/// The answer to a result that was taken.
fn accepted(ended: Value) -> Result<Value, Failure> {
    if ended["accepted"] == true {
        return Ok(ended);
    }
    Err(format!("A result was not accepted: {ended}").into())
}

/// A list in an answer.
fn list<'a>(answer: &'a Value, key: &str) -> Result<&'a Vec<Value>, Failure> {
    let found = answer.get(key).and_then(Value::as_array);
    found.ok_or_else(|| format!("There is no list {key} in {answer}.").into())
}

/// An id in an answer.
///
/// # Errors
/// There is none.
pub(crate) fn uuid_in(answer: &Value, key: &str) -> Result<Uuid, Failure> {
    let id = answer.get(key).and_then(Value::as_str).and_then(|id| id.parse().ok());
    id.ok_or_else(|| format!("There is no id {key} in {answer}.").into())
}
