//! A Docker daemon of a row's own, which may be killed: its data, its socket and its
//! containerd are in a directory that ends with it, and it touches no network.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::block_in_place;

use super::engine::{IMAGE, run};

/// How long it may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon.
pub(crate) struct Docker {
    daemon: Child,
    root: tempfile::TempDir,
}

impl Docker {
    /// Starts a daemon that has the engine's image.
    pub(crate) async fn start(layer: &Path) -> Self {
        let root = tempfile::Builder::new().prefix("infernet-chaos.").tempdir().unwrap();
        let docker = Self { daemon: spawn(root.path()), root };
        docker.wait().await;
        docker.ask(&["import", layer.to_str().unwrap(), IMAGE]);
        docker
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.root.path().join("docker.sock")
    }

    /// Returns the id of the engine's image.
    pub(crate) fn image_id(&self) -> String {
        self.ask(&["image", "inspect", "--format", "{{.Id}}", IMAGE]).trim().to_owned()
    }

    /// Ends it with a signal and starts it again after a while.
    pub(crate) async fn restart(&mut self, signal: Signal, after: Duration) {
        block_in_place(|| self.end(signal));
        tokio::time::sleep(after).await;
        self.daemon = spawn(self.root.path());
        self.wait().await;
    }

    /// Returns the ids of its containers; with `all`, also of those that do not run.
    pub(crate) fn containers(&self, all: bool) -> Vec<String> {
        let list = if all { "-aq" } else { "-q" };
        self.ask(&["ps", list, "--no-trunc"]).lines().map(str::to_owned).collect()
    }

    /// Kills a container; false when it was not running any more.
    pub(crate) fn kill_container(&self, id: &str) -> bool {
        block_in_place(|| self.command(&["kill", id]).output().unwrap().status.success())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.socket().display())).args(arguments);
        command
    }

    fn ask(&self, arguments: &[&str]) -> String {
        block_in_place(|| run(&mut self.command(arguments)))
    }

    async fn wait(&self) {
        let limit = Instant::now() + PATIENCE;
        let answers = || {
            let asked = block_in_place(|| self.command(&["version"]).output());
            asked.is_ok_and(|output| output.status.success())
        };
        while !answers() {
            assert!(Instant::now() < limit, "dockerd does not start:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.root.path().join("dockerd.log")).unwrap_or_default()
    }

    /// Ends the daemon; its containers live on when it has no chance to end them.
    fn end(&mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).unwrap());
        // It may be gone already.
        let _gone = kill(pid, signal);
        let limit = Instant::now() + PATIENCE;
        while self.daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > limit {
                let _gone = self.daemon.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Its containerd dies with it, and where nobody takes note of that death at
        // once, the next daemon would wait for it in vain.
        let pid_file = self.root.path().join("exec/containerd/containerd.pid");
        if let Some(pid) =
            std::fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse().ok())
        {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _removed = std::fs::remove_file(pid_file);
        }
    }

    /// Kills what still keeps containers alive, and these.
    fn kill_shims(&self) {
        let root = self.root.path().display().to_string();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = entry.path();
            let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if pid == std::process::id() || !String::from_utf8_lossy(&command).contains(&root) {
                continue;
            }
            let children = path.join(format!("task/{pid}/children"));
            let children = std::fs::read_to_string(children).unwrap_or_default();
            let children = children.split(' ').filter_map(|child| child.parse::<u32>().ok());
            for pid in children.chain([pid]) {
                let _gone = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.end(Signal::SIGTERM);
        // What is left where a daemon was killed and did not come back.
        self.kill_shims();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(mount).starts_with(self.root.path()) {
                let _done = Command::new("umount").args(["--lazy", mount]).status();
            }
        }
    }
}

fn spawn(root: &Path) -> Child {
    let log = File::options().create(true).append(true).open(root.join("dockerd.log")).unwrap();
    let option = |name: &str, path: &str| format!("--{name}={}", root.join(path).display());
    Command::new("dockerd")
        .args([
            option("data-root", "data"),
            option("exec-root", "exec"),
            option("pidfile", "docker.pid"),
            format!("--host=unix://{}", root.join("docker.sock").display()),
        ])
        .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        // Ctrl-C is for this program, which then ends its daemons in order.
        .process_group(0)
        .spawn()
        .unwrap()
}
