//! Realtime, embedded: broadcast channels over websockets, public and private,
//! messages of the database (`realtime.send`), and broadcasts over HTTP, with
//! the frames, words and errors of the real server.
//!
//! | module | what |
//! |---|---|
//! | `handshake` | the upgrade: version, key, refusals |
//! | `wire` | websocket frames on an upgraded connection |
//! | `socket` | one client: reads, times out |
//! | `session` | its channels: joins, answers, ends |
//! | `channel` | a joined channel and the frames for it |
//! | `join` | what a join asks for |
//! | `authorization` | what the policies on `realtime.messages` allow |
//! | `token` | access tokens, in Realtime's words |
//! | `hub` | who listens to what |
//! | `message` | one message in the form of each receiver |
//! | `outbox` | the bounded queue of frames to one client |
//! | `database` | messages that transactions leave behind |
//! | `pace` | when to look for them |
//! | `http` | `POST /api/broadcast` |
//! | `limits` | every number that bounds a client |
//!
//! Presence, `postgres_changes` and replay are not served; a client that asks
//! for one is told so in the protocol's own frames. The client is
//! `control::realtime`, which shares the frame codec.
//!
//! Invariants: delivery is at most once; messages of one sender on one topic keep
//! their order, and so do those of the database whose transactions did not overlap
//! (of others: see `database`); a private channel is never joined, written or kept
//! without the policies' consent; a slow client costs only itself.

mod authorization;
mod channel;
mod database;
mod handshake;
mod http;
mod hub;
mod join;
mod limits;
mod message;
mod outbox;
mod pace;
mod session;
mod socket;
mod token;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::map_response;
use axum::routing::{any, post};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::limits::Limits;

use self::hub::Hub;
use crate::stack::api_key::ApiKeys;
use crate::stack::commits::Commits;
use crate::stack::jwt::JwtVerifier;

/// Everything that Realtime needs from the rest of the stack.
pub struct RealtimeContext {
    /// Connections that log in as `authenticator`; authorization takes one for
    /// a round trip and always rolls back.
    pub pool: deadpool_postgres::Pool,
    /// How to open the one connection that reads messages of the database. Its
    /// role must be able to `set role service_role`, as `authenticator` is.
    pub reader: tokio_postgres::Config,
    /// Says that there may be messages. Without it they are found a few
    /// milliseconds later.
    pub commits: Commits,
    /// Verifies access tokens.
    pub verifier: Arc<JwtVerifier>,
    /// Maps `sb_` keys to tokens.
    pub api_keys: ApiKeys,
    /// Every number that bounds a client.
    pub limits: Limits,
    /// Whether public channels may be joined. Off in production: everybody with
    /// the publishable key could write to them.
    pub public_channels: bool,
    /// Ends all sockets and the reader.
    pub shutdown: CancellationToken,
    /// Owns the tasks of the sockets and of the reader; wait for it after
    /// `shutdown`.
    pub tasks: TaskTracker,
}

/// What the parts share.
struct Service {
    pool: deadpool_postgres::Pool,
    verifier: Arc<JwtVerifier>,
    api_keys: ApiKeys,
    limits: Limits,
    public_channels: bool,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    hub: Hub,
    commits: Commits,
    /// Open sockets.
    sockets: AtomicUsize,
    /// Ids of channels, over all sockets.
    channel_ids: AtomicU64,
    /// 0 while messages of the database do not flow, else the number of the
    /// reader's connection.
    database_epoch: watch::Receiver<u64>,
}

/// Starts the reader of the database and returns the routes `/websocket` and
/// `/api/broadcast…`, to be nested under `/realtime/v1`.
///
/// The HTTP server must serve connections with upgrades and should set
/// `TCP_NODELAY`, as each message is its own small write.
pub fn router(context: RealtimeContext) -> Router {
    let (epoch_sender, database_epoch) = watch::channel(0);
    let service = Arc::new(Service {
        pool: context.pool,
        verifier: context.verifier,
        api_keys: context.api_keys,
        limits: context.limits,
        public_channels: context.public_channels,
        shutdown: context.shutdown,
        tasks: context.tasks,
        hub: Hub::default(),
        commits: context.commits,
        sockets: AtomicUsize::new(0),
        channel_ids: AtomicU64::new(1),
        database_epoch,
    });
    service.tasks.spawn(database::run_reader(Arc::clone(&service), context.reader, epoch_sender));
    Router::new()
        .route("/websocket", any(handshake::upgrade))
        .route(
            "/api/broadcast",
            post(http::broadcast_batch)
                .fallback(http::not_found)
                .layer(map_response(http::allow_any_origin)),
        )
        .route(
            "/api/broadcast/{topic}/events/{event}",
            post(http::broadcast_single)
                .fallback(http::not_found)
                .layer(map_response(http::allow_any_origin)),
        )
        .layer(DefaultBodyLimit::max(service.limits.max_body_bytes))
        .with_state(service)
}
