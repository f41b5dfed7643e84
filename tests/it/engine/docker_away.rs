//! A Docker that goes away for a moment and comes back, as when it is restarted: requests
//! wait for it, and nothing of what it ran is left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use infernet::engine::EngineError;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::support::engine_image::{EngineNode, MODEL, docker, engine_image};

/// The socket of this machine's Docker.
const DOCKER: &str = "/var/run/docker.sock";

/// A socket of the test's own before Docker's. It ends, with every connection through
/// it, when it is dropped.
struct Bridge {
    accepting: AbortHandle,
    path: PathBuf,
    _owner: JoinSet<()>,
}

impl Bridge {
    fn open(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let mut owner = JoinSet::new();
        let accepting = owner.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    let mut far = UnixStream::connect(DOCKER).await.unwrap();
                    // Either side may end it.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { accepting, path: path.to_owned(), _owner: owner }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.accepting.abort();
        std::fs::remove_file(&self.path).unwrap();
    }
}

#[tokio::test]
async fn a_docker_that_is_away_for_a_moment_is_waited_for() {
    let image = engine_image();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let bridge = Bridge::open(&socket);
    let node = EngineNode::new(vec![image.model()], |config| {
        config.docker_host = Some(format!("unix://{}", socket.display()));
    });
    let first = node.pool.ensure(MODEL).await.unwrap();

    drop(bridge);
    docker(&["kill", first.container().unwrap()]);
    let waiting = node.pool.clone();
    let second = tokio::spawn(async move {
        // While Docker is away, nothing says that the engine has ended.
        loop {
            let engine = waiting.ensure(MODEL).await?;
            if engine.container() != first.container() {
                return Ok::<_, EngineError>(engine);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!second.is_finished(), "{second:?}");

    let bridge = Bridge::open(&socket);
    let second = second.await.unwrap().unwrap();
    assert_eq!(node.containers().len(), 1, "what ended is removed");

    // It goes away in the moment in which it tells of a death.
    docker(&["kill", second.container().unwrap()]);
    drop(bridge);
    let waiting = node.pool.clone();
    let third = tokio::spawn(async move {
        let mut last = waiting.ensure(MODEL).await?;
        while last.container() == second.container() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            last = waiting.ensure(MODEL).await?;
        }
        Ok::<_, EngineError>(last)
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _bridge = Bridge::open(&socket);
    third.await.unwrap().unwrap();
    assert_eq!(node.containers().len(), 1, "what ended is removed");
    node.pool.stop_all().await;
    assert!(node.containers().is_empty());
}
