//! Functions of an operator's own, in real Deno behind the gateway.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::control_plane::{TestControlPlane, http_client, reachable_dir};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// Says what it sees.
const ECHO: &str = r#"
let count = 0;
Deno.serve(async (request) => {
  count += 1;
  const url = new URL(request.url);
  if (url.pathname === "/echo/die") Deno.exit(3);
  if (url.pathname === "/echo/stream") {
    const body = new ReadableStream({
      async start(controller) {
        for (const part of ["one ", "two ", "three"]) {
          controller.enqueue(new TextEncoder().encode(part));
          await new Promise((done) => setTimeout(done, 300));
        }
        controller.close();
      },
    });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  }
  let secret = "readable";
  try {
    await Deno.readTextFile(Deno.env.get("TRY_TO_READ") ?? "/etc/shadow");
  } catch (error) {
    secret = error.name;
  }
  return Response.json({
    path: url.pathname + url.search,
    method: request.method,
    body: await request.text(),
    own: request.headers.get("x-own"),
    connection: request.headers.get("te"),
    url: Deno.env.get("SUPABASE_URL"),
    keys: JSON.parse(Deno.env.get("SUPABASE_PUBLISHABLE_KEYS") ?? "null"),
    setting: Deno.env.get("OWN_SETTING"),
    secret,
    pid: Deno.pid,
    count,
  }, { status: 201, headers: { "x-answer": "yes" } });
});
"#;

/// Wants a token, and exports its handler instead of serving it.
const GUARDED: &str = r#"
export default { fetch: () => new Response("let in") };
"#;

/// Asks the Deno that tests use where it is, and puts it where every account can
/// run it.
async fn reachable_deno(directory: &Path) -> PathBuf {
    let named = std::env::var_os("INFERNET_DENO").unwrap_or_else(|| "deno".into());
    let output = Command::new(named)
        .args(["eval", "console.log(Deno.execPath())"])
        .output()
        .await
        .expect("Deno is needed for this test: scripts/test installs it");
    let path = String::from_utf8(output.stdout).unwrap();
    let target = directory.join("deno");
    // A link costs nothing where both are on one disk.
    if fs::hard_link(path.trim(), &target).is_err() {
        fs::copy(path.trim(), &target).unwrap();
    }
    target
}

/// Writes functions for a test.
fn write_functions(directory: &Path) -> PathBuf {
    let functions = directory.join("functions");
    for (name, code) in
        [("echo", ECHO), ("guarded", GUARDED), ("broken", "throw new Error('never starts')")]
    {
        fs::create_dir_all(functions.join(name)).unwrap();
        fs::write(functions.join(name).join("index.ts"), code).unwrap();
    }
    let config = "[functions.echo]\nverify_jwt = false\n[functions.broken]\nverify_jwt = false\n";
    fs::write(functions.join("config.toml"), config).unwrap();
    functions
}

#[tokio::test]
async fn functions_run_in_deno_and_end_with_the_control_plane() {
    let home = reachable_dir();
    let deno = reachable_deno(home.path()).await;
    let functions = write_functions(home.path());
    let plane = TestControlPlane::start_with(|options| {
        options.functions_dir = Some(functions);
        options.deno = Some(deno);
    })
    .await;
    let client = http_client();
    let url = |path: &str| format!("{}/functions/v1/{path}", plane.url());

    // The whole request arrives, and the whole answer comes back.
    let response = client
        .post(url("echo/a/b?c=d"))
        .header("x-own", "1")
        .header("te", "trailers")
        .body("hello")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["x-answer"], "yes");
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    let first: Value = response.json().await.unwrap();
    assert_eq!(first["path"], "/echo/a/b?c=d");
    assert_eq!(first["method"], "POST");
    assert_eq!(first["body"], "hello");
    assert_eq!(first["own"], "1");
    assert_eq!(first["connection"], Value::Null);
    assert_eq!(first["url"], plane.url());
    assert_eq!(first["keys"], json!({"default": plane.keys().publishable_key}));
    assert_eq!(first["secret"], "NotCapable", "its own files only: {first}");

    // The process stays for the next request.
    let second: Value = client.get(url("echo")).send().await.unwrap().json().await.unwrap();
    assert_eq!((&second["pid"], &second["count"]), (&first["pid"], &json!(2)));

    // A stream arrives as it is made.
    let started = Instant::now();
    let mut stream = client.get(url("echo/stream")).send().await.unwrap().bytes_stream();
    let part = stream.next().await.unwrap().unwrap();
    assert_eq!(&part[..], b"one ");
    let first_part = started.elapsed();
    let mut rest = Vec::new();
    while let Some(part) = stream.next().await {
        rest.extend_from_slice(&part.unwrap());
    }
    assert_eq!(rest, b"two three");
    assert!(started.elapsed() - first_part >= Duration::from_millis(500));

    // A token is checked where the settings do not say otherwise.
    for (authorization, reason) in [
        (None, "Missing authorization header"),
        (Some("Basic x"), "Auth header is not 'Bearer {token}'"),
        (Some("Bearer x.y.z"), "Invalid JWT"),
    ] {
        let mut request = client.get(url("guarded"));
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 401);
        assert_eq!(response.json::<Value>().await.unwrap()["msg"], reason);
    }
    let response = client.get(url("guarded")).bearer_auth(&plane.keys().anon_key).send();
    assert_eq!(response.await.unwrap().text().await.unwrap(), "let in");

    // One that dies is started again.
    let died = client.get(url("echo/die")).send().await.unwrap();
    assert_eq!(died.status(), 502);
    assert_eq!(died.json::<Value>().await.unwrap()["code"], "WORKER_ERROR");
    let started = Instant::now();
    loop {
        let response = client.get(url("echo")).send().await.unwrap();
        if response.status() == 201 {
            let third: Value = response.json().await.unwrap();
            assert_ne!(third["pid"], first["pid"]);
            break;
        }
        // A request may still meet the process that is about to end.
        assert!([502, 503].contains(&response.status().as_u16()), "{response:?}");
        assert!(started.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // One that never starts says so, and is not tried at every request.
    for _ in 0..2 {
        let response = client.get(url("broken")).send().await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "BOOT_ERROR");
    }
    let log = fs::read_to_string(plane.data().root().join("functions.log")).unwrap();
    assert!(log.contains("never starts"), "{log}");
    assert!(!log.contains(&plane.keys().secret_key));

    let unknown = client.get(url("nothing")).send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    assert_eq!(unknown.json::<Value>().await.unwrap()["code"], "NOT_FOUND");

    let data = plane.data().root().to_owned();
    plane.stop().await;
    assert!(no_process_names(&data).await);
}

/// Waits until no process names a directory.
async fn no_process_names(directory: &Path) -> bool {
    let needle = directory.to_str().unwrap().as_bytes();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        let lines = fs::read_dir("/proc").unwrap().flatten();
        let named = lines
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .any(|line| line.windows(needle.len()).any(|part| part == needle));
        if !named {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

#[tokio::test]
async fn without_deno_functions_say_so_and_the_rest_works() {
    let home = reachable_dir();
    let functions = write_functions(home.path());
    let plane = TestControlPlane::start_with(|options| {
        options.functions_dir = Some(functions);
        options.deno = Some(home.path().join("no-such-deno"));
    })
    .await;
    let client = http_client();
    let response = client.get(format!("{}/functions/v1/echo", plane.url())).send().await.unwrap();
    assert_eq!(response.status(), 503);
    let refusal: Value = response.json().await.unwrap();
    assert_eq!(refusal["code"], "DENO_MISSING");
    assert!(refusal["hint"].as_str().unwrap().contains("deno.com"), "{refusal}");
    let info = client.get(format!("{}/functions/v1/info", plane.url())).send().await.unwrap();
    assert_eq!(info.status(), 200);
    let health: Value =
        client.get(format!("{}/health", plane.url())).send().await.unwrap().json().await.unwrap();
    assert_eq!(health["functions"], "off");
    plane.stop().await;
}
