//! The REST part where recordings do not reach: what it does with a pool, a
//! catalogue that changes, clients that go away, and hostile names.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use infernet::stack::api_key::ApiKeys;
use infernet::stack::jwt::{JwtVerifier, sign_hs256};
use infernet::stack::rest::{Rest, RestContext, reload_on_notify};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::cluster::Cluster;

const SECRET: &str = "super-secret-jwt-token-with-at-least-32-characters-long";

/// The golden database behind a server of its own.
struct Server {
    cluster: Cluster,
    rest: Rest,
    base: String,
    client: Client,
}

impl Server {
    async fn start(connections: usize, change: impl FnOnce(&mut RestContext)) -> Self {
        infernet::control::install_tls_provider();
        let cluster = Cluster::start();
        let schema =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/postgrest/schema.sql");
        cluster.create_database("golden", &schema);
        let pool = cluster.pool("authenticator", "golden", connections);
        let verifier = Arc::new(JwtVerifier::from_secret(SECRET).unwrap());
        let mut context = RestContext::new(pool, verifier);
        context.extra_search_path = vec!["public".into()];
        change(&mut context);
        let rest = Rest::new(context);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/rest/v1", listener.local_addr().unwrap());
        let router = rest.router("/rest/v1");
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { cluster, rest, base, client: Client::new() }
    }

    /// Runs statements as the superuser.
    async fn sql(&self, text: &str) {
        let config = self.cluster.superuser_config("golden");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        let driver = tokio::spawn(connection);
        client.batch_execute(text).await.unwrap();
        drop(client);
        driver.await.unwrap().unwrap();
    }

    async fn call(
        &self,
        function: &str,
        role: Option<&str>,
        arguments: Value,
    ) -> (StatusCode, Value) {
        let mut request = self.client.post(format!("{}/rpc/{function}", self.base));
        if let Some(role) = role {
            request = request.bearer_auth(token(role));
        }
        let response =
            request.header("content-type", "application/json").body(arguments.to_string());
        let response = response.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let response = self.client.get(format!("{}{path}", self.base)).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}

fn token(role: &str) -> String {
    sign_hs256(json!({"role": role}).as_object().unwrap(), SECRET).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_one_role_does_not_serve_another() {
    // One connection, so that both roles meet the same prepared statements.
    let server = Server::start(1, |_| {}).await;
    server
        .sql(
            "create function public.inlined() returns text language sql stable as $$ select 'secret'::text $$;
             revoke execute on function public.inlined() from public;
             grant execute on function public.inlined() to service_role;",
        )
        .await;
    for _ in 0..8 {
        let (status, body) = server.call("inlined", Some("service_role"), json!({})).await;
        assert_eq!((status, body), (StatusCode::OK, json!("secret")));
        let (status, body) = server.call("inlined", None, json!({})).await;
        assert_eq!((status.as_u16(), &body["code"]), (401, &json!("42501")));
        let (status, _) = server.call("inlined", Some("authenticated"), json!({})).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
    // A right that is taken away is gone at once.
    server.sql("revoke execute on function public.inlined() from service_role").await;
    let (status, _) = server.call("inlined", Some("service_role"), json!({})).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_follows_the_database() {
    let server = Server::start(2, |_| {}).await;
    assert_eq!(server.get("/later").await.0, StatusCode::NOT_FOUND);
    tokio::time::sleep(Duration::from_millis(300)).await;
    // What was missing is looked for once more.
    server
        .sql(
            "create view public.later as select 1 as one; grant select on public.later to anon;
             create function public.shape() returns int language sql stable as $$ select 1 $$;",
        )
        .await;
    assert_eq!(server.get("/later").await, (StatusCode::OK, json!([{"one": 1}])));
    assert_eq!(server.get("/rpc/shape").await.1, json!(1));

    // What is there and changes is read again when told so.
    let stop = CancellationToken::new();
    let config = server.cluster.config("authenticator", "golden");
    let listening = tokio::spawn(reload_on_notify(server.rest.clone(), config, stop.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    server
        .sql(
            "drop function public.shape();
             create function public.shape() returns setof int language sql stable as $$ select 1 $$;
             notify pgrst, 'reload schema';",
        )
        .await;
    let mut seen = Value::Null;
    for _ in 0..100 {
        seen = server.get("/rpc/shape").await.1;
        if seen == json!([1]) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(seen, json!([1]));

    // A filter on a column whose type has changed finds the new one.
    server
        .sql(
            "create table public.changing (id int); insert into public.changing values (7);
             grant select on public.changing to anon;
             create function public.changing_rows() returns setof public.changing language sql stable as $$ select * from public.changing $$;
             notify pgrst, 'reload schema';",
        )
        .await;
    let wanted = |path: &'static str, body: Value| {
        let server = &server;
        async move {
            let mut got = Value::Null;
            for _ in 0..100 {
                got = server.get(path).await.1;
                if got == body {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(got, body);
        }
    };
    wanted("/rpc/changing_rows?id=eq.7", json!([{"id": 7}])).await;
    server
        .sql("alter table public.changing alter column id type text; notify pgrst, 'reload schema'")
        .await;
    wanted("/rpc/changing_rows?id=eq.7", json!([{"id": "7"}])).await;
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_pool_and_a_lost_database_are_said_so() {
    let server = Server::start(1, |context| {
        context.pool_timeout = Duration::from_secs(1);
    })
    .await;
    server
        .sql("create function public.nap(p_secs float) returns int language plpgsql as $$ begin perform pg_sleep(p_secs); return 1; end $$")
        .await;
    server.rest.reload().await.unwrap();
    let nap = server.call("nap", None, json!({"p_secs": 4}));
    let other = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.get("/books?select=id&limit=1").await
    };
    let (napped, (status, body)) = tokio::join!(nap, other);
    assert_eq!(napped.0, StatusCode::OK);
    assert_eq!((status.as_u16(), &body["code"]), (504, &json!("PGRST003")));
    assert_eq!(body["message"], "Timed out acquiring connection from connection pool.");

    // A connection that is cut off is replaced.
    let cut =
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'authenticator'";
    let nap = server.call("nap", None, json!({"p_secs": 5}));
    let cutting = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.sql(cut).await;
    };
    let ((status, body), ()) = tokio::join!(nap, cutting);
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert_eq!(server.get("/categories?select=id&id=eq.1").await.1, json!([{"id": 1}]));

    // A server that refuses everybody.
    server.sql("alter role authenticator nologin").await;
    server.sql(cut).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (status, body) = server.get("/books?select=id&limit=1").await;
    assert_eq!((status.as_u16(), &body["code"]), (503, &json!("PGRST000")));
    server.sql("alter role authenticator login").await;
    assert_eq!(server.get("/categories?select=id&id=eq.1").await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let server = Server::start(1, |_| {}).await;
    server
        .sql(
            "create table public.marks (id int primary key); grant select, insert on public.marks to anon;
             create function public.mark(p_id int) returns setof int language plpgsql as $$
             begin perform pg_sleep(0.5); insert into public.marks values (p_id); return next p_id; end $$;",
        )
        .await;
    for id in 1..4 {
        // Asking for an object makes the end depend on the result, so the commit is not sent along.
        let abandoned = server
            .client
            .post(format!("{}/rpc/mark", server.base))
            .timeout(Duration::from_millis(150))
            .header("accept", "application/vnd.pgrst.object+json")
            .json(&json!({"p_id": id}))
            .send()
            .await;
        assert!(abandoned.unwrap_err().is_timeout());
        let (status, body) = server.call("whoami", None, json!({})).await;
        assert_eq!((status, &body["current_user"]), (StatusCode::OK, &json!("anon")));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.get("/marks").await.1, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_roles_and_functions_apply() {
    let server = Server::start(1, |_| {}).await;
    server
        .sql(
            "alter role anon set statement_timeout = '200ms';
             alter role authenticated set default_transaction_isolation = 'serializable';
             create function public.slow() returns int language plpgsql as $$ begin perform pg_sleep(0.6); return 1; end $$;
             create function public.slow_allowed() returns int language plpgsql set statement_timeout = '5s' as $$ begin perform pg_sleep(0.6); return 1; end $$;
             create function public.isolation() returns text language sql stable as $$ select current_setting('transaction_isolation') $$;
             create function public.isolation_own() returns text language sql stable set default_transaction_isolation = 'repeatable read' as $$ select current_setting('transaction_isolation') $$;",
        )
        .await;
    let (status, body) = server.call("slow", None, json!({})).await;
    assert_eq!((status.as_u16(), &body["code"]), (500, &json!("57014")));
    assert_eq!(server.call("slow", Some("authenticated"), json!({})).await.0, StatusCode::OK);
    assert_eq!(server.call("slow_allowed", None, json!({})).await.0, StatusCode::OK);
    let isolation = |role| server.call("isolation", role, json!({}));
    assert_eq!(isolation(None).await.1, json!("read committed"));
    assert_eq!(isolation(Some("authenticated")).await.1, json!("serializable"));
    assert_eq!(server.call("isolation_own", None, json!({})).await.1, json!("repeatable read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_at_commit_is_reported() {
    let server = Server::start(1, |_| {}).await;
    server
        .sql(
            "create table public.later_checked (id int, of int, unique (id) deferrable initially deferred);
             grant select, insert on public.later_checked to anon;
             create function public.twice() returns int language sql volatile as
               $$ insert into public.later_checked (id) values (1), (1) returning 1 $$;",
        )
        .await;
    let (status, body) = server.call("twice", None, json!({})).await;
    assert_eq!((status.as_u16(), &body["code"]), (409, &json!("23505")));
    assert_eq!(server.get("/later_checked").await.1, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stand_for_tokens_and_bodies_have_a_limit() {
    let server = Server::start(1, |context| {
        let keys =
            ApiKeys::new("sb_publishable_x", "sb_secret_x", token("anon"), token("service_role"));
        context.api_keys = Some(Arc::new(keys.unwrap()));
        context.body_limit = 1000;
    })
    .await;
    let who = |key: &'static str, bearer: Option<String>| {
        let request =
            server.client.get(format!("{}/rpc/whoami", server.base)).header("apikey", key);
        let request = match bearer {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        async move { request.send().await.unwrap().json::<Value>().await.unwrap() }
    };
    assert_eq!(who("sb_publishable_x", None).await["current_user"], "anon");
    assert_eq!(who("sb_secret_x", None).await["current_user"], "service_role");
    let user = who("sb_publishable_x", Some(token("authenticated"))).await;
    assert_eq!(user["current_user"], "authenticated");
    assert_eq!(who("sb_publishable_other", None).await["code"], "PGRST301");

    let (status, body) = server.call("greet", None, json!({"name": "x".repeat(2000)})).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{body}");
}

/// Text that would do harm if it became part of a statement.
const HOSTILE: [&str; 6] = [
    "\"; drop table books; --",
    "'; drop table books; --",
    "1); drop table books; --",
    "books\"; drop table books; --",
    "$1",
    "\u{0}x",
];

#[tokio::test(flavor = "multi_thread")]
async fn hostile_text_is_data_in_every_position() {
    let server = Server::start(2, |_| {}).await;
    let encode = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    for text in HOSTILE {
        let raw = encode(text);
        let quoted = encode(&format!("\"{}\"", text.replace('"', "\\\"")));
        let positions = [
            format!("/{raw}"),
            format!("/rpc/{raw}"),
            format!("/rpc/greet?{raw}=x"),
            format!("/rpc/greet?name={raw}"),
            format!("/books?select={raw}"),
            format!("/books?select={quoted}"),
            format!("/books?select={quoted}:id"),
            format!("/books?select=id::{raw}"),
            format!("/books?select=attrs-%3E{quoted}"),
            format!("/books?select=attrs-%3E%3E{raw}"),
            format!("/books?select=id,{quoted}(id)"),
            format!("/books?select=id,categories!{quoted}(id)"),
            format!("/books?select=id,{quoted}:categories(id)"),
            format!("/books?{quoted}=eq.1"),
            format!("/books?id=eq.{raw}"),
            format!("/books?title=eq.{raw}"),
            format!("/books?title=in.({raw})"),
            format!("/books?title=like(any).{raw}"),
            format!("/books?search=fts({raw}).x"),
            format!("/books?search=fts.{raw}"),
            format!("/books?or=(title.eq.{raw},id.eq.1)"),
            format!("/books?or=({quoted}.eq.1,id.eq.1)"),
            format!("/books?order={quoted}"),
            format!("/books?order=attrs-%3E{quoted}"),
            format!("/books?limit={raw}&offset={raw}"),
        ];
        for path in positions {
            let (status, body) = server.get(&path).await;
            let code = status.as_u16();
            // 404 also where a harmless function of that name was not found.
            assert!([200, 400, 404].contains(&code), "{path}: {code} {body}");
        }
        for header in ["accept-profile", "prefer", "accept", "range", "x-any"] {
            let Ok(value) = reqwest::header::HeaderValue::from_str(text) else { continue };
            let request = server.client.get(format!("{}/books?select=id", server.base));
            let code = request.header(header, value).send().await.unwrap().status().as_u16();
            assert!([200, 400, 406].contains(&code), "{header}: {code}");
        }
        let hostile_role = sign_hs256(json!({"role": text}).as_object().unwrap(), SECRET).unwrap();
        let request = server.client.get(format!("{}/rpc/whoami", server.base));
        let code = request.bearer_auth(hostile_role).send().await.unwrap().status().as_u16();
        assert!([400, 401].contains(&code), "role {text:?}: {code}");
        let (status, _) = server.call("greet", None, json!({text: "x"})).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let (status, _) =
            server.call(&format!("add_numbers?columns={quoted}"), None, json!({})).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    let (status, body) = server.get("/books?select=count").await;
    assert_eq!((status, body), (StatusCode::OK, json!([{"count": 7}])));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_is_named() {
    let server = Server::start(1, |_| {}).await;
    server
        .sql(
            "create domain public.\"image/png\" as bytea;
             create function public.picture() returns public.\"image/png\" language sql stable as $$ select '\\x00'::bytea::public.\"image/png\" $$;
             create function public.shelf_of(public.books) returns setof public.categories language sql stable as $$ select * from public.categories where id = $1.category_id $$;",
        )
        .await;
    let refused = |method: Method, path: &'static str| {
        let request = server.client.request(method, format!("{}{path}", server.base)).body("{}");
        async move {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED, "{path}");
            let header = response.headers()["proxy-status"].to_str().unwrap().to_owned();
            assert_eq!(header, "Infernet; error=INF501");
            let body: Value = response.json().await.unwrap();
            body["message"].as_str().unwrap().to_owned()
        }
    };
    assert!(refused(Method::POST, "/books").await.starts_with("Inserts"));
    assert!(refused(Method::PATCH, "/books").await.starts_with("Updates"));
    assert!(refused(Method::DELETE, "/books").await.starts_with("Deletes"));
    assert!(refused(Method::PUT, "/books").await.starts_with("Upserts"));
    assert!(refused(Method::GET, "/").await.starts_with("OpenAPI"));
    assert!(
        refused(Method::GET, "/book_listing?select=id,categories(id)")
            .await
            .starts_with("Relationships of views")
    );
    assert!(
        refused(Method::GET, "/books?select=id,shelf_of(id)")
            .await
            .starts_with("Computed relationships")
    );
    assert!(refused(Method::GET, "/rpc/picture").await.starts_with("Results with a media type"));
}
