//! The embedded control plane behind `infernet up`: the same URLs, headers,
//! JSON, error codes and frames as the real Supabase, as a stated subset.
//!
//! [`Stack`] puts the parts together and takes them apart again: the data
//! directory and its lock ([`data_dir`]), generated [`secrets`], the server of
//! the database ([`postgres`]), its schema ([`migrate`]), and in front the
//! gateway with [`rest`], [`realtime`], login and self-description ([`auth`])
//! and [`functions`]. [`jwt`] and [`api_key`] are what all of them know a caller
//! by.
//!
//! Invariants: the gateway answers only after the migrations; it stops before
//! the database does; every task belongs to the stack and ends with it.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::{Router, middleware};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::NoTls;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::api_key::ApiKeys;
use self::auth::{AuthContext, ClientAddress, TOKEN_LIFETIME, TokenSigner};
use self::commits::Commits;
use self::data_dir::{DataDir, DataDirError, DataDirLock, Running};
use self::functions::{Functions, FunctionsContext, FunctionsError};
use self::jwt::JwtVerifier;
use self::migrate::MigrateError;
use self::postgres::{Endpoint, Postgres, PostgresError, SUPERUSER};
use self::realtime::RealtimeContext;
use self::rest::{Rest, RestContext};
use self::secrets::{Secrets, SecretsError};
use crate::control::{BaseUrl, BaseUrlError, PlainHttp};
use crate::identity::{KeyFileError, Keys};

pub mod api_key;
pub mod auth;
pub mod commits;
pub mod data_dir;
pub mod functions;
mod gateway;
pub mod jwt;
pub mod migrate;
pub mod postgres;
pub mod realtime;
pub mod rest;
pub mod secrets;
mod timer;

/// The port of the gateway, as of a local Supabase.
pub const DEFAULT_PORT: u16 = 54321;

/// How the connection that reads for Realtime calls itself, by which `/health`
/// finds it.
const READER_NAME: &str = "infernet realtime";
/// Connections of the gateway to the database; the server takes 100.
const POOL_SIZE: usize = 32;
/// How long a request may wait for a connection, or for making one.
const POOL_LIMIT: Duration = Duration::from_secs(5);
/// Messages that this gateway is said to deliver in a second, to all its clients:
/// enough for 64 streams of 50 tokens a second, each token at once.
const REALTIME_MESSAGES_PER_SECOND: i32 = 12_000;
/// How long clients of Realtime may take to say goodbye.
const SOCKET_LIMIT: Duration = Duration::from_secs(3);

/// Why a control plane cannot be started or kept up.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The data directory cannot be used, or is in use.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The secrets cannot be read or made.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The database server cannot be run.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The schema cannot be brought up to date.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// Somebody has the port of the gateway.
    #[error("Port {port} of {address} is in use; stop what uses it or choose another with --port")]
    PortInUse {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// The gateway cannot listen.
    #[error("The gateway cannot listen on {address}; choose another with --bind and --port")]
    Listen {
        /// The address and port.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A key of the project is unusable.
    #[error("A key in the data directory cannot be used")]
    Key(#[from] jwt::KeyError),
    /// The operator's key cannot be read or made.
    #[error(transparent)]
    OperatorKey(#[from] KeyFileError),
    /// The operator's row cannot be written.
    #[error("The operator cannot be written down")]
    Operator(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The settings of a new market cannot be written.
    #[error("The settings of the new market cannot be written down")]
    Settings(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address of the gateway is no base URL.
    #[error(transparent)]
    Url(#[from] BaseUrlError),
    /// The functions cannot be prepared.
    #[error(transparent)]
    Functions(#[from] FunctionsError),
    /// The pool of connections cannot be made.
    #[error("The connections to the database cannot be set up")]
    Pool(#[from] deadpool_postgres::BuildError),
    /// A part ended that should run for as long as the rest.
    #[error("The {part} of the control plane ended unexpectedly")]
    Ended {
        /// Which part.
        part: &'static str,
    },
}

/// How far a start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The database server is being found, made and started.
    Database,
    /// The schema is being brought up to date.
    Schema,
    /// The gateway is being opened.
    Gateway,
}

/// How a control plane is to run.
#[derive(Debug)]
pub struct StackOptions {
    /// Where its data are.
    pub data_dir: PathBuf,
    /// Address that the gateway listens on.
    pub bind: IpAddr,
    /// Port of the gateway; 0 for a free one.
    pub port: u16,
    /// Port of the database on 127.0.0.1; `None` for a free one.
    pub database_port: Option<u16>,
    /// Its name for people, where it is not the one in `settings`.
    pub name: Option<String>,
    /// Where it is published. Without any it is the address that it listens on.
    pub public_urls: Vec<BaseUrl>,
    /// Where the address of a caller is taken from, for rate limits.
    pub client_address: ClientAddress,
    /// Every number that bounds a client of Realtime.
    pub realtime_limits: realtime::Limits,
    /// Whether Realtime lets anybody with the publishable key join and write to
    /// public channels. Nothing of ours uses one.
    pub public_channels: bool,
    /// A directory of functions in place of those of this release, laid out as
    /// `supabase/functions`, with a `config.toml` of its own if need be.
    pub functions_dir: Option<PathBuf>,
    /// The Deno that runs functions; `None` to look for it.
    pub deno: Option<PathBuf>,
    /// Is told how far the start has come.
    pub stages: Option<UnboundedSender<Stage>>,
}

impl StackOptions {
    /// Keeps data in `data_dir` and listens on free ports of this machine only.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            database_port: None,
            name: None,
            public_urls: Vec::new(),
            client_address: ClientAddress::default(),
            realtime_limits: realtime::Limits::default(),
            public_channels: false,
            functions_dir: None,
            deno: None,
            stages: None,
        }
    }

    /// Tells whoever wants to know how far the start has come.
    fn reach(&self, stage: Stage) {
        let is_heard = self.stages.as_ref().is_some_and(|stages| stages.send(stage).is_ok());
        tracing::debug!(?stage, is_heard, "starting");
    }
}

/// A running control plane.
///
/// [`Stack::stop`] ends it in order. When it is dropped instead, its tasks end
/// at once and the database stops without a checkpoint.
#[derive(Debug)]
pub struct Stack {
    url: String,
    data: DataDir,
    secrets: Secrets,
    endpoint: Endpoint,
    pool: Pool,
    operator: Keys,
    /// Tasks that end first, on `shutdown`.
    tasks: JoinSet<&'static str>,
    /// Tasks of Realtime, which end on `shutdown` as well.
    sockets: TaskTracker,
    /// Processes of functions, which end after the gateway.
    functions: Arc<Functions>,
    /// Cancels when it is dropped, for a stack that is dropped and not stopped.
    shutdown: DropGuard,
    /// The database server, which ends last.
    database: DatabaseTask,
    /// Released when everything else has ended.
    lock: DataDirLock,
}

/// The task that keeps the database server running.
#[derive(Debug)]
struct DatabaseTask {
    shutdown: CancellationToken,
    handle: JoinHandle<Result<(), PostgresError>>,
}

impl Drop for DatabaseTask {
    fn drop(&mut self) {
        // Dropping the future drops the server, which then stops at once.
        self.handle.abort();
    }
}

impl Stack {
    /// Starts a control plane and returns when it answers.
    pub async fn start(options: StackOptions) -> Result<Self, StackError> {
        let data = DataDir::create(&options.data_dir)?;
        let mut lock = data.lock()?;
        let secrets = Secrets::load_or_create(&data)?;
        let (operator, _made) = Keys::load_or_create(&data.operator_key())?;
        // Before the work on the database, so that a wrong port fails at once.
        let (listener, address) = listen(options.bind, options.port).await?;

        options.reach(Stage::Database);
        let mut database =
            Postgres::start(&data, options.database_port, &secrets.superuser_password).await?;
        let endpoint = database.endpoint().clone();
        let prepared = prepare(&options, &endpoint, &secrets, &operator).await;
        let (pool, migration) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                database.stop().await;
                return Err(error);
            }
        };

        options.reach(Stage::Gateway);
        let url = format!("http://{}", reachable(address));
        let shutdown = CancellationToken::new();
        let sockets = TaskTracker::new();
        let commits = Commits::default();
        let built = Parts {
            options: &options,
            data: &data,
            address,
            endpoint: &endpoint,
            secrets: &secrets,
            pool: &pool,
            shutdown: &shutdown,
            sockets: &sockets,
            commits: &commits,
        }
        .build();
        let Built { router, functions, rest } = match built {
            Ok(built) => built,
            Err(error) => {
                database.stop().await;
                return Err(error);
            }
        };
        let health =
            gateway::Health { pool: pool.clone(), migration, functions: functions.can_run() };
        let router = gateway::router(router, health);

        let mut tasks = JoinSet::new();
        let mut run = |name: &'static str, task: BoxedTask| {
            tasks.spawn(async move {
                task.await;
                name
            });
        };
        run("gateway", Box::pin(gateway::run_gateway(listener, router, shutdown.clone())));
        run("clock", Box::pin(timer::run_tick(pool.clone(), commits, shutdown.clone())));
        run("clock", Box::pin(timer::run_partitions(pool.clone(), shutdown.clone())));
        let listener = endpoint.config("authenticator", &secrets.authenticator_password);
        run("catalogue", Box::pin(rest::reload_on_notify(rest, listener, shutdown.clone())));
        let database = {
            let shutdown = CancellationToken::new();
            let handle = tokio::spawn(postgres::run_postgres(database, shutdown.clone()));
            DatabaseTask { shutdown, handle }
        };
        lock.announce(&url, endpoint.port)?;
        tracing::info!(url, "the control plane answers");
        Ok(Self {
            url,
            data,
            secrets,
            endpoint,
            pool,
            operator,
            tasks,
            sockets,
            functions,
            shutdown: shutdown.drop_guard(),
            database,
            lock,
        })
    }

    /// Returns the base URL of the gateway, as seen from this machine.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the keys and secrets of the project.
    pub fn keys(&self) -> &Secrets {
        &self.secrets
    }

    /// Returns the key of the operator that was made at the first start.
    pub fn operator(&self) -> &Keys {
        &self.operator
    }

    /// Returns the data directory.
    pub fn data(&self) -> &DataDir {
        &self.data
    }

    /// Returns the connections that log in as `authenticator`.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns how to connect to the database as `postgres`, `authenticator` or
    /// `supabase_admin`; `None` for a role that does not log in.
    pub fn database_config_for(&self, role: &str) -> Option<tokio_postgres::Config> {
        password_of(&self.secrets, role).map(|password| self.endpoint.config(role, password))
    }

    /// Returns the URL of the database for `postgres`, `authenticator` or
    /// `supabase_admin`, password included; `None` for a role that does not log
    /// in.
    pub fn database_url_for(&self, role: &str) -> Option<String> {
        password_of(&self.secrets, role).map(|password| self.endpoint.url(role, password))
    }

    /// Waits until a part fails for good, which the rest cannot go on without.
    pub async fn failed(&mut self) -> StackError {
        tokio::select! {
            ended = &mut self.database.handle => match ended {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) | Err(_) => StackError::Ended { part: "database" },
            },
            ended = self.tasks.join_next() => {
                StackError::Ended { part: ended.and_then(Result::ok).unwrap_or("gateway") }
            }
        }
    }

    /// Stops in order: the gateway lets open requests end, then sockets,
    /// functions, connections and the database; at last the data directory is
    /// free.
    pub async fn stop(mut self) {
        self.shutdown.disarm().cancel();
        while self.tasks.join_next().await.is_some() {}
        self.sockets.close();
        if tokio::time::timeout(SOCKET_LIMIT, self.sockets.wait()).await.is_err() {
            tracing::debug!(open = self.sockets.len(), "sockets are cut off");
        }
        self.functions.stop().await;
        self.pool.close();
        self.database.shutdown.cancel();
        if !self.database.handle.is_finished() {
            match (&mut self.database.handle).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the database had failed before"),
                Err(error) => tracing::warn!(%error, "the task of the database broke off"),
            }
        }
        drop(self.lock);
        tracing::info!("the control plane has stopped");
    }
}

/// A task of the stack.
type BoxedTask = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Returns the password of a role that logs in.
fn password_of<'a>(secrets: &'a Secrets, role: &str) -> Option<&'a str> {
    match role {
        "postgres" => Some(&secrets.postgres_password),
        "authenticator" => Some(&secrets.authenticator_password),
        SUPERUSER => Some(&secrets.superuser_password),
        _ => None,
    }
}

/// Returns the URL of the database for `postgres`, of a control plane that runs
/// in another process.
pub fn database_url(secrets: &Secrets, running: &Running) -> Option<String> {
    let endpoint = Endpoint { socket: None, port: running.database_port? };
    Some(endpoint.url("postgres", &secrets.postgres_password))
}

/// Opens the gateway's port.
async fn listen(bind: IpAddr, port: u16) -> Result<(TcpListener, SocketAddr), StackError> {
    let address = SocketAddr::new(bind, port);
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => StackError::PortInUse { address: bind, port },
        _ => StackError::Listen { address, source },
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Returns an address by which this machine reaches a listener: one that listens
/// everywhere is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()))
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port()))
        }
        _ => address,
    }
}

/// Returns where the control plane is published: what the operator says, and the
/// addresses by which this machine itself reaches it.
fn public_urls(options: &StackOptions, address: SocketAddr) -> Result<Vec<BaseUrl>, BaseUrlError> {
    let mut urls = options.public_urls.clone();
    let local = reachable(address);
    let mut own = vec![format!("http://{local}")];
    if local.ip().is_loopback() {
        own.push(format!("http://localhost:{}", local.port()));
    }
    for text in own {
        let url = BaseUrl::parse(&text, PlainHttp::Anywhere)?;
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok(urls)
}

/// What the parts behind the gateway are made of.
struct Parts<'a> {
    options: &'a StackOptions,
    data: &'a DataDir,
    address: SocketAddr,
    endpoint: &'a Endpoint,
    secrets: &'a Secrets,
    pool: &'a Pool,
    shutdown: &'a CancellationToken,
    sockets: &'a TaskTracker,
    commits: &'a Commits,
}

/// The parts behind the gateway.
struct Built {
    router: Router,
    functions: Arc<Functions>,
    rest: Rest,
}

impl Parts<'_> {
    /// Makes the parts, under their public paths.
    fn build(&self) -> Result<Built, StackError> {
        let verifier = Arc::new(JwtVerifier::from_secret(&self.secrets.jwt_secret)?);
        let public_urls = public_urls(self.options, self.address)?;
        let functions = Arc::new(Functions::prepare(FunctionsContext {
            data: self.data,
            source: self.options.functions_dir.as_deref(),
            deno: self.options.deno.clone(),
            environment: self.function_environment(&public_urls),
            verifier: Arc::clone(&verifier),
        })?);
        let auth = auth::router(AuthContext {
            pool: self.pool.clone(),
            signer: TokenSigner::Secret(self.secrets.jwt_secret.clone()),
            token_lifetime: TOKEN_LIFETIME,
            public_urls,
            name: self.options.name.clone(),
            publishable_key: self.secrets.publishable_key.clone(),
            client_address: self.options.client_address.clone(),
        });
        let mut rest = RestContext::new(self.pool.clone(), Arc::clone(&verifier));
        rest.api_keys = Some(Arc::new(self.api_keys()?));
        rest.commits = self.commits.clone();
        let rest = Rest::new(rest);
        let router = auth
            .merge(rest.router("/rest/v1"))
            .nest("/realtime/v1", self.realtime(verifier)?)
            .layer(middleware::from_fn(gateway::limit_time))
            // A function's answer may be a long stream.
            .merge(functions.router());
        Ok(Built { router, functions, rest })
    }

    /// Makes Realtime.
    fn realtime(&self, verifier: Arc<JwtVerifier>) -> Result<Router, StackError> {
        let mut reader =
            self.endpoint.config("authenticator", &self.secrets.authenticator_password);
        reader.application_name(READER_NAME);
        Ok(realtime::router(RealtimeContext {
            pool: self.pool.clone(),
            reader,
            commits: self.commits.clone(),
            verifier,
            api_keys: self.api_keys()?,
            limits: self.options.realtime_limits,
            public_channels: self.options.public_channels,
            shutdown: self.shutdown.clone(),
            tasks: self.sockets.clone(),
        }))
    }

    fn api_keys(&self) -> Result<ApiKeys, jwt::KeyError> {
        ApiKeys::new(
            &self.secrets.publishable_key,
            &self.secrets.secret_key,
            &self.secrets.anon_key,
            &self.secrets.service_role_key,
        )
    }

    /// Returns what Supabase puts into the environment of functions.
    fn function_environment(&self, public_urls: &[BaseUrl]) -> Vec<(&'static str, String)> {
        let secrets = self.secrets;
        let keys = |key: &str| serde_json::json!({ "default": key }).to_string();
        let public_url = public_urls.first().map(ToString::to_string).unwrap_or_default();
        vec![
            ("SUPABASE_URL", format!("http://{}", reachable(self.address))),
            ("SUPABASE_PUBLIC_URL", public_url),
            ("SUPABASE_ANON_KEY", secrets.anon_key.clone()),
            ("SUPABASE_SERVICE_ROLE_KEY", secrets.service_role_key.clone()),
            ("SUPABASE_PUBLISHABLE_KEYS", keys(&secrets.publishable_key)),
            ("SUPABASE_SECRET_KEYS", keys(&secrets.secret_key)),
            ("SUPABASE_DB_URL", self.endpoint.url("postgres", &secrets.postgres_password)),
        ]
    }
}

/// Brings the schema up to date, opens the pool and writes the operator down.
/// Returns the pool and the newest migration.
async fn prepare(
    options: &StackOptions,
    endpoint: &Endpoint,
    secrets: &Secrets,
    operator: &Keys,
) -> Result<(Pool, Option<String>), StackError> {
    options.reach(Stage::Schema);
    migrate::apply_baseline(endpoint, secrets).await?;
    let migrations = migrate::migrations();
    let applied = migrate::apply_migrations(endpoint, secrets, &migrations).await?;
    tracing::debug!(applied, "the schema is up to date");
    let pool = open_pool(endpoint, secrets)?;
    ensure_operator(&pool, operator).await.map_err(StackError::Operator)?;
    if applied == migrations.len() {
        tell_realtime_rate(&pool).await.map_err(StackError::Settings)?;
    }
    let newest = migrations.last().map(|migration| migration.version.to_owned());
    Ok((pool, newest))
}

/// Opens the connections of the gateway, all as `authenticator`.
fn open_pool(
    endpoint: &Endpoint,
    secrets: &Secrets,
) -> Result<Pool, deadpool_postgres::BuildError> {
    let config = endpoint.config("authenticator", &secrets.authenticator_password);
    // A connection that broke is noticed when it is next used; asking each time
    // would cost every request a round trip.
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    Pool::builder(Manager::from_config(config, NoTls, recycling))
        .max_size(POOL_SIZE)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(POOL_LIMIT))
        .create_timeout(Some(POOL_LIMIT))
        .recycle_timeout(Some(POOL_LIMIT))
        .build()
}

/// Makes the key of this data directory an operator, once.
async fn ensure_operator(
    pool: &Pool,
    operator: &Keys,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut connection = pool.get().await?;
    let transaction = connection.transaction().await?;
    transaction.batch_execute("set local role service_role").await?;
    let known: bool = transaction
        .query_one("select to_regprocedure('public.ensure_operator(text, text)') is not null", &[])
        .await?
        .try_get(0)?;
    if known {
        transaction
            .execute(
                "select public.ensure_operator(p_public_key => $1, p_name => $2)",
                &[&operator.public_hex(), &"operator"],
            )
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Tells a new market that this gateway delivers more than Realtime's default,
/// from which SQL gives each stream its share. An operator may change it.
async fn tell_realtime_rate(pool: &Pool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut connection = pool.get().await?;
    let transaction = connection.transaction().await?;
    transaction.batch_execute("set local role service_role").await?;
    let query = "update public.settings set value = to_jsonb($1::int) where key = $2";
    transaction
        .execute(query, &[&REALTIME_MESSAGES_PER_SECOND, &"realtime_messages_per_second"])
        .await?;
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_everywhere_is_reached_on_loopback() {
        for (address, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("192.168.1.2:1", "192.168.1.2:1"),
        ] {
            assert_eq!(reachable(address.parse().unwrap()).to_string(), expected);
        }
    }

    #[test]
    fn own_addresses_follow_the_published_ones() {
        let mut options = StackOptions::new("/nowhere");
        let published = BaseUrl::parse("https://example.org", PlainHttp::PrivateOnly).unwrap();
        options.public_urls = vec![published];
        let urls = public_urls(&options, "0.0.0.0:54321".parse().unwrap()).unwrap();
        let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
        assert_eq!(
            urls,
            ["https://example.org", "http://127.0.0.1:54321", "http://localhost:54321"]
        );
    }
}
