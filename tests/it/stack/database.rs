//! The database of the embedded control plane: its server and its migrations,
//! without a gateway.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use infernet::stack::{
    data_dir::DataDir,
    migrate::{Migration, apply_baseline, apply_migrations, migrations},
    postgres::{Connection, Installation, Postgres, run_postgres, stop_orphan},
    secrets::Secrets,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio_util::sync::CancellationToken;

/// A data directory that the account of PostgreSQL can reach.
fn temporary_data() -> (tempfile::TempDir, DataDir) {
    let temporary = tempfile::tempdir().unwrap();
    fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let data = DataDir::create(temporary.path().join("data")).unwrap();
    (temporary, data)
}

/// Reads the process id of the server that works on `data`.
fn server_pid(data: &DataDir) -> Option<Pid> {
    let text = fs::read_to_string(data.cluster().join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().map(Pid::from_raw)
}

/// Says whether a process runs; one that is dead and not waited for does not.
fn is_running(pid: Pid) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// A migration of a test.
fn migration<'a>(version: &'a str, sql: &'a str) -> Migration<'a> {
    Migration { version, name: "test", file: "20260101_test.sql", sql }
}

#[tokio::test]
async fn a_cluster_is_made_migrated_and_found_again() {
    let (temporary, data) = temporary_data();
    let lock = data.lock().unwrap();
    let secrets = Secrets::load_or_create(&data).unwrap();
    let mut postgres = Postgres::start(&data, None, &secrets.superuser_password).await.unwrap();
    let endpoint = postgres.endpoint().clone();
    apply_baseline(&endpoint, &secrets).await.unwrap();
    apply_baseline(&endpoint, &secrets).await.unwrap();

    let own = [
        migration("1", "create table public.kept (a int);\ninsert into public.kept values (7);"),
        migration("2", "set search_path = nowhere;"),
        migration("3", "create view public.seen as select a from kept;"),
    ];
    assert_eq!(apply_migrations(&endpoint, &secrets, &own[..1]).await.unwrap(), 1);
    assert_eq!(apply_migrations(&endpoint, &secrets, &own).await.unwrap(), 2);
    assert_eq!(apply_migrations(&endpoint, &secrets, &own).await.unwrap(), 0);

    let error = apply_migrations(&endpoint, &secrets, &own[..2]).await.unwrap_err().to_string();
    assert!(error.contains("newer release") && error.contains("migration 3"), "{error}");

    postgres.stop().await;
    assert!(server_pid(&data).is_none());
    assert_eq!(fs::read_dir(data.socket()).unwrap().count(), 0);

    let mut postgres = Postgres::start(&data, None, &secrets.superuser_password).await.unwrap();
    let config = postgres.endpoint().config("postgres", &secrets.postgres_password);
    let client = Connection::open(&config).await.unwrap();
    let row = client
        .query_one(
            "select a, pg_catalog.pg_get_userbyid(c.relowner), current_setting('is_superuser') \
             from public.seen, pg_class c where c.oid = 'public.seen'::regclass",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, i32>(0), 7);
    assert_eq!(row.get::<_, &str>(1), "postgres");
    assert_eq!(row.get::<_, &str>(2), "off");
    drop(client);
    postgres.stop().await;
    drop(lock);
    drop(temporary);
}

#[tokio::test]
async fn a_failing_migration_names_its_line_and_leaves_nothing() {
    let (_temporary, data) = temporary_data();
    let _lock = data.lock().unwrap();
    let secrets = Secrets::load_or_create(&data).unwrap();
    let mut postgres = Postgres::start(&data, None, &secrets.superuser_password).await.unwrap();
    let endpoint = postgres.endpoint().clone();
    apply_baseline(&endpoint, &secrets).await.unwrap();

    let bad = [migration("1", "create table public.half (a int);\n\nselect nothing_there();\n")];
    let error = apply_migrations(&endpoint, &secrets, &bad).await.unwrap_err().to_string();
    assert!(error.starts_with("Migration 20260101_test.sql line 3: "), "{error}");
    assert!(error.contains("nothing_there"), "{error}");

    // The next try begins from before the file.
    let good = [migration("1", "create table public.half (a int);")];
    assert_eq!(apply_migrations(&endpoint, &secrets, &good).await.unwrap(), 1);
    postgres.stop().await;
}

#[tokio::test]
async fn the_migrations_of_this_release_apply_once() {
    let (_temporary, data) = temporary_data();
    let _lock = data.lock().unwrap();
    let secrets = Secrets::load_or_create(&data).unwrap();
    let mut postgres = Postgres::start(&data, None, &secrets.superuser_password).await.unwrap();
    let endpoint = postgres.endpoint().clone();
    apply_baseline(&endpoint, &secrets).await.unwrap();
    let all = migrations();
    assert_eq!(apply_migrations(&endpoint, &secrets, &all).await.unwrap(), all.len());
    assert_eq!(apply_migrations(&endpoint, &secrets, &all).await.unwrap(), 0);
    apply_baseline(&endpoint, &secrets).await.unwrap();
    postgres.stop().await;
}

#[tokio::test]
async fn a_killed_server_is_started_again_on_its_port() {
    let (_temporary, data) = temporary_data();
    let _lock = data.lock().unwrap();
    let secrets = Secrets::load_or_create(&data).unwrap();
    let postgres = Postgres::start(&data, None, &secrets.superuser_password).await.unwrap();
    let endpoint = postgres.endpoint().clone();
    let config = endpoint.config("supabase_admin", &secrets.superuser_password);
    let client = Connection::open(&config).await.unwrap();
    client.batch_execute("create table public.kept as select 1 as a").await.unwrap();

    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run_postgres(postgres, shutdown.clone()));
    let killed = server_pid(&data).unwrap();
    kill(killed, Signal::SIGKILL).unwrap();

    let mut found = None;
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if server_pid(&data) == Some(killed) {
            continue;
        }
        if let Ok(client) = Connection::open(&config).await
            && let Ok(row) = client.query_one("select a from public.kept", &[]).await
        {
            found = Some(row.get::<_, i32>(0));
            break;
        }
    }
    assert_eq!(found, Some(1));
    let second = server_pid(&data).unwrap();
    assert_ne!(second, killed);
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(!is_running(second));
}

#[tokio::test]
async fn a_server_left_behind_is_stopped_and_a_stale_pid_is_ignored() {
    let (_temporary, data) = temporary_data();
    let _lock = data.lock().unwrap();
    let secrets = Secrets::load_or_create(&data).unwrap();
    let postgres = Postgres::start(&data, None, &secrets.superuser_password).await.unwrap();
    let pid = server_pid(&data).unwrap();
    assert!(is_running(pid));
    // Found by its data directory alone, as after the death of its parent.
    assert!(stop_orphan(&data).await.unwrap());
    assert!(!is_running(pid));
    assert!(!stop_orphan(&data).await.unwrap());
    drop(postgres);

    // A number that some other process has by now.
    let pid_file = data.cluster().join("postmaster.pid");
    fs::write(&pid_file, format!("{}\n", std::process::id())).unwrap();
    let mut postgres = Postgres::start(&data, None, &secrets.superuser_password).await.unwrap();
    postgres.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_flag() {
    let (_temporary, data) = temporary_data();
    let _lock = data.lock().unwrap();
    let secrets = Secrets::load_or_create(&data).unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Postgres::start(&data, Some(port), &secrets.superuser_password).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Port {port} of 127.0.0.1 is in use; choose another one with --db-port")
    );
    assert!(server_pid(&data).is_none());
}

#[tokio::test]
async fn data_of_another_version_are_refused() {
    let (_temporary, data) = temporary_data();
    fs::create_dir(data.cluster()).unwrap();
    fs::write(data.cluster().join("PG_VERSION"), "9\n").unwrap();
    let error = Postgres::start(&data, None, "unused").await.unwrap_err().to_string();
    assert!(error.contains("made by PostgreSQL 9"), "{error}");
    assert!(error.contains("--data-dir"), "{error}");
}

#[tokio::test]
async fn a_closed_parent_is_named() {
    if !nix::unistd::geteuid().is_root() {
        // An ordinary user's server runs as that user, who reaches it all.
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let data = DataDir::create(temporary.path().join("data")).unwrap();
    let error = Postgres::start(&data, None, "unused").await.unwrap_err().to_string();
    let closed = temporary.path().canonicalize().unwrap();
    assert!(error.contains(&format!("chmod o+x {}", closed.display())), "{error}");
}

#[tokio::test]
async fn the_server_of_this_machine_is_found() {
    let found = Installation::find(None).await.unwrap();
    assert!((15..=18).contains(&found.major), "{found:?}");
    assert!(Path::new(&found.program("initdb")).is_file());
}
