//! Login and self-description as Supabase runs them: the edge functions in real
//! Deno, over the REST part and the database of a real control plane. The
//! native ones beside them give the same answers.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use infernet::control::session::{LoginKind, LoginRequest, Session};
use infernet::control::{BaseUrl, ControlPlane, PlainHttp};
use infernet::identity::{Keys, LoginEvent};
use infernet::stack::jwt::{Es256Key, JwtVerifier};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::support::control_plane::TestControlPlane;

/// How long Deno may take to start, which includes fetching pinned packages the
/// first time.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A function that runs in Deno; it ends when this is dropped.
struct EdgeFunction {
    url: String,
    process: Child,
}

impl Drop for EdgeFunction {
    fn drop(&mut self) {
        // The group, because `deno` from npm is a script that runs the program.
        if let Some(group) = self.process.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _gone = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

impl EdgeFunction {
    /// Starts a function for a control plane, with more settings or others.
    async fn start(name: &str, plane: &TestControlPlane, settings: &[(&str, &str)]) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let url = format!("http://{address}");
        let functions = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("supabase/functions");
        let keys = plane.keys();
        let process = Command::new("deno")
            .current_dir(functions)
            // Nothing else is allowed there: no files, no programs.
            .args(["run", "--quiet", "--no-prompt", "--frozen", "--allow-env", "--allow-net"])
            .arg(format!("{name}/index.ts"))
            .env("DENO_SERVE_ADDRESS", format!("tcp:{address}"))
            .env("SUPABASE_URL", plane.url())
            .env("SUPABASE_SECRET_KEYS", json!({"default": keys.secret_key}).to_string())
            .env("SUPABASE_PUBLISHABLE_KEYS", json!({"default": keys.publishable_key}).to_string())
            .env("INFERNET_JWT_SECRET", &keys.jwt_secret)
            .env("INFERNET_PUBLIC_URLS", &url)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("deno is on the path; scripts/test installs it");
        let mut function = Self { url, process };
        let answers = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                assert!(function.process.try_wait().unwrap().is_none(), "deno ended");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(START_LIMIT, answers).await.expect("deno starts in time");
        function
    }

    /// Sends a login as it is; returns status and answer.
    async fn post(&self, header: &str, body: &[u8]) -> (u16, Value) {
        post(&self.url, header, body).await
    }
}

#[tokio::test]
async fn a_session_signs_in_at_the_edge_function() {
    let plane = TestControlPlane::start().await;
    let function = EdgeFunction::start("auth", &plane, &[]).await;
    let keys = Keys::generate();
    let session = Session::new(control(&function.url, &plane), keys.clone(), LoginKind::User);
    let signed_in = session.login().await.unwrap();

    // The same person as at the native login, and a token that REST believes.
    let native = Session::new(control(plane.url(), &plane), keys.clone(), LoginKind::User);
    assert_eq!(native.login().await.unwrap().subject, signed_in.subject);
    let whoami: Value = reqwest::Client::new()
        .post(format!("{}/rest/v1/rpc/whoami", plane.url()))
        .header("apikey", &plane.keys().publishable_key)
        .bearer_auth(session.token().await.unwrap())
        .json(&json!({}))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(whoami["public_key"], json!(keys.public_hex()), "{whoami}");
    drop(function);
    plane.stop().await;
}

#[tokio::test]
async fn both_implementations_refuse_in_the_same_words() {
    let plane = TestControlPlane::start().await;
    let function = EdgeFunction::start("auth", &plane, &[]).await;
    let keys = Keys::generate();
    let user = serde_json::to_vec(&LoginRequest::plain(LoginKind::User)).unwrap();
    let node = serde_json::to_vec(&LoginRequest::plain(LoginKind::Node)).unwrap();
    let enrolment = br#"{"kind":"node","role":"provider","enrolment":"no-such-code"}"#;

    let mut refused = Vec::new();
    for url in [&function.url, plane.url()] {
        let login = |body: &[u8]| {
            LoginEvent::make(&keys, &format!("{url}/functions/v1/auth"), body, unix_now()).header()
        };
        let header = login(&user);
        let (status, answer) = post(url, &header, &user).await;
        assert_eq!(status, 200, "{answer}");
        refused.push(vec![
            // Each event once, each key enrolled, each code known.
            post(url, &header, &user).await,
            post(url, &login(&node), &node).await,
            post(url, &login(enrolment), enrolment).await,
            post(url, "Nostr e30=", &user).await,
        ]);
    }
    assert_eq!(refused[0], refused[1]);
    let codes: Vec<&str> =
        refused[0].iter().map(|(_, answer)| answer["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["replayed", "wrong_kind", "wrong_kind", "bad_event"]);
    assert_eq!(refused[0][0].0, 401);

    // An event for the one address is of no use at the other.
    let elsewhere = format!("{}/functions/v1/auth", plane.url());
    let header = LoginEvent::make(&keys, &elsewhere, &user, unix_now()).header();
    let (status, answer) = function.post(&header, &user).await;
    assert_eq!((status, &answer["code"]), (401, &json!("wrong_url")));
    drop(function);
    plane.stop().await;
}

#[tokio::test]
async fn the_edge_function_signs_with_an_imported_key() {
    let plane = TestControlPlane::start().await;
    // The key of RFC 7515, appendix A.3.
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "imported",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
    })
    .to_string();
    let function = EdgeFunction::start("auth", &plane, &[("INFERNET_JWT_KEY", &jwk)]).await;
    let session = Session::new(control(&function.url, &plane), Keys::generate(), LoginKind::User);
    let token = session.token().await.unwrap();
    let public = Es256Key::from_jwk(&jwk).unwrap().public_jwk().to_string();
    let claims = JwtVerifier::from_jwks(&public).unwrap().verify(&token).unwrap();
    let subject = session.signed_in().unwrap().subject.to_string();
    assert_eq!(claims.text("sub"), Some(subject.as_str()));
    assert_eq!(claims.text("kind"), Some("user"));
    drop(function);
    plane.stop().await;
}

#[tokio::test]
async fn both_implementations_describe_the_control_plane_alike() {
    let plane = TestControlPlane::start().await;
    let function =
        EdgeFunction::start("info", &plane, &[("INFERNET_PUBLIC_URLS", plane.url())]).await;
    let (_, edge) = ControlPlane::discover(&function.url, PlainHttp::PrivateOnly).await.unwrap();
    let (_, native) = ControlPlane::discover(plane.url(), PlainHttp::PrivateOnly).await.unwrap();
    assert_eq!(edge.urls, [plane.url()]);
    assert!(native.urls.contains(&plane.url().to_owned()));
    assert_eq!(edge.publishable_key, native.publishable_key);
    assert_eq!(edge.version, native.version);
    assert_eq!(edge.name, native.name);
    assert_eq!((edge.fee_rate, edge.limits), (native.fee_rate, native.limits));
    drop(function);
    plane.stop().await;
}

fn control(url: &str, plane: &TestControlPlane) -> ControlPlane {
    let url = BaseUrl::parse(url, PlainHttp::PrivateOnly).unwrap();
    ControlPlane::new(url, &plane.keys().publishable_key).unwrap()
}

/// Sends a login as it is; returns status and answer.
async fn post(url: &str, header: &str, body: &[u8]) -> (u16, Value) {
    infernet::control::install_tls_provider();
    let response = reqwest::Client::new()
        .post(format!("{url}/functions/v1/auth"))
        .header("authorization", header)
        .body(body.to_vec())
        .send()
        .await
        .unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
