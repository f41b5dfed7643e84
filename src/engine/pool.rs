//! The engines of a node, as the agent sees them.
//!
//! [`EnginePool::chat`] is the whole of an attempt's work: it starts the model's engine
//! when it does not run (every caller that comes meanwhile waits for the same start),
//! waits for a free slot, sends the request and hands back the answer as a stream. The
//! life of each container is `supervisor`'s, what both know of a model `supervised`'s; a
//! server that is already there
//! ([`EngineKind::Endpoint`]) goes through the same code without one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::catalogue::{Catalogue, EngineKind, ServedModel};
use crate::engine::container_job::{self, AllowedImage, ContainerRequest, JobImage};
use crate::engine::docker::ContainerHost;
use crate::engine::error::EngineError;
use crate::engine::model_file::ModelDigests;
use crate::engine::openai::{self, EngineStream, FIRST_TOKEN_TIMEOUT};
use crate::engine::pull::{self, Pulled, Tell};
use crate::engine::request::{self, EngineRequest};
use crate::engine::room::{Budget, Room};
use crate::engine::slots::TakenSlot;
use crate::engine::supervised::{Engine, InUse, Settings, State, Supervised};
use crate::engine::supervisor;
use crate::engine::transport::{Answer, TransportError};

/// How long stopping waits for containers to be removed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// How many engines in a row may refuse a request's connection.
const CONNECT_TRIES: u32 = 3;

/// How long an engine may take over the words of a refusal, and how many it may use.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
const REFUSAL_LIMIT: usize = 64 * 1024;

/// What a pool is made from.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Names the node in its containers' labels: two nodes of one machine must differ.
    pub node: String,
    /// The engines that may be started.
    pub catalogue: Catalogue,
    /// The models that are served.
    pub models: Vec<ServedModel>,
    /// The images that container jobs may run.
    pub images: Vec<JobImage>,
    /// Where sockets live; of this node alone, and short, since the path of a socket
    /// may have 107 bytes.
    pub runtime_dir: PathBuf,
    /// Where digests of models are remembered, if they are.
    pub cache_dir: Option<PathBuf>,
    /// How long an engine stays without requests; `None` is for ever.
    pub keep_alive: Option<Duration>,
    /// The socket of Docker or Podman; `DOCKER_HOST` or the usual ones when not given.
    pub docker_host: Option<String>,
    /// What all engines together may use.
    pub budget: Budget,
    /// The program that hands a socket on to a port, `infernet` itself: this process's
    /// own when not given.
    pub relay_program: Option<PathBuf>,
}

/// A unit of work as the agent has it.
#[derive(Debug, Clone)]
pub enum Work {
    /// A request to a model's server.
    Model(EngineRequest),
    /// A container of its own.
    Container(ContainerRequest),
}

/// The engines of a node. Cloning it shares them.
#[derive(Debug, Clone)]
pub struct EnginePool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    models: BTreeMap<String, Arc<Supervised>>,
    images: BTreeMap<String, AllowedImage>,
    settings: Arc<Settings>,
    shutdown: CancellationToken,
    /// The supervisors and container jobs that run; none is started after `shutdown`.
    supervisors: Mutex<JoinSet<()>>,
}

/// The state of a model's engine, for people.
#[derive(Debug, Clone)]
pub enum EngineState {
    /// Not running; the next request starts it.
    Stopped,
    /// Being started for so long.
    Starting(Duration),
    /// Ready.
    Ready,
    /// Failed; the error says why.
    Failed(EngineError),
}

impl EnginePool {
    /// Makes a pool. Nothing is started, and Docker is not asked, until a model is.
    ///
    /// # Errors
    /// [`EngineError::BadModel`] and [`EngineError::UnknownEngine`] for what the
    /// configuration has wrong.
    pub fn new(config: EngineConfig) -> Result<Self, EngineError> {
        let settings = Arc::new(Settings {
            node: config.node,
            runtime_dir: config.runtime_dir,
            keep_alive: config.keep_alive,
            docker_host: config.docker_host,
            digests: ModelDigests::new(config.cache_dir),
            host_seen: AtomicBool::new(false),
            room: Arc::new(Room::new(config.budget)),
            relay_program: config.relay_program,
        });
        let mut models = BTreeMap::new();
        for served in config.models {
            let model = Supervised::new(served, &config.catalogue, &settings)?;
            if let Some(twin) = models.insert(model.served.name.clone(), Arc::new(model)) {
                return Err(EngineError::BadModel {
                    model: twin.served.name.clone(),
                    reason: "it is named twice".to_owned(),
                });
            }
        }
        let mut images = BTreeMap::new();
        for image in config.images {
            let bad = |reason: String| EngineError::BadModel { model: image.name.clone(), reason };
            image.check().map_err(bad)?;
            if models.contains_key(&image.name) || images.contains_key(&image.name) {
                return Err(bad("it is named twice".to_owned()));
            }
            let slots = Arc::new(Semaphore::new(image.slots as usize));
            images.insert(image.name.clone(), AllowedImage { image, slots });
        }
        for model in models.values().filter(|model| model.mixes_prompts()) {
            if !model.served.share_prefix_cache {
                tracing::warn!(
                    model = %model.name,
                    "its engine cannot keep the prompts of consumers apart, so that only those \
                     are served who allow that; see share_prefix_cache"
                );
            }
        }
        settings.room.know(models.values());
        Ok(Self {
            shared: Arc::new(Shared {
                models,
                images,
                settings,
                shutdown: CancellationToken::new(),
                supervisors: Mutex::new(JoinSet::new()),
            }),
        })
    }

    /// Removes what an earlier process with the same node name left: its containers,
    /// running or not, and their sockets. To be called before the first request, since
    /// the containers of this process carry the same label. Returns how many it removed.
    ///
    /// # Errors
    /// As [`ContainerHost::connect`] and Docker's own; never when no model needs Docker.
    pub async fn remove_leftovers(&self) -> Result<usize, EngineError> {
        if !self.needs_docker() {
            return Ok(0);
        }
        let settings = &self.shared.settings;
        let host = ContainerHost::connect(settings.docker_host.as_deref()).await?;
        settings.see_host();
        let leftovers = host.containers_of(&settings.node, None).await?;
        for container in &leftovers {
            host.remove(container).await?;
        }
        supervisor::remove_socket_directories(&settings.runtime_dir).await;
        if !leftovers.is_empty() {
            tracing::info!(containers = leftovers.len(), "removed containers of an earlier run");
        }
        Ok(leftovers.len())
    }

    /// Tells whether anything here runs in a container.
    #[must_use]
    pub fn needs_docker(&self) -> bool {
        let served = self.shared.models.values().any(|model| model.entry.is_some());
        served || !self.shared.images.is_empty()
    }

    /// Makes sure that a model's engine is ready, starting it when it is not. Callers
    /// that come at the same time share one start; dropping the call does not stop it.
    ///
    /// # Errors
    /// Why the engine could not be started; for a while after a failure, the same
    /// error without another try.
    pub async fn ensure(&self, model: &str) -> Result<Engine, EngineError> {
        let model = self.find(model)?;
        let engine = self.engine(model).await?;
        if model.entry.is_none() {
            engine.transport.probe().await.map_err(|error| EngineError::Unreachable {
                model: model.name.as_ref().to_owned(),
                reason: error.to_string(),
            })?;
        }
        Ok(engine)
    }

    /// Does a unit of work with the model or the image of this name, and returns what
    /// comes of it as it is produced.
    ///
    /// # Errors
    /// As [`EnginePool::chat`] and [`EnginePool::run_container`].
    pub async fn run(
        &self,
        name: &str,
        work: Work,
        cancel: CancellationToken,
    ) -> Result<EngineStream, EngineError> {
        match work {
            Work::Model(request) => self.chat(name, request, cancel).await,
            Work::Container(request) => self.run_container(name, request, cancel).await,
        }
    }

    /// Runs a container of an allowed image and returns its output as it is written,
    /// once one of the image's slots is free. Dropping the stream ends the container.
    ///
    /// # Errors
    /// [`EngineError::UnknownModel`] for an image that is not allowed;
    /// [`EngineError::BadRequest`] for an input that it does not take.
    pub async fn run_container(
        &self,
        name: &str,
        request: ContainerRequest,
        cancel: CancellationToken,
    ) -> Result<EngineStream, EngineError> {
        let allowed = self
            .shared
            .images
            .get(name)
            .ok_or_else(|| EngineError::UnknownModel { model: name.to_owned() })?;
        let slot = tokio::select! {
            biased;
            () = self.shared.shutdown.cancelled() => return Err(EngineError::Stopping),
            () = cancel.cancelled() => return Ok(EngineStream::cancelled(name.into())),
            slot = Arc::clone(&allowed.slots).acquire_owned() => {
                slot.map_err(|_closed| EngineError::Stopping)?
            }
        };
        let settings = Arc::clone(&self.shared.settings);
        let (job, stream) = container_job::open(allowed, request, settings, slot, cancel)?;
        let mut tasks = self.shared.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.shutdown.is_cancelled() {
            return Err(EngineError::Stopping);
        }
        // Those that have ended are of no use any more.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(container_job::run_container_job(job, self.shared.shutdown.clone()));
        Ok(EngineStream::job(name, stream))
    }

    /// Sends a request to a model's engine and returns its answer as it is produced.
    ///
    /// Waits for the engine's start and for a free slot. When `cancel` fires, then or
    /// later, the connection is closed, by which the engine stops, and the stream
    /// ends with [`openai::Finish::Cancelled`].
    ///
    /// # Errors
    /// [`EngineError::BadRequest`] before anything is sent; [`EngineError::UnknownModel`];
    /// what [`EnginePool::ensure`] fails with; what the engine answered instead of a
    /// stream.
    pub async fn chat(
        &self,
        model: &str,
        request: EngineRequest,
        cancel: CancellationToken,
    ) -> Result<EngineStream, EngineError> {
        let model = self.find(model)?;
        let shape = |slot: Option<&TakenSlot>| {
            request::shape(&request, model.engine_name(), model.dialect.as_ref(), slot)
        };
        // What is wrong with it is said before anything is started.
        shape(None)?;
        if !model.serves(request.kind) {
            return Err(EngineError::BadRequest {
                message: format!("Model {} does not serve this kind of request.", model.name),
            });
        }
        let asker = request.asker();
        if model.mixes_prompts() && !(model.served.share_prefix_cache || asker.shares) {
            return Err(EngineError::BadModel {
                model: model.served.name.clone(),
                reason: "its engine cannot keep the prompts of consumers apart; allow that with \
                         share_prefix_cache"
                    .to_owned(),
            });
        }
        let path = request.kind.path();
        let estimated_input = request::estimate_input_tokens(&request);
        let mut in_use = InUse::begin(model);
        let exchange = async {
            let slot = model.slots.take(asker).await.map_err(|_| EngineError::Stopping)?;
            let body = shape(model.entry.is_some().then_some(&slot))?;
            in_use.slot = Some(slot);
            let mut tries = CONNECT_TRIES;
            let mut answer = loop {
                let engine = self.engine(model).await?;
                let transport = Arc::clone(&engine.transport);
                in_use.engine = Some(engine.clone());
                let sending = transport.send(path, Some(body.clone()));
                match tokio::time::timeout(FIRST_TOKEN_TIMEOUT, sending).await {
                    Ok(Ok(answer)) => break answer,
                    Ok(Err(TransportError::Connect(error))) => {
                        tries -= 1;
                        if tries == 0 || !model.replace(&engine) {
                            return Err(EngineError::Unreachable {
                                model: model.name.as_ref().to_owned(),
                                reason: error.to_string(),
                            });
                        }
                    }
                    Ok(Err(error)) => return Err(in_use.explain_death(&error).await),
                    Err(_) => {
                        return Err(EngineError::Stalled {
                            model: model.name.as_ref().to_owned(),
                            waited: FIRST_TOKEN_TIMEOUT,
                        });
                    }
                }
            };
            if answer.status() != 200 {
                return Err(refusal(&model.name, &mut answer).await);
            }
            Ok(answer)
        };
        let answer = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            answer = exchange => Some(answer?),
        };
        Ok(match answer {
            Some(answer) => {
                EngineStream::new(in_use, answer, request.kind, cancel, estimated_input)
            }
            None => EngineStream::cancelled(in_use.model_name()),
        })
    }

    /// Returns the sha256 of a model's file in hex, reading it if it is not known;
    /// `None` for an endpoint, whose file is not ours.
    ///
    /// # Errors
    /// As for a start: [`EngineError::ModelMissing`], [`EngineError::ModelMismatch`].
    pub async fn digest(&self, model: &str) -> Result<Option<String>, EngineError> {
        let model = self.find(model)?;
        match model.served.kind()? {
            EngineKind::Endpoint { .. } => Ok(None),
            EngineKind::Container { path, .. } => {
                let (_, digest) = model.settings.digests.check(&model.served, path).await?;
                Ok(Some(digest))
            }
        }
    }

    /// Gets what a model or an image of this name needs and is not on this machine: the
    /// engine's image, and the file, from where the configuration says.
    ///
    /// # Errors
    /// [`EngineError::NotOurs`] for an endpoint; [`EngineError::ImageMissing`] and
    /// [`EngineError::ModelMissing`] for what nobody says where to get;
    /// [`EngineError::FetchFailed`], [`EngineError::ModelMismatch`] and
    /// [`EngineError::ImageNotAllowed`] for what came or did not come.
    pub async fn pull(&self, name: &str, tell: &Tell<'_>) -> Result<Pulled, EngineError> {
        match self.shared.images.get(name) {
            Some(allowed) => pull::job_image(&self.shared.settings, &allowed.image, tell).await,
            None => pull::model(self.find(name)?, tell).await,
        }
    }

    /// Returns the models that are served, by name.
    pub fn models(&self) -> impl Iterator<Item = &ServedModel> {
        self.shared.models.values().map(|model| &model.served)
    }

    /// Returns the images that container jobs may run, by name.
    pub fn images(&self) -> impl Iterator<Item = &JobImage> {
        self.shared.images.values().map(|allowed| &allowed.image)
    }

    /// Returns every model's state, by name.
    #[must_use]
    pub fn states(&self) -> Vec<(String, EngineState)> {
        let shown = |model: &Supervised| match &*model.state.borrow() {
            State::Stopped => EngineState::Stopped,
            State::Starting { since } => EngineState::Starting(since.elapsed()),
            State::Ready(_) => EngineState::Ready,
            State::Failed { error, .. } => EngineState::Failed(error.clone()),
        };
        self.shared.models.iter().map(|(name, model)| (name.clone(), shown(model))).collect()
    }

    /// Restarts a model's container once it answers nothing any more, and waits until it
    /// is ready; requests that come meanwhile wait. One that does not run is started.
    ///
    /// # Errors
    /// [`EngineError::NotOurs`] for an endpoint; what [`EnginePool::ensure`] fails with.
    pub async fn restart(&self, model: &str) -> Result<(), EngineError> {
        let model = self.find(model)?;
        if model.entry.is_none() {
            return Err(EngineError::NotOurs { model: model.name.as_ref().to_owned() });
        }
        let all = model.slots.take_all(model.served.slots).await;
        let _all = all.map_err(|_closed| EngineError::Stopping)?;
        self.supervise(model);
        model.state.send_if_modified(|state| {
            let starts = matches!(state, State::Starting { .. });
            if !starts {
                *state = State::Starting { since: Instant::now() };
            }
            !starts
        });
        self.engine(model).await.map(drop)
    }

    /// Stops every engine, removes the containers, and refuses all that comes after.
    /// Streams that still run end with an error. May be called again.
    pub async fn stop_all(&self) {
        self.shared.shutdown.cancel();
        for model in self.shared.models.values() {
            model.slots.close();
        }
        let mut supervisors = std::mem::take(
            &mut *self.shared.supervisors.lock().unwrap_or_else(PoisonError::into_inner),
        );
        let joined = async { while supervisors.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, joined).await.is_err() {
            tracing::warn!("an engine's container could not be removed in time");
        }
    }

    fn find(&self, model: &str) -> Result<&Arc<Supervised>, EngineError> {
        self.shared
            .models
            .get(model)
            .ok_or_else(|| EngineError::UnknownModel { model: model.to_owned() })
    }

    /// Returns a model's engine, asking its supervisor to start it where needed.
    async fn engine(&self, model: &Arc<Supervised>) -> Result<Engine, EngineError> {
        let mut states = model.state.subscribe();
        loop {
            if self.shared.shutdown.is_cancelled() {
                return Err(EngineError::Stopping);
            }
            match &*states.borrow_and_update() {
                State::Ready(engine) => return Ok(engine.clone()),
                State::Failed { error, until } if Instant::now() < *until => {
                    return Err(error.clone());
                }
                State::Starting { .. } | State::Stopped | State::Failed { .. } => {}
            }
            self.supervise(model);
            model.state.send_if_modified(State::ask);
            tokio::select! {
                () = self.shared.shutdown.cancelled() => {}
                // The sender lives as long as the model.
                _ = states.changed() => {}
            }
        }
    }

    /// Starts the model's supervisor if it has none.
    fn supervise(&self, model: &Arc<Supervised>) {
        let mut supervised = model.supervised.lock().unwrap_or_else(PoisonError::into_inner);
        if *supervised || self.shared.shutdown.is_cancelled() {
            return;
        }
        *supervised = true;
        self.shared
            .supervisors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spawn(supervisor::run_engine(Arc::clone(model), self.shared.shutdown.clone()));
    }
}

/// Reads what an engine said instead of an answer.
async fn refusal(model: &str, answer: &mut Answer) -> EngineError {
    let status = answer.status();
    let body = tokio::time::timeout(REFUSAL_TIMEOUT, answer.read_small(REFUSAL_LIMIT))
        .await
        .ok()
        .and_then(Result::ok)
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or(Value::Null);
    openai::failure(model, status, &body)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(models: Vec<ServedModel>) -> EngineConfig {
        EngineConfig {
            node: "test".to_owned(),
            catalogue: Catalogue::built_in(),
            models,
            images: Vec::new(),
            runtime_dir: PathBuf::from("/nonexistent"),
            cache_dir: None,
            keep_alive: None,
            docker_host: None,
            budget: Budget::default(),
            relay_program: None,
        }
    }

    #[test]
    fn wrong_configurations_are_named() {
        let good = ServedModel::file("m", "/m.gguf");
        assert!(EnginePool::new(config(vec![good.clone()])).is_ok());
        for (models, wanted) in [
            (vec![good.clone(), good.clone()], "named twice"),
            (
                vec![ServedModel { engine: "none".to_owned(), ..good.clone() }],
                "not in the catalogue",
            ),
            (vec![ServedModel { gpus: vec!["GPU-1".to_owned()], ..good }], "uses no GPU"),
            (vec![ServedModel::endpoint("m", "http://10.1.2.3", 1)], "loopback"),
        ] {
            let error = EnginePool::new(config(models)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[tokio::test]
    async fn a_pool_of_endpoints_needs_no_docker() {
        let mut config = config(vec![ServedModel::endpoint("m", "unix:/nonexistent.sock", 1)]);
        config.docker_host = Some("unix:///nonexistent/docker.sock".to_owned());
        let pool = EnginePool::new(config).unwrap();
        assert_eq!(pool.remove_leftovers().await.unwrap(), 0);
        let error = pool.ensure("m").await.unwrap_err();
        assert!(matches!(error, EngineError::Unreachable { .. }), "{error}");
        assert!(matches!(pool.ensure("x").await, Err(EngineError::UnknownModel { .. })));
        pool.stop_all().await;
        assert!(matches!(pool.ensure("m").await, Err(EngineError::Stopping)));
    }

    #[tokio::test]
    async fn docker_that_is_not_there_is_told_and_not_asked_again_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, "x").unwrap();
        let mut config = config(vec![ServedModel::file("m", path)]);
        config.docker_host = Some("unix:///nonexistent/docker.sock".to_owned());
        let pool = EnginePool::new(config).unwrap();
        for _ in 0..2 {
            let error = pool.ensure("m").await.unwrap_err();
            assert!(matches!(error, EngineError::DockerNotRunning { .. }), "{error}");
            assert_eq!(error.attempt_code(), "engine_unavailable");
        }
        assert!(matches!(&pool.states()[0].1, EngineState::Failed(_)));
        pool.stop_all().await;
    }
}
