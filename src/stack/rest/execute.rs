//! One request, one transaction: begin, one statement with all settings, the
//! query, commit. They are sent together where nothing has to be decided in
//! between, so that a request costs one round trip.
//!
//! Prepared statements are kept per role: an inlined function keeps the
//! permission check of the role that planned it first.
//!
//! A connection whose transaction did not come to its end, because the client
//! went away or the time was up, is closed and not given back to the pool.

use std::time::Duration;

use deadpool_postgres::{Object, Pool, PoolError, Timeouts};
use futures_util::future::{join, join3};
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::error::RestError;
use super::sql::{Sql, TextValue};

/// Sets everything that a transaction runs under, in order.
const SETTINGS: &str =
    "select set_config(name, value, true) from unnest($1::text[], $2::text[]) as s (name, value)";

/// How many statements a connection keeps prepared.
const MAX_PREPARED: usize = 500;

/// What to run, and how.
pub(crate) struct Work<'a> {
    pub(crate) role: &'a str,
    pub(crate) anonymous: bool,
    /// Names and values, in the order in which they are set.
    pub(crate) settings: Vec<(&'a str, String)>,
    pub(crate) isolation: Option<&'a str>,
    pub(crate) read_only: bool,
    pub(crate) query: &'a Sql,
    /// Worth being kept prepared.
    pub(crate) prepared: bool,
    /// Asks the planner for a number of rows.
    pub(crate) explain: Option<&'a Sql>,
    /// Judges the result before it is committed: an error rolls back.
    pub(crate) check: Option<&'a Check<'a>>,
    /// Rolls back after checking deferred constraints; for tests.
    pub(crate) rollback: bool,
}

/// Judges a result.
pub(crate) type Check<'a> = dyn Fn(&Outcome) -> Result<(), RestError> + Send + Sync + 'a;

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Rows in all, when counted.
    pub(crate) total: Option<i64>,
    /// Rows on this page.
    pub(crate) page: i64,
    pub(crate) body: String,
    /// What was set as `response.headers`.
    pub(crate) headers: Option<String>,
    /// What was set as `response.status`.
    pub(crate) status: Option<String>,
    /// Rows that the planner expects.
    pub(crate) planned: Option<i64>,
}

/// Takes a connection out of the pool, in PostgREST's words when there is none.
pub(crate) async fn checkout(pool: &Pool, wait: Duration) -> Result<Connection, RestError> {
    let timeouts = Timeouts { wait: Some(wait), create: Some(wait), recycle: Some(wait) };
    match pool.timeout_get(&timeouts).await {
        Ok(client) => Ok(Connection { client: Some(client), clean: true }),
        Err(PoolError::Timeout(deadpool_postgres::TimeoutType::Wait)) => {
            Err(RestError::PoolTimeout)
        }
        Err(error) => {
            tracing::warn!(error = %error, "no connection to the database");
            Err(RestError::Connection)
        }
    }
}

/// A connection that is only given back when its transaction has ended.
pub(crate) struct Connection {
    client: Option<Object>,
    clean: bool,
}

impl Connection {
    pub(crate) fn client(&self) -> &Object {
        self.client.as_ref().expect("the client is only taken when dropped")
    }

    /// Marks the connection as being inside of a transaction.
    pub(crate) fn begin(&mut self) {
        self.clean = false;
    }

    /// Marks the connection as being outside of a transaction.
    pub(crate) fn finish(&mut self) {
        self.clean = true;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.clean
            && let Some(client) = self.client.take()
        {
            drop(Object::take(client));
        }
    }
}

/// Runs one transaction.
pub(crate) async fn run(
    pool: &Pool,
    wait: Duration,
    work: &Work<'_>,
) -> Result<Outcome, RestError> {
    let mut connection = checkout(pool, wait).await?;
    let refused = |error: tokio_postgres::Error| RestError::from_postgres(&error, work.anonymous);
    let client = connection.client();
    if client.statement_cache.size() > MAX_PREPARED {
        client.statement_cache.clear();
    }
    let settings = client.prepare_cached(SETTINGS).await.map_err(refused)?;
    connection.begin();
    let client = connection.client();

    let names: Vec<&str> = work.settings.iter().map(|(name, _)| *name).collect();
    let values: Vec<&str> = work.settings.iter().map(|(_, value)| value.as_str()).collect();
    let settings_values: [&(dyn ToSql + Sync); 2] = [&names, &values];
    let begin = format!(
        "begin isolation level {}{}",
        work.isolation.unwrap_or("read committed"),
        if work.read_only { " read only" } else { "" }
    );
    let commits = work.check.is_none() && !work.rollback;
    let query = async {
        // The text names the role, and so does the key of the cache.
        let statement = if work.prepared {
            let text = format!("/* {} */ {}", hex::encode(work.role), work.query.text);
            Some(client.prepare_cached(&text).await?)
        } else {
            None
        };
        let rows = async {
            match &statement {
                Some(statement) => client.query(statement, &references(work.query)).await,
                None => client.query_typed(&work.query.text, &untyped(work.query)).await,
            }
        };
        let planned = async {
            match work.explain {
                Some(explain) => {
                    client.query_typed(&explain.text, &untyped(explain)).await.map(Some)
                }
                None => Ok(None),
            }
        };
        let end = async { if commits { client.batch_execute("commit").await } else { Ok(()) } };
        let (rows, planned, end) = join3(rows, planned, end).await;
        let mut outcome = read_outcome(rows?.first())?;
        outcome.planned = planned?.as_deref().and_then(<[Row]>::first).and_then(read_plan);
        end?;
        Ok::<_, tokio_postgres::Error>(outcome)
    };
    let before = join(client.batch_execute(&begin), client.query(&settings, &settings_values));
    let ((begun, set), result) = join(before, query).await;

    // The first failure is the cause of the others.
    let result = begun
        .and(set.map(|_| ()))
        .map_err(refused)
        .and_then(|()| result.map_err(refused))
        .map_err(|error| if error.is_follow_up() { RestError::ConnectionLost } else { error });
    let result = match (result, work.check) {
        (Ok(outcome), Some(check)) => check(&outcome).map(|()| outcome),
        (result, _) => result,
    };
    let error = match result {
        Ok(outcome) if commits => {
            connection.finish();
            return Ok(outcome);
        }
        Ok(outcome) => {
            let end =
                if work.rollback { "set constraints all immediate; rollback" } else { "commit" };
            match client.batch_execute(end).await {
                Ok(()) => {
                    connection.finish();
                    return Ok(outcome);
                }
                Err(error) => refused(error),
            }
        }
        Err(error) => error,
    };
    // After a commit that was sent along there is nothing to roll back, which is a warning only.
    if !client.is_closed() && client.batch_execute("rollback").await.is_ok() {
        connection.finish();
    }
    Err(error)
}

fn references(sql: &Sql) -> Vec<&(dyn ToSql + Sync)> {
    sql.values.iter().map(|value: &TextValue| value as &(dyn ToSql + Sync)).collect()
}

fn untyped(sql: &Sql) -> Vec<(&(dyn ToSql + Sync), Type)> {
    references(sql).into_iter().map(|value| (value, Type::UNKNOWN)).collect()
}

fn read_outcome(row: Option<&Row>) -> Result<Outcome, tokio_postgres::Error> {
    let Some(row) = row else { return Ok(Outcome::default()) };
    Ok(Outcome {
        total: row.try_get(0)?,
        page: row.try_get(1)?,
        body: row.try_get::<_, Option<String>>(2)?.unwrap_or_default(),
        headers: row.try_get(3)?,
        status: row.try_get(4)?,
        planned: None,
    })
}

/// Reads the number of rows out of a plan in JSON.
fn read_plan(row: &Row) -> Option<i64> {
    let plan: Value = row.try_get(0).ok()?;
    plan.get(0)?.get("Plan")?.get("Plan Rows")?.as_i64()
}
