//! A market for tests: people and nodes in a control plane's database, acting
//! over real connections with the rights and claims that the API gives them.

use infernet::stack::Stack;
use infernet::stack::postgres::Connection;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio_postgres::Config;
use uuid::Uuid;

/// The database of a control plane, as its owner.
pub(crate) struct SqlMarket {
    config: Config,
    owner: Connection,
}

/// One connection that acts as somebody.
pub(crate) struct Actor {
    connection: Connection,
    subject: Uuid,
}

/// Returns the public key of the actor of a name; nobody holds its secret.
fn key(name: &str) -> String {
    hex::encode(digest(&SHA256, name.as_bytes()))
}

impl SqlMarket {
    /// Opens the market of a control plane.
    pub(crate) async fn open(stack: &Stack) -> Self {
        let config = stack.database_config_for("postgres").unwrap();
        let owner = Connection::open(&config).await.unwrap();
        Self { config, owner }
    }

    /// Returns the connection of the owner of the schema.
    pub(crate) fn owner(&self) -> &Connection {
        &self.owner
    }

    /// Opens another connection of the owner of the schema.
    pub(crate) async fn another_owner(&self) -> Connection {
        Connection::open(&self.config).await.unwrap()
    }

    /// Returns one number that a query answers.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        self.owner.query_one(query, &[]).await.unwrap().get(0)
    }

    /// Changes a setting.
    pub(crate) async fn set(&self, key: &str, value: Value) {
        let changed = self
            .owner
            .execute("update public.settings set value = $2 where key = $1", &[&key, &value])
            .await
            .unwrap();
        assert_eq!(changed, 1, "there is no setting {key}");
    }

    /// Makes leases and offers last longer than any test, so that a slow machine
    /// changes nothing.
    pub(crate) async fn stop_time(&self) {
        for key in ["lease_secs", "offer_secs", "forgotten_secs", "cancel_secs", "deadline_secs"] {
            self.set(key, json!(3600)).await;
        }
    }

    /// Returns the user of a name, made if there is none.
    pub(crate) async fn user(&self, name: &str) -> Uuid {
        let query = "select infernet.ensure_user($1, $2)";
        self.owner.query_one(query, &[&key(name), &name]).await.unwrap().get(0)
    }

    /// Gives a user credit, in USD.
    pub(crate) async fn credit(&self, user: Uuid, amount: &str) {
        let sql = format!(
            "select infernet.post_transfer(gen_random_uuid(), 'grant',
               array[infernet.account('goodwill', null), infernet.account('available', '{user}')],
               array[-{amount}, {amount}])"
        );
        self.owner.batch_execute(&sql).await.unwrap();
    }

    /// Makes an approved provider of an owner.
    pub(crate) async fn provider(&self, name: &str, owner: &str) -> Uuid {
        let owner = self.user(owner).await;
        let node = Uuid::new_v4();
        let sql = format!(
            "insert into infernet.keys values ('{key}', '{node}', 'provider');
             select infernet.make_node(k, '{owner}', '{name}') from infernet.keys k where k.subject = '{node}';
             update public.providers set approval = 'approved' where id = '{node}'",
            key = key(name)
        );
        self.owner.batch_execute(&sql).await.unwrap();
        node
    }

    /// Brings a provider online with one offer, at a price in USD per million
    /// tokens.
    pub(crate) async fn register(&self, node: Uuid, model: &str, slots: u32, price: &str) {
        let offers =
            json!([{"model": model, "slots": slots, "price_input": price, "price_output": price}]);
        let mut actor = self.connect(node).await;
        actor.call("register_node", &format!("'{{}}', '{offers}', 'test'")).await.unwrap();
    }

    /// Connects as somebody.
    pub(crate) async fn connect(&self, subject: Uuid) -> Actor {
        let connection = Connection::open(&self.config).await.unwrap();
        Actor { connection, subject }
    }

    /// Fails when the books are not whole.
    pub(crate) async fn prove(&self) {
        let row = self.owner.query_one("select infernet.prove_ledger()", &[]).await.unwrap();
        let proof: Value = row.get(0);
        assert_eq!(proof["ok"], true, "{proof}");
    }
}

impl Actor {
    /// Makes a call of the API in a transaction of its own, with the arguments as SQL.
    pub(crate) async fn call(
        &mut self,
        function: &str,
        arguments: &str,
    ) -> Result<Value, tokio_postgres::Error> {
        let begin = format!(
            "begin; set local role authenticated; set local lock_timeout = '8s';
             set local request.jwt.claims = '{{\"sub\":\"{}\",\"role\":\"authenticated\"}}'",
            self.subject
        );
        self.connection.batch_execute(&begin).await?;
        let call = format!("select public.{function}({arguments})");
        match self.connection.query_one(&call, &[]).await {
            Ok(row) => {
                self.connection.batch_execute("commit").await?;
                Ok(row.get(0))
            }
            Err(error) => {
                self.connection.batch_execute("rollback").await?;
                Err(error)
            }
        }
    }

    /// Completes an attempt that `start_attempt` answered with `begun`.
    pub(crate) async fn complete(
        &mut self,
        begun: &Value,
        output: &str,
        finish: &str,
        input_tokens: u32,
        output_tokens: u32,
    ) -> Result<Value, tokio_postgres::Error> {
        let row = self
            .connection
            .query_one("select public_key from infernet.keys where subject = $1", &[&self.subject])
            .await?;
        let public_key: String = row.get(0);
        let content = json!({
            "job": begun["job"], "attempt": begun["attempt"], "node": public_key, "model": begun["model"],
            "input_sha256": begun["input_sha256"], "output_sha256": hex::encode(digest(&SHA256, output.as_bytes())),
            "finish": finish, "input_tokens": input_tokens, "output_tokens": output_tokens,
            "price_input": begun["price_input"], "price_output": begun["price_output"],
        });
        let receipt = json!({"kind": 27237, "pubkey": public_key, "content": content.to_string()});
        let usage = json!({"input_tokens": input_tokens, "output_tokens": output_tokens});
        let arguments = format!(
            "'{}', '{}', '{output}', '{finish}', '{usage}', '{receipt}'",
            begun["attempt"].as_str().unwrap_or_default(),
            begun["lease"].as_str().unwrap_or_default(),
        );
        self.call("complete_attempt", &arguments).await
    }
}
