//! `/rest/v1` of the embedded control plane: a stated subset of PostgREST 16.
//!
//! Served are reading of tables and views (select with columns, aliases, casts
//! and JSON paths, embedding along foreign keys, all filters, logic, order,
//! paging, counts, single objects, CSV) and calls of functions. What is not
//! served answers 501 and names the feature; nothing is left out silently.
//!
//! A request goes through [`request`] (what does it name), [`query`] and
//! [`grammar`] (what do the parameters say), [`plan`] or [`call`] (what does
//! that mean in this [`catalog`]), [`statement`] and [`sql`] (the text), [`execute`] (the
//! transaction) and [`response`]. Time limits and cross-origin headers are the
//! gateway's, in front of this. Names are quoted, values are bound, and the
//! role of the token decides in PostgreSQL what may be seen.

mod body;
mod call;
mod catalog;
mod error;
mod execute;
mod grammar;
mod listen;
mod media_type;
mod plan;
mod preference;
mod query;
mod range;
mod relation;
mod request;
mod response;
mod sql;
mod statement;

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, header};
use axum::routing::any;
use bytes::Bytes;
use deadpool_postgres::Pool;
use serde_json::Value;

use self::call::{Arguments, find_function};
use self::catalog::Catalog;
pub use self::error::{DatabaseRefusal, RestError};
use self::execute::{Outcome, Work};
pub use self::listen::reload_on_notify;
use self::media_type::MediaType;
use self::preference::{Count, Preferences};
use self::query::QueryParameters;
use self::range::RowRange;
use self::request::{Action, Resource};
use self::response::Frame;
use self::sql::Sql;
use self::statement::{Call, Planned, plan_call, plan_read};
use crate::stack::api_key::ApiKeys;
use crate::stack::commits::Commits;
use crate::stack::jwt::{Claims, JwtVerifier, bearer_token};

/// How long after a reload a miss does not cause another one.
const RELOAD_PAUSE: Duration = Duration::from_millis(250);

/// What the REST part needs.
#[derive(Debug, Clone)]
pub struct RestContext {
    /// Connections that log in as `authenticator`.
    pub pool: Pool,
    /// Verifies tokens.
    pub verifier: Arc<JwtVerifier>,
    /// Maps `sb_` keys to tokens, where nothing in front does it.
    pub api_keys: Option<Arc<ApiKeys>>,
    /// The exposed schemas; the first is the default.
    pub schemas: Vec<String>,
    /// Schemas behind the exposed one in `search_path`.
    pub extra_search_path: Vec<String>,
    /// The role without a token.
    pub anon_role: String,
    /// Most rows of one response.
    pub max_rows: Option<u32>,
    /// Largest body in bytes.
    pub body_limit: usize,
    /// How long to wait for a connection.
    pub pool_timeout: Duration,
    /// Honours `Prefer: tx=rollback`. Only for tests.
    pub rollback_allowed: bool,
    /// Is told of calls that have committed.
    pub commits: Commits,
}

impl RestContext {
    /// Makes a context with Supabase's defaults.
    pub fn new(pool: Pool, verifier: Arc<JwtVerifier>) -> Self {
        Self {
            pool,
            verifier,
            api_keys: None,
            schemas: vec!["public".to_owned()],
            extra_search_path: vec!["public".to_owned(), "extensions".to_owned()],
            anon_role: "anon".to_owned(),
            max_rows: Some(1000),
            body_limit: 10 * 1024 * 1024,
            pool_timeout: Duration::from_secs(10),
            rollback_allowed: false,
            commits: Commits::default(),
        }
    }
}

/// Makes the router, which answers under `prefix`. See [`Rest::router`].
pub fn router(context: RestContext, prefix: &str) -> Router {
    Rest::new(context).router(prefix)
}

/// The REST part. Clones share everything.
#[derive(Clone)]
pub struct Rest {
    shared: Arc<Shared>,
}

struct Shared {
    context: RestContext,
    catalog: RwLock<Option<Loaded>>,
    /// Held while the catalogue is read, so that it is read once.
    loading: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Loaded {
    catalog: Arc<Catalog>,
    at: Instant,
}

impl Rest {
    /// Makes the REST part. The catalogue is read by the first request, or by
    /// [`Rest::reload`].
    pub fn new(context: RestContext) -> Self {
        let shared =
            Shared { context, catalog: RwLock::new(None), loading: tokio::sync::Mutex::new(()) };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the router, which answers all paths under `prefix` (such as
    /// `/rest/v1`, or nothing for the root). Paths are seen without it, also by
    /// functions that read `request.path`.
    pub fn router(&self, prefix: &str) -> Router {
        let prefix = prefix.trim_end_matches('/');
        let mounted = Mounted { rest: self.clone(), prefix: prefix.into() };
        let router = if prefix.is_empty() {
            Router::new().fallback(handle)
        } else {
            // Nesting would not see the path that ends with a slash, which is the root here.
            Router::new()
                .route(prefix, any(handle))
                .route(&format!("{prefix}/"), any(handle))
                .route(&format!("{prefix}/{{*path}}"), any(handle))
        };
        router.with_state(mounted)
    }

    /// Reads the catalogue of tables and functions again. Called after
    /// `notify pgrst` and after migrations.
    pub async fn reload(&self) -> Result<(), RestError> {
        let called = Instant::now();
        self.load_unless(|loaded| loaded.at > called).await?;
        // What was prepared may have taken a column for another type than it now has.
        self.context().pool.manager().statement_caches.clear();
        Ok(())
    }

    fn context(&self) -> &RestContext {
        &self.shared.context
    }

    fn loaded(&self) -> Option<Loaded> {
        self.shared.catalog.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Reads the catalogue unless what is there will do.
    async fn load_unless(
        &self,
        will_do: impl Fn(&Loaded) -> bool,
    ) -> Result<Arc<Catalog>, RestError> {
        let _turn = self.shared.loading.lock().await;
        if let Some(loaded) = self.loaded().filter(|loaded| will_do(loaded)) {
            return Ok(loaded.catalog);
        }
        let at = Instant::now();
        let context = self.context();
        let mut connection = execute::checkout(&context.pool, context.pool_timeout).await?;
        connection.begin();
        let catalog = Catalog::load(connection.client(), &context.schemas).await.map_err(|error| {
            tracing::warn!(error = %error, "the catalogue of tables and functions cannot be read");
            RestError::NoCatalog
        })?;
        connection.finish();
        let loaded = Loaded { catalog: Arc::new(catalog), at };
        let catalog = Arc::clone(&loaded.catalog);
        *self.shared.catalog.write().unwrap_or_else(|poisoned| poisoned.into_inner()) =
            Some(loaded);
        Ok(catalog)
    }

    /// Plans with the catalogue at hand, and once more with a fresh one when
    /// something was not found: it may have been made since.
    async fn with_catalog<T>(
        &self,
        plan: impl Fn(&Catalog) -> Result<T, RestError>,
    ) -> Result<T, RestError> {
        let loaded = self.loaded();
        let catalog = match &loaded {
            Some(loaded) => Arc::clone(&loaded.catalog),
            None => self.load_unless(|_| true).await?,
        };
        match plan(&catalog) {
            Err(
                error @ (RestError::NoTable { .. }
                | RestError::NoFunction { .. }
                | RestError::NoRelationship { .. }),
            ) => {
                let fresh = |loaded: &Loaded| loaded.at.elapsed() < RELOAD_PAUSE;
                let reloaded = self.load_unless(fresh).await?;
                if Arc::ptr_eq(&reloaded, &catalog) { Err(error) } else { plan(&reloaded) }
            }
            result => result,
        }
    }

    async fn serve(&self, prefix: &str, request: Request) -> Result<Response<Body>, RestError> {
        let (mut parts, body) = request.into_parts();
        let context = self.context();
        if let Some(keys) = &context.api_keys {
            keys.rewrite(&mut parts.headers);
        }
        let caller = Caller::identify(context, &parts.headers)?;
        let path = parts.uri.path();
        let path = path.strip_prefix(prefix).unwrap_or(path);
        let resource = Resource::from_path(path)?;
        let (schema, negotiated) =
            request::negotiate_schema(&context.schemas, &parts.headers, &parts.method)?;
        let action = Action::new(resource, schema, &parts.method)?;
        let preferences = Preferences::from_headers(&parts.headers, context.rollback_allowed);
        let head = parts.method == Method::HEAD;
        let incoming = Incoming {
            caller,
            schema,
            profile: negotiated.then(|| schema.to_owned()),
            preferences,
            accepted: request::accepted(&parts.headers),
            head,
            method: &parts.method,
            path,
            headers: &parts.headers,
        };
        let by_get = matches!(action, Action::CallByGet(_));
        let parameters = QueryParameters::parse(parts.uri.query().unwrap_or_default(), by_get)?;
        let range = top_range(&parameters, &parts.method, &parts.headers)?;
        match action {
            Action::DescribeRoot => Ok(describe("OPTIONS,GET,HEAD")),
            Action::ReadRoot => {
                let served = [MediaType::OpenApi, MediaType::Json, MediaType::Any];
                if incoming.accepted.iter().any(|accepted| served.contains(accepted)) {
                    Err(RestError::Unsupported { feature: "OpenAPI descriptions" })
                } else {
                    Err(RestError::MediaType(media_type::name_list(&incoming.accepted)))
                }
            }
            Action::DescribeFunction(name) => {
                let volatile = self
                    .with_catalog(|catalog| {
                        find_function(catalog, &name, &BTreeSet::new(), None)
                            .map(|function| function.volatile)
                    })
                    .await?;
                Ok(describe(if volatile { "OPTIONS,POST" } else { "OPTIONS,GET,HEAD,POST" }))
            }
            Action::Read(name) => {
                let plan = self
                    .with_catalog(|catalog| {
                        plan_read(context, catalog, &incoming, &name, &parameters, range)
                    })
                    .await?;
                self.run(&incoming, plan, range).await
            }
            Action::CallByGet(name) => {
                let keys = parameters.arguments.iter().map(|(key, _)| key.clone()).collect();
                let arguments = Arguments::Direct(parameters.arguments.clone());
                let call = Call { name, keys, arguments, content: None };
                let plan = self
                    .with_catalog(|catalog| {
                        plan_call(context, catalog, &incoming, &call, &parameters, range)
                    })
                    .await?;
                self.run(&incoming, plan, range).await
            }
            Action::Call(name) => {
                let body = read_body(body, context.body_limit).await?;
                let content = request::content_type(&parts.headers);
                let call = Call::from_body(name, content, body, &parameters)?;
                let plan = self
                    .with_catalog(|catalog| {
                        plan_call(context, catalog, &incoming, &call, &parameters, range)
                    })
                    .await?;
                self.run(&incoming, plan, range).await
            }
        }
    }

    /// Runs what was planned and makes the response.
    async fn run(
        &self,
        incoming: &Incoming<'_>,
        plan: Planned,
        range: RowRange,
    ) -> Result<Response<Body>, RestError> {
        let context = self.context();
        let singular = matches!(plan.media_type, MediaType::Object(_));
        let max_affected =
            if plan.call { incoming.preferences.strict_max_affected() } else { None };
        let check = move |outcome: &Outcome| {
            if singular && outcome.page != 1 {
                return Err(RestError::Singular { rows: outcome.page });
            }
            match max_affected {
                Some(most) if outcome.page > most => {
                    Err(RestError::MaxAffected { rows: outcome.page })
                }
                _ => Ok(()),
            }
        };
        // What only reads may be judged after the end.
        let judged = !plan.read_only && (singular || max_affected.is_some());
        let work = Work {
            role: &incoming.caller.role,
            anonymous: incoming.caller.role == context.anon_role,
            settings: incoming.settings(context, &plan),
            isolation: plan.isolation.as_deref(),
            read_only: plan.read_only,
            query: &plan.query,
            prepared: plan.call,
            explain: plan.explain.as_ref(),
            check: judged.then_some(&check),
            rollback: incoming.preferences.rollback == Some(true),
        };
        let mut outcome = execute::run(&context.pool, context.pool_timeout, &work).await?;
        if !work.read_only && !work.rollback {
            context.commits.tell();
        }
        check(&outcome)?;
        if !plan.call {
            outcome.total = total_of(&outcome, incoming.preferences.count, context.max_rows);
        }
        let frame = Frame {
            head: incoming.head,
            content_type: plan.media_type.content_type(),
            profile: incoming.profile.clone(),
            preference_applied: incoming.preferences.applied(plan.call),
            range,
            void: plan.void,
        };
        frame.respond(outcome)
    }
}

/// The total as the kind of count asked for defines it.
fn total_of(outcome: &Outcome, count: Option<Count>, max_rows: Option<u32>) -> Option<i64> {
    match count {
        Some(Count::Planned) => outcome.planned,
        Some(Count::Estimated) => match (outcome.total, outcome.planned, max_rows) {
            // Beyond the maximum counting stopped, and the planner is asked.
            (Some(total), Some(planned), Some(most)) if total > i64::from(most) => {
                Some(total.max(planned))
            }
            _ => outcome.total,
        },
        Some(Count::Exact) | None => outcome.total,
    }
}

/// Who asks.
struct Caller {
    role: String,
    /// The claims with the role, as JSON.
    claims: String,
}

impl Caller {
    fn identify(context: &RestContext, headers: &HeaderMap) -> Result<Self, RestError> {
        let authorization = headers.get(header::AUTHORIZATION);
        let token = authorization.and_then(|value| value.to_str().ok()).and_then(bearer_token);
        let Claims(mut claims) = match token {
            Some(token) => context.verifier.verify(token)?,
            None => Claims::default(),
        };
        let role = match claims.get("role") {
            None => context.anon_role.clone(),
            Some(Value::String(role)) => role.clone(),
            // What is no text is looked up as it is written.
            Some(other) => other.to_string(),
        };
        claims.insert("role".to_owned(), Value::String(role.clone()));
        Ok(Self { role, claims: Value::Object(claims).to_string() })
    }
}

/// A request, as far as it does not depend on the catalogue.
struct Incoming<'a> {
    caller: Caller,
    schema: &'a str,
    profile: Option<String>,
    preferences: Preferences,
    accepted: Vec<MediaType>,
    head: bool,
    method: &'a Method,
    path: &'a str,
    headers: &'a HeaderMap,
}

impl Incoming<'_> {
    /// Everything that the transaction runs under, in the order in which it
    /// is set. Settings of the role come before the role, which might not be
    /// allowed to make them.
    fn settings<'b>(
        &'b self,
        context: &'b RestContext,
        plan: &'b Planned,
    ) -> Vec<(&'b str, String)> {
        let mut path = Sql::default();
        path.name(self.schema);
        for schema in context.extra_search_path.iter().filter(|schema| *schema != self.schema) {
            path.push(", ").name(schema);
        }
        let mut settings = vec![("search_path", path.text)];
        for (name, value) in &plan.role_settings {
            settings.push((name, value.clone()));
        }
        settings.push(("role", self.caller.role.clone()));
        settings.push(("request.jwt.claims", self.caller.claims.clone()));
        settings.push(("request.method", self.method.to_string()));
        settings.push(("request.path", self.path.to_owned()));
        settings.push(("request.headers", request::headers_setting(self.headers)));
        settings.push(("request.cookies", request::cookies_setting(self.headers)));
        if let Some(zone) = &self.preferences.timezone {
            settings.push(("timezone", zone.clone()));
        }
        for (name, value) in &plan.function_settings {
            settings.push((name, value.clone()));
        }
        settings
    }

    fn check_preferences(&self) -> Result<(), RestError> {
        if self.preferences.strict == Some(true) && !self.preferences.unknown.is_empty() {
            return Err(RestError::Preferences(self.preferences.unknown.join(", ")));
        }
        Ok(())
    }
}

/// The range of the top level: limit and offset, and for GET the header.
fn top_range(
    parameters: &QueryParameters,
    method: &Method,
    headers: &HeaderMap,
) -> Result<RowRange, RestError> {
    let header = match headers.get(header::RANGE).and_then(|value| value.to_str().ok()) {
        Some(text) if *method == Method::GET => RowRange::from_header(text),
        _ => RowRange::ALL,
    };
    let limit = parameters.top_range();
    let range = header.intersect(limit);
    if range.is_empty() && !limit.is_limit_zero() {
        let details = if header.is_empty() {
            "The lower boundary must be lower than or equal to the upper boundary in the Range header."
        } else {
            "Limit should be greater than or equal to zero."
        };
        return Err(RestError::Range { details: details.to_owned() });
    }
    Ok(range)
}

async fn read_body(body: Body, limit: usize) -> Result<Bytes, RestError> {
    // A body that breaks off is refused as one that is too large: nobody reads the answer.
    axum::body::to_bytes(body, limit).await.map_err(|_| RestError::BodyTooLarge { limit })
}

fn describe(allow: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// The REST part at a place.
#[derive(Clone)]
struct Mounted {
    rest: Rest,
    prefix: Arc<str>,
}

/// Serves one request.
async fn handle(State(mounted): State<Mounted>, request: Request) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    // The future holds a whole plan; it is kept off the stack of the server.
    let served = Box::pin(mounted.rest.serve(&mounted.prefix, request)).await;
    served.unwrap_or_else(|error| error.into_response(head))
}
