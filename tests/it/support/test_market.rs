//! A market for tests: a real control plane with its operator, a consumer with
//! credit, and nodes that a test moves by hand through the real calls.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use infernet::control::realtime::{Channel, ChannelEvent, JoinOptions, Realtime};
use infernet::control::rpc::{
    CompleteAttempt, Completion, Inventory, OfferedModel, Offering, Rpc, StartedAttempt, Usage,
};
use infernet::control::session::{Enrolment, LoginKind, Session};
use infernet::control::{BaseUrl, ControlPlane, PlainHttp, job_stream};
use infernet::id::{LeaseId, TransferId};
use infernet::identity::{Keys, Receipt, sha256_hex};
use serde_json::json;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::control_plane::TestControlPlane;

/// How long anything may take on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A control plane, its operator and a consumer with ten dollars.
pub(crate) struct TestMarket {
    pub(crate) plane: TestControlPlane,
    pub(crate) operator: Rpc,
    pub(crate) consumer: Rpc,
}

impl TestMarket {
    pub(crate) async fn open() -> Self {
        let plane = TestControlPlane::start().await;
        let operator = rpc(&plane, plane.operator(), LoginKind::User);
        operator.set_setting("node_approval", &json!("auto")).await.unwrap();
        let consumer = rpc(&plane, &Keys::generate(), LoginKind::User);
        let market = Self { plane, operator, consumer };
        market.fund(&market.consumer, "10").await;
        market
    }

    /// Gives somebody credit.
    pub(crate) async fn fund(&self, user: &Rpc, amount: &str) {
        let user = user.whoami().await.unwrap();
        let amount = amount.parse().unwrap();
        self.operator
            .grant_credit(TransferId::generate(), &user.public_key, amount, None)
            .await
            .unwrap();
    }

    /// Enrols a node of the consumer's that offers a model, and puts it online.
    pub(crate) async fn node(&self, name: &str, model: &str, slots: u32) -> TestNode {
        self.node_of(&self.consumer, name, model, slots).await
    }

    /// The same of another owner.
    pub(crate) async fn node_of(
        &self,
        owner: &Rpc,
        name: &str,
        model: &str,
        slots: u32,
    ) -> TestNode {
        let inventory = Inventory { platform: "test".into(), cpus: 1, ..Inventory::default() };
        self.node_on(owner, name, model, slots, &inventory).await
    }

    /// The same on a machine of another kind.
    pub(crate) async fn node_on(
        &self,
        owner: &Rpc,
        name: &str,
        model: &str,
        slots: u32,
        inventory: &Inventory,
    ) -> TestNode {
        let keys = Keys::generate();
        let session = Session::new(control(&self.plane), keys.clone(), LoginKind::Node);
        let code = owner.make_enrolment("provider", None).await.unwrap().code;
        let enrolment = Enrolment { role: "provider".into(), code, name: Some(name.to_owned()) };
        session.enrol(&enrolment).await.unwrap();
        let offers = vec![Offering::Model(OfferedModel {
            model: model.to_owned(),
            slots,
            price_input: "0.1".parse().unwrap(),
            price_output: "0.4".parse().unwrap(),
            digest: None,
            context_length: None,
        })];
        let rpc = Rpc::new(session.clone());
        rpc.register_node(inventory, &offers, true).await.unwrap();
        let shutdown = CancellationToken::new();
        let realtime = job_stream::open_realtime(&session, shutdown.clone()).unwrap();
        TestNode { rpc, keys, url: self.plane.url().to_owned(), realtime, shutdown }
    }

    /// Stops everything, and shows that the books are whole.
    pub(crate) async fn close(self) {
        let proof = self.operator.prove_ledger().await.unwrap();
        assert!(proof.ok, "{:?}", proof.faults);
        self.plane.stop().await;
    }
}

/// Connects to a control plane.
pub(crate) fn control(plane: &TestControlPlane) -> ControlPlane {
    let url = BaseUrl::parse(plane.url(), PlainHttp::PrivateOnly).unwrap();
    ControlPlane::new(url, &plane.keys().publishable_key).unwrap()
}

/// Makes calls as the holder of a key.
pub(crate) fn rpc(plane: &TestControlPlane, keys: &Keys, kind: LoginKind) -> Rpc {
    Rpc::new(Session::new(control(plane), keys.clone(), kind))
}

/// A node that does what a test says.
pub(crate) struct TestNode {
    pub(crate) rpc: Rpc,
    pub(crate) keys: Keys,
    url: String,
    realtime: Realtime,
    shutdown: CancellationToken,
}

impl TestNode {
    /// Waits for an attempt, beating the heart, and starts it.
    pub(crate) async fn take(&self) -> StartedAttempt {
        tokio::time::timeout(LIMIT, async {
            loop {
                let work = self.rpc.heartbeat(&[], true, false).await.unwrap();
                if let Some(offered) = work.attempts.first() {
                    let lease = LeaseId::generate();
                    if let Ok(started) = self.rpc.start_attempt(offered.attempt, lease).await {
                        return started;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap()
    }

    /// Joins the topic on which an attempt is written.
    pub(crate) async fn join(&self, attempt: &StartedAttempt) -> Channel {
        let mut channel = self.realtime.join(&attempt.topic, JoinOptions::default());
        let answer = tokio::time::timeout(LIMIT, channel.recv()).await.unwrap();
        assert_eq!(answer, Some(ChannelEvent::Joined));
        channel
    }

    /// Hands a result in.
    pub(crate) async fn complete(
        &self,
        attempt: &StartedAttempt,
        output: &str,
        finish: &str,
        usage: Usage,
    ) -> Completion {
        let receipt = Receipt {
            url: self.url.clone(),
            job: attempt.job.as_uuid(),
            attempt: attempt.attempt.as_uuid(),
            node: self.keys.public_hex(),
            model: attempt.model.clone(),
            model_digest: None,
            input_sha256: attempt.input_sha256.clone(),
            output_sha256: sha256_hex(output.as_bytes()),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            price_input: wire(attempt.price_input),
            price_output: wire(attempt.price_output),
            seconds: None,
            price_second: None,
            finish: finish.to_owned(),
        };
        self.rpc
            .complete_attempt(&CompleteAttempt {
                attempt: attempt.attempt,
                lease: attempt.lease,
                output: output.to_owned(),
                finish: finish.to_owned(),
                usage,
                receipt: receipt.sign(&self.keys, unix_now()),
            })
            .await
            .unwrap()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Writes money as it came over the wire.
fn wire(amount: infernet::money::Usd) -> String {
    serde_json::to_value(amount).unwrap().as_str().unwrap().to_owned()
}

/// `infernet` with arguments, with folders of its own below `home`.
pub(crate) fn infernet(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infernet"));
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("INFERNET_CONFIG_DIR", home.join("config"))
        .env("INFERNET_STATE_DIR", home.join("state"))
        .env("INFERNET_RUNTIME_DIR", home.join("runtime"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs a command to its end.
pub(crate) async fn run(home: &Path, arguments: &[&str]) -> Said {
    let output = tokio::time::timeout(LIMIT, infernet(home, arguments).output());
    output.await.unwrap().unwrap().into()
}

/// Makes the folders of a consumer: a key, and the URL of a control plane.
pub(crate) async fn consumer_home(market: &TestMarket, credit: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let keys = Keys::generate();
    keys.store(&home.path().join("config/owner.key")).unwrap();
    let text = format!("[control]\nurl = \"{}\"\n", market.plane.url());
    std::fs::write(home.path().join("config/config.toml"), text).unwrap();
    let user = rpc(&market.plane, &keys, LoginKind::User);
    if credit == "0" {
        user.whoami().await.unwrap();
    } else {
        market.fund(&user, credit).await;
    }
    home
}
