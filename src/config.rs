//! What this machine was told: one file, two layers.
//!
//! [`raw`] is what was written, [`Config`] what it means, [`ConfigDocument`] the
//! file to be changed key by key. A value comes from a
//! flag, else from the environment, else from `config.toml`, else it has a
//! default; `config/infernet.example.toml` shows every key. No secret is ever in
//! the file: keys are files of their own beside it ([`Directories::owner_key`],
//! [`Directories::node_key`]).

mod directories;
mod document;
mod raw;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

pub use self::directories::Directories;
pub use self::document::{ConfigDocument, Origin, Setting};
pub use self::raw::{
    RawConfig, RawContainer, RawControl, RawDocker, RawEngines, RawModel, RawNode,
};
pub(crate) use self::raw::{check_model_name, check_node_name};
use crate::control::rpc::{OfferedImage, OfferedModel, Offering};
use crate::control::{BaseUrl, PlainHttp};
use crate::engine::JobImage;
use crate::engine::escapes::KnownEscapes;
use crate::money::Usd;

/// Where Docker listens unless told otherwise.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// How long running attempts may finish when the agent is asked to stop.
const GRACE: Duration = Duration::from_secs(30);

/// What a daemon logs unless told otherwise.
const LOG: &str = "info";

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No home directory, and no variable that stands in for it.
    #[error("This user has no home directory, so there is no place for the configuration.")]
    NoHome,
    /// The file is there and cannot be read.
    #[error("The configuration file {} cannot be read.", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("The configuration file {} cannot be written.", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file does not say what it must.
    #[error("The configuration file {} is wrong at line {line}: {message}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what is expected.
        message: String,
    },
    /// No file has such a key, or this one has no such model.
    #[error("There is no {key} to be set.")]
    NoSuchKey {
        /// The key.
        key: String,
    },
    /// A flag or variable does not say what it must.
    #[error("{name} is wrong: {message}")]
    Override {
        /// The flag and its variable.
        name: &'static str,
        /// What is wrong and what is expected.
        message: String,
    },
    /// Nothing says which control plane to use.
    #[error("No control plane is known on this machine.")]
    NoControlPlane,
    /// Nothing says what node this machine is.
    #[error("This machine is not set up as a node.")]
    NoNode,
}

/// What flags and environment say; it goes before the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The control plane's URL (`--url`, `INFERNET_URL`).
    pub url: Option<String>,
    /// Plain http to a public host is meant (`--plain-http`).
    pub plain_http: bool,
    /// Its publishable key (`--publishable-key`, `INFERNET_PUBLISHABLE_KEY`).
    pub publishable_key: Option<String>,
    /// What is logged (`--log`, `INFERNET_LOG`).
    pub log: Option<String>,
    /// Docker's socket (`INFERNET_DOCKER_SOCKET`, or `DOCKER_HOST` with a
    /// `unix://` URL).
    pub docker_socket: Option<PathBuf>,
    /// What is done about known ways out of containers
    /// (`--accept-known-escapes`).
    pub known_escapes: Option<KnownEscapes>,
}

/// The configuration, checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    control: Option<ControlConfig>,
    node: Option<NodeConfig>,
    docker: DockerConfig,
    engines: EnginesConfig,
    models: Vec<ModelConfig>,
    containers: Vec<ContainerConfig>,
    log: String,
}

/// Which control plane.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ControlConfig {
    /// Its base URL.
    pub url: BaseUrl,
    /// Its publishable key; asked of `/functions/v1/info` when absent.
    pub publishable_key: Option<String>,
}

/// What node this machine is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeConfig {
    /// What its owner calls it.
    pub name: String,
    /// What it does.
    pub role: NodeRole,
    /// The most attempts at once over all models; the models' slots added up
    /// when absent.
    pub slots: Option<u32>,
    /// Where it is, if its owner wants that known.
    pub region: Option<String>,
    /// Words that jobs may ask for, such as `ssd`.
    pub labels: Vec<String>,
    /// How long running attempts may finish when the agent is asked to stop.
    pub grace: Duration,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// Executes jobs.
    #[default]
    Provider,
    /// Coordinates gangs of nodes.
    Aggregator,
    /// Identity and balance only.
    Client,
}

impl NodeRole {
    /// Returns the role's word, as in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Aggregator => "aggregator",
            Self::Client => "client",
        }
    }
}

impl fmt::Display for NodeRole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// How containers are run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DockerConfig {
    /// The socket of Docker or Podman.
    pub socket: PathBuf,
    /// What is done about known ways out of containers.
    pub known_escapes: KnownEscapes,
}

/// What all engines share.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EnginesConfig {
    /// How long an engine stays without requests; for ever when absent.
    pub keep_alive: Option<Duration>,
    /// Memory of all engines and jobs together, in MiB; nine tenths of the machine's
    /// when absent.
    pub memory_mb: Option<u64>,
}

/// An image that container jobs may run here, and what it asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContainerConfig {
    /// The image.
    pub image: JobImage,
    /// USD per second.
    pub price_second: Usd,
}

/// A model that this node serves and what it asks for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ModelConfig {
    /// Its name on the market.
    pub name: String,
    /// The entry of the engine catalogue that serves it.
    pub engine: String,
    /// Where its weights are.
    pub source: ModelSource,
    /// How many jobs at once.
    pub slots: u32,
    /// Tokens that fit the context; the engine's own default when absent.
    pub context_length: Option<u32>,
    /// Threads and processors of its engine; all when absent.
    pub threads: Option<u32>,
    /// Memory of its engine, in MiB; reckoned from its file when absent.
    pub memory_mb: Option<u64>,
    /// UUIDs of the GPUs that its engine may use.
    pub gpus: Vec<String>,
    /// Memory of these GPUs, in MiB; reckoned from its file when absent.
    pub gpu_memory_mb: Option<u64>,
    /// Whether it is served by an engine that cannot keep consumers' prompts apart.
    pub share_prefix_cache: bool,
    /// USD per million tokens of input.
    pub price_input: Usd,
    /// USD per million tokens of output.
    pub price_output: Usd,
}

/// Where a model comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ModelSource {
    /// A file or folder that is mounted into the engine's container.
    File {
        /// Where it is.
        path: PathBuf,
        /// Its hex sha256; a file with another one is not served.
        sha256: Option<String>,
        /// Where the file can be had.
        url: Option<Url>,
    },
    /// An OpenAI-compatible server of this host.
    Endpoint {
        /// Its base URL, such as `http://127.0.0.1:11434/v1`.
        url: Url,
        /// The name that it knows the model by, when it is another.
        model: Option<String>,
    },
}

impl Config {
    /// Reads the file, if there is one, under what flags and environment say.
    pub fn load(directories: &Directories, overrides: &Overrides) -> Result<Self, ConfigError> {
        let path = directories.config_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        Self::read(&path, &text, overrides)
    }

    /// Gives the text of a file its meaning; `path` is for messages.
    pub fn read(path: &Path, text: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        let raw = RawConfig::parse(path, text)?;
        let mut config = raw.check(path, text)?;
        config.override_with(overrides)?;
        Ok(config)
    }

    fn override_with(&mut self, overrides: &Overrides) -> Result<(), ConfigError> {
        if let Some(url) = &overrides.url {
            let plain_http = if overrides.plain_http || self.allows_plain_http(url) {
                PlainHttp::Anywhere
            } else {
                PlainHttp::PrivateOnly
            };
            let url = BaseUrl::parse(url, plain_http).map_err(|error| ConfigError::Override {
                name: "--url (INFERNET_URL)",
                message: error.to_string(),
            })?;
            // A key belongs to its control plane: another URL drops it.
            let publishable_key = self
                .control
                .take()
                .filter(|control| control.url == url)
                .and_then(|control| control.publishable_key);
            self.control = Some(ControlConfig { url, publishable_key });
        }
        if let Some(key) = &overrides.publishable_key {
            raw::check_publishable_key(key).map_err(|message| ConfigError::Override {
                name: "--publishable-key (INFERNET_PUBLISHABLE_KEY)",
                message,
            })?;
            if let Some(control) = &mut self.control {
                control.publishable_key = Some(key.clone());
            }
        }
        if let Some(log) = &overrides.log {
            self.log.clone_from(log);
        }
        if let Some(socket) = &overrides.docker_socket {
            self.docker.socket.clone_from(socket);
        }
        if let Some(known_escapes) = overrides.known_escapes {
            self.docker.known_escapes = known_escapes;
        }
        Ok(())
    }

    /// Says whether the file allows plain http for this very control plane.
    fn allows_plain_http(&self, url: &str) -> bool {
        self.control.as_ref().is_some_and(|control| {
            BaseUrl::parse(url, PlainHttp::Anywhere).is_ok_and(|url| url == control.url)
        })
    }

    /// Returns which control plane to use.
    pub fn control(&self) -> Result<&ControlConfig, ConfigError> {
        self.control.as_ref().ok_or(ConfigError::NoControlPlane)
    }

    /// Returns what node this machine is.
    pub fn node(&self) -> Result<&NodeConfig, ConfigError> {
        self.node.as_ref().ok_or(ConfigError::NoNode)
    }

    /// Returns how containers are run.
    pub fn docker(&self) -> &DockerConfig {
        &self.docker
    }

    /// Returns what this node serves.
    pub fn models(&self) -> &[ModelConfig] {
        &self.models
    }

    /// Returns what this node offers, with the digests that its owner wrote
    /// down; an agent names the files that it has read instead. No offer has more
    /// slots than the whole node.
    pub fn offers(&self) -> Vec<Offering> {
        let most = self.node.as_ref().and_then(|node| node.slots).unwrap_or(u32::MAX);
        let models = self.models.iter().map(|model| {
            let digest = match &model.source {
                ModelSource::File { sha256, .. } => sha256.clone(),
                ModelSource::Endpoint { .. } => None,
            };
            model.offer(most, digest)
        });
        models.chain(self.containers.iter().map(|container| container.offer(most))).collect()
    }

    /// Returns what all engines share.
    pub fn engines(&self) -> &EnginesConfig {
        &self.engines
    }

    /// Returns what container jobs may run here.
    pub fn containers(&self) -> &[ContainerConfig] {
        &self.containers
    }

    /// Returns what a daemon logs, as a filter of `tracing`.
    pub fn log(&self) -> &str {
        &self.log
    }
}

impl ModelConfig {
    /// Makes the offer of this model, of `most` slots at most, under the digest
    /// of its file.
    pub(crate) fn offer(&self, most: u32, digest: Option<String>) -> Offering {
        Offering::Model(OfferedModel {
            model: self.name.clone(),
            slots: self.slots.min(most),
            price_input: self.price_input,
            price_output: self.price_output,
            digest,
            context_length: self.context_length,
        })
    }
}

impl ContainerConfig {
    /// Makes the offer of this image, of `most` slots at most.
    pub(crate) fn offer(&self, most: u32) -> Offering {
        Offering::Image(OfferedImage {
            image: self.image.name.clone(),
            slots: self.image.slots.min(most),
            price_second: self.price_second,
            digest: self.image.digest().map(str::to_ascii_lowercase),
        })
    }
}

/// Writes a file of this user alone (0600), whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), ConfigError> {
    let failed = |source| ConfigError::Write { path: path.to_owned(), source };
    let scratch = path.with_extension(format!("new-{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&scratch)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&scratch, path));
    written.map_err(|source| {
        // The scratch file is of no use without the rename; a second failure
        // would only hide the first.
        drop(fs::remove_file(&scratch));
        failed(source)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const EXAMPLE: &str = include_str!("../config/infernet.example.toml");

    fn read(text: &str) -> Result<Config, ConfigError> {
        Config::read(Path::new("/c/config.toml"), text, &Overrides::default())
    }

    fn wrong(text: &str) -> (usize, String) {
        match read(text).unwrap_err() {
            ConfigError::Wrong { line, message, .. } => (line, message),
            other => panic!("{other}"),
        }
    }

    /// The example with every commented key switched on.
    fn example_with_every_key() -> String {
        EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("#") {
                Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => rest,
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_example_says_the_defaults() {
        let example = read(EXAMPLE).unwrap();
        let mut nothing = read("").unwrap();
        // A node has no defaults without its table.
        nothing.node = read("[node]\nname = \"attic\"").unwrap().node;
        assert_eq!(example, nothing);
    }

    #[test]
    fn the_example_has_every_key() {
        let text = example_with_every_key();
        let config = read(&text).unwrap();
        assert_eq!((config.models().len(), config.containers().len()), (2, 1));
        let shown: toml::Table = text.parse().unwrap();
        let keys = |value: &toml::Value| {
            let mut keys: Vec<String> = value.as_table().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        let all = toml::Value::try_from(raw::every_key()).unwrap();
        assert_eq!(keys(&toml::Value::Table(shown.clone())), keys(&all));
        for table in ["control", "node", "docker", "engines"] {
            assert_eq!(keys(&shown[table]), keys(&all[table]), "[{table}]");
        }
        assert_eq!(keys(&shown["container"][0]), keys(&all["container"][0]), "[[container]]");
        let mut model_keys: Vec<String> =
            shown["model"].as_array().unwrap().iter().flat_map(&keys).collect();
        model_keys.sort();
        model_keys.dedup();
        assert_eq!(model_keys, keys(&all["model"][0]), "[[model]]");
    }

    #[test]
    fn a_wrong_line_is_named_with_what_is_expected() {
        let (line, message) = wrong("[control]\n\nprot = 1\n");
        assert_eq!(line, 3);
        assert!(message.contains("unknown field `prot`, expected one of `url`"), "{message}");

        let (line, message) = wrong("[node]\nname = \"a\"\nlabels = [\"ssd\", \"SSD\"]\n");
        assert_eq!(line, 3);
        assert!(message.contains("\"SSD\" is no label"), "{message}");

        let (line, message) = wrong("[node]\nname = \"a\"\nregion = \"<b>\"\n");
        assert_eq!(line, 3);
        assert!(message.contains("region"), "{message}");

        let (line, message) = wrong("[control]\nurl = \"ftp://x\"\n");
        assert_eq!(line, 2);
        assert!(message.contains("only https and http"), "{message}");

        let (line, message) = wrong("[control]\nurl = \"http://infernet.tech\"\n");
        assert_eq!(line, 2);
        assert!(message.contains("in the clear"), "{message}");

        let (line, message) = wrong("[control]\nurl = \"http://x\n");
        assert_eq!(line, 2);
        assert!(message.contains("string"), "{message}");

        let (line, message) = wrong(
            "[[model]]\nname = \"m\"\nengine = \"llama.cpp\"\nprice_input = \"-1\"\nprice_output = 1\n",
        );
        assert_eq!(line, 4);
        assert!(message.contains("below zero"), "{message}");
    }

    #[test]
    fn a_model_has_one_source() {
        let model = |rest: &str| {
            format!(
                "[[model]]\nname = \"m\"\nengine = \"e\"\nprice_input = 0.05\nprice_output = 1\n{rest}"
            )
        };
        assert_eq!(wrong(&model("")).0, 2);
        assert!(wrong(&model("path = \"relative.gguf\"\n")).1.contains("absolute"));
        assert!(wrong(&model("path = \"/m\"\nendpoint = \"http://x/v1\"\n")).1.contains("either"));
        assert!(wrong(&model("path = \"/m\"\nsha256 = \"12\"\n")).1.contains("64 hexadecimal"));
        assert!(wrong(&model("path = \"/m\"\nslots = 0\n")).1.contains("slots"));
        let config = read(&model("path = \"/m\"\n")).unwrap();
        assert_eq!(config.models()[0].price_input.to_string(), "$0.05");
        let twice = format!("{0}{0}", model("path = \"/m\"\n"));
        assert!(wrong(&twice).1.contains("twice"));
    }

    #[test]
    fn an_image_is_pinned_and_named_once() {
        let digest = "ab".repeat(32);
        let container = |name: &str, image: &str| {
            format!(
                "[[container]]\nname = \"{name}\"\nimage = \"{image}\"\ncommand = [\"/bin/wc\"]\n\
                 price_second = \"0.001\"\n"
            )
        };
        let good = container("tools/wc:1", &format!("wc@sha256:{digest}"));
        let config = read(&good).unwrap();
        let Offering::Image(offer) = &config.offers()[0] else { panic!() };
        assert_eq!((offer.image.as_str(), offer.digest.as_deref()), ("tools/wc:1", Some(&*digest)));
        let (line, message) = wrong(&format!("\n{}", container("wc", "wc:latest")));
        assert!(line == 3 && message.contains("come to mean another image"), "{line} {message}");
        assert!(wrong(&container("-v", &digest)).1.contains("not an image's name"));
        assert!(wrong(&format!("{good}{good}")).1.contains("twice"));
    }

    #[test]
    fn flags_go_before_the_file() {
        let text = "log = \"debug\"\n[control]\nurl = \"https://a.example\"\npublishable_key = \"sb_publishable_a\"\n";
        let with = |overrides: Overrides| {
            Config::read(Path::new("/c/config.toml"), text, &overrides).unwrap()
        };
        let same = with(Overrides { url: Some("https://a.example/".into()), ..Default::default() });
        assert_eq!(
            same.control().unwrap().publishable_key.as_deref(),
            Some("sb_publishable_a"),
            "the same control plane keeps its key"
        );
        let other = with(Overrides {
            url: Some("http://127.0.0.1:1/".into()),
            log: Some("trace".into()),
            docker_socket: Some("/run/d.sock".into()),
            ..Default::default()
        });
        assert_eq!(other.control().unwrap().url.to_string(), "http://127.0.0.1:1");
        assert_eq!(other.control().unwrap().publishable_key, None);
        assert_eq!(other.log(), "trace");
        assert_eq!(other.docker().socket, Path::new("/run/d.sock"));
        assert!(matches!(read("").unwrap().control(), Err(ConfigError::NoControlPlane)));
    }

    #[test]
    fn the_file_is_of_its_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, "old").unwrap();
        write_private(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
