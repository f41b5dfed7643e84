//! A market in which nothing happens by itself: a database server without a
//! gateway and without its timer, a clock that stands still, and one connection
//! that acts as everybody. Each market is a copy of one that is made once.

use std::cell::Cell;

use infernet::stack::data_dir::{DataDir, DataDirLock};
use infernet::stack::postgres::{Connection, Postgres, SUPERUSER};
use infernet::stack::secrets::Secrets;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use uuid::Uuid;

use super::control_plane::{copy_template, reachable_dir};

/// Milliseconds of the clock of the database.
pub(crate) type Millis = i64;

/// When each market begins: 2026-12-01 12:00:00 UTC.
pub(crate) const BEGINNING: Millis = 1_796_126_400_000;

/// What a call answered: a value, or the word of its refusal.
pub(crate) type Answer = Result<Value, String>;

/// Hashes a text, as hex: the public key of a name, whose secret nobody holds,
/// or what a receipt says of an output.
pub(crate) fn sha256(text: &str) -> String {
    hex::encode(digest(&SHA256, text.as_bytes()))
}

/// A server with the database that the markets are copied from.
pub(crate) struct FrozenServer {
    postgres: Postgres,
    secrets: Secrets,
    superuser: Connection,
    copies: Cell<u32>,
    _lock: DataDirLock,
    _directory: tempfile::TempDir,
}

impl FrozenServer {
    /// Starts a server.
    pub(crate) async fn start() -> Self {
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
        let server = Self {
            postgres,
            secrets,
            superuser,
            copies: Cell::new(0),
            _lock: lock,
            _directory: directory,
        };
        let original = server.original().await;
        original.client.batch_execute(include_str!("frozen_market.sql")).await.unwrap();
        drop(original);
        server
    }

    async fn open(&self, database: &str) -> FrozenMarket {
        let mut config =
            self.postgres.endpoint().config("postgres", &self.secrets.postgres_password);
        let client = Connection::open(config.dbname(database)).await.unwrap();
        let mut market = FrozenMarket { client, now: 0 };
        market.set_clock(BEGINNING).await;
        market
    }

    /// Opens the market that the others are copied from; a copy cannot be made
    /// meanwhile.
    pub(crate) async fn original(&self) -> FrozenMarket {
        self.open("postgres").await
    }

    /// Makes a copy. Its chance is the same each time.
    pub(crate) async fn copy(&self) -> FrozenMarket {
        let name = format!("copy_{}", self.copies.replace(self.copies.get() + 1));
        let create = format!("create database {name} template postgres strategy file_copy");
        self.superuser.batch_execute(&create).await.unwrap();
        let market = self.open(&name).await;
        market.client.batch_execute("select setseed(0.25)").await.unwrap();
        market
    }

    /// Removes the copy that was made last.
    pub(crate) async fn remove_copy(&self) {
        let name = format!("copy_{}", self.copies.get() - 1);
        self.superuser.batch_execute(&format!("drop database {name} with (force)")).await.unwrap();
    }

    /// Stops the server.
    pub(crate) async fn stop(mut self) {
        self.postgres.stop().await;
    }
}

/// A market, and the connection that acts in it.
pub(crate) struct FrozenMarket {
    client: Connection,
    now: Millis,
}

impl FrozenMarket {
    /// Runs statements as the owner of the schema.
    pub(crate) async fn execute(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// Reads one value as the owner of the schema.
    pub(crate) async fn read<T>(&self, sql: &str) -> T
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Reads one value as the owner of the schema, which may be refused.
    pub(crate) async fn try_read(&self, sql: &str) -> Result<Answer, tokio_postgres::Error> {
        match self.client.query_one(sql, &[]).await {
            Ok(row) => Ok(Ok(row.get(0))),
            Err(error) => match error.as_db_error() {
                Some(refusal) if refusal.code().code().starts_with("PT") => {
                    Ok(Err(refusal.detail().unwrap_or_default().to_owned()))
                }
                _ => Err(error),
            },
        }
    }

    /// Moves the clock.
    pub(crate) async fn set_clock(&mut self, now: Millis) {
        self.now = now;
        let (secs, millis) = (now / 1000, now % 1000);
        let at = format!("to_timestamp({secs}.{millis:03})::text");
        self.execute(&format!("select set_config('infernet.clock', {at}, false)")).await;
    }

    /// Lets time pass, without a tick.
    pub(crate) async fn pass(&mut self, millis: Millis) {
        self.set_clock(self.now + millis).await;
    }

    /// Makes a call of the API as somebody.
    pub(crate) async fn try_act(
        &self,
        subject: Uuid,
        call: &str,
    ) -> Result<Answer, tokio_postgres::Error> {
        let row = self.client.query_one("select tests.act($1, $2)", &[&subject, &call]).await?;
        let answer: Value = row.get(0);
        Ok(match answer.get("refused") {
            Some(word) => Err(word.as_str().unwrap_or_default().to_owned()),
            None => Ok(answer["ok"].clone()),
        })
    }

    /// Takes a guard out of a function, or anything else; `without` replaces
    /// `guard`. Returns the function as it was.
    pub(crate) async fn weaken(&self, function: &str, guard: &str, without: &str) -> String {
        let whole: String =
            self.read(&format!("select pg_get_functiondef('{function}'::regproc)")).await;
        let weak = whole.replace(guard, without);
        assert!(weak != whole, "{function} has no {guard:?} any more");
        self.execute(&weak).await;
        whole
    }

    /// Makes a call that must succeed.
    pub(crate) async fn act(&self, subject: Uuid, call: &str) -> Value {
        let answer = self.try_act(subject, call).await.unwrap();
        answer.unwrap_or_else(|word| panic!("{call} was refused: {word}"))
    }

    /// Runs the tick once.
    pub(crate) async fn try_tick(&self) -> Result<Value, tokio_postgres::Error> {
        Ok(self.client.query_one("select infernet.tick()", &[]).await?.get(0))
    }

    /// Runs the tick once.
    pub(crate) async fn tick(&self) -> Value {
        self.try_tick().await.unwrap()
    }

    /// Makes a person with so much credit, in USD.
    pub(crate) async fn person(&self, name: &str, credit: &str) -> Uuid {
        let key = sha256(name);
        self.read(&format!("select tests.person('{name}', '{key}', {credit})")).await
    }

    /// Makes an operator.
    pub(crate) async fn operator(&self, name: &str) -> Uuid {
        self.read(&format!("select infernet.ensure_operator('{}', '{name}')", sha256(name))).await
    }

    /// Makes an approved node of a person.
    pub(crate) async fn node(&self, name: &str, owner: Uuid) -> Uuid {
        self.read(&format!("select tests.node('{name}', '{}', '{owner}')", sha256(name))).await
    }

    /// Says what is wrong with the books, if anything is.
    pub(crate) async fn fault_in_books(&self) -> Option<Value> {
        let proof: Value = self.read("select infernet.prove_ledger()").await;
        (proof["ok"] != true).then_some(proof)
    }
}

/// A result as `complete_attempts` takes it, with the receipt that an honest node
/// sends; `begun` is what `start_attempt` answered.
pub(crate) fn result(
    node_name: &str,
    begun: &Value,
    output: &str,
    finish: &str,
    (input_tokens, output_tokens): (u64, u64),
) -> Value {
    let public_key = sha256(node_name);
    let content = json!({
        "job": begun["job"], "attempt": begun["attempt"], "node": public_key, "model": begun["model"],
        "input_sha256": begun["input_sha256"], "output_sha256": sha256(output), "finish": finish,
        "input_tokens": input_tokens, "output_tokens": output_tokens,
        "price_input": begun["price_input"], "price_output": begun["price_output"],
    });
    json!({
        "attempt": begun["attempt"], "lease": begun["lease"], "output": output, "finish": finish,
        "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens},
        "receipt": {"kind": 27237, "pubkey": public_key, "content": content.to_string()},
    })
}

/// The same as the arguments of `complete_attempt`.
pub(crate) fn completion(
    node_name: &str,
    begun: &Value,
    output: &str,
    finish: &str,
    usage: (u64, u64),
) -> String {
    let result = result(node_name, begun, output, finish, usage);
    let text = |key: &str| result[key].as_str().unwrap_or_default().to_owned();
    format!(
        "'{}', '{}', '{output}', '{finish}', '{}', '{}'",
        text("attempt"),
        text("lease"),
        result["usage"],
        result["receipt"]
    )
}
