//! Login and self-description of the embedded control plane: what
//! `/functions/v1/auth` and `/functions/v1/info` answer without Deno.
//!
//! On Supabase the same is done by `supabase/functions/auth` and `…/info`; one
//! file of vectors holds both to the same answers, words included. What is
//! decided here is only whether the event is genuine, fresh and meant for this
//! control plane ([`check_login`]). Whether its key may sign in is decided by
//! `public.consume_login`, in the same transaction that uses the event up.

mod answer;
mod signer;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header, request};
use axum::response::Response;
use axum::routing::any;
use deadpool_postgres::Pool;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Map, Value};
use tokio_postgres::types::ToSql;

pub use answer::Refusal;
pub use signer::TokenSigner;

use crate::control::BaseUrl;
use crate::control::session::{LoginAnswer, LoginKind, LoginRequest};
use crate::identity::{LoginEvent, VerifiedLogin};

/// The longest body of a login, in bytes.
pub const LOGIN_BODY_LIMIT: usize = 16 * 1024;

/// How long a token is good for, unless the operator says otherwise.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// The most time for a sender to deliver the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The most time for the database, waiting for a connection included.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(8);

/// The path of login below a base URL.
const LOGIN_PATH: &str = "/functions/v1/auth";

/// The path of the self-description below a base URL.
const INFO_PATH: &str = "/functions/v1/info";

/// What login and self-description need.
#[derive(Debug)]
pub struct AuthContext {
    /// Connections that log in as `authenticator`.
    pub pool: Pool,
    /// Signs the tokens.
    pub signer: TokenSigner,
    /// How long a token is good for; [`TOKEN_LIFETIME`] as a rule.
    pub token_lifetime: Duration,
    /// Where this control plane is published. A login event must name one of
    /// these; `Host` and forwarded headers play no part.
    pub public_urls: Vec<BaseUrl>,
    /// The control plane's name, where it is not the one in `settings`.
    pub name: Option<String>,
    /// The key that clients send with every request.
    pub publishable_key: String,
    /// Where the address of a sender is taken from.
    pub client_address: ClientAddress,
}

/// Where the address of a sender is taken from, for rate limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ClientAddress {
    /// From the connection.
    #[default]
    Peer,
    /// From a header that a trusted proxy in front sets, such as
    /// `x-forwarded-for`. Of a list the last entry counts, which is the one
    /// that the proxy itself has added.
    Header(HeaderName),
}

/// Serves login and self-description under their public paths.
///
/// The server must provide [`ConnectInfo`] of a [`SocketAddr`]; without it
/// logins are not limited by address.
pub fn router(context: AuthContext) -> Router {
    Router::new()
        .route(LOGIN_PATH, any(serve_login))
        .route(INFO_PATH, any(serve_info))
        .with_state(Arc::new(context))
}

/// Checks everything about a login that needs no database.
///
/// `authorization` is the header of that name, `urls` are the full URLs of this
/// login, `now` is in seconds since 1970.
///
/// # Errors
///
/// The refusal to answer with.
pub fn check_login(
    authorization: Option<&str>,
    urls: &[String],
    method: &str,
    body: &[u8],
    now: u64,
) -> Result<(VerifiedLogin, LoginRequest), Refusal> {
    if body.len() > LOGIN_BODY_LIMIT {
        return Err(Refusal::long_body());
    }
    let login = LoginEvent::verify(authorization, urls, method, body, now)?;
    // By way of a map, because a list would do as well for a structure.
    let fields: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| Refusal::bad_body())?;
    let request = serde_json::from_value(Value::Object(fields)).map_err(|_| Refusal::bad_body())?;
    Ok((login, request))
}

/// Answers `POST /functions/v1/auth`.
async fn serve_login(State(context): State<Arc<AuthContext>>, request: Request) -> Response {
    match log_in(&context, request).await {
        Ok(answer) => answer::json(StatusCode::OK, &answer),
        Err(refusal) => refusal.into_response(),
    }
}

/// Answers `GET /functions/v1/info`.
async fn serve_info(State(context): State<Arc<AuthContext>>, request: Request) -> Response {
    match *request.method() {
        Method::GET | Method::HEAD => match describe(&context).await {
            Ok(info) => answer::json(StatusCode::OK, &info),
            Err(refusal) => refusal.into_response(),
        },
        _ => Refusal::wrong_request("GET").into_response(),
    }
}

/// Checks a login, uses its event up and signs the token.
async fn log_in(context: &AuthContext, request: Request) -> Result<LoginAnswer, Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::wrong_request("POST"));
    }
    let (head, body) = request.into_parts();
    let body = read_body(body).await?;
    let authorization = match head.headers.get(header::AUTHORIZATION) {
        // What is not text is certainly not base64.
        Some(value) => Some(value.to_str().unwrap_or("Nostr ?")),
        None => None,
    };
    let urls: Vec<String> = context.public_urls.iter().map(|url| url.join(LOGIN_PATH)).collect();
    let now = unix_now();
    let (login, request) = check_login(authorization, &urls, "POST", &body, now)?;
    let address = context.client_address.of(&head);
    let (subject, kind) = consume_login(&context.pool, &login, &request, address).await?;
    let expires_at = now + context.token_lifetime.as_secs();
    let access_token = context
        .signer
        .sign(subject, kind, &login.public_key, now, expires_at)
        .map_err(|error| {
            tracing::error!(error = %error, "token not signed");
            Refusal::unavailable()
        })?;
    Ok(LoginAnswer {
        access_token,
        token_type: "bearer".to_owned(),
        expires_at,
        sub: subject,
        kind,
    })
}

/// Puts together what the control plane says of itself.
async fn describe(context: &AuthContext) -> Result<Map<String, Value>, Refusal> {
    let info = call(&context.pool, "anon", "select public.info()", &[]).await?;
    let Value::Object(mut info) = info else {
        tracing::error!("info() did not return an object");
        return Err(Refusal::unavailable());
    };
    if let Some(name) = &context.name {
        info.insert("name".to_owned(), Value::from(name.as_str()));
    }
    info.entry("version").or_insert_with(|| Value::from(env!("CARGO_PKG_VERSION")));
    info.insert("publishable_key".to_owned(), Value::from(context.publishable_key.as_str()));
    let urls = context.public_urls.iter().map(|url| Value::from(url.to_string())).collect();
    info.insert("urls".to_owned(), Value::Array(urls));
    Ok(info)
}

/// Uses a login event up and returns who signed in.
async fn consume_login(
    pool: &Pool,
    login: &VerifiedLogin,
    request: &LoginRequest,
    address: Option<IpAddr>,
) -> Result<(uuid::Uuid, LoginKind), Refusal> {
    let created_at = i64::try_from(login.created_at).map_err(|_| Refusal::unavailable())?;
    let address = address.map(|address| address.to_string());
    let answer = call(
        pool,
        "service_role",
        "select public.consume_login(p_event_id => $1, p_public_key => $2, p_event_time => $3, \
         p_kind => $4, p_role => $5, p_enrolment => $6, p_name => $7, p_address => $8)",
        &[
            &login.event_id,
            &login.public_key,
            &created_at,
            &request.kind.as_str(),
            &request.role,
            &request.enrolment,
            &request.name,
            &address,
        ],
    )
    .await?;
    let subject = answer.get("sub").and_then(Value::as_str).and_then(|text| text.parse().ok());
    let kind = answer.get("kind").and_then(|kind| serde_json::from_value(kind.clone()).ok());
    subject.zip(kind).ok_or_else(|| {
        tracing::error!("consume_login() did not return sub and kind");
        Refusal::unavailable()
    })
}

/// Runs one query with one JSON value as a role of the API, in a transaction.
async fn call(
    pool: &Pool,
    role: &'static str,
    query: &'static str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Value, Refusal> {
    let work = async {
        let mut connection = pool.get().await.map_err(|error| {
            tracing::error!(error = %error, "no database connection for a login");
            Refusal::unavailable()
        })?;
        run(&mut connection, role, query, parameters).await.map_err(|error| {
            Refusal::from_sql(&error).unwrap_or_else(|| {
                tracing::error!(error = %answer::chain(&error), "login query failed");
                Refusal::unavailable()
            })
        })
    };
    within(DATABASE_TIMEOUT, work).await.unwrap_or_else(|| {
        tracing::error!("the database took too long for a login");
        Err(Refusal::unavailable())
    })
}

/// Runs one query with one JSON value as a role of the API, in a transaction.
async fn run(
    connection: &mut deadpool_postgres::Client,
    role: &'static str,
    query: &'static str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Value, tokio_postgres::Error> {
    let statement = connection.prepare_cached(query).await?;
    let transaction = connection.transaction().await?;
    // The claims are those that PostgREST sets for a key of this role.
    transaction
        .batch_execute(&format!(
            "set local role {role}; \
             set local request.jwt.claims = '{{\"role\":\"{role}\"}}'"
        ))
        .await?;
    let value = transaction.query_one(&statement, parameters).await?.try_get(0)?;
    transaction.commit().await?;
    Ok(value)
}

/// Reads the body of a login.
async fn read_body(body: Body) -> Result<Vec<u8>, Refusal> {
    let collected = within(BODY_TIMEOUT, Limited::new(body, LOGIN_BODY_LIMIT).collect())
        .await
        .ok_or_else(Refusal::bad_body)?;
    match collected {
        Ok(collected) => Ok(collected.to_bytes().into()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::long_body()),
        Err(_) => Err(Refusal::bad_body()),
    }
}

/// Waits for a future; `None` when it takes too long.
async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, future).await.ok()
}

impl ClientAddress {
    /// Returns the address of a request's sender, if it is known.
    fn of(&self, head: &request::Parts) -> Option<IpAddr> {
        let peer = || {
            let peer = head.extensions.get::<ConnectInfo<SocketAddr>>();
            peer.map(|ConnectInfo(address)| address.ip().to_canonical())
        };
        match self {
            Self::Peer => peer(),
            Self::Header(name) => forwarded_address(&head.headers, name).or_else(peer),
        }
    }
}

/// Reads the last address of a header with a list of them.
fn forwarded_address(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let list = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    let last = list.rsplit(',').next()?.trim();
    let address = last.parse().ok().or_else(|| {
        // Some proxies add the port.
        last.parse::<SocketAddr>().ok().map(|address| address.ip())
    })?;
    Some(address.to_canonical())
}

/// Returns this machine's clock in seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn head(peer: &str, forwarded: &[&str]) -> request::Parts {
        let mut request = Request::builder().uri("/");
        for value in forwarded {
            request = request.header("x-forwarded-for", *value);
        }
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        head.extensions.insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        head
    }

    #[test]
    fn forwarded_headers_count_only_where_they_are_trusted() {
        let trusted = ClientAddress::Header(HeaderName::from_static("x-forwarded-for"));
        let of = |address: &ClientAddress, forwarded: &[&str]| {
            address.of(&head("[::ffff:10.0.0.1]:5000", forwarded)).unwrap().to_string()
        };
        assert_eq!(of(&ClientAddress::Peer, &["1.2.3.4"]), "10.0.0.1");
        assert_eq!(of(&trusted, &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(
            of(&trusted, &["6.6.6.6, 1.2.3.4"]),
            "1.2.3.4",
            "the first is the sender's word"
        );
        assert_eq!(of(&trusted, &["6.6.6.6", "[2001:db8::1]:9"]), "2001:db8::1");
        for nothing in [&[][..], &["unknown"], &[""]] {
            assert_eq!(of(&trusted, nothing), "10.0.0.1");
        }
    }
}
