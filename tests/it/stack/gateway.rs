//! What the gateway adds to all its parts.

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::control_plane::{TestControlPlane, http_client};

#[tokio::test]
async fn the_gateway_answers_for_all_its_parts() {
    let plane = TestControlPlane::start().await;
    let client = http_client();
    let url = |path: &str| format!("{}{path}", plane.url());

    // Health says what is well, to anybody. Realtime listens soon after the start.
    let mut health = Value::Null;
    for _ in 0..200 {
        let response = client.get(url("/health")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        health = response.json().await.unwrap();
        if health["status"] == "ok" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(health["status"], "ok");
    assert_eq!(health["realtime"], "ok");
    assert_eq!(health["database"], "ok");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["migration"].is_string(), "{health}");

    // Unknown paths and methods are JSON.
    let response = client.get(url("/nothing/here")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(response.json::<Value>().await.unwrap()["code"], "not_found");
    let response = client.delete(url("/health")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.json::<Value>().await.unwrap()["code"], "method_not_allowed");

    // A request keeps its id, or gets one.
    let response = client.get(url("/health")).header("x-request-id", "mine-1");
    assert_eq!(response.send().await.unwrap().headers()["x-request-id"], "mine-1");
    let response = client.get(url("/health")).header("x-request-id", "not mine");
    assert_eq!(response.send().await.unwrap().headers()["x-request-id"].len(), 36);

    // A page may ask before it calls, at every part.
    for path in ["/rest/v1/rpc/whoami", "/functions/v1/auth", "/functions/v1/x", "/health"] {
        let response = client
            .request(Method::OPTIONS, url(path))
            .header("origin", "https://example.org")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "apikey,content-profile,prefer")
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let headers = response.headers();
        assert_eq!(headers["access-control-allow-origin"], "*");
        assert_eq!(headers["access-control-allow-headers"], "apikey,content-profile,prefer");
        assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    }
    plane.stop().await;
}

#[tokio::test]
async fn keys_open_what_their_roles_may() {
    let plane = TestControlPlane::start().await;
    let client = http_client();
    let rest = |path: &str| format!("{}/rest/v1/{path}", plane.url());
    let keys = plane.keys();

    let call = client.post(rest("rpc/overview")).header("apikey", &keys.publishable_key);
    let overview = call.send().await.unwrap();
    assert_eq!(overview.status(), StatusCode::OK);
    assert!(overview.json::<Value>().await.unwrap()["nodes"].is_object());

    for (key, opens) in [
        (&keys.publishable_key, false),
        (&keys.anon_key, false),
        (&keys.secret_key, true),
        (&keys.service_role_key, true),
    ] {
        let response =
            client.get(rest("users?select=id")).header("apikey", key).send().await.unwrap();
        assert_eq!(response.status().is_success(), opens, "{response:?}");
    }
    let wrong = client.get(rest("users")).header("apikey", "sb_publishable_wrong").send().await;
    assert_eq!(wrong.unwrap().status(), StatusCode::UNAUTHORIZED);
    plane.stop().await;
}

#[tokio::test]
async fn the_control_plane_says_what_it_is() {
    let plane = TestControlPlane::start_with(|options| options.name = Some("Attic".into())).await;
    let info =
        http_client().get(format!("{}/functions/v1/info", plane.url())).send().await.unwrap();
    let info: Value = info.json().await.unwrap();
    assert_eq!(info["name"], "Attic");
    assert_eq!(info["publishable_key"], plane.keys().publishable_key.as_str());
    assert_eq!(info["urls"][0], plane.url());
    plane.stop().await;
}
