//! The faults, and how each is brought about.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::Signal;

use super::field::{Field, LEASE};
use super::wire::Cut;

/// How long there may be no answer that could be lost.
const ANSWERS_LIMIT: Duration = Duration::from_secs(10);

/// What goes wrong in a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// The agent is killed, and started again within a lease.
    AgentKilled,
    /// The agent stands still for six leases: its jobs are done elsewhere meanwhile.
    AgentStopped,
    /// Docker is stopped or killed, and started again.
    DockerRestarted,
    /// The engine's container is killed.
    EngineKilled,
    /// All websockets break.
    SocketCut,
    /// The control plane and its PostgreSQL are killed and started again.
    ControlRestarted,
    /// A node's network is away for five leases.
    NetworkCut,
    /// The disk of a node's journal is full for a while; the agent may be killed then.
    DiskFull,
    /// A container job was handed in, and the connection breaks before the answer comes.
    AnswerLost,
}

/// When a fault struck.
pub(crate) struct Strike {
    /// By the clock that the control plane has too.
    pub(crate) at: Timestamp,
    /// The same for differences.
    pub(crate) began: Instant,
    /// When the cause was gone.
    pub(crate) over: Instant,
    /// Whether what was to be hit was there.
    pub(crate) took: bool,
    /// The attempts that it hit, where that is known; elsewhere those that ran.
    pub(crate) attempts: Option<Vec<String>>,
}

impl Fault {
    /// All of them, in the order of the table.
    pub(crate) const ALL: [Self; 9] = [
        Self::AgentKilled,
        Self::AgentStopped,
        Self::DockerRestarted,
        Self::EngineKilled,
        Self::SocketCut,
        Self::ControlRestarted,
        Self::NetworkCut,
        Self::DiskFull,
        Self::AnswerLost,
    ];

    /// Finds a fault by its name in the table.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|fault| fault.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("There is no fault {name}. The faults are {names}.")
        })
    }

    /// Its name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AgentKilled => "agent-killed",
            Self::AgentStopped => "agent-stopped",
            Self::DockerRestarted => "docker-restarted",
            Self::EngineKilled => "engine-killed",
            Self::SocketCut => "websocket-cut",
            Self::ControlRestarted => "control-restarted",
            Self::NetworkCut => "network-cut",
            Self::DiskFull => "journal-full",
            Self::AnswerLost => "answer-lost",
        }
    }

    /// The nodes of its market. Where a node is away for longer than its lease there is
    /// another one, which takes over; elsewhere the node has to recover by itself.
    pub(crate) fn nodes(self) -> &'static [&'static str] {
        match self {
            Self::AgentKilled | Self::AgentStopped | Self::NetworkCut => &["attic", "cellar"],
            _ => &["attic"],
        }
    }

    /// Whether its jobs are containers, each a program of its own; elsewhere they are
    /// chats with one engine.
    pub(crate) fn has_containers(self) -> bool {
        self == Self::AnswerLost
    }

    /// How long a round takes at least, for doing the longest first.
    pub(crate) fn length(self) -> Duration {
        match self {
            Self::AgentStopped => 6 * LEASE,
            Self::NetworkCut => 5 * LEASE,
            _ => LEASE,
        }
    }

    /// Brings the fault about, and takes its cause away again.
    pub(crate) async fn strike(self, field: &mut Field, rng: &mut fastrand::Rng) -> Strike {
        let mut moment = |most: Duration| most.mul_f64(rng.f64());
        let (at, began) = (Timestamp::now(), Instant::now());
        let (mut took, mut attempts) = (true, None);
        match self {
            Self::AgentKilled => {
                field.agents[0].kill_9();
                tokio::time::sleep(moment(LEASE)).await;
                field.agents[0] = field.spawn(0);
            }
            Self::AgentStopped => {
                field.agents[0].signal(Signal::SIGSTOP);
                tokio::time::sleep(6 * LEASE).await;
                field.agents[0].signal(Signal::SIGCONT);
            }
            Self::DockerRestarted => {
                let signal = if rng.bool() { Signal::SIGTERM } else { Signal::SIGKILL };
                field.docker.restart(signal, LEASE.mul_f64(rng.f64() / 4.0)).await;
            }
            Self::EngineKilled => {
                let engines = field.docker.containers(false);
                took = engines.first().is_some_and(|engine| field.docker.kill_container(engine));
            }
            Self::SocketCut => {
                took = field.world.gate.as_ref().is_some_and(|gate| gate.cut_realtime() > 1);
            }
            Self::ControlRestarted => {
                field.kill_control();
                tokio::time::sleep(moment(LEASE / 2)).await;
                field.world.restart_control().await;
            }
            Self::NetworkCut => {
                let cut = if rng.bool() { Cut::Whole } else { Cut::Answers };
                let wire = field.wire.as_ref().expect("the row has a wire");
                wire.cut(cut);
                tokio::time::sleep(5 * LEASE).await;
                wire.mend(cut);
            }
            Self::DiskFull => {
                took = field.disk.as_ref().is_some_and(super::field::Disk::fill);
                tokio::time::sleep(moment(LEASE / 2)).await;
                if rng.bool() {
                    field.agents[0].kill_9();
                    field.agents[0] = field.spawn(0);
                }
                tokio::time::sleep(LEASE.mul_f64(rng.f64())).await;
                field.disk.as_ref().expect("the row has a disk").clear();
            }
            Self::AnswerLost => {
                let gate = field.world.gate.as_ref().expect("the row has a gate");
                let wanted = rng.usize(1..=3);
                gate.lose_answers(wanted);
                let limit = began + ANSWERS_LIMIT;
                while gate.lost_answers().len() < wanted && Instant::now() < limit {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let lost = gate.lost_answers();
                gate.lose_answers(0);
                took = !lost.is_empty();
                attempts = Some(lost);
            }
        }
        Strike { at, began, over: Instant::now(), took, attempts }
    }
}
