//! GPUs from recorded answers of a driver: good, sick and partitioned ones, and what of
//! them leaves the machine.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use infernet::control::membership::{self, Sponsor};
use infernet::control::rpc::{Inventory, Rpc};
use infernet::control::session::{LoginKind, Session};
use infernet::control::{BaseUrl, ControlPlane, PlainHttp};
use infernet::hardware::gpu::{GpuDriver, Memory, Place, Refusal, Remapping, look};
use infernet::hardware::{Condition, GpuReport, inventory_of};
use infernet::identity::Keys;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::agent_world::{run, talk};
use crate::support::control_plane::TestControlPlane;

/// A driver that answers what another one was heard to answer.
struct Recording(Value);

impl Recording {
    fn open(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap())
    }

    fn at(&self, place: Place) -> Result<&Value, Refusal> {
        let card = &self.0["cards"][place.card as usize];
        if card["lost"] == true {
            return Err(Refusal::Lost);
        }
        match place.instance {
            None => Ok(card),
            Some(number) => match &card["instances"][number as usize] {
                Value::Null => Err(Refusal::NotFound),
                instance => Ok(instance),
            },
        }
    }

    fn text(&self, place: Place, key: &str) -> Result<String, Refusal> {
        let value = self.at(place)?[key].as_str();
        value.map(str::to_owned).ok_or(Refusal::NotSupported)
    }

    fn number(&self, card: u32, key: &str) -> Result<u32, Refusal> {
        let value = self.at(Place::card(card))?[key].as_u64();
        value.map(|number| u32::try_from(number).unwrap()).ok_or(Refusal::NotSupported)
    }

    fn flag(&self, card: u32, key: &str) -> Result<bool, Refusal> {
        self.at(Place::card(card))?[key].as_bool().ok_or(Refusal::NotSupported)
    }
}

impl GpuDriver for Recording {
    fn version(&self) -> Result<String, Refusal> {
        self.0["driver"].as_str().map(str::to_owned).ok_or(Refusal::NotSupported)
    }

    fn cards(&self) -> Result<u32, Refusal> {
        Ok(u32::try_from(self.0["cards"].as_array().unwrap().len()).unwrap())
    }

    fn most_instances(&self, card: u32) -> Result<Option<u32>, Refusal> {
        let partitioned = self.flag(card, "partitioned")?;
        Ok(if partitioned { Some(self.number(card, "most_instances")?) } else { None })
    }

    fn uuid(&self, place: Place) -> Result<String, Refusal> {
        self.text(place, "uuid")
    }

    fn name(&self, place: Place) -> Result<String, Refusal> {
        self.text(place, "name")
    }

    fn memory(&self, place: Place) -> Result<Memory, Refusal> {
        let memory = &self.at(place)?["memory"];
        let bytes = |key: &str| memory[key].as_u64().ok_or(Refusal::NotSupported);
        Ok(Memory { total: bytes("total")?, used: bytes("used")? })
    }

    fn bus_id(&self, card: u32) -> Result<String, Refusal> {
        // The place on the bus is known of a lost card, too.
        let value = self.0["cards"][card as usize]["bus_id"].as_str();
        value.map(str::to_owned).ok_or(Refusal::NotSupported)
    }

    fn use_percent(&self, card: u32) -> Result<u32, Refusal> {
        self.number(card, "use_percent")
    }

    fn temperature(&self, card: u32) -> Result<u32, Refusal> {
        self.number(card, "temperature")
    }

    fn is_slowed_by_heat(&self, card: u32) -> Result<bool, Refusal> {
        self.flag(card, "slowed_by_heat")
    }

    fn power(&self, card: u32) -> Result<u32, Refusal> {
        self.number(card, "power")
    }

    fn power_limit(&self, card: u32) -> Result<u32, Refusal> {
        self.number(card, "power_limit")
    }

    fn uncorrected_errors(&self, card: u32) -> Result<u64, Refusal> {
        self.number(card, "uncorrected_errors").map(u64::from)
    }

    fn remapping(&self, card: u32) -> Result<Remapping, Refusal> {
        let rows = &self.at(Place::card(card))?["remapping"];
        let is = |key: &str| rows[key].as_bool().ok_or(Refusal::NotSupported);
        Ok(Remapping { pending: is("pending")?, failed: is("failed")? })
    }

    fn kernel_log(&self) -> Result<Vec<String>, Refusal> {
        if self.0["kernel_log_refused"] == true {
            return Err(Refusal::NoPermission);
        }
        let lines = self.0["kernel_log"].as_array().unwrap().iter();
        Ok(lines.map(|line| line.as_str().unwrap().to_owned()).collect())
    }
}

fn good() -> GpuReport {
    look(&Recording::open(include_str!("gpu_recordings/good.json"))).unwrap()
}

fn sick() -> GpuReport {
    look(&Recording::open(include_str!("gpu_recordings/sick.json"))).unwrap()
}

fn mig() -> GpuReport {
    look(&Recording::open(include_str!("gpu_recordings/mig.json"))).unwrap()
}

#[test]
fn good_cards_are_described_as_far_as_they_tell() {
    let report = good();
    assert_eq!(report.driver.as_deref(), Some("550.54.15"));
    let [gaming, server] = &report.cards[..] else { panic!("{report:?}") };
    assert_eq!(gaming.condition, Condition::Good, "{:?}", gaming.complaints);
    assert_eq!((gaming.use_percent, gaming.temperature_celsius), (Some(97), Some(64)));
    assert_eq!((gaming.power_watts, gaming.power_limit_watts), (Some(398), Some(450)));
    assert_eq!(gaming.uncorrected_errors, None, "its memory does not check itself");
    // A program's fault is kept for the owner, without the program, and is no complaint.
    assert_eq!(gaming.xids.len(), 1);
    assert_eq!(gaming.xids[0].number, 31);
    assert!(!gaming.xids[0].said.contains("python3"), "{:?}", gaming.xids);
    assert_eq!((server.condition, server.uncorrected_errors), (Condition::Good, Some(0)));
    assert!(!server.partitioned);
}

#[test]
fn sick_cards_say_why_and_hide_no_others() {
    let report = sick();
    let conditions: Vec<Condition> = report.cards.iter().map(|card| card.condition).collect();
    assert_eq!(
        conditions,
        [Condition::Sick, Condition::Sick, Condition::Worn, Condition::Sick],
        "{report:#?}"
    );
    let lost = report.cards[0].complaints.join(" ");
    assert!(lost.contains("no longer on the bus") && lost.contains("Xid 79"), "{lost}");
    let broken = report.cards[1].complaints.join(" ");
    assert!(broken.contains("lost data 2 times"), "{broken}");
    assert!(broken.contains("Xid 48 2 times"), "{broken}");
    assert!(!broken.contains("vllm"), "no program of the machine is named: {broken}");
    let hot = report.cards[2].complaints.join(" ");
    assert!(hot.contains("too hot (93 °C)") && hot.contains("reset it"), "{hot}");
    assert!(report.cards[3].complaints[0].contains("no spare ones are left"));
    // Nothing sick is offered.
    let offered = inventory_of(&report).gpus;
    assert_eq!(offered.len(), 1);
    assert_eq!(offered[0].model, "NVIDIA H100 80GB HBM3");
}

#[test]
fn a_partitioned_card_is_offered_as_its_instances() {
    let report = mig();
    let card = &report.cards[0];
    assert!(card.partitioned);
    assert_eq!(card.use_percent, None);
    let instances: Vec<&str> = card.instances.iter().map(|part| part.uuid.as_str()).collect();
    assert_eq!(
        instances,
        ["MIG-41b3359c-e721-56e5-8009-12e5797ed514", "MIG-65b79fff-6d3c-5490-a288-b31ec705f310"]
    );
    assert!(card.xids.is_empty(), "the log may not be read, which is no failure");
    assert_eq!(card.condition, Condition::Good);
    let offered: Vec<String> = inventory_of(&report)
        .gpus
        .into_iter()
        .map(|gpu| format!("{} {}", gpu.model, gpu.vram_tier))
        .collect();
    assert_eq!(
        offered,
        ["NVIDIA H100 80GB HBM3 MIG 3g.40gb 40GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb 10GB"],
        "the card without instances computes nothing"
    );
}

/// Everything that a driver knows of a machine and that must not leave it.
fn secrets() -> Vec<String> {
    let mut secrets: Vec<String> = Vec::new();
    let recordings = ["good", "sick", "mig"].iter().zip([
        include_str!("gpu_recordings/good.json"),
        include_str!("gpu_recordings/sick.json"),
        include_str!("gpu_recordings/mig.json"),
    ]);
    for (_, text) in recordings {
        let recording: Value = serde_json::from_str(text).unwrap();
        secrets.push(recording["driver"].as_str().unwrap().to_owned());
        for card in recording["cards"].as_array().unwrap() {
            let instances = card["instances"].as_array().into_iter().flatten();
            for place in instances.chain([card]) {
                let words =
                    ["uuid", "serial", "bus_id"].iter().filter_map(|key| place[key].as_str());
                secrets.extend(words.map(str::to_owned));
                let sizes =
                    ["total", "used"].iter().filter_map(|key| place["memory"][key].as_u64());
                secrets.extend(sizes.filter(|&bytes| bytes > 0).map(|bytes| bytes.to_string()));
            }
        }
    }
    // Of this machine itself.
    secrets.extend(std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    secrets.extend(std::fs::read_to_string("/etc/machine-id").ok());
    let mut secrets: Vec<String> =
        secrets.into_iter().map(|secret| secret.trim().to_owned()).collect();
    secrets.retain(|secret| secret.len() > 3 && secret != "localhost");
    secrets
}

/// Passes connections on and keeps what clients send.
struct Wiretap {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    _tasks: JoinSet<()>,
}

impl Wiretap {
    /// Listens; connections go on to the address that is told later.
    async fn bind() -> (Self, oneshot::Sender<SocketAddr>) {
        let (tell, upstream) = oneshot::channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&heard);
        tasks.spawn(async move {
            let upstream = upstream.await.unwrap();
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(listen(client, upstream, Arc::clone(&shared)));
            }
        });
        (Self { address, heard, _tasks: tasks }, tell)
    }

    /// Returns what was sent since the last time.
    fn take(&self) -> String {
        let heard = std::mem::take(&mut *self.heard.lock().unwrap());
        String::from_utf8_lossy(&heard).into_owned()
    }
}

async fn listen(client: TcpStream, upstream: SocketAddr, heard: Arc<Mutex<Vec<u8>>>) {
    let server = TcpStream::connect(upstream).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let out = async {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            heard.lock().unwrap().extend_from_slice(&buffer[..length]);
            if to_server.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    let back = async { drop(tokio::io::copy(&mut from_server, &mut to_client).await) };
    tokio::select! {
        () = out => {}
        () = back => {}
    }
}

/// Returns the body of the call that registers a node.
fn registration(heard: &str) -> Value {
    let (_, call) = heard.split_once("/rpc/register_node").expect("the node was registered");
    let (_, body) = call.split_once("\r\n\r\n").unwrap();
    serde_json::Deserializer::from_str(body).into_iter().next().unwrap().unwrap()
}

#[tokio::test]
async fn only_vendor_model_and_tier_leave_the_machine() {
    // The control plane is known by the tap's address: logins are bound to it.
    let (tap, tell) = Wiretap::bind().await;
    let url = format!("http://{}", tap.address);
    let public = BaseUrl::parse(&url, PlainHttp::PrivateOnly).unwrap();
    let control = TestControlPlane::start_with(|options| options.public_urls = vec![public]).await;
    tell.send(url::Url::parse(control.url()).unwrap().socket_addrs(|| None).unwrap()[0]).unwrap();
    let (plane, _) = ControlPlane::discover(&url, PlainHttp::PrivateOnly).await.unwrap();
    let operator = Session::new(plane.clone(), control.operator().clone(), LoginKind::User);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let (keys_of_node, _) = Keys::load_or_create(&config.join("node.key")).unwrap();
    let session = Session::new(plane, keys_of_node, LoginKind::Node);
    let sponsor = Sponsor::Owner(Rpc::new(operator));
    membership::join(&session, &sponsor, "provider", "wired").await.unwrap();
    std::fs::write(
        config.join("config.toml"),
        format!("[control]\nurl = \"{url}\"\n\n[node]\nname = \"wired\"\n"),
    )
    .unwrap();
    // The command as an owner runs it, on this machine.
    tap.take();
    let output = run(folder.path(), &["register"]).await;
    assert!(output.status.success(), "{}", talk(&output));
    let heard = tap.take();
    let keys =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let allowed = ["cpus", "gpus", "platform", "ram_gb"];
    assert_eq!(keys(&registration(&heard)["p_inventory"]), allowed);
    for secret in secrets() {
        assert!(!heard.contains(&secret), "{secret} left the machine: {heard}");
    }
    // The same call with the cards of other machines.
    let rpc = Rpc::new(session);
    let mut stored = Value::Null;
    for report in [good(), sick(), mig()] {
        tap.take();
        let inventory = Inventory::from(inventory_of(&report));
        rpc.register_node(&inventory, &[], false).await.unwrap();
        let heard = tap.take();
        let sent = &registration(&heard)["p_inventory"];
        assert_eq!(keys(sent), allowed);
        for gpu in sent["gpus"].as_array().unwrap() {
            assert_eq!(keys(gpu), ["model", "vendor", "vram_tier"]);
        }
        for secret in secrets() {
            assert!(!heard.contains(&secret), "{secret} left the machine: {heard}");
        }
        stored = sent["gpus"].clone();
    }
    let expected =
        |model: &str, tier: &str| json!({"vendor": "nvidia", "model": model, "vram_tier": tier});
    assert_eq!(
        stored,
        json!([
            expected("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "40GB"),
            expected("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "10GB"),
        ])
    );
}

#[tokio::test]
async fn the_hardware_of_this_machine_is_shown() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["gpu", "--json"]).await;
    assert!(output.status.success(), "{}", talk(&output));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(shown["cpus"].as_u64().unwrap() > 0);
    assert!(shown["memory_available_bytes"].as_u64() <= shown["memory_bytes"].as_u64());
    assert!(shown["cards"].is_array());
    let output = run(home.path(), &["gpu"]).await;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(words.contains(" processors, memory "), "{words}");
    if shown["cards"] == json!([]) {
        assert!(talk(&output).contains("No GPU answers."), "{}", talk(&output));
    }
    let output = run(home.path(), &["gpu", "extra"]).await;
    assert_eq!(output.status.code(), Some(2));
}
