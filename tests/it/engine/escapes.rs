//! Machines with known ways out of containers: what an owner is told, and that no
//! agent starts on them. The daemon is the real one; a proxy before it answers for its
//! version what older ones were heard to answer.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use infernet::engine::docker::ContainerHost;
use infernet::engine::escapes::{KnownEscapes, Machine, judge};
use infernet::identity::Keys;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::support::agent_world::{run, talk};

/// A daemon that says that its runc is another one.
struct OlderDaemon {
    socket: PathBuf,
    _tasks: JoinSet<()>,
}

impl OlderDaemon {
    fn start(folder: &Path, runc: &'static str) -> Self {
        let socket = folder.join("older.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let service = service_fn(move |request| answer(request, runc));
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(client), service).await);
                });
            }
        });
        Self { socket, _tasks: tasks }
    }
}

/// Hands a request on, and changes what the real daemon says of its runc.
async fn answer(
    request: Request<Incoming>,
    runc: &'static str,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let asks_version = request.uri().path().ends_with("/version");
    let stream = UnixStream::connect("/var/run/docker.sock").await.unwrap();
    let (mut daemon, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driven = async { drop(connection.await) };
    let exchange = async {
        let (head, body) = daemon.send_request(request).await?.into_parts();
        let mut body = body.collect().await?.to_bytes();
        let mut response = Response::builder().status(head.status);
        response = response.header("content-type", "application/json");
        if asks_version {
            let mut version: Value = serde_json::from_slice(&body).unwrap();
            for component in version["Components"].as_array_mut().unwrap() {
                if component["Name"] == "runc" {
                    component["Version"] = json!(runc);
                }
            }
            body = Bytes::from(version.to_string());
        }
        Ok(response.body(Full::new(body)).unwrap())
    };
    tokio::select! {
        response = exchange => response,
        () = driven => unreachable!("the daemon answers before it closes"),
    }
}

/// Makes the folder of a node with one model in a container.
fn node(folder: &Path, docker: &Path, extra: &str) {
    let config = folder.join("config");
    Keys::load_or_create(&config.join("node.key")).unwrap();
    let model = folder.join("model.gguf");
    std::fs::write(&model, "GGUF").unwrap();
    let text = format!(
        "[control]\nurl = \"http://127.0.0.1:1\"\npublishable_key = \"sb_publishable_x\"\n\n\
         [node]\nname = \"old\"\n\n[docker]\nsocket = \"{}\"\n{extra}\n[[model]]\nname = \"m\"\n\
         engine = \"llama.cpp\"\npath = \"{}\"\nprice_input = 1\nprice_output = 1\n",
        docker.display(),
        model.display()
    );
    std::fs::write(config.join("config.toml"), text).unwrap();
}

#[tokio::test]
async fn an_agent_does_not_start_where_containers_can_be_left() {
    let home = tempfile::tempdir().unwrap();
    let daemon = OlderDaemon::start(home.path(), "1.1.4");
    node(home.path(), &daemon.socket, "");
    let output = run(home.path(), &["start", "--foreground"]).await;
    let said = talk(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("runc 1.1.4 has a known way out of containers, CVE-2024-21626"),
        "{said}"
    );
    assert!(said.contains("Update runc to "), "{said}");
    assert!(said.contains("Hint: Update what is named."), "{said}");
    let refusal = said.split("Error: ").nth(1).unwrap();
    assert!(!refusal.contains("CVE-2025-31133"), "the sandbox closes that one: {refusal}");

    // An owner who knows may go on, and meets the next thing that is wrong.
    for (arguments, extra) in [
        (&["start", "--foreground", "--accept-known-escapes"][..], ""),
        (&["start", "--foreground"], "known_escapes = \"accept\"\n"),
    ] {
        node(home.path(), &daemon.socket, extra);
        let output = run(home.path(), arguments).await;
        let said = talk(&output);
        assert!(!said.contains("No container is started here"), "{said}");
        assert!(!output.status.success());
    }

    let output = run(home.path(), &["doctor"]).await;
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{found}");
    let line = found.lines().find(|line| line.contains("CVE-2024-21626")).unwrap();
    assert!(line.contains("runc 1.1.4"), "{line}");
    let line = found.lines().find(|line| line.contains("CVE-2025-31133")).unwrap();
    assert!(line.starts_with("warning") && line.contains("The sandbox closes it"), "{line}");
}

#[tokio::test]
async fn a_careful_owner_refuses_what_the_sandbox_closes_as_well() {
    let home = tempfile::tempdir().unwrap();
    let daemon = OlderDaemon::start(home.path(), "1.2.7");
    node(home.path(), &daemon.socket, "known_escapes = \"refuse_all\"\n");
    let output = run(home.path(), &["start", "--foreground"]).await;
    let said = talk(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("CVE-2025-31133") && said.contains("1.2.8 or newer"), "{said}");
    assert!(!said.contains("CVE-2024-21626"), "{said}");
}

#[tokio::test]
async fn this_machine_is_read_from_daemon_and_packages() {
    let host = ContainerHost::connect(None).await.unwrap();
    let machine = Machine::look(&host.versions().await.unwrap()).await;
    let runc = machine.components.iter().find(|component| component.name == "runc").unwrap();
    let docker = machine.components.iter().find(|component| component.name == "docker").unwrap();
    assert!(docker.version.starts_with(|c: char| c.is_ascii_digit()), "{docker:?}");
    // Where Debian's package is what runs, its whole version counts: it has the fix
    // of CVE-2024-21626 in a number that upstream calls open.
    if machine.release == "debian-12" && runc.package.is_some() {
        let wanted = "1.1.5+ds1-1+deb12u1";
        let fixed = infernet::engine::escapes::compare(&runc.version, wanted).is_ge();
        let open = judge(&machine).iter().any(|opening| opening.escape.cve == "CVE-2024-21626");
        assert_ne!(fixed, open, "{runc:?}");
    }
    let refused = judge(&machine);
    let refused: Vec<_> =
        refused.iter().filter(|opening| opening.is_refused(KnownEscapes::Refuse)).collect();
    assert!(refused.is_empty(), "these tests run where containers are safe: {refused:?}");
}
