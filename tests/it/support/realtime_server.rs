//! A Realtime server of its own on a throwaway PostgreSQL, for the tests of
//! both sides.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::serve::ListenerExt as _;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use infernet::stack::api_key::ApiKeys;
use infernet::stack::commits::Commits;
use infernet::stack::data_dir::DataDir;
use infernet::stack::jwt::{JwtVerifier, sign_hs256};
use infernet::stack::migrate::apply_baseline;
use infernet::stack::postgres::{Connection, Postgres, SUPERUSER};
use infernet::stack::realtime::{self, Limits, RealtimeContext};
use infernet::stack::secrets::Secrets;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

/// The publishable key of these servers.
pub(crate) const PUBLISHABLE_KEY: &str = "sb_publishable_of_the_tests_of_realtime";

/// A database with Supabase's baseline.
pub(crate) struct Database {
    pub(crate) postgres: Postgres,
    pub(crate) secrets: Secrets,
    _data: DataDir,
    _temporary: tempfile::TempDir,
}

impl Database {
    /// Makes a cluster and starts its server.
    pub(crate) async fn start() -> Self {
        // Whoever comes first; the other tests want the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let temporary = tempfile::tempdir().unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let data = DataDir::create(temporary.path().join("data")).unwrap();
        let secrets = Secrets::load_or_create(&data).unwrap();
        let postgres = Postgres::start(&data, None, &secrets.superuser_password).await.unwrap();
        apply_baseline(postgres.endpoint(), &secrets).await.unwrap();
        Self { postgres, secrets, _data: data, _temporary: temporary }
    }

    /// Connects as the superuser.
    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(
            &self.postgres.endpoint().config(SUPERUSER, &self.secrets.superuser_password),
        )
        .await
        .unwrap()
    }

    /// The URL of the superuser, for `psql`.
    pub(crate) fn superuser_url(&self) -> String {
        self.postgres.endpoint().url(SUPERUSER, &self.secrets.superuser_password)
    }

    /// Signs a token that lasts `lifetime_secs`.
    pub(crate) fn token(&self, claims: &Value, lifetime_secs: i64) -> String {
        let mut claims: Map<String, Value> = claims.as_object().unwrap().clone();
        claims.insert("exp".into(), json!(now_secs() + lifetime_secs));
        sign_hs256(&claims, &self.secrets.jwt_secret).unwrap()
    }

    fn config(&self) -> tokio_postgres::Config {
        self.postgres.endpoint().config("authenticator", &self.secrets.authenticator_password)
    }

    fn pool(&self) -> Pool {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        Pool::builder(Manager::from_config(self.config(), NoTls, recycling))
            .max_size(8)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(Duration::from_secs(30)))
            .create_timeout(Some(Duration::from_secs(30)))
            .build()
            .unwrap()
    }

    /// Serves Realtime on a free port, or on that of an earlier server.
    pub(crate) async fn serve(&self, settings: Settings) -> Server {
        let address = settings.address.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let anon = self.token(&json!({ "role": "anon" }), 3600);
        let service = self.token(&json!({ "role": "service_role" }), 3600);
        let router = realtime::router(RealtimeContext {
            pool: self.pool(),
            reader: self.config(),
            commits: settings.commits,
            verifier: Arc::new(JwtVerifier::from_secret(&self.secrets.jwt_secret).unwrap()),
            api_keys: ApiKeys::new(PUBLISHABLE_KEY, "sb_secret_of_the_tests", anon, service)
                .unwrap(),
            limits: settings.limits,
            public_channels: settings.public_channels,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        });
        let app = Router::new().nest("/realtime/v1", router);
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        let stop = shutdown.clone();
        tasks.spawn(async move {
            let serving = axum::serve(listener, app).into_future();
            tokio::select! {
                () = stop.cancelled() => {}
                served = serving => served.unwrap(),
            }
        });
        Server { address, shutdown, tasks }
    }
}

/// How a server of a test differs from the usual one.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) public_channels: bool,
    pub(crate) limits: Limits,
    pub(crate) commits: Commits,
    /// None: a free port.
    pub(crate) address: Option<SocketAddr>,
}

/// A Realtime server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// The base URL, as that of a control plane.
    pub(crate) fn url(&self) -> Url {
        Url::parse(&format!("http://{}", self.address)).unwrap()
    }

    /// Ends all sockets and waits for them.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Returns the seconds since 1970.
pub(crate) fn now_secs() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}
