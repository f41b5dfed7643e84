//! The field of one row: a control plane, nodes whose engines are real containers of
//! a Docker of their own, and a consumer.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use infernet::agent::admin::{self, Counters};
use infernet::agent::process::ProcessFiles;
use infernet::agent::status::{Phase, Wakeups};
use infernet::control::job_stream::open_realtime;
use infernet::control::realtime::Realtime;
use infernet::control::rpc::Rpc;
use infernet::control::session::{LoginKind, Session};
use infernet::control::{ControlPlane, PlainHttp};
use infernet::id::TransferId;
use infernet::identity::Keys;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::docker::Docker;
use super::engine::{MODEL, catalogue, container_offer, run};
use super::fault::Fault;
use super::wire::Wire;
use crate::support::agent_gate::Gate;
use crate::support::agent_world::{AgentNode, PATIENCE, Process, World};

/// The lease of a node. Every other time of the market is shortened as much.
pub(crate) const LEASE: Duration = Duration::from_millis(1500);

/// Jobs that one node runs at a time.
const SLOTS: u32 = 4;

/// The size of the disk that a journal may fill.
const DISK: &str = "1m";

/// How long containers that nobody needs may take to be gone.
const TIDY: Duration = Duration::from_secs(10);

/// The settings of a market whose leases last that long: those of a new one, over ten,
/// where times are concerned. Two are longer. The tick runs once a second, and what it
/// takes for an outage of its own must be more than that: while there is one, nobody
/// loses a lease. And on a busy machine three offers of 0.3 s may pass before anybody
/// takes one, which is the end of the job.
fn settings() -> [(&'static str, f64); 8] {
    let lease = LEASE.as_secs_f64();
    [
        ("heartbeat_secs", lease / 4.0),
        ("lease_secs", lease),
        ("offer_secs", lease / 1.5),
        ("forgotten_secs", lease / 1.5),
        ("cancel_secs", lease / 1.5),
        ("retry_secs", lease / 7.5),
        ("outage_secs", lease * 1.5),
        ("pause_secs", lease * 4.0),
    ]
}

/// A row's processes. They end in this order.
pub(crate) struct Field {
    /// The agent of each node.
    pub(crate) agents: Vec<Process>,
    /// The small disk that the first node's journal is on.
    pub(crate) disk: Option<Disk>,
    /// The nodes; a fault that is one node's is the first one's.
    pub(crate) nodes: Vec<AgentNode>,
    /// Who asks.
    pub(crate) asker: Asker,
    /// The control plane.
    pub(crate) world: World,
    /// What runs the engines.
    pub(crate) docker: Docker,
    /// The wire of the first node.
    pub(crate) wire: Option<Wire>,
    /// How many containers there are while there is nothing to do: an engine a node,
    /// where it is one that answers.
    idle: usize,
}

/// A consumer with its socket.
#[derive(Clone)]
pub(crate) struct Asker {
    /// Its calls.
    pub(crate) rpc: Rpc,
    /// Its messages.
    pub(crate) realtime: Realtime,
}

impl Field {
    /// Starts everything that a fault needs, and waits until the nodes take work.
    pub(crate) async fn start(fault: Fault, layer: &Path) -> Self {
        let docker = Docker::start(layer).await;
        let wire = (fault == Fault::NetworkCut).then(Wire::lay);
        let world = match &wire {
            Some(wire) => World::start_behind_at(Gate::Open, wire.gate().into()).await,
            None if fault == Fault::SocketCut => World::start_behind(Gate::Open).await,
            None if fault == Fault::AnswerLost => World::start_behind(Gate::Listening).await,
            None => World::start().await,
        };
        for (key, seconds) in settings() {
            world.set(key, json!(seconds)).await;
        }
        let asker = asker(&world, fault).await;
        let idle = if fault.has_containers() { 0 } else { fault.nodes().len() };
        let mut field = Self {
            agents: Vec::new(),
            disk: None,
            nodes: Vec::new(),
            asker,
            world,
            docker,
            wire,
            idle,
        };
        for name in fault.nodes() {
            let node = field.enrol(name, fault).await;
            if fault == Fault::DiskFull {
                field.disk = Some(Disk::mount(&node.folder.join("state")));
            }
            field.nodes.push(node);
        }
        for index in 0..field.nodes.len() {
            let agent = field.spawn(index);
            field.agents.push(agent);
        }
        field.wait_until_back(Timestamp::UNIX_EPOCH).await;
        field
    }

    /// Makes a node that serves the engine, or runs it as a container job.
    async fn enrol(&self, name: &str, fault: Fault) -> AgentNode {
        let offer = if fault.has_containers() {
            container_offer(&self.docker.image_id())
        } else {
            let file = self.world.control_folder().with_file_name("known.bin");
            fs::write(&file, "This model is a program.\n").unwrap();
            format!(
                "[[model]]\nname = \"{MODEL}\"\nengine = \"known\"\npath = \"{}\"\nslots = {SLOTS}\n\
                 price_input = \"1\"\nprice_output = \"100\"\n",
                file.display()
            )
        };
        let socket = self.docker.socket();
        let offers = format!("{offer}\n[docker]\nsocket = \"{}\"\n", socket.display());
        let node = self.world.enrol_with(name, &offers).await;
        fs::write(node.folder.join("config/engines.toml"), catalogue()).unwrap();
        node
    }

    /// Starts the agent of a node.
    pub(crate) fn spawn(&self, index: usize) -> Process {
        let wire = self.wire.as_ref().filter(|_| index == 0);
        self.nodes[index].spawn_in(wire.map(|wire| wire.namespace.as_str()), &[])
    }

    /// Kills the control plane and its PostgreSQL without a chance to tidy up.
    pub(crate) fn kill_control(&mut self) {
        let file = self.world.control_folder().join("postgres/postmaster.pid");
        let text = fs::read_to_string(file).unwrap();
        let postmaster = text.lines().next().unwrap().parse().unwrap();
        kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
        self.world.control.kill_9();
    }

    /// Waits until every node takes work and hears of it at once, and its engine runs.
    /// A word of it that is older than `since` does not count.
    pub(crate) async fn wait_until_back(&mut self, since: Timestamp) {
        let limit = Instant::now() + PATIENCE;
        while !self.are_back(since).await {
            for agent in &mut self.agents {
                assert!(agent.runs(), "an agent ended:\n{}", agent.log());
            }
            let seen: Vec<_> = self.nodes.iter().map(AgentNode::own_status).collect();
            assert!(Instant::now() < limit, "the nodes are not back: {seen:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn are_back(&self, since: Timestamp) -> bool {
        for (node, agent) in self.nodes.iter().zip(&self.agents) {
            let hears = node.own_status().is_some_and(|own| {
                own.pid == agent.id()
                    && own.phase == Phase::Running
                    && own.wakeups == Wakeups::Realtime
            });
            if !hears {
                return false;
            }
            let Ok(seen) = node.rpc.node_status().await else { return false };
            let spoke = seen.node.last_seen.is_some_and(|at| at > since);
            if seen.node.status != "online" || !spoke {
                return false;
            }
        }
        self.docker.containers(false).len() >= self.idle
    }

    /// Returns how many containers there are beyond those of idle nodes, once what is
    /// being removed is gone.
    pub(crate) async fn containers_left(&self) -> usize {
        let limit = Instant::now() + TIDY;
        loop {
            let left = self.docker.containers(true).len().saturating_sub(self.idle);
            if left == 0 || Instant::now() > limit {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits for a moment until the first node has an attempt in work: a fault that comes
    /// before shows nothing.
    pub(crate) async fn wait_for_work(&self, most: Duration) {
        let limit = Instant::now() + most;
        while Instant::now() < limit {
            let seen = admin::snapshot(&self.files(), 0).await;
            if seen.is_ok_and(|snapshot| !snapshot.attempts.is_empty()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The files of the first node's agent.
    fn files(&self) -> ProcessFiles {
        let folder = &self.nodes[0].folder;
        ProcessFiles::new(folder.join("run"), folder.join("state"))
    }

    /// Returns what the first node's agent counts, once it has counted so many ends.
    pub(crate) async fn counters(&self, ended: u64) -> Counters {
        let limit = Instant::now() + TIDY;
        loop {
            let counters = admin::snapshot(&self.files(), 0).await.unwrap().counters;
            if counters.ended >= ended || Instant::now() > limit {
                return counters;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the agents in order; returns the containers that are there afterwards.
    pub(crate) async fn stop(mut self) -> usize {
        for mut agent in self.agents.drain(..) {
            let status = agent.stop().await;
            assert!(status.success(), "an agent ended with {status}:\n{}", agent.log());
        }
        self.idle = 0;
        self.containers_left().await
    }

    /// Keeps what everybody logged.
    pub(crate) fn keep_logs(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("control.log"), self.world.control.log()).unwrap();
        for node in &self.nodes {
            let log = node.folder.join("agent.log");
            fs::copy(log, folder.join(node.folder.file_name().unwrap()).with_extension("log"))
                .unwrap();
        }
    }
}

/// Makes a consumer with credit. Where websockets are cut, so is its own.
async fn asker(world: &World, fault: Fault) -> Asker {
    let plane = if fault == Fault::SocketCut {
        ControlPlane::discover(&world.node_url(), PlainHttp::PrivateOnly).await.unwrap().0
    } else {
        world.plane.clone()
    };
    let session = Session::new(plane, Keys::generate(), LoginKind::User);
    session.login().await.unwrap();
    let key = session.keys().public_hex();
    let amount = "1000".parse().unwrap();
    world.operator.grant_credit(TransferId::generate(), &key, amount, None).await.unwrap();
    let realtime = open_realtime(&session, CancellationToken::new()).unwrap();
    Asker { rpc: Rpc::new(session), realtime }
}

/// A small disk of its own, unmounted when dropped.
pub(crate) struct Disk {
    folder: PathBuf,
}

impl Disk {
    fn mount(folder: &Path) -> Self {
        fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK},mode=0700"), "infernet-chaos"])
            .arg(folder));
        Self { folder: folder.to_owned() }
    }

    /// Fills the disk; returns whether it is full.
    pub(crate) fn fill(&self) -> bool {
        let mut filler = File::create(self.filler()).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        fs::write(self.folder.join("probe"), "x").is_err()
    }

    /// Makes room again.
    pub(crate) fn clear(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _done = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}
