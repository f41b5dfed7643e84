//! Throwaway PostgreSQL clusters: empty ones, for tests of a single part that
//! bring a schema of their own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use infernet::stack::postgres::BIN_VARIABLE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tokio_postgres::NoTls;

/// A running server with a directory that ends with it. Its superuser is
/// called `root_of_tests`; everybody on this machine is trusted.
pub(crate) struct Cluster {
    server: Child,
    port: u16,
    bin: PathBuf,
    _directory: tempfile::TempDir,
}

const SUPERUSER: &str = "root_of_tests";

impl Cluster {
    /// Makes and starts a cluster.
    pub(crate) fn start() -> Self {
        let bin = binaries();
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let data = directory.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        let account = account();
        if let Some(user) = &account {
            chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let status = as_account(&bin.join("initdb"), account.as_ref())
            .args(["--username", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(["--no-sync", "--no-instructions", "--pgdata"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "initdb failed");

        // The port is free until the server takes it; another test may be faster.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = as_account(&bin.join("postgres"), account.as_ref())
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", "", "-D"])
            .arg(&data)
            .args(["-c", "fsync=off", "-c", "log_min_messages=panic"])
            .args(["-c", "log_min_error_statement=panic"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let cluster = Self { server, port, bin, _directory: directory };
        cluster.wait();
        cluster
    }

    fn wait(&self) {
        let started = Instant::now();
        let is_ready = || {
            Command::new(client_program(&self.bin, "pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
                .status()
                .unwrap()
                .success()
        };
        while !is_ready() {
            assert!(started.elapsed() < Duration::from_secs(60), "PostgreSQL does not start");
            sleep(Duration::from_millis(50));
        }
    }

    /// Makes a database and fills it from a file of `psql`.
    pub(crate) fn create_database(&self, name: &str, schema: &Path) {
        let port = self.port.to_string();
        let run = |program: &str, arguments: &[&str]| {
            let status = Command::new(client_program(&self.bin, program))
                .args(["-h", "127.0.0.1", "-p", &port, "-U", SUPERUSER])
                .args(arguments)
                .env("PGOPTIONS", "-c client_min_messages=warning")
                .stdout(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "{program} failed");
        };
        run("createdb", &["-T", "template0", name]);
        let schema = schema.to_str().unwrap();
        run("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", name, "-f", schema]);
    }

    /// What to connect with as `role`.
    pub(crate) fn config(&self, role: &str, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(role).dbname(database);
        config
    }

    /// What to connect with as the superuser.
    pub(crate) fn superuser_config(&self, database: &str) -> tokio_postgres::Config {
        self.config(SUPERUSER, database)
    }

    /// A pool of connections that log in as `role`.
    pub(crate) fn pool(&self, role: &str, database: &str, size: usize) -> Pool {
        let manager = Manager::from_config(
            self.config(role, database),
            NoTls,
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1).build().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.server.id()).unwrap());
        // An immediate stop: nothing here is worth a checkpoint.
        kill(pid, Signal::SIGQUIT).ok();
        self.server.wait().ok();
    }
}

/// Where the programs are of the PostgreSQL that the whole run is on, or else of the
/// newest one of this machine.
fn binaries() -> PathBuf {
    if let Some(bin) = std::env::var_os(BIN_VARIABLE).filter(|bin| !bin.is_empty()) {
        return bin.into();
    }
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let major = path.file_name()?.to_str()?.parse().ok()?;
            Some((major, path.join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort_unstable();
    found.pop().expect("PostgreSQL is installed in /usr/lib/postgresql").1
}

/// A client's program: the server's own, or that of the path where a package has but
/// the server.
pub(crate) fn client_program(bin: &Path, name: &str) -> PathBuf {
    let own = bin.join(name);
    if own.exists() { own } else { name.into() }
}

/// The account that the server runs as, since it refuses root.
fn account() -> Option<User> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).unwrap())
}

fn as_account(program: &Path, account: Option<&User>) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null());
    if let Some(user) = account {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}
