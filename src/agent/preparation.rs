//! From a configuration to an agent: engines checked, the machine looked at,
//! offers made.
//!
//! What would fail at the first job fails here already, in words for the owner:
//! no Docker, an image or a model's file that is not there or is another one.

use super::logbook::Logbook;
use super::notify::Notifier;
use super::process::ProcessFiles;
use super::{AgentError, AgentOptions};
use crate::config::{Config, Directories, ModelConfig, ModelSource, NodeConfig};
use crate::control::ControlPlane;
use crate::control::rpc::Inventory;
use crate::engine::docker::ContainerHost;
use crate::engine::escapes::{self, Machine};
use crate::engine::{
    Budget, Catalogue, EngineConfig, EngineError, EngineKind, EnginePool, ServedModel,
};
use crate::hardware;
use crate::identity::Keys;

/// Makes what [`Agent::start`](super::Agent::start) needs, and removes what an
/// earlier run of this node left in Docker.
///
/// Reads models' files that it has not seen before, which takes a while.
pub async fn prepare(
    config: &Config,
    node: &NodeConfig,
    directories: &Directories,
    control: ControlPlane,
    keys: Keys,
    files: ProcessFiles,
    logbook: Logbook,
) -> Result<AgentOptions, AgentError> {
    let catalogue = catalogue(directories)?;
    let engines = engines(config, catalogue.clone(), &container_label(&keys), directories)?;
    let mut offers = Vec::with_capacity(config.models().len() + config.containers().len());
    let most_slots = node.slots.unwrap_or(u32::MAX);
    for model in config.models() {
        let digest = engines.digest(&model.name).await?;
        offers.push(model.offer(most_slots, digest));
    }
    offers.extend(config.containers().iter().map(|container| container.offer(most_slots)));
    // The pool says what it removed.
    engines.remove_leftovers().await?;
    check_containers(&engines, &catalogue, config).await?;
    Ok(AgentOptions {
        control,
        keys,
        engines,
        inventory: inventory(node),
        offers,
        files,
        grace: node.grace,
        logbook,
        notifier: Notifier::default(),
    })
}

/// Reads what engines there are: those of the binary, and the owner's own.
///
/// # Errors
/// [`EngineError::BadCatalogue`].
pub fn catalogue(directories: &Directories) -> Result<Catalogue, EngineError> {
    Catalogue::load(&directories.config().join("engines.toml"))
}

/// Makes the engines of a node, and starts none; `node` is its containers' label.
///
/// # Errors
/// As [`EnginePool::new`].
pub fn engines(
    config: &Config,
    catalogue: Catalogue,
    node: &str,
    directories: &Directories,
) -> Result<EnginePool, EngineError> {
    EnginePool::new(EngineConfig {
        node: node.to_owned(),
        catalogue,
        models: config.models().iter().map(served).collect(),
        images: config.containers().iter().map(|container| container.image.clone()).collect(),
        runtime_dir: directories.runtime().join("engines"),
        cache_dir: Some(directories.state().join("cache")),
        // A model that is loaded answers at once; its owner gave it its memory.
        keep_alive: config.engines().keep_alive,
        docker_host: Some(docker_host(config)),
        budget: budget(config),
        relay_program: None,
    })
}

/// Returns the label of a node's containers: enough to tell two nodes of one machine
/// apart, and short in `docker ps`.
pub fn container_label(keys: &Keys) -> String {
    keys.public_hex()[..16].to_owned()
}

/// Returns where Docker is, as it is named to it.
pub fn docker_host(config: &Config) -> String {
    format!("unix://{}", config.docker().socket.display())
}

/// Translates a model of the configuration for the engines.
fn served(model: &ModelConfig) -> ServedModel {
    let mut served = match &model.source {
        ModelSource::File { path, sha256, url } => {
            let mut served = ServedModel::file(&model.name, path);
            served.engine.clone_from(&model.engine);
            served.sha256.clone_from(sha256);
            served.url.clone_from(url);
            served
        }
        ModelSource::Endpoint { url, model: endpoint_model } => {
            let mut served = ServedModel::endpoint(&model.name, url.as_str(), model.slots);
            served.engine.clone_from(&model.engine);
            served.endpoint_model.clone_from(endpoint_model);
            served
        }
    };
    served.threads = model.threads;
    served.memory_mb = model.memory_mb;
    served.gpus.clone_from(&model.gpus);
    served.gpu_memory_mb = model.gpu_memory_mb;
    served.share_prefix_cache = model.share_prefix_cache;
    served.slots = model.slots;
    if let Some(context_length) = model.context_length {
        served.context_length = context_length;
    }
    served
}

/// Says what all engines may use together: what the owner says, else most of what
/// there is.
fn budget(config: &Config) -> Budget {
    let most = |bytes: u64| (bytes >> 20) / 10 * 9;
    let memory_mb = config.engines().memory_mb.or_else(|| hardware::host::memory_bytes().map(most));
    let wants_gpus = config.models().iter().any(|model| !model.gpus.is_empty());
    let gpu_memory_mb = if wants_gpus {
        let report = hardware::gpus();
        let cards =
            report.cards.iter().filter_map(|card| Some((card.uuid.clone()?, card.memory_bytes?)));
        let instances = report.cards.iter().flat_map(|card| &card.instances);
        let instances = instances.map(|instance| (instance.uuid.clone(), instance.memory_bytes));
        cards.chain(instances).map(|(uuid, bytes)| (uuid, bytes >> 20)).collect()
    } else {
        Default::default()
    };
    Budget { memory_mb, gpu_memory_mb }
}

/// Describes the machine, as coarsely as it is told.
fn inventory(node: &NodeConfig) -> Inventory {
    Inventory {
        region: node.region.clone(),
        labels: node.labels.clone(),
        ..hardware::inventory().into()
    }
}

/// Says which image is not on this machine, before a consumer waits for it, and that
/// what contains containers here is too old for strangers' prompts.
async fn check_containers(
    engines: &EnginePool,
    catalogue: &Catalogue,
    config: &Config,
) -> Result<(), EngineError> {
    let mut entries = Vec::new();
    for model in engines.models() {
        if let EngineKind::Container { engine, .. } = model.kind()? {
            entries.extend(catalogue.get(engine));
        }
    }
    let images: Vec<_> = engines.images().collect();
    if entries.is_empty() && images.is_empty() {
        return Ok(());
    }
    let host = ContainerHost::connect(Some(&docker_host(config))).await?;
    let machine = Machine::look(&host.versions().await?).await;
    let openings = escapes::judge(&machine);
    if let Some(found) = escapes::refusal(&openings, config.docker().known_escapes) {
        return Err(EngineError::KnownEscapes { found });
    }
    for opening in openings {
        tracing::warn!(cve = opening.escape.cve, "{opening}");
    }
    for image in images {
        if host.image(&image.image).await?.is_none() {
            return Err(image.missing());
        }
    }
    for entry in entries {
        if host.image(&entry.image).await?.is_none() {
            return Err(entry.image_missing());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Overrides;
    use crate::control::rpc::Offering;

    fn models(text: &str) -> Vec<ModelConfig> {
        let path = Path::new("/c/config.toml");
        Config::read(path, text, &Overrides::default()).unwrap().models().to_vec()
    }

    #[test]
    fn no_offer_passes_the_machines_own_limit() {
        let models = models(
            "[[model]]\nname = \"a\"\nengine = \"external\"\nendpoint = \"http://127.0.0.1:1/v1\"\n\
             slots = 8\nprice_input = \"0.1\"\nprice_output = \"0.2\"\n",
        );
        let offer = |most, digest| match models[0].offer(most, digest) {
            Offering::Model(offer) => offer,
            Offering::Image(image) => panic!("{image:?}"),
        };
        assert_eq!(offer(3, None).slots, 3);
        assert_eq!(offer(9, None).slots, 8);
        assert_eq!(offer(u32::MAX, Some("ab".into())).digest.unwrap(), "ab");
        let served = served(&models[0]);
        assert_eq!(served.slots, 8);
        assert!(matches!(served.kind(), Ok(EngineKind::Endpoint { .. })));
    }

    #[test]
    fn a_file_keeps_its_engine_and_digest() {
        let digest = "ab".repeat(32);
        let models = models(&format!(
            "[[model]]\nname = \"a\"\nengine = \"vllm\"\npath = \"/m\"\nsha256 = \"{digest}\"\n\
             context_length = 512\nprice_input = \"0.1\"\nprice_output = \"0.2\"\n"
        ));
        let served = served(&models[0]);
        assert_eq!(served.engine, "vllm");
        assert_eq!(served.sha256, Some(digest));
        assert_eq!(served.context_length, 512);
    }
}
