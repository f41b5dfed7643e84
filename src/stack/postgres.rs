//! Runs the PostgreSQL server of an embedded control plane: finds the binaries,
//! makes the cluster, starts, watches, restarts and stops the server.
//!
//! Used by [`Stack`](super::Stack) alone. Invariants: the server is reached by
//! this machine only (127.0.0.1 and a unix socket that only its owner and root
//! can open); it is in a process group of its own, so that Ctrl-C in a terminal
//! reaches us first and it is stopped after the gateway; of one data directory
//! at most one server runs, because the caller holds the directory's lock and an
//! orphan of a killed process is stopped before another is started.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    net::{Ipv4Addr, TcpListener},
    ops::Deref,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
};
use tokio_postgres::{Client, NoTls, config::Config, error::SqlState};
use tokio_util::sync::CancellationToken;

pub use self::installation::{Account, BIN_VARIABLE, Installation};
use super::data_dir::{DataDir, DataDirError};

mod installation;

/// The cluster's superuser, as Supabase calls it.
pub const SUPERUSER: &str = "supabase_admin";
/// The one database that is served.
pub const DATABASE: &str = "postgres";

/// How long a server may take until it answers; a crash recovery reads up to a
/// gigabyte of log first.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long a server may take to end its sessions and write a checkpoint.
const FAST_STOP_LIMIT: Duration = Duration::from_secs(30);
/// How long a server may take to stop without a checkpoint.
const IMMEDIATE_STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long making a cluster may take.
const INITDB_LIMIT: Duration = Duration::from_secs(120);
/// Restarts in a row that may fail before the control plane gives up.
const RESTART_LIMIT: u32 = 20;
/// Size from which the log of earlier runs is put aside.
const LOG_LIMIT_BYTES: u64 = 8 * 1024 * 1024;
/// Longest path of a unix socket that every system of ours takes, in bytes.
const SOCKET_PATH_LIMIT: usize = 100;

/// Why the database server cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No usable version is on this machine.
    #[error("{}", not_installed_text(found))]
    NotInstalled {
        /// Unusable versions that were found, newest first.
        found: String,
    },
    /// The data were made by a version that is not here.
    #[error(
        "The data were made by PostgreSQL {major}, but this machine has only version {found}; \
         install PostgreSQL {major} (Debian, Ubuntu: `apt-get install postgresql-{major}`) or \
         choose another --data-dir"
    )]
    OtherVersion {
        /// The version that made the data.
        major: u32,
        /// The versions found, newest first.
        found: String,
    },
    /// `INFERNET_POSTGRES_BIN` points to something else.
    #[error("{BIN_VARIABLE} is {path}, which holds no working `postgres` and `initdb`")]
    BadBinDir {
        /// Its value.
        path: PathBuf,
    },
    /// There is no unprivileged account to run as.
    #[error(
        "PostgreSQL refuses to run as root, and this machine has neither a user `postgres` nor \
         `nobody`; run this command as an ordinary user"
    )]
    NoAccount,
    /// The account cannot enter the data directory.
    #[error(
        "PostgreSQL runs as user {account}, who cannot pass {closed} to reach {path}; choose a \
         --data-dir that others can reach, or run `chmod o+x {closed}`"
    )]
    OutOfReach {
        /// Name of the account.
        account: String,
        /// The directory that is closed.
        closed: PathBuf,
        /// The directory that is needed.
        path: PathBuf,
    },
    /// The data directory does not work.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A program of PostgreSQL cannot be run.
    #[error("Cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("PostgreSQL cannot make its data directory: {output}")]
    Initdb {
        /// The end of what it printed.
        output: String,
    },
    /// Somebody has the port that was asked for.
    #[error("Port {port} of 127.0.0.1 is in use; choose another one with --db-port")]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// The server ended while it was starting.
    #[error("PostgreSQL ended while starting ({status}); the end of its log: {log}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// The server runs but does not answer.
    #[error("PostgreSQL does not answer after {seconds} s; see {log}")]
    NotReady {
        /// How long it was waited for.
        seconds: u64,
        /// The log file.
        log: PathBuf,
    },
    /// The server answers, but not to us.
    #[error("PostgreSQL refuses its own superuser; see {log}")]
    Refused {
        /// The log file.
        log: PathBuf,
        /// What it said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A server of an earlier run cannot be stopped.
    #[error("PostgreSQL of an earlier run (process {pid}) does not stop; stop it by hand")]
    OrphanStays {
        /// Its process id.
        pid: i32,
    },
}

/// Words the absence of PostgreSQL.
fn not_installed_text(found: &str) -> String {
    let needed = "PostgreSQL 15 to 18 is needed on this machine";
    let how = "install it (Debian, Ubuntu: `apt-get install postgresql`; Fedora: `dnf install \
               postgresql-server`; macOS: `brew install postgresql@17`) or point \
               INFERNET_POSTGRES_BIN at the directory of its binaries";
    if found.is_empty() {
        format!("{needed}; {how}")
    } else {
        format!("{needed}, found only version {found}; {how}")
    }
}

/// Where the server of a control plane is reached from this machine.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Directory of the unix socket, unless its path is too long for one.
    pub socket: Option<PathBuf>,
    /// Port on 127.0.0.1.
    pub port: u16,
}

impl Endpoint {
    /// Returns how `role` connects, over the unix socket where there is one.
    pub fn config(&self, role: &str, password: &str) -> Config {
        let mut config = Config::new();
        match &self.socket {
            Some(socket) => config.host_path(socket),
            None => config.host("127.0.0.1"),
        };
        config
            .port(self.port)
            .user(role)
            .password(password)
            .dbname(DATABASE)
            .application_name("infernet")
            .connect_timeout(Duration::from_secs(5));
        config
    }

    /// Returns the URL by which other programs connect.
    pub fn url(&self, role: &str, password: &str) -> String {
        format!("postgresql://{role}:{password}@127.0.0.1:{}/{DATABASE}", self.port)
    }
}

/// One connection for a few statements, closed when it is dropped.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    // Aborts the task that moves the bytes.
    _tasks: JoinSet<()>,
}

impl Connection {
    /// Connects.
    pub async fn open(config: &Config) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = config.connect(NoTls).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the database ended");
            }
        });
        Ok(Self { client, _tasks: tasks })
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A database server that this process started.
#[derive(Debug)]
pub struct Postgres {
    installation: Installation,
    account: Option<Account>,
    data: DataDir,
    endpoint: Endpoint,
    password: String,
    child: Option<Child>,
}

impl Postgres {
    /// Makes the cluster if there is none, stops a server that an earlier run
    /// left behind, starts the server and waits until it answers.
    ///
    /// `port` is that of 127.0.0.1, `None` for a free one. The caller holds the
    /// lock of `data`. `password` is the superuser's; the cluster remembers the
    /// one that it was made with.
    pub async fn start(
        data: &DataDir,
        port: Option<u16>,
        password: &str,
    ) -> Result<Self, PostgresError> {
        let account = Account::choose()?;
        if let Some(account) = &account {
            account.check_reaches(data.root())?;
        }
        let installation = Installation::find(cluster_version(data)?).await?;
        tracing::debug!(bin = %installation.bin.display(), major = installation.major, "found PostgreSQL");
        stop_orphan(data).await?;
        if cluster_version(data)?.is_none() {
            make_cluster(&installation, account.as_ref(), data, password).await?;
        }
        let socket = make_socket_dir(account.as_ref(), data)?;
        let endpoint = Endpoint { socket, port: port.unwrap_or(0) };
        let mut postgres = Self {
            installation,
            account,
            data: data.clone(),
            endpoint,
            password: password.to_owned(),
            child: None,
        };
        match port {
            Some(_) => postgres.launch().await?,
            None => postgres.launch_on_free_port().await?,
        }
        Ok(postgres)
    }

    /// Returns where the server is reached.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the installation that runs.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// Launches on a port that was free a moment ago, and tries another when
    /// somebody was faster.
    async fn launch_on_free_port(&mut self) -> Result<(), PostgresError> {
        let mut tries = 5;
        loop {
            self.endpoint.port = free_port()?;
            tries -= 1;
            match self.launch().await {
                Err(PostgresError::PortInUse { .. }) if tries > 0 => {}
                other => return other,
            }
        }
    }

    /// Starts the server on the known port and waits until it answers.
    async fn launch(&mut self) -> Result<(), PostgresError> {
        let (log, log_start) = self.open_log()?;
        let program = self.installation.program("postgres");
        let mut command = self.command(&program);
        command.arg("-D").arg(self.data.cluster());
        let socket_dir = match &self.endpoint.socket {
            // Its commas would separate directories, and quotes group them.
            Some(path) => format!("\"{}\"", path.display()),
            None => String::new(),
        };
        for (name, value) in [
            ("listen_addresses", "127.0.0.1"),
            ("port", &self.endpoint.port.to_string()),
            ("unix_socket_directories", &socket_dir),
            ("unix_socket_permissions", "0700"),
            ("max_connections", "100"),
            ("shared_buffers", "64MB"),
            // Plans of our statements cost less than compiling them.
            ("jit", "off"),
            // The gateway reads messages from their table, nothing decodes the log.
            ("wal_level", "replica"),
            ("max_wal_senders", "4"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("lc_messages", "C"),
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
            ("log_line_prefix", "%m [%p] %q%u "),
            // A failed statement may carry a prompt; its error is enough.
            ("log_min_error_statement", "panic"),
            ("password_encryption", "scram-sha-256"),
        ] {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.process_group(0);
        let child = command
            .spawn()
            .map_err(|source| PostgresError::Spawn { program: program.clone(), source })?;
        self.child = Some(child);
        let ready = self.wait_ready(log_start).await;
        if ready.is_err() {
            self.stop().await;
        }
        ready
    }

    /// Prepares a command that runs as the account, without the variables of
    /// PostgreSQL's clients and in a directory that everybody can enter.
    fn command(&self, program: &Path) -> Command {
        postgres_command(program, self.account.as_ref())
    }

    /// Opens the log for appending, after putting aside a long one; returns
    /// where this run's part begins.
    fn open_log(&self) -> Result<(File, u64), PostgresError> {
        let path = self.data.postgres_log();
        let io_error = |source| DataDirError::Io { action: "open", path: path.clone(), source };
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_LIMIT_BYTES) {
            fs::rename(&path, path.with_extension("log.old")).map_err(io_error)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error)?;
        let start = file.metadata().map_err(io_error)?.len();
        Ok((file, start))
    }

    /// Waits until the server lets its superuser in.
    async fn wait_ready(&mut self, log_start: u64) -> Result<(), PostgresError> {
        let config = self.endpoint.config(SUPERUSER, &self.password);
        let log = self.data.postgres_log();
        let started = Instant::now();
        loop {
            let child = self.child.as_mut().expect("launch sets the child before waiting");
            let exited = child.try_wait().map_err(|source| PostgresError::Spawn {
                program: self.installation.program("postgres"),
                source,
            })?;
            if let Some(status) = exited {
                let log = log_tail(&log, log_start);
                if log.contains("Address already in use") {
                    return Err(PostgresError::PortInUse { port: self.endpoint.port });
                }
                return Err(PostgresError::Exited { status, log });
            }
            match connect_once(&config).await {
                Ok(()) => return Ok(()),
                Err(error) if is_lasting(&error) => {
                    return Err(PostgresError::Refused { log, source: error });
                }
                Err(_) => {}
            }
            if started.elapsed() > READY_LIMIT {
                return Err(PostgresError::NotReady { seconds: READY_LIMIT.as_secs(), log });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the server ends by itself.
    async fn exited(&mut self) -> io::Result<ExitStatus> {
        match &mut self.child {
            Some(child) => child.wait().await,
            None => std::future::pending().await,
        }
    }

    /// Stops the server: fast (sessions are ended, a checkpoint is written), then
    /// at once (recovered at the next start), then by force.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        for (signal, limit) in [
            (Signal::SIGINT, FAST_STOP_LIMIT),
            (Signal::SIGQUIT, IMMEDIATE_STOP_LIMIT),
            (Signal::SIGKILL, IMMEDIATE_STOP_LIMIT),
        ] {
            let Some(pid) = child_pid(&child) else { return };
            if let Err(error) = kill(pid, signal) {
                tracing::debug!(%error, %signal, "PostgreSQL could not be signalled");
            }
            match tokio::time::timeout(limit, child.wait()).await {
                Ok(_) => return,
                Err(_) => tracing::warn!(%signal, "PostgreSQL does not stop"),
            }
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Only when nobody awaited `stop`: the server must not outlive us, and
        // what it loses is recovered at the next start.
        if let Some(pid) = self.child.as_ref().and_then(child_pid)
            && let Err(error) = kill(pid, Signal::SIGQUIT)
        {
            tracing::debug!(%error, "PostgreSQL could not be signalled");
        }
    }
}

/// Keeps the server running until `shutdown`, then stops it. A server that ends
/// by itself is started again on its port, with growing pauses; returns the last
/// error when that fails too often.
pub async fn run_postgres(
    mut postgres: Postgres,
    shutdown: CancellationToken,
) -> Result<(), PostgresError> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            status = postgres.exited() => {
                let status = status.map_or_else(|error| error.to_string(), |s| s.to_string());
                tracing::warn!(status, "PostgreSQL ended, starting it again");
                postgres.child = None;
            }
        }
        let mut failures = 0;
        loop {
            let error = tokio::select! {
                () = shutdown.cancelled() => break,
                result = postgres.launch() => match result {
                    Ok(()) => break,
                    Err(error) => error,
                },
            };
            failures += 1;
            if failures >= RESTART_LIMIT {
                return Err(error);
            }
            tracing::warn!(%error, failures, "PostgreSQL did not start");
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(restart_pause(failures)) => {}
            }
        }
    }
    postgres.stop().await;
    Ok(())
}

/// Returns the pause after so many failures: 0.1 s doubling to 10 s, with a
/// quarter of it left to chance.
fn restart_pause(failures: u32) -> Duration {
    let pause = Duration::from_millis(100).saturating_mul(1 << failures.min(10).saturating_sub(1));
    pause.min(Duration::from_secs(10)).mul_f64(0.75 + 0.25 * fastrand::f64())
}

/// Stops a server of an earlier run that still works on `data`; true when there
/// was one. The caller holds the lock of `data`, so nobody else's is hit.
pub async fn stop_orphan(data: &DataDir) -> Result<bool, PostgresError> {
    let cluster = data.cluster();
    let pid_file = cluster.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&pid_file) else { return Ok(false) };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else {
        return Ok(false);
    };
    if !is_server_of(pid, &cluster).await {
        // A number that another process has got meanwhile would keep the server
        // from starting; whether sessions of the old one live on is checked by
        // the server itself, by its shared memory.
        if let Err(error) = fs::remove_file(&pid_file) {
            tracing::debug!(%error, "a stale postmaster.pid was not removed");
        }
        return Ok(false);
    }
    tracing::warn!(pid, "stopping PostgreSQL of an earlier run");
    for (signal, limit) in [
        (Signal::SIGINT, FAST_STOP_LIMIT),
        (Signal::SIGQUIT, IMMEDIATE_STOP_LIMIT),
        (Signal::SIGKILL, IMMEDIATE_STOP_LIMIT),
    ] {
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            tracing::debug!(%error, %signal, "PostgreSQL could not be signalled");
        }
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if !is_server_of(pid, &cluster).await {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Err(PostgresError::OrphanStays { pid })
}

/// Says whether process `pid` is a server that was started on `cluster`. A dead
/// process that nobody has waited for has no command line, and is none.
async fn is_server_of(pid: i32, cluster: &Path) -> bool {
    let cluster = cluster.as_os_str().as_bytes();
    if Path::new("/proc/self/cmdline").exists() {
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        return line.split(|byte| *byte == 0).any(|argument| argument == cluster);
    }
    let mut command = Command::new("ps");
    command.args(["-ww", "-o", "command=", "-p", &pid.to_string()]).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(5), command.output()).await;
    let Ok(Ok(output)) = output else { return false };
    output.stdout.windows(cluster.len()).any(|part| part == cluster)
}

/// Returns the major version that made the cluster; `None` without a cluster.
fn cluster_version(data: &DataDir) -> Result<Option<u32>, PostgresError> {
    let path = data.cluster().join("PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => {
                Err(DataDirError::Malformed { path, reason: "it holds no version".to_owned() }
                    .into())
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataDirError::Io { action: "read", path, source }.into()),
    }
}

/// Makes the cluster beside its place and moves it there when it is complete, so
/// that a start that is killed halfway leaves nothing that looks like data.
async fn make_cluster(
    installation: &Installation,
    account: Option<&Account>,
    data: &DataDir,
    password: &str,
) -> Result<(), PostgresError> {
    let cluster = data.cluster();
    let unfinished = cluster.with_extension("new");
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| DataDirError::Io { action, path, source }
    };
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(io_error("remove", &unfinished))?;
    }
    make_private_dir(&unfinished, account)?;
    let password_file = data.root().join("initdb-password");
    if password_file.exists() {
        fs::remove_file(&password_file).map_err(io_error("remove", &password_file))?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&password_file)
        .map_err(io_error("create", &password_file))?;
    file.write_all(password.as_bytes()).map_err(io_error("write", &password_file))?;
    own(&password_file, account)?;

    let mut result = Ok(());
    for locale in locale_arguments(installation.major) {
        result = run_initdb(installation, account, &unfinished, &password_file, locale).await;
        match &result {
            // Not every system has a UTF-8 variant of the C locale.
            Err(PostgresError::Initdb { output }) if output.contains("locale") => {}
            _ => break,
        }
    }
    fs::remove_file(&password_file).map_err(io_error("remove", &password_file))?;
    result?;
    fs::rename(&unfinished, &cluster).map_err(io_error("create", &cluster))?;
    Ok(())
}

/// Returns the locale options to try, best first: the byte order of C with the
/// letters of Unicode, everywhere the same.
fn locale_arguments(major: u32) -> &'static [&'static [&'static str]] {
    if major >= 17 {
        &[&["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]]
    } else {
        &[&["--locale=C.UTF-8"], &["--locale=en_US.UTF-8", "--lc-collate=C"], &["--locale=C"]]
    }
}

/// Runs `initdb` once.
async fn run_initdb(
    installation: &Installation,
    account: Option<&Account>,
    directory: &Path,
    password_file: &Path,
    locale: &[&str],
) -> Result<(), PostgresError> {
    let program = installation.program("initdb");
    let mut command = postgres_command(&program, account);
    command
        .arg("-D")
        .arg(directory)
        .arg(format!("--username={SUPERUSER}"))
        .arg(format!("--pwfile={}", password_file.display()))
        .args(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--encoding=UTF8"])
        .args(locale)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(INITDB_LIMIT, command.output()).await;
    let output = output
        .map_err(|_| PostgresError::Initdb {
            output: format!("initdb took longer than {} s", INITDB_LIMIT.as_secs()),
        })?
        .map_err(|source| PostgresError::Spawn { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = if text.trim().is_empty() { String::from_utf8_lossy(&output.stdout) } else { text };
    Err(PostgresError::Initdb { output: last_lines(&text, 5) })
}

/// Prepares a program of PostgreSQL to run as `account`.
fn postgres_command(program: &Path, account: Option<&Account>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_bytes();
        if bytes.starts_with(b"PG") || bytes.starts_with(b"LC_") || bytes == b"LANG" {
            command.env_remove(name);
        }
    }
    // Its messages are read by us, and our directory may be closed to it.
    command.env("LC_ALL", "C").current_dir("/");
    Account::apply(account, &mut command);
    command
}

/// Makes the directory of the unix socket; `None` when its path is too long.
fn make_socket_dir(
    account: Option<&Account>,
    data: &DataDir,
) -> Result<Option<PathBuf>, PostgresError> {
    let path = data.socket();
    if path.as_os_str().len() + ".s.PGSQL.65535".len() + 1 > SOCKET_PATH_LIMIT {
        tracing::debug!("the path of the data directory is too long for a unix socket");
        return Ok(None);
    }
    if !path.exists() {
        make_private_dir(&path, account)?;
    }
    Ok(Some(path))
}

/// Makes a directory that only the account (or we) can enter.
fn make_private_dir(path: &Path, account: Option<&Account>) -> Result<(), PostgresError> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700).create(path).map_err(|source| DataDirError::Io {
        action: "create the directory",
        path: path.to_owned(),
        source,
    })?;
    own(path, account)
}

/// Gives a file or directory to the account and closes it to others.
fn own(path: &Path, account: Option<&Account>) -> Result<(), PostgresError> {
    if let Some(account) = account {
        chown(path, Some(account.uid.as_raw()), Some(account.gid.as_raw())).map_err(|source| {
            DataDirError::Io { action: "give away", path: path.to_owned(), source }
        })?;
    }
    let mode = if path.is_dir() { 0o700 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|source| DataDirError::Io { action: "protect", path: path.to_owned(), source })?;
    Ok(())
}

/// Asks the operating system for a port of 127.0.0.1 that is free now.
fn free_port() -> Result<u16, PostgresError> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    address.map(|address| address.port()).map_err(|source| {
        DataDirError::Io { action: "find a free port on", path: "127.0.0.1".into(), source }.into()
    })
}

/// Returns the process id of a child that has not been waited for.
fn child_pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw)
}

/// Connects once and hangs up.
async fn connect_once(config: &Config) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    drop(client);
    connection.await
}

/// Says whether a refusal will not pass by itself: the server runs and knows no
/// such role, password or database.
fn is_lasting(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        matches!(
            *code,
            SqlState::INVALID_PASSWORD
                | SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                | SqlState::UNDEFINED_DATABASE
        )
    })
}

/// Returns the end of the part of a log that begins at `start`.
fn log_tail(path: &Path, start: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(start))?;
        file.take(64 * 1024).read_to_end(&mut text)
    });
    if read.is_err() {
        return String::new();
    }
    last_lines(&String::from_utf8_lossy(&text), 8)
}

/// Returns the last lines of a text, joined into one.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        for (failures, longest) in [(1, 100), (2, 200), (5, 1600), (20, 10_000)] {
            let pause = restart_pause(failures);
            assert!(pause <= Duration::from_millis(longest), "{failures}: {pause:?}");
            assert!(pause >= Duration::from_millis(longest) * 3 / 4, "{failures}: {pause:?}");
        }
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        assert_eq!(last_lines("a\n\n b \nc\n", 2), "b; c");
        assert_eq!(last_lines("a", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }

    #[tokio::test]
    async fn this_process_is_no_server() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(!is_server_of(pid, Path::new("/var/lib/infernet/postgres")).await);
    }
}
