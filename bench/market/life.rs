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
use super::world::World;
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
    world: Arc<World>,
    claim: Statement,
    submit: Statement,
    start: Statement,
    complete: Statement,
    heartbeat: Statement,
    random: fastrand::Rng,
}

impl Lane {
    /// Connects and prepares the calls.
    ///
    /// # Errors
    /// The database refuses.
    pub(crate) async fn open(database: &Database, world: &Arc<World>) -> Result<Self, Failure> {
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
        Ok(Self {
            connection,
            world: Arc::clone(world),
            claim,
            submit,
            start,
            complete,
            heartbeat,
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
        let input = json!({ "messages": [{ "role": "user", "content": format!("{PROMPT}{id}") }] });
        self.call(consumer, &self.submit, &[&id, &model, &input]).await
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
        let usage = json!({ "input_tokens": TOKENS.0, "output_tokens": TOKENS.1 });
        let (attempt, lease) = (uuid_in(begun, "attempt")?, uuid_in(begun, "lease")?);
        let ended =
            self.call(node, &self.complete, &[&attempt, &lease, &OUTPUT, &usage, &receipt]).await?;
        if ended["accepted"] == true {
            return Ok(ended);
        }
        Err(format!("A result was not accepted: {ended}").into())
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

/// An id in an answer.
///
/// # Errors
/// There is none.
pub(crate) fn uuid_in(answer: &Value, key: &str) -> Result<Uuid, Failure> {
    let id = answer.get(key).and_then(Value::as_str).and_then(|id| id.parse().ok());
    id.ok_or_else(|| format!("There is no id {key} in {answer}.").into())
}
