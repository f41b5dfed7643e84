//! One model as the pool and its supervisor share it: what is served, the state of its
//! engine, and who uses it.
//!
//! [`State`] is written by the supervisor; others only ask for a start, an end or another
//! engine. [`InUse`] counts a request, by which an idle engine is known.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::engine::catalogue::{
    Catalogue, EngineEntry, EngineKind, GpuNeed, PrefixCache, ServedModel,
};
use crate::engine::docker::ContainerHost;
use crate::engine::error::EngineError;
use crate::engine::model_file::ModelDigests;
use crate::engine::request::RequestKind;
use crate::engine::room::Room;
use crate::engine::slots::{Slots, TakenSlot};
use crate::engine::transport::{Address, Answer, Transport, TransportError};

/// How long the end of a container is waited for once its connection has broken.
const DEATH_WAIT: Duration = Duration::from_millis(1500);

/// What every supervisor needs to know of its pool.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) node: String,
    pub(super) runtime_dir: PathBuf,
    pub(super) keep_alive: Option<Duration>,
    pub(super) docker_host: Option<String>,
    pub(super) digests: ModelDigests,
    /// Whether Docker answered once: from then on it is waited for when it is away.
    pub(super) host_seen: AtomicBool,
    pub(super) room: Arc<Room>,
    pub(super) relay_program: Option<PathBuf>,
}

impl Settings {
    /// Notes that Docker answered.
    pub(super) fn see_host(&self) {
        self.host_seen.store(true, Ordering::Relaxed);
    }

    /// Tells whether Docker answered once.
    pub(super) fn host_was_seen(&self) -> bool {
        self.host_seen.load(Ordering::Relaxed)
    }
}

/// One model and the state of its engine.
#[derive(Debug)]
pub(super) struct Supervised {
    pub(super) name: Arc<str>,
    pub(super) served: ServedModel,
    /// The catalogue's entry that starts the engine; an endpoint is started by others.
    pub(super) entry: Option<EngineEntry>,
    /// The catalogue's entry that says how the engine is spoken to, where there is one.
    pub(super) dialect: Option<EngineEntry>,
    pub(super) settings: Arc<Settings>,
    pub(super) state: watch::Sender<State>,
    pub(super) slots: Arc<Slots>,
    pub(super) in_flight: AtomicUsize,
    last_used: Mutex<Instant>,
    /// Whether this engine has answered a request to its end.
    answered: AtomicBool,
    pub(super) supervised: Mutex<bool>,
}

/// Where an engine is in its life.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// Not running, and not asked for.
    Stopped,
    /// Asked for; its supervisor is at work since then.
    Starting {
        /// When it was asked for.
        since: Instant,
    },
    /// Ready for requests.
    Ready(Engine),
    /// Could not be started, or died; not tried again before `until`.
    Failed {
        /// Why.
        error: EngineError,
        /// When a caller may ask again.
        until: Instant,
    },
}

/// An engine that was ready when it was asked for.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) model: Arc<str>,
    pub(super) transport: Arc<Transport>,
    pub(super) container: Option<Container>,
}

/// The container behind an engine.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) name: Arc<str>,
    pub(super) host: ContainerHost,
    pub(super) memory_mb: u64,
}

impl Engine {
    /// Returns the name of the model that it serves.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Returns the name of its container; `None` for an endpoint.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        self.container.as_ref().map(|container| container.name.as_ref())
    }
}

/// Marks an engine as in use while a request to it lives, and holds its slot.
#[derive(Debug)]
pub(super) struct InUse {
    model: Arc<Supervised>,
    /// Known once the engine is ready and a slot is free.
    pub(super) engine: Option<Engine>,
    pub(super) slot: Option<TakenSlot>,
}

impl InUse {
    pub(super) fn begin(model: &Arc<Supervised>) -> Self {
        model.in_flight.fetch_add(1, Ordering::SeqCst);
        Self { model: Arc::clone(model), engine: None, slot: None }
    }

    /// Returns the model's name.
    pub(super) fn model_name(&self) -> Arc<str> {
        Arc::clone(&self.model.name)
    }

    /// Gives a connection back that was used to its end.
    pub(super) fn recycle(&self, answer: Answer) {
        self.model.answered.store(true, Ordering::Relaxed);
        if let Some(engine) = &self.engine {
            engine.transport.recycle(answer);
        }
    }

    /// Says why a connection to the engine broke: how its container ended, if it has.
    pub(super) async fn explain_death(&self, error: &TransportError) -> EngineError {
        let model = self.model.name.as_ref().to_owned();
        let died = |reason: String| EngineError::DiedMidStream { model: model.clone(), reason };
        let Some(container) = self.engine.as_ref().and_then(|engine| engine.container.as_ref())
        else {
            return died(error.to_string());
        };
        // Docker learns of a death a moment after the socket does.
        match tokio::time::timeout(DEATH_WAIT, container.host.wait(&container.name)).await {
            Ok(exit) if exit.out_of_memory => {
                EngineError::OutOfMemory { model: model.clone(), memory_mb: container.memory_mb }
            }
            Ok(exit) => died(exit.to_string()),
            Err(_) => died(error.to_string()),
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        *self.model.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.model.in_flight.fetch_sub(1, Ordering::SeqCst);
        drop(self.slot.take());
    }
}

impl Supervised {
    /// Returns how long the engine has been idle; `None` while it is in use.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        (self.in_flight.load(Ordering::SeqCst) == 0)
            .then(|| self.last_used.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }

    /// Asks for the engine's end if nobody has used it for so long. Tells whether it
    /// did.
    pub(super) fn stop_if_idle(&self, at_least: Duration) -> bool {
        // Under the lock of the state: a request counts itself before it reads the
        // state, so that either it is seen here or it sees `Stopped`.
        self.state.send_if_modified(|state| {
            let idle = matches!(state, State::Ready(_))
                && self.idle_for().is_some_and(|idle| idle >= at_least);
            if idle {
                *state = State::Stopped;
            }
            idle
        })
    }

    /// Asks for another engine than one that takes no connections any more: its death is
    /// known here before Docker tells of it, and a Docker that is away does not tell. One
    /// that was replaced meanwhile is left alone. Tells whether there can be another.
    pub(super) fn replace(&self, dead: &Engine) -> bool {
        if self.entry.is_none() {
            return false;
        }
        self.state.send_if_modified(|state| {
            let same =
                matches!(state, State::Ready(now) if Arc::ptr_eq(&now.transport, &dead.transport));
            if same {
                *state = State::Starting { since: Instant::now() };
            }
            same
        });
        true
    }

    /// Forgets what earlier engines did.
    pub(super) fn begin_life(&self) {
        self.answered.store(false, Ordering::Relaxed);
    }

    /// Tells whether the engine has answered a request to its end.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Starts the idle time anew.
    pub(super) fn touch(&self) {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl State {
    /// Asks for a start, unless one is under way, done, or not yet to be repeated.
    /// Tells whether that changed anything.
    pub(super) fn ask(&mut self) -> bool {
        let now = Instant::now();
        let asked = match self {
            Self::Stopped => true,
            Self::Failed { until, .. } => now >= *until,
            Self::Starting { .. } | Self::Ready(_) => false,
        };
        if asked {
            *self = Self::Starting { since: now };
        }
        asked
    }
}

impl Supervised {
    pub(super) fn new(
        served: ServedModel,
        catalogue: &Catalogue,
        settings: &Arc<Settings>,
    ) -> Result<Self, EngineError> {
        served.check()?;
        let name: Arc<str> = served.name.as_str().into();
        let bad = |reason: String| EngineError::BadModel { model: served.name.clone(), reason };
        let slots = served.slots as usize;
        let mut dialect = None;
        let (entry, state) = match served.kind()? {
            EngineKind::Endpoint { url } => {
                dialect = catalogue.get(&served.engine).cloned();
                let address = Address::parse(url).map_err(bad)?;
                let transport = Arc::new(Transport::new(address, slots));
                let engine = Engine { model: Arc::clone(&name), transport, container: None };
                (None, State::Ready(engine))
            }
            EngineKind::Container { engine, .. } => {
                let entry = catalogue.get(engine).ok_or_else(|| EngineError::UnknownEngine {
                    model: served.name.clone(),
                    engine: engine.to_owned(),
                })?;
                match entry.gpu {
                    GpuNeed::None if !served.gpus.is_empty() => {
                        return Err(bad(format!("its engine {engine} uses no GPU")));
                    }
                    GpuNeed::Required if served.gpus.is_empty() => {
                        return Err(bad(format!("its engine {engine} needs gpus to be named")));
                    }
                    _ => {}
                }
                (Some(entry.clone()), State::Stopped)
            }
        };
        Ok(Self {
            name,
            dialect: dialect.or_else(|| entry.clone()),
            entry,
            settings: Arc::clone(settings),
            state: watch::Sender::new(state),
            slots: Slots::new(slots),
            in_flight: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
            answered: AtomicBool::new(false),
            supervised: Mutex::new(false),
            served,
        })
    }

    /// Returns the name by which the engine knows the model.
    pub(super) fn engine_name(&self) -> &str {
        self.served.endpoint_model.as_deref().unwrap_or(&self.name)
    }

    /// Tells whether the engine remembers prompts in a way that cannot be steered.
    pub(super) fn mixes_prompts(&self) -> bool {
        self.dialect.as_ref().is_some_and(|entry| entry.prefix_cache == PrefixCache::Shared)
    }

    pub(super) fn serves(&self, kind: RequestKind) -> bool {
        self.dialect.as_ref().is_none_or(|entry| entry.paths.iter().any(|path| path == kind.path()))
    }
}
