//! Signing in at a real control plane: what is accepted, what is refused and in
//! which words, and how a session stays signed in.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use infernet::control::rpc::Rpc;
use infernet::control::session::{
    Enrolment, LoginKind, LoginRequest, Session, SessionError, SignedIn,
};
use infernet::control::{BaseUrl, ControlError, ControlPlane, PlainHttp};
use infernet::identity::{Keys, LoginEvent};
use infernet::stack::auth::{self, AuthContext, ClientAddress, TokenSigner};
use infernet::stack::jwt::{Claims, JwtVerifier};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::control_plane::TestControlPlane;

#[tokio::test]
async fn a_url_is_enough_to_join() {
    let plane = TestControlPlane::start_with(|options| options.name = Some("attic".into())).await;
    let (control, info) =
        ControlPlane::discover(plane.url(), PlainHttp::PrivateOnly).await.unwrap();
    assert_eq!(info.name, "attic");
    assert_eq!(info.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(info.publishable_key, plane.keys().publishable_key);
    assert_eq!(control.publishable_key(), info.publishable_key);
    assert!(info.urls.contains(&plane.url().to_owned()), "{:?}", info.urls);
    assert!(info.fee_rate.is_some() && info.limits.prompt_bytes.is_some());
    assert!(info.server_time.is_some());
    plane.stop().await;
}

#[tokio::test]
async fn what_is_no_control_plane_is_named_with_the_next_step() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let error = ControlPlane::discover(&url, PlainHttp::PrivateOnly).await.unwrap_err();
    assert!(matches!(error, ControlError::Unreachable { .. }));
    let message = error.to_string();
    assert!(message.contains(&url) && message.contains("infernet up"), "{message}");

    let control =
        ControlPlane::new(BaseUrl::parse(&url, PlainHttp::PrivateOnly).unwrap(), "key").unwrap();
    let asked = Instant::now();
    let session = Session::new(control, Keys::generate(), LoginKind::User);
    let error = session.token().await.unwrap_err();
    assert!(error.is_temporary() && error.to_string().contains(&url), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(5), "a person waits for this");

    let plane = TestControlPlane::start().await;
    let elsewhere = format!("{}/elsewhere", plane.url());
    let error = ControlPlane::discover(&elsewhere, PlainHttp::PrivateOnly).await.unwrap_err();
    assert!(matches!(error, ControlError::NotAControlPlane { .. }), "{error}");
    assert!(error.to_string().contains("status 404"), "{error}");
    plane.stop().await;
}

#[tokio::test]
async fn a_person_signs_in_and_is_the_same_person_the_next_time() {
    let plane = TestControlPlane::start().await;
    let keys = Keys::generate();
    let session = session(&plane, &keys, LoginKind::User);
    assert_eq!(session.signed_in(), None);
    let mut newest = session.newest_token();
    assert_eq!(*newest.borrow_and_update(), "");

    let first = session.login().await.unwrap();
    assert_eq!(first.kind, LoginKind::User);
    assert_eq!(session.signed_in(), Some(first));
    assert!(newest.has_changed().unwrap());
    let token = newest.borrow_and_update().clone();
    assert_eq!(session.token().await.unwrap(), token, "a good token is kept");

    let claims = claims(&plane, &token);
    assert_eq!(claims.role(), Some("authenticated"));
    assert_eq!(claims.text("sub"), Some(first.subject.to_string().as_str()));
    assert_eq!(claims.text("pubkey"), Some(keys.public_hex().as_str()));
    assert_eq!(claims.text("kind"), Some("user"));
    let issued_at = claims.0["iat"].as_i64().unwrap();
    assert_eq!(claims.expires_at(), Some(issued_at + 3600));
    assert_eq!(i64::try_from(first.expires_at).unwrap(), issued_at + 3600);

    let second = self::session(&plane, &keys, LoginKind::User).login().await.unwrap();
    assert_eq!(second.subject, first.subject);
    let other = self::session(&plane, &Keys::generate(), LoginKind::User).login().await.unwrap();
    assert_ne!(other.subject, first.subject);
    plane.stop().await;
}

#[tokio::test]
async fn however_many_ask_one_login_is_made() {
    let plane = TestControlPlane::start().await;
    let session = session(&plane, &Keys::generate(), LoginKind::User);
    let mut asking = JoinSet::new();
    for _ in 0..50 {
        let session = session.clone();
        asking.spawn(async move { session.token().await.unwrap() });
    }
    let mut tokens = asking.join_all().await;
    tokens.dedup();
    assert_eq!(tokens.len(), 1);
    assert_eq!(logins(&plane).await, 1);

    // The same goes for a refused token, and a brand new one is kept.
    assert_eq!(session.renew("an older one").await.unwrap(), tokens[0]);
    assert_eq!(session.renew(&tokens[0]).await.unwrap(), tokens[0]);
    assert_eq!(logins(&plane).await, 1);

    // Whoever waits for a login that fails gets that failure.
    let stranger = self::session(&plane, &Keys::generate(), LoginKind::Node);
    let mut asking = JoinSet::new();
    for _ in 0..50 {
        let stranger = stranger.clone();
        asking.spawn(async move { stranger.token().await.unwrap_err() });
    }
    for error in asking.join_all().await {
        assert_eq!(error.code(), Some("not_enrolled"), "more logins would be rate-limited");
    }
    plane.stop().await;
}

#[tokio::test]
async fn a_token_is_refreshed_before_it_ends() {
    let plane = TestControlPlane::start().await;
    let (url, _server) = serve_login(&plane, |context| {
        context.token_lifetime = Duration::from_secs(6);
    })
    .await;
    let control = control(&url, &plane);
    let session = Session::new(control, Keys::generate(), LoginKind::User);
    let mut newest = session.newest_token();

    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let refreshed = session.clone();
    let stop = shutdown.clone();
    tasks.spawn(async move { refreshed.run_refresh(stop).await });

    // The loop signs in by itself; then each token is replaced in its life.
    let mut ends = Vec::new();
    for _ in 0..3 {
        tokio::time::timeout(Duration::from_secs(10), newest.changed()).await.unwrap().unwrap();
        let token = newest.borrow_and_update().clone();
        let now = unix_now();
        let end = u64::try_from(claims(&plane, &token).expires_at().unwrap()).unwrap();
        assert!(end >= now, "the token had not ended");
        if let Some(before) = ends.last() {
            assert!(now <= *before, "the one before was replaced before it ended");
        }
        ends.push(end);
        assert_eq!(session.token().await.unwrap(), token);
    }

    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(1), tasks.join_next()).await;
    ended.unwrap().unwrap().unwrap();
    // Without the loop, a token that has ended is replaced when it is asked for.
    let last = newest.borrow_and_update().clone();
    tokio::time::sleep(Duration::from_millis(6100)).await;
    let next = session.token().await.unwrap();
    assert_ne!(next, last);
    assert_eq!(*newest.borrow(), next);
    plane.stop().await;
}

#[tokio::test]
async fn a_refresh_survives_an_outage_of_the_control_plane() {
    let plane = TestControlPlane::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}");
    drop(listener);
    let session = Session::new(control(&url, &plane), Keys::generate(), LoginKind::User);
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let refreshed = session.clone();
    let stop = shutdown.clone();
    tasks.spawn(async move { refreshed.run_refresh(stop).await });
    let mut newest = session.newest_token();
    let early = tokio::time::timeout(Duration::from_millis(1500), newest.changed()).await;
    assert!(early.is_err(), "nobody answers yet");

    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let _server = serve_login_at(&plane, listener, |_| {});
    tokio::time::timeout(Duration::from_secs(20), newest.changed()).await.unwrap().unwrap();
    assert!(!newest.borrow().is_empty());
    shutdown.cancel();
    tasks.join_next().await.unwrap().unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn a_token_that_is_no_longer_believed_is_replaced() {
    let mut plane = TestControlPlane::start().await;
    let port = plane.url().rsplit(':').next().unwrap().parse().unwrap();
    let session = session(&plane, &Keys::generate(), LoginKind::User);
    let rpc = Rpc::new(session.clone());
    let before = rpc.whoami().await.unwrap();
    let old = session.token().await.unwrap();

    // The operator changes the project's secret, and with it what REST believes.
    let secrets = plane.data().secrets();
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&secrets).unwrap()).unwrap();
    kept["jwt_secret"] = json!("another-secret-of-the-project-with-32-characters");
    plane
        .restart_with(|options| {
            std::fs::write(&secrets, kept.to_string()).unwrap();
            options.port = port;
        })
        .await;
    // Until then a refused token that is brand new is not replaced.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let after = rpc.whoami().await.unwrap();
    assert_eq!(after.id, before.id);
    assert_ne!(session.token().await.unwrap(), old);
    plane.stop().await;
}

#[tokio::test]
async fn a_login_is_good_once_here_and_never_elsewhere() {
    let plane = TestControlPlane::start().await;
    let keys = Keys::generate();
    let body = body(&LoginRequest::plain(LoginKind::User));
    let url = login_url(plane.url());
    let event = LoginEvent::make(&keys, &url, &body, unix_now());

    let (status, answer) = post(&url, Some(event.header()), &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["token_type"], "bearer");
    let (status, answer) = post(&url, Some(event.header()), &body).await;
    assert_eq!((status, &answer["code"]), (401, &json!("replayed")), "{answer}");
    assert!(answer["message"].is_string() && answer["hint"].is_string());

    // A second control plane that was handed the event cannot use it, nor can
    // one pretend to be this one by the header Host.
    let other = TestControlPlane::start().await;
    let event = LoginEvent::make(&keys, &url, &body, unix_now());
    let (status, answer) = post(&login_url(other.url()), Some(event.header()), &body).await;
    assert_eq!((status, &answer["code"]), (401, &json!("wrong_url")), "{answer}");
    let host = plane.url().trim_start_matches("http://");
    let answer = reqwest::Client::new()
        .post(login_url(other.url()))
        .header("authorization", event.header())
        .header("host", host)
        .header("x-forwarded-host", host)
        .body(body.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "wrong_url");
    // Nothing was used up by that: at home the event still counts.
    let (status, answer) = post(&url, Some(event.header()), &body).await;
    assert_eq!(status, 200, "{answer}");
    other.stop().await;
    plane.stop().await;
}

#[tokio::test]
async fn refusals_say_what_is_wrong_and_make_no_rows() {
    let plane = TestControlPlane::start().await;
    let url = login_url(plane.url());
    let body = body(&LoginRequest::plain(LoginKind::User));
    let keys = Keys::generate();
    let now = unix_now();
    let header = |now| Some(LoginEvent::make(&keys, &url, &body, now).header());

    let (status, answer) = post(&url, header(now - 120), &body).await;
    assert_eq!((status, &answer["code"]), (401, &json!("clock_skew")));
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("behind the control plane's"), "{message}");
    assert!(message.contains("clock says 20"), "it names the server's time: {message}");
    assert!(answer["hint"].as_str().unwrap().contains("clock"), "{answer}");
    let (status, answer) = post(&url, header(now + 120), &body).await;
    assert_eq!((status, &answer["code"]), (401, &json!("clock_skew")));
    assert!(answer["message"].as_str().unwrap().contains("ahead of the control plane's"));

    let (status, answer) = post(&url, None, &body).await;
    assert_eq!((status, &answer["code"]), (401, &json!("bad_event")));
    let (status, answer) = post(&url, Some(forged(&keys, &url, &body, now)), &body).await;
    assert_eq!((status, &answer["code"]), (401, &json!("bad_signature")));
    let (status, answer) = post(&url, header(now), br#"{"kind":"node"}"#).await;
    assert_eq!((status, &answer["code"]), (401, &json!("payload_mismatch")));
    let (status, answer) = post(&url, header(now), &[b' '; 20_000]).await;
    assert_eq!((status, &answer["code"]), (400, &json!("bad_request")));
    let odd = br#"{"kind":"king"}"#;
    let odd_event = LoginEvent::make(&keys, &url, odd, now).header();
    let (status, answer) = post(&url, Some(odd_event), odd).await;
    assert_eq!((status, &answer["code"]), (400, &json!("bad_request")));
    let response = reqwest::get(&url).await.unwrap();
    assert_eq!(response.status(), 405);

    let database = plane.connect("postgres").await;
    let known = database
        .query_one("select count(*) from public.users where public_key = $1", &[&keys.public_hex()])
        .await
        .unwrap();
    assert_eq!(known.get::<_, i64>(0), 0, "a row appears only after the signature held");
    drop(database);
    plane.stop().await;
}

#[tokio::test]
async fn a_node_is_enrolled_once_with_the_code_of_its_owner() {
    let plane = TestControlPlane::start().await;
    let owner = session(&plane, &Keys::generate(), LoginKind::User).login().await.unwrap();
    let code = make_enrolment(&plane, owner).await;
    let enrolment = Enrolment { role: "provider".into(), code, name: Some("attic".into()) };
    assert!(!format!("{enrolment:?}").contains(&enrolment.code));

    let keys = Keys::generate();
    let node = session(&plane, &keys, LoginKind::Node);
    let error = node.login().await.unwrap_err();
    assert_eq!(error.code(), Some("not_enrolled"));
    assert!(!error.is_temporary());
    let enrolled = node.enrol(&enrolment).await.unwrap();
    assert_eq!(enrolled.kind, LoginKind::Node);
    assert_eq!(claims(&plane, &node.token().await.unwrap()).text("kind"), Some("node"));
    // From now on the key is enough, in another process as well.
    let again = session(&plane, &keys, LoginKind::Node).login().await.unwrap();
    assert_eq!(again.subject, enrolled.subject);
    // And the code is used up.
    let thief = session(&plane, &Keys::generate(), LoginKind::Node);
    let error = thief.enrol(&enrolment).await.unwrap_err();
    assert_eq!(error.code(), Some("bad_enrolment"));
    assert!(!error.to_string().contains(&enrolment.code));
    // A key is a person's or a node's, never both.
    let error = session(&plane, &keys, LoginKind::User).login().await.unwrap_err();
    assert_eq!(error.code(), Some("wrong_kind"));
    plane.stop().await;
}

#[tokio::test]
async fn the_suspended_and_the_hasty_are_told_so() {
    let plane = TestControlPlane::start().await;
    let keys = Keys::generate();
    session(&plane, &keys, LoginKind::User).login().await.unwrap();
    let database = plane.connect("postgres").await;
    database
        .execute(
            "update public.users set status = 'suspended' where public_key = $1",
            &[&keys.public_hex()],
        )
        .await
        .unwrap();
    let error = session(&plane, &keys, LoginKind::User).login().await.unwrap_err();
    let SessionError::Refused { code, hint, status, .. } = &error else { panic!("{error}") };
    assert_eq!((code.as_str(), *status), ("suspended", 403));
    assert!(hint.is_some());

    database
        .execute("update public.settings set value = '2' where key = 'login_limit'", &[])
        .await
        .unwrap();
    drop(database);
    let hasty = session(&plane, &Keys::generate(), LoginKind::User);
    let mut refused = None;
    // A minute may begin in between.
    for _ in 0..5 {
        refused = hasty.login().await.err();
        if refused.is_some() {
            break;
        }
    }
    let Some(SessionError::Refused { code, status, retry_after, .. }) = refused else {
        panic!("no limit: {refused:?}")
    };
    assert_eq!((code.as_str(), status), ("rate_limited", 429));
    assert!(retry_after.is_some_and(|wait| wait <= Duration::from_secs(60)));
    plane.stop().await;
}

/// Makes a session at a control plane; nothing is sent yet.
fn session(plane: &TestControlPlane, keys: &Keys, kind: LoginKind) -> Session {
    Session::new(control(plane.url(), plane), keys.clone(), kind)
}

fn control(url: &str, plane: &TestControlPlane) -> ControlPlane {
    let url = BaseUrl::parse(url, PlainHttp::PrivateOnly).unwrap();
    ControlPlane::new(url, &plane.keys().publishable_key).unwrap()
}

/// Serves login once more at another address, over the same database, with a
/// changed context. The server ends with the set.
async fn serve_login(
    plane: &TestControlPlane,
    change: impl FnOnce(&mut AuthContext),
) -> (String, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (url, serve_login_at(plane, listener, change))
}

fn serve_login_at(
    plane: &TestControlPlane,
    listener: tokio::net::TcpListener,
    change: impl FnOnce(&mut AuthContext),
) -> JoinSet<()> {
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut context = AuthContext {
        pool: plane.pool().clone(),
        signer: TokenSigner::Secret(plane.keys().jwt_secret.clone()),
        token_lifetime: auth::TOKEN_LIFETIME,
        public_urls: vec![BaseUrl::parse(&url, PlainHttp::PrivateOnly).unwrap()],
        name: None,
        publishable_key: plane.keys().publishable_key.clone(),
        client_address: ClientAddress::Peer,
    };
    change(&mut context);
    let service = auth::router(context).into_make_service_with_connect_info::<SocketAddr>();
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, service).await.unwrap() });
    server
}

/// Sends a login as it is and returns status and answer.
async fn post(url: &str, authorization: Option<String>, body: &[u8]) -> (u16, Value) {
    infernet::control::install_tls_provider();
    let mut request = reqwest::Client::new().post(url).body(body.to_vec());
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    (response.status().as_u16(), response.json().await.unwrap())
}

/// Makes a header whose event names a key that did not sign it.
fn forged(keys: &Keys, url: &str, body: &[u8], now: u64) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let header = LoginEvent::make(keys, url, body, now).header();
    let json = STANDARD.decode(header.strip_prefix("Nostr ").unwrap()).unwrap();
    let mut event: Value = serde_json::from_slice(&json).unwrap();
    event["pubkey"] = json!(Keys::generate().public_hex());
    format!("Nostr {}", STANDARD.encode(event.to_string()))
}

/// Makes an enrolment code as an owner does.
async fn make_enrolment(plane: &TestControlPlane, owner: SignedIn) -> String {
    let mut connection = plane.pool().get().await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    let claims = json!({"sub": owner.subject, "role": "authenticated", "kind": "user"});
    transaction
        .batch_execute(&format!(
            "set local role authenticated; set local request.jwt.claims = '{claims}'"
        ))
        .await
        .unwrap();
    let row = transaction.query_one("select public.make_enrolment('provider')", &[]).await.unwrap();
    transaction.commit().await.unwrap();
    row.get::<_, Value>(0)["code"].as_str().unwrap().to_owned()
}

/// Counts the logins that were used up.
async fn logins(plane: &TestControlPlane) -> i64 {
    let database = plane.connect("postgres").await;
    database.query_one("select count(*) from infernet.login_events", &[]).await.unwrap().get(0)
}

/// Verifies a token of a control plane and returns what it says.
fn claims(plane: &TestControlPlane, token: &str) -> Claims {
    JwtVerifier::from_secret(&plane.keys().jwt_secret).unwrap().verify(token).unwrap()
}

fn body(request: &LoginRequest) -> Vec<u8> {
    serde_json::to_vec(request).unwrap()
}

fn login_url(base: &str) -> String {
    format!("{base}/functions/v1/auth")
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
