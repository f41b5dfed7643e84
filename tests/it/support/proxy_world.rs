//! A consumer whose `infernet proxy` runs as a process of its own.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use infernet::control::rpc::Rpc;
use infernet::control::session::{LoginKind, Session};
use infernet::id::TransferId;
use infernet::identity::Keys;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::agent_world::{PATIENCE, World, program};

/// A running proxy, and who pays for it.
pub(crate) struct TestProxy {
    child: std::process::Child,
    pub(crate) folder: PathBuf,
    pub(crate) base_url: String,
    pub(crate) key: String,
    pub(crate) rpc: Rpc,
    pub(crate) http: reqwest::Client,
}

impl TestProxy {
    /// Makes a consumer with credit and starts its proxy.
    pub(crate) async fn start(world: &World, arguments: &[&str]) -> Self {
        Self::start_with_credit(world, "100", arguments).await
    }

    /// The same with another credit, in USD.
    pub(crate) async fn start_with_credit(world: &World, credit: &str, arguments: &[&str]) -> Self {
        let folder = world.control_folder().with_file_name(format!("proxy-{}", fastrand::u32(..)));
        let config = folder.join("config");
        fs::create_dir_all(&config).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o700)).unwrap();
        let (keys, _made) = Keys::load_or_create(&config.join("owner.key")).unwrap();
        let session = Session::new(world.plane.clone(), keys, LoginKind::User);
        session.login().await.unwrap();
        let public = session.keys().public_hex();
        let amount = credit.parse().unwrap();
        world
            .operator
            .grant_credit(TransferId::generate(), &public, amount, Some("test"))
            .await
            .unwrap();
        let text = format!(
            "[control]\nurl = \"{}\"\npublishable_key = \"{}\"\n",
            world.node_url(),
            world.plane.publishable_key()
        );
        fs::write(config.join("config.toml"), text).unwrap();

        let said = folder.join("proxy.json");
        let mut child = program(&folder)
            .args(["proxy", "--port", "0", "--json"])
            .args(arguments)
            .stdout(File::create(&said).unwrap())
            .stderr(File::create(folder.join("proxy.log")).unwrap())
            .spawn()
            .unwrap();
        let limit = Instant::now() + PATIENCE;
        let printed: Value = loop {
            if let Ok(printed) = serde_json::from_slice(&fs::read(&said).unwrap()) {
                break printed;
            }
            let log = || fs::read_to_string(folder.join("proxy.log")).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "the proxy ended: {}", log());
            assert!(Instant::now() < limit, "the proxy is not up: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let key_file = PathBuf::from(printed["api_key_file"].as_str().unwrap());
        let mode = fs::metadata(&key_file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        Self {
            child,
            base_url: printed["base_url"].as_str().unwrap().to_owned(),
            key: fs::read_to_string(key_file).unwrap().trim().to_owned(),
            rpc: Rpc::new(session),
            http: reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap(),
            folder,
        }
    }

    /// Returns what the proxy logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("proxy.log")).unwrap()
    }

    /// Starts a request with the key.
    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http
            .post(format!("{}{path}", self.base_url))
            .bearer_auth(&self.key)
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    /// Asks it to end and waits.
    pub(crate) async fn stop(&mut self) -> bool {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        let limit = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < limit, "the proxy does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- proxy\n{}", self.log());
        }
    }
}
