//! What is fetched for a model: its file over HTTP, its image from a registry. Both
//! servers are the tests' own; Docker and the command line are the real ones.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};

use crate::support::engine_image::{docker, engine_image};
use crate::support::test_market::{Said, run};

fn sha256(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

async fn serve(router: Router) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    port
}

/// A server of one file, which breaks off in the middle as often as it is told.
struct Shelf {
    file: Vec<u8>,
    breaks: AtomicUsize,
    /// The ranges that it was asked for, in order.
    ranges: Mutex<Vec<Option<String>>>,
}

impl Shelf {
    async fn open(file: Vec<u8>, breaks: usize) -> (Arc<Self>, u16) {
        let shelf =
            Arc::new(Self { file, breaks: AtomicUsize::new(breaks), ranges: Mutex::default() });
        let port = serve(Router::new().fallback(answer).with_state(Arc::clone(&shelf))).await;
        (shelf, port)
    }
}

async fn answer(State(shelf): State<Arc<Shelf>>, request: Request) -> Response {
    // `/to/HOST:PORT` leads there.
    if let Some(there) = request.uri().path().strip_prefix("/to/") {
        let there = format!("http://{there}/m.gguf");
        return (StatusCode::FOUND, [(header::LOCATION, there)]).into_response();
    }
    let range = request.headers().get(header::RANGE).map(|range| range.to_str().unwrap());
    shelf.ranges.lock().unwrap().push(range.map(str::to_owned));
    let from = range.map_or(0, |range| {
        range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap()
    });
    let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let rest = shelf.file[from..].to_vec();
    let length = [(header::CONTENT_LENGTH, rest.len().to_string())];
    let breaks =
        shelf.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    if breaks.is_ok() {
        let half = rest[..rest.len() / 2].to_vec();
        let pieces = [Ok(half), Err(std::io::Error::other("the cable was cut"))];
        return (status, length, Body::from_stream(stream::iter(pieces))).into_response();
    }
    (status, length, rest).into_response()
}

fn home(text: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("config")).unwrap();
    fs::write(home.path().join("config/config.toml"), text).unwrap();
    home
}

fn model(path: &Path, url: &str, sha256: Option<&str>) -> String {
    let sha256 = sha256.map(|digest| format!("sha256 = \"{digest}\"\n")).unwrap_or_default();
    format!(
        "[[model]]\nname = \"m\"\nengine = \"llama.cpp\"\npath = \"{}\"\nurl = \"{url}\"\n{sha256}\
         price_input = 1\nprice_output = 1\n",
        path.display()
    )
}

async fn pull(home: &Path) -> Said {
    run(home, &["model", "pull", "m", "--json"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_breaks_off_is_gone_on_with() {
    tokio::task::spawn_blocking(engine_image).await.unwrap();
    let file: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let digest = sha256(&file);
    let (shelf, port) = Shelf::open(file.clone(), 1).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models/m.gguf");
    let home = home(&model(&path, &format!("http://127.0.0.1:{port}/m.gguf"), Some(&digest)));
    let said = pull(home.path()).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let told: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(told, json!({"name": "m", "digest": digest, "fetched": true}));
    assert!(fs::read(&path).unwrap() == file);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no piece is left");
    let ranges = shelf.ranges.lock().unwrap().clone();
    assert!(ranges.len() == 2 && ranges[0].is_none() && ranges[1].is_some(), "{ranges:?}");
    // What is there is not fetched again.
    let told: Value = serde_json::from_str(&pull(home.path()).await.stdout).unwrap();
    assert_eq!(told["fetched"], false);
    assert_eq!(shelf.ranges.lock().unwrap().len(), 2);
    // What is there and another file is.
    fs::write(&path, "other").unwrap();
    assert_eq!(pull(home.path()).await.code, Some(0));
    assert!(fs::read(&path).unwrap() == file);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_file_than_is_allowed_is_not_kept() {
    tokio::task::spawn_blocking(engine_image).await.unwrap();
    let (_shelf, port) = Shelf::open(b"a trap".to_vec(), 0).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let url = format!("http://127.0.0.1:{port}/m.gguf");
    let wanted = home(&model(&path, &url, Some(&sha256(b"the model"))));
    let said = pull(wanted.path()).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("not the one that is allowed"), "{said:?}");
    // Nobody could tell over plain http that it is the right one.
    let unknown = home(&model(&path, &url, None));
    let said = pull(unknown.path()).await;
    assert!(said.stderr.contains("or it needs a sha256"), "{said:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_lead_into_this_machines_network() {
    tokio::task::spawn_blocking(engine_image).await.unwrap();
    let (inside, secret) = Shelf::open(b"a secret of the house".to_vec(), 0).await;
    let (_shelf, port) = Shelf::open(Vec::new(), 0).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let digest = sha256(b"a secret of the house");
    for (there, part) in [("127.0.0.2", "not public"), ("localhost", "no public address")] {
        let url = format!("http://127.0.0.1:{port}/to/{there}:{secret}");
        let home = home(&model(&path, &url, Some(&digest)));
        let said = pull(home.path()).await;
        assert_eq!(said.code, Some(1), "{there}: {said:?}");
        assert!(said.stderr.contains(part), "{there}: {said:?}");
    }
    assert!(inside.ranges.lock().unwrap().is_empty() && !path.exists());
    // The owner's own host may be anywhere.
    let home = home(&model(&path, &format!("http://localhost:{secret}/m"), Some(&digest)));
    assert_eq!(pull(home.path()).await.code, Some(0));
}

/// A registry of one image of one file, by what Docker asks it for.
struct Registry {
    manifest: Vec<u8>,
    blobs: HashMap<String, Vec<u8>>,
}

impl Registry {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("hello"), fastrand::u64(..).to_string()).unwrap();
        let tar = std::process::Command::new("tar")
            .args(["--create", "--directory"])
            .arg(folder.path())
            .arg("hello")
            .output()
            .unwrap();
        assert!(tar.status.success());
        let layer = tar.stdout;
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let part = |kind: &str, bytes: &[u8]| {
            let digest = format!("sha256:{}", sha256(bytes));
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": digest, "size": bytes.len(),
            })
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": part("config.v1+json", &config), "layers": [part("layer.v1.tar", &layer)],
        });
        let blobs = [config, layer].map(|blob| (format!("sha256:{}", sha256(&blob)), blob));
        Self { manifest: serde_json::to_vec(&manifest).unwrap(), blobs: HashMap::from(blobs) }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", sha256(&self.manifest))
    }
}

async fn registry(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let last = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    if last == registry.digest() {
        let kind = "application/vnd.oci.image.manifest.v1+json".to_owned();
        let headers = [
            (header::CONTENT_TYPE.as_str(), kind),
            ("docker-content-digest", registry.digest()),
            (header::CONTENT_LENGTH.as_str(), registry.manifest.len().to_string()),
        ];
        return (headers, registry.manifest.clone()).into_response();
    }
    match registry.blobs.get(&last) {
        Some(blob) => blob.clone().into_response(),
        None if last.is_empty() => StatusCode::OK.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// An image that is removed with the test.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_from_its_registry() {
    let images = Arc::new(Registry::new());
    let digest = images.digest();
    let router = Router::new().fallback(registry).with_state(Arc::clone(&images));
    let port = serve(router).await;
    let image = Image(format!("127.0.0.1:{port}/tools/hello@{digest}"));
    let container = |image: &str| {
        format!(
            "[[container]]\nname = \"m\"\nimage = \"{image}\"\ncommand = [\"/hello\"]\nprice_second = 1\n"
        )
    };
    let there = home(&container(&image.0));
    let said = pull(there.path()).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let told: Value = serde_json::from_str(&said.stdout).unwrap();
    let hex = digest.trim_start_matches("sha256:");
    assert_eq!(told, json!({"name": "m", "digest": hex, "fetched": true}));
    assert!(docker(&["image", "inspect", &image.0]).status.success());
    let told: Value = serde_json::from_str(&pull(there.path()).await.stdout).unwrap();
    assert_eq!(told["fetched"], false);

    // One that the registry does not have, and one that no registry can have.
    let absent = format!("127.0.0.1:{port}/tools/hello@sha256:{}", "0".repeat(64));
    let said = pull(home(&container(&absent)).path()).await;
    assert_eq!(said.code, Some(69), "{said:?}");
    assert!(said.stderr.contains("Docker could not pull an image"), "{said:?}");
    let said = pull(home(&container(&format!("sha256:{}", "0".repeat(64)))).path()).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("docker load"), "{said:?}");
}
