//! A relay for engines that can only listen on a port.
//!
//! Such an engine's container has a loopback interface and nothing else. A second
//! container shares that interface, and in it this relay, `infernet relay`, hands the
//! connections of a unix socket on to the port: from outside, the engine looks like any
//! other. [`RelayProgram`] finds what that second container needs of this machine: the
//! program and its libraries, read-only.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::engine::sandbox::BindMount;

/// Where the program and its libraries appear inside the relay's container.
const DIRECTORY: &str = "/infernet-relay";

/// The most connections at the same time.
const CONNECTIONS: usize = 1024;

/// How long connecting to the engine may take: it is on the same interface.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Hands every connection of a socket on to a port, until the socket fails.
///
/// # Errors
/// What the system says when the socket cannot be made or listened at.
pub async fn run_relay(listen: &Path, to: SocketAddr) -> io::Result<()> {
    let listener = UnixListener::bind(listen)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let permit = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
        let (client, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let outcome = hand_on(client, to).await;
            drop(permit);
            if let Err(error) = outcome {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

/// Copies both ways until either side has nothing more to say. Both are closed then:
/// an engine whose client is gone stops computing.
async fn hand_on(mut client: UnixStream, to: SocketAddr) -> io::Result<()> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to));
    let mut engine = connecting.await.map_err(|_elapsed| io::ErrorKind::TimedOut)??;
    engine.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_engine, mut to_engine) = engine.split();
    tokio::select! {
        copied = tokio::io::copy(&mut from_client, &mut to_engine) => copied?,
        copied = tokio::io::copy(&mut from_engine, &mut to_client) => copied?,
    };
    Ok(())
}

/// The program that relays, as another container can run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RelayProgram {
    /// The program and its libraries.
    pub(super) mounts: Vec<BindMount>,
    /// The command line up to the relay's own arguments.
    command: Vec<String>,
}

impl RelayProgram {
    /// Finds the program, this process's own where none is given, and the libraries
    /// that this process uses, which are the same.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn find(given: Option<&Path>) -> io::Result<Self> {
        let program = match given {
            Some(program) => program.to_owned(),
            None => own_program()?,
        };
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        Ok(Self::with_libraries(&program, &libraries(&maps)))
    }

    fn with_libraries(program: &Path, libraries: &[PathBuf]) -> Self {
        let place = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            format!("{DIRECTORY}/{name}")
        };
        let mount = |path: &Path, target: String| BindMount {
            source: path.to_owned(),
            target,
            writable: false,
        };
        let inside = format!("{DIRECTORY}/infernet");
        let mut mounts = vec![mount(program, inside.clone())];
        mounts.extend(libraries.iter().map(|library| mount(library, place(library))));
        // The image has a loader of its own, or none, or of another C library.
        let loader = libraries.iter().find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-"))
        });
        let command = match loader {
            Some(loader) => {
                vec![place(loader), "--library-path".to_owned(), DIRECTORY.to_owned(), inside]
            }
            // A program that brings everything with it.
            None => vec![inside],
        };
        Self { mounts, command }
    }

    /// Returns the command line of a relay from a socket to a port.
    pub(super) fn command_line(&self, socket: &str, port: u16) -> Vec<String> {
        let arguments = ["relay", "--listen", socket, "--to"].map(str::to_owned).into_iter();
        let to = format!("127.0.0.1:{port}");
        self.command.iter().cloned().chain(arguments).chain([to]).collect()
    }
}

/// Returns the path of this program; of the new one, where it was replaced.
fn own_program() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let replaced = program.to_string_lossy().strip_suffix(" (deleted)").map(PathBuf::from);
    Ok(replaced.unwrap_or(program))
}

/// Lists the libraries in a process's map of memory, each once.
fn libraries(maps: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = maps
        .lines()
        // Five columns, then the path, which may hold spaces.
        .filter_map(|line| line.find('/').map(|start| PathBuf::from(line[start..].trim_end())))
        .filter(|path| {
            path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.ends_with(".so") || name.contains(".so.")
            })
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_program_is_found_with_its_loader_and_libraries() {
        let maps = "7f00-7f01 r-xp 0000 08:01 12   /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f01-7f02 r--p 0000 08:01 12   /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f03-7f04 r-xp 0000 08:01 13   /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2\n\
                    7f05-7f06 rw-p 0000 00:00 0    [heap]\n\
                    7f07-7f08 r-xp 0000 08:01 14   /usr/bin/infernet\n";
        let found = libraries(maps);
        assert_eq!(found.len(), 2);
        let program = RelayProgram::with_libraries(Path::new("/usr/bin/infernet"), &found);
        let wanted = [
            "/infernet-relay/ld-linux-x86-64.so.2",
            "--library-path",
            "/infernet-relay",
            "/infernet-relay/infernet",
            "relay",
            "--listen",
            "/run/engine/e.sock",
            "--to",
            "127.0.0.1:80",
        ];
        assert_eq!(program.command_line("/run/engine/e.sock", 80), wanted);
        assert!(program.mounts.iter().all(|mount| !mount.writable));
        let own = RelayProgram::find(None).unwrap();
        assert!(own.mounts.iter().all(|mount| mount.source.is_file()), "{own:?}");
    }

    #[tokio::test]
    async fn connections_are_handed_on_and_end_together() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("r.sock");
        let engine = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = engine.local_addr().unwrap();
        let listen = socket.clone();
        let relay = tokio::spawn(async move { run_relay(&listen, to).await });
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut client = UnixStream::connect(&socket).await.unwrap();
        let (mut served, _) = engine.accept().await.unwrap();
        client.write_all(b"ask").await.unwrap();
        let mut asked = [0; 3];
        served.read_exact(&mut asked).await.unwrap();
        served.write_all(b"answer").await.unwrap();
        let mut answered = [0; 6];
        client.read_exact(&mut answered).await.unwrap();
        assert_eq!((&asked, &answered), (b"ask", b"answer"));
        // A client that hangs up is told to the engine at once.
        drop(client);
        assert_eq!(served.read(&mut asked).await.unwrap(), 0);
        // An engine that ends is told to the client.
        let mut client = UnixStream::connect(&socket).await.unwrap();
        let (served, _) = engine.accept().await.unwrap();
        drop(served);
        assert_eq!(client.read(&mut asked).await.unwrap_or_default(), 0);
        relay.abort();
    }
}
