//! What the policies on `realtime.messages` allow.
//!
//! As the real server does it, in one transaction that is always rolled back:
//! a probe row is inserted as `service_role`, then the bearer's role and claims
//! are put on; seeing the probe is the right to read, being able to insert one
//! is the right to write. All but the first go out at once, so that it costs
//! two round trips.

use deadpool_postgres::Object;
use serde_json::Value;
use thiserror::Error;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tracing::{debug, warn};
use uuid::Uuid;

use super::Service;
use super::token::Access;

/// What a bearer may do on a private topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    /// May join and receive.
    pub(super) read: bool,
    /// May send.
    pub(super) write: bool,
}

/// Why the policies could not be asked. The texts are those of refused joins.
#[derive(Debug, Error)]
pub(super) enum AuthorizationError {
    /// There is no connection to the database.
    #[error("UnableToConnectToProject: Realtime was unable to connect to the project database")]
    NoConnection,
    /// The database did not answer in time.
    #[error("QueryCanceled: The database did not answer in time")]
    Timeout,
}

/// Asks the policies what `access` may do on `topic`, given without the prefix.
///
/// # Errors
/// When the database cannot be asked. A policy that fails allows nothing.
pub(super) async fn rights(
    service: &Service,
    access: &Access,
    topic: &str,
) -> Result<Rights, AuthorizationError> {
    if !is_plain_name(&access.role) {
        return Ok(Rights::default());
    }
    let asked = async {
        let connection = service.pool.get().await.map_err(|error| {
            warn!(%error, "realtime has no database connection");
            AuthorizationError::NoConnection
        })?;
        let connection = Borrowed(Some(connection));
        let rights = ask(connection.client(), access, topic).await.map_err(|error| {
            warn!(%error, "realtime could not ask the policies");
            AuthorizationError::NoConnection
        })?;
        connection.give_back();
        Ok(rights)
    };
    tokio::time::timeout(service.limits.authorization_timeout, asked)
        .await
        .map_err(|_| AuthorizationError::Timeout)?
}

/// A connection that goes back to the pool only when it is said to be at rest.
/// Dropped before, as when the client goes away meanwhile, it is closed, and
/// its transaction with it.
struct Borrowed(Option<Object>);

impl Borrowed {
    fn client(&self) -> &Object {
        self.0.as_ref().expect("it is there until it is given back")
    }

    fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}

/// Runs the transaction. An error means that the connection is of no use; a
/// statement that fails only allows less.
async fn ask(
    client: &Object,
    access: &Access,
    topic: &str,
) -> Result<Rights, tokio_postgres::Error> {
    let role = access.role.as_str();
    let claims = Value::Object(access.claims.clone()).to_string();
    let subject = access.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    let probe = Uuid::new_v4();

    // Statements on the schema are parsed as a role that may use it.
    client.batch_execute("begin; set local role service_role").await?;
    let set_topic =
        client.prepare_cached("select pg_catalog.set_config('realtime.topic', $1, true)").await?;
    let insert_probe = client
        .prepare_cached(
            "insert into realtime.messages (id, topic, extension) values ($1, $2, 'broadcast')",
        )
        .await?;
    let as_bearer = client
        .prepare_cached(
            "select pg_catalog.set_config('role', $1, true), \
             pg_catalog.set_config('request.jwt.claims', $2, true), \
             pg_catalog.set_config('request.jwt.claim.sub', $3, true), \
             pg_catalog.set_config('request.jwt.claim.role', $1, true)",
        )
        .await?;
    // A plan is kept with the permissions of the role that first made it, so each
    // role has its own statements.
    let read = client
        .prepare_cached(&format!(
            "select 1 from realtime.messages where id = $1 and topic = $2 /* {role} */"
        ))
        .await?;
    let write = client
        .prepare_cached(&format!(
            "insert into realtime.messages (topic, extension) values ($1, 'broadcast') /* {role} */"
        ))
        .await?;

    let topic_values: [&(dyn ToSql + Sync); 1] = [&topic];
    let probe_values: [&(dyn ToSql + Sync); 2] = [&probe, &topic];
    let as_bearer_values: [&(dyn ToSql + Sync); 3] = [&role, &claims, &subject];
    // Polled in this order, and sent as polled: the protocol is pipelined.
    let (named, probed, bearer, seen, written, rolled_back) = tokio::join!(
        biased;
        client.execute(&set_topic, &topic_values),
        client.execute(&insert_probe, &probe_values),
        client.execute(&as_bearer, &as_bearer_values),
        client.query_opt(&read, &probe_values),
        client.execute(&write, &topic_values),
        client.batch_execute("rollback"),
    );
    rolled_back?;
    named?;
    probed?;
    if let Err(error) = bearer {
        debug!(%error, role, "the role of an access token cannot be taken on");
        return Ok(Rights::default());
    }
    let read = match seen {
        Ok(row) => row.is_some(),
        Err(error) => {
            debug!(%error, topic, "the policies for reading failed");
            return Ok(Rights::default());
        }
    };
    let write = match written {
        Ok(_) => true,
        Err(error) => {
            if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
                debug!(%error, topic, "the policies for writing failed");
            }
            false
        }
    };
    Ok(Rights { read, write })
}

/// Tells whether a role can stand in a comment and is one that a token may
/// name. Everything else has no rights.
fn is_plain_name(role: &str) -> bool {
    !role.is_empty()
        && role != "none"
        && role.len() <= 63
        && role.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
