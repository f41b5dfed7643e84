//! Control planes for tests: real ones, each in a directory of its own, from a
//! template that is made once.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use infernet::stack::data_dir::DataDir;
use infernet::stack::migrate::migrations;
use infernet::stack::postgres::Installation;
use infernet::stack::{Stack, StackOptions};

/// A running control plane with a directory that ends with it.
pub(crate) struct TestControlPlane {
    stack: Option<Stack>,
    temporary: tempfile::TempDir,
}

impl TestControlPlane {
    /// Starts one on free ports.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts one with options of its own.
    pub(crate) async fn start_with(change: impl FnOnce(&mut StackOptions)) -> Self {
        let temporary = reachable_dir();
        let data = temporary.path().join("data");
        copy_template(&data).await;
        let mut options = StackOptions::new(data);
        change(&mut options);
        let stack = Box::pin(Stack::start(options)).await.unwrap();
        Self { stack: Some(stack), temporary }
    }

    /// Stops it and starts it again on the same data.
    pub(crate) async fn restart(&mut self) {
        self.restart_with(|_| {}).await;
    }

    /// Stops it and starts it again on the same data, with options of its own.
    pub(crate) async fn restart_with(&mut self, change: impl FnOnce(&mut StackOptions)) {
        self.stack.take().unwrap().stop().await;
        let mut options = StackOptions::new(self.temporary.path().join("data"));
        change(&mut options);
        self.stack = Some(Box::pin(Stack::start(options)).await.unwrap());
    }

    /// Returns the control plane to wait for its failure.
    pub(crate) fn stack_mut(&mut self) -> &mut Stack {
        self.stack.as_mut().unwrap()
    }

    /// Stops it in order.
    pub(crate) async fn stop(mut self) {
        self.stack.take().unwrap().stop().await;
    }

    /// Connects to its database as a role that logs in.
    pub(crate) async fn connect(&self, role: &str) -> infernet::stack::postgres::Connection {
        let config = self.database_config_for(role).unwrap();
        infernet::stack::postgres::Connection::open(&config).await.unwrap()
    }
}

impl Deref for TestControlPlane {
    type Target = Stack;

    fn deref(&self) -> &Stack {
        self.stack.as_ref().unwrap()
    }
}

/// Makes a client for requests outside of the library's own.
pub(crate) fn http_client() -> reqwest::Client {
    infernet::control::install_tls_provider();
    reqwest::Client::new()
}

/// Makes a temporary directory that the account of PostgreSQL can pass.
pub(crate) fn reachable_dir() -> tempfile::TempDir {
    let temporary = tempfile::tempdir().unwrap();
    fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o711)).unwrap();
    temporary
}

/// Fills `data` with a copy of the template, which is made by whichever test
/// comes first. The template is that of one schema and one version of
/// PostgreSQL.
pub(crate) async fn copy_template(data: &Path) {
    let mut hasher = DefaultHasher::new();
    include_str!("../../../src/stack/bootstrap.sql").hash(&mut hasher);
    for migration in migrations() {
        (migration.file, migration.sql).hash(&mut hasher);
    }
    let installation = Installation::find(None).await.unwrap();
    (installation.major, &installation.bin).hash(&mut hasher);
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&directory).unwrap();
    let template = directory.join(format!("control-plane-{:016x}", hasher.finish()));
    let lock_file = File::create(template.with_extension("lock")).unwrap();
    let lock = tokio::task::spawn_blocking(move || lock_file.lock().map(|()| lock_file));
    let lock = lock.await.unwrap().unwrap();
    if !template.exists() {
        // Made elsewhere: the build directory may be closed to PostgreSQL.
        let temporary = reachable_dir();
        let made = temporary.path().join("data");
        Box::pin(Stack::start(StackOptions::new(&made))).await.unwrap().stop().await;
        let unfinished = template.with_extension("new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).unwrap();
        }
        copy(&made, &unfinished);
        fs::rename(&unfinished, &template).unwrap();
    }
    drop(lock);
    copy(&template, data);
    DataDir::create(data).unwrap();
}

/// Copies a directory with owners and modes.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}
