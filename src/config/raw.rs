//! The file as it was written.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Spanned;
use url::Url;

use super::{
    Config, ConfigError, ContainerConfig, ControlConfig, DOCKER_SOCKET, DockerConfig,
    EnginesConfig, GRACE, LOG, ModelConfig, ModelSource, NodeConfig, NodeRole,
};
use crate::control::{BaseUrl, PlainHttp};
use crate::engine::escapes::KnownEscapes;
use crate::engine::{JobImage, JobInput, JobOutput};
use crate::money::Usd;

/// `config.toml`, key by key. Unknown keys are errors.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// What a daemon logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// The control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<RawControl>,
    /// What node this machine is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<RawNode>,
    /// How containers are run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker: Option<RawDocker>,
    /// What all engines share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engines: Option<RawEngines>,
    /// What this node serves.
    #[serde(default, rename = "model", skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<RawModel>,
    /// What container jobs may run here.
    #[serde(default, rename = "container", skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<RawContainer>,
}

/// `[control]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawControl {
    /// Its URL.
    pub url: Spanned<String>,
    /// Whether plain http to a public host is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain_http: Option<bool>,
    /// Its publishable key.
    #[serde(
        default,
        deserialize_with = "publishable_key",
        skip_serializing_if = "Option::is_none"
    )]
    pub publishable_key: Option<String>,
}

/// `[node]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawNode {
    /// What its owner calls it.
    #[serde(deserialize_with = "node_name")]
    pub name: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<NodeRole>,
    /// The most attempts at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<NonZeroU32>,
    /// Where it is.
    #[serde(default, deserialize_with = "region", skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Words that jobs may ask for.
    #[serde(default, deserialize_with = "labels", skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Seconds that running attempts may take to finish when the agent stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_secs: Option<u32>,
}

/// `[docker]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawDocker {
    /// The socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// What is done about known ways out of containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_escapes: Option<KnownEscapes>,
}

/// `[engines]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawEngines {
    /// Seconds that an engine stays without requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_secs: Option<u32>,
    /// Memory of all engines and jobs together, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
}

/// `[[container]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawContainer {
    /// Its name on the market.
    #[serde(deserialize_with = "image_name")]
    pub name: Spanned<String>,
    /// The image, pinned.
    pub image: String,
    /// The program and its first arguments.
    pub command: Vec<String>,
    /// Whether jobs may add arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<bool>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Whether the input is also the standard input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<JobInput>,
    /// Where the output comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<JobOutput>,
    /// Memory, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// The size of `/tmp`, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch_mb: Option<u64>,
    /// UUIDs of GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// How many jobs at once.
    #[serde(default, deserialize_with = "slots", skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// USD per second.
    #[serde(deserialize_with = "price")]
    pub price_second: Usd,
}

/// `[[model]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    /// Its name on the market.
    #[serde(deserialize_with = "model_name")]
    pub name: Spanned<String>,
    /// The entry of the engine catalogue that serves it.
    pub engine: String,
    /// Its file or folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The file's sha256.
    #[serde(default, deserialize_with = "sha256", skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Where `infernet model pull` gets the file from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
    /// The server that serves it already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Url>,
    /// The name that the server knows it by, when it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_model: Option<String>,
    /// Threads and processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroU32>,
    /// Memory of its engine, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// UUIDs of GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// Memory of its GPUs, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_mb: Option<u64>,
    /// Whether it is served by an engine that cannot keep consumers' prompts apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_prefix_cache: Option<bool>,
    /// How many jobs at once.
    #[serde(default, deserialize_with = "slots", skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Tokens that fit the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<NonZeroU32>,
    /// USD per million tokens of input.
    #[serde(deserialize_with = "price")]
    pub price_input: Usd,
    /// USD per million tokens of output.
    #[serde(deserialize_with = "price")]
    pub price_output: Usd,
}

impl RawConfig {
    /// Reads the text of a file; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Wrong {
            path: path.to_owned(),
            line: line_at(text, error.span().map_or(0, |span| span.start)),
            message: sentence(error.message()),
        })
    }

    /// Writes the text of a file.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("every value of the configuration has a form in TOML")
    }

    /// Gives every key its meaning.
    pub(super) fn check(self, path: &Path, text: &str) -> Result<Config, ConfigError> {
        let mut models: Vec<ModelConfig> = Vec::with_capacity(self.models.len());
        for raw in self.models {
            let line = line_at(text, raw.name.span().start);
            let model = raw.check().and_then(|model| {
                if models.iter().any(|other| other.name == model.name) {
                    return Err(format!("the model {} is there twice.", model.name));
                }
                Ok(model)
            });
            models.push(model.map_err(|message| ConfigError::Wrong {
                path: path.to_owned(),
                line,
                message,
            })?);
        }
        let mut containers: Vec<ContainerConfig> = Vec::with_capacity(self.containers.len());
        for raw in self.containers {
            let line = line_at(text, raw.name.span().start);
            let container = raw.check().and_then(|container| {
                let name = &container.image.name;
                if containers.iter().any(|other| other.image.name == *name)
                    || models.iter().any(|model| model.name == *name)
                {
                    return Err(format!("the name {name} is there twice."));
                }
                Ok(container)
            });
            containers.push(container.map_err(|message| ConfigError::Wrong {
                path: path.to_owned(),
                line,
                message,
            })?);
        }
        let control = match self.control {
            Some(raw) => {
                let line = line_at(text, raw.url.span().start);
                Some(raw.check().map_err(|message| ConfigError::Wrong {
                    path: path.to_owned(),
                    line,
                    message,
                })?)
            }
            None => None,
        };
        Ok(Config {
            control,
            node: self.node.map(|node| NodeConfig {
                name: node.name,
                role: node.role.unwrap_or_default(),
                slots: node.slots.map(NonZeroU32::get),
                region: node.region,
                labels: node.labels,
                grace: node.grace_secs.map_or(GRACE, |secs| Duration::from_secs(u64::from(secs))),
            }),
            docker: DockerConfig {
                known_escapes: self
                    .docker
                    .as_ref()
                    .and_then(|docker| docker.known_escapes)
                    .unwrap_or_default(),
                socket: self
                    .docker
                    .and_then(|docker| docker.socket)
                    .unwrap_or_else(|| PathBuf::from(DOCKER_SOCKET)),
            },
            engines: self.engines.map_or_else(EnginesConfig::default, |engines| EnginesConfig {
                keep_alive: engines
                    .keep_alive_secs
                    .map(|secs| Duration::from_secs(u64::from(secs))),
                memory_mb: engines.memory_mb,
            }),
            models,
            containers,
            log: self.log.unwrap_or_else(|| LOG.to_owned()),
        })
    }
}

impl RawControl {
    fn check(self) -> Result<ControlConfig, String> {
        let plain_http = match self.plain_http {
            Some(true) => PlainHttp::Anywhere,
            Some(false) | None => PlainHttp::PrivateOnly,
        };
        let url = BaseUrl::parse(self.url.get_ref(), plain_http).map_err(|e| e.to_string())?;
        Ok(ControlConfig { url, publishable_key: self.publishable_key })
    }
}

impl RawModel {
    fn check(self) -> Result<ModelConfig, String> {
        let name = self.name.into_inner();
        let source = match (self.path, self.endpoint) {
            (Some(path), None) if path.is_absolute() => {
                ModelSource::File { path, sha256: self.sha256, url: self.url }
            }
            (Some(path), None) => {
                return Err(format!(
                    "the path {} of model {name} must be absolute.",
                    path.display()
                ));
            }
            (None, Some(url)) => ModelSource::Endpoint { url, model: self.endpoint_model },
            (None, None) | (Some(_), Some(_)) => {
                return Err(format!("model {name} needs either `path` or `endpoint`."));
            }
        };
        Ok(ModelConfig {
            name,
            engine: self.engine,
            source,
            slots: self.slots.unwrap_or(1),
            context_length: self.context_length.map(NonZeroU32::get),
            threads: self.threads.map(NonZeroU32::get),
            memory_mb: self.memory_mb,
            gpus: self.gpus,
            gpu_memory_mb: self.gpu_memory_mb,
            share_prefix_cache: self.share_prefix_cache.unwrap_or(false),
            price_input: self.price_input,
            price_output: self.price_output,
        })
    }
}

impl RawContainer {
    fn check(self) -> Result<ContainerConfig, String> {
        let name = self.name.into_inner();
        let plain = JobImage::new(name.clone(), self.image, self.command);
        let image = JobImage {
            args: self.args.unwrap_or(plain.args),
            env: self.env,
            input: self.input.unwrap_or(plain.input),
            output: self.output.unwrap_or(plain.output),
            memory_mb: self.memory_mb.unwrap_or(plain.memory_mb),
            cpus: self.cpus.unwrap_or(plain.cpus),
            pids: self.pids.unwrap_or(plain.pids),
            scratch_mb: self.scratch_mb.unwrap_or(plain.scratch_mb),
            gpus: self.gpus,
            slots: self.slots.unwrap_or(plain.slots),
            ..plain
        };
        image.check().map_err(|reason| format!("the container {name}: {reason}"))?;
        Ok(ContainerConfig { image, price_second: self.price_second })
    }
}

/// A configuration that has every key, to compare the example with.
#[cfg(test)]
pub(super) fn every_key() -> RawConfig {
    RawConfig {
        log: Some(String::new()),
        control: Some(RawControl {
            url: Spanned::new(0..0, String::new()),
            plain_http: Some(true),
            publishable_key: Some(String::new()),
        }),
        node: Some(RawNode {
            name: String::new(),
            role: Some(NodeRole::Provider),
            slots: NonZeroU32::new(1),
            region: Some(String::new()),
            labels: vec![String::new()],
            grace_secs: Some(1),
        }),
        docker: Some(RawDocker {
            socket: Some(PathBuf::new()),
            known_escapes: Some(KnownEscapes::Refuse),
        }),
        engines: Some(RawEngines { keep_alive_secs: Some(1), memory_mb: Some(1) }),
        containers: vec![RawContainer {
            name: Spanned::new(0..0, String::new()),
            image: String::new(),
            command: Vec::new(),
            args: Some(true),
            env: BTreeMap::from([(String::new(), String::new())]),
            input: Some(JobInput::File),
            output: Some(JobOutput::Directory),
            memory_mb: Some(1),
            cpus: Some(1),
            pids: Some(1),
            scratch_mb: Some(1),
            gpus: vec![String::new()],
            slots: Some(1),
            price_second: Usd::ZERO,
        }],
        models: vec![RawModel {
            name: Spanned::new(0..0, String::new()),
            engine: String::new(),
            path: Some(PathBuf::new()),
            sha256: Some(String::new()),
            url: Some(Url::parse("https://x").unwrap()),
            endpoint: Some(Url::parse("http://x").unwrap()),
            endpoint_model: Some(String::new()),
            threads: NonZeroU32::new(1),
            memory_mb: Some(1),
            gpus: vec![String::new()],
            gpu_memory_mb: Some(1),
            share_prefix_cache: Some(true),
            slots: Some(1),
            context_length: NonZeroU32::new(1),
            price_input: Usd::ZERO,
            price_output: Usd::ZERO,
        }],
    }
}

/// Checks a publishable key: it goes into a header.
pub(super) fn check_publishable_key(key: &str) -> Result<(), String> {
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a publishable key is one word, such as sb_publishable_….".to_owned());
    }
    if key.starts_with("sb_secret_") {
        return Err(
            "this is a secret key, which must never be on a node. Use the publishable key."
                .to_owned(),
        );
    }
    Ok(())
}

/// Checks a model's name: it crosses shells, URLs and file names.
pub(crate) fn check_model_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
    if name.is_empty()
        || name.len() > 100
        || !name.starts_with(|first: char| first.is_ascii_alphanumeric())
        || !name.bytes().all(allowed)
    {
        return Err(format!(
            "\"{name}\" is not a model's name. Use letters, digits and . _ : / -, starting with a \
             letter or digit."
        ));
    }
    Ok(())
}

/// Checks the name of an image on the market.
pub(crate) fn check_image_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@-".contains(&byte);
    if name.len() > 200
        || !name.starts_with(|first: char| first.is_ascii_alphanumeric())
        || !name.bytes().all(allowed)
    {
        return Err(format!(
            "\"{name}\" is not an image's name. Use letters, digits and . _ : / @ -, starting with \
             a letter or digit."
        ));
    }
    Ok(())
}

/// Checks a node's name.
pub(crate) fn check_node_name(name: &str) -> Result<(), String> {
    if name.trim().is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err(format!("\"{name}\" is not a node's name. Use 1 to 64 characters."));
    }
    Ok(())
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Ends what the parser says with a full stop, on one line.
fn sentence(message: &str) -> String {
    let mut text = message.lines().collect::<Vec<_>>().join(", ");
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

fn publishable_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let key = String::deserialize(deserializer)?;
    check_publishable_key(&key).map_err(de::Error::custom)?;
    Ok(Some(key))
}

fn node_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_node_name(&name).map_err(de::Error::custom)?;
    Ok(name)
}

fn model_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Spanned<String>, D::Error> {
    let name = Spanned::<String>::deserialize(deserializer)?;
    check_model_name(name.get_ref()).map_err(de::Error::custom)?;
    Ok(name)
}

fn image_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Spanned<String>, D::Error> {
    let name = Spanned::<String>::deserialize(deserializer)?;
    check_image_name(name.get_ref()).map_err(de::Error::custom)?;
    Ok(name)
}

/// Reads a region as the control plane takes it: a short name; none when empty.
fn region<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let region = String::deserialize(deserializer)?;
    let mut characters = region.chars();
    let begins = characters.next().is_none_or(|first| first.is_ascii_alphanumeric());
    let goes_on =
        characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '.' | '_' | '-'));
    if !begins || !goes_on || region.len() > 40 {
        return Err(de::Error::custom(
            "a region has at most 40 letters, digits, dots, hyphens and underscores.",
        ));
    }
    Ok((!region.is_empty()).then_some(region))
}

/// Reads labels as the control plane takes them.
fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let labels = Vec::<String>::deserialize(deserializer)?;
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let wrong = labels.iter().find(|label| {
        !label.starts_with(word)
            || label.len() > 40
            || !label.chars().all(|c| word(c) || matches!(c, '.' | '_' | '-'))
    });
    match wrong {
        Some(label) => Err(de::Error::custom(format!(
            "\"{label}\" is no label. Use small letters, digits, dots, hyphens and underscores."
        ))),
        None if labels.len() > 32 => Err(de::Error::custom("a node has at most 32 labels.")),
        None => Ok(labels),
    }
}

fn sha256<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let digest = String::deserialize(deserializer)?.to_ascii_lowercase();
    if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(de::Error::custom("a sha256 is 64 hexadecimal digits."));
    }
    Ok(Some(digest))
}

fn slots<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let slots = i64::deserialize(deserializer)?;
    match u32::try_from(slots) {
        Ok(slots @ 1..=1024) => Ok(Some(slots)),
        _ => Err(de::Error::custom(format!("{slots} slots are not possible. Use 1 to 1024."))),
    }
}

/// Reads a price, written as text or as a number.
fn price<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Usd, D::Error> {
    struct Price;

    impl Visitor<'_> for Price {
        type Value = Usd;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a price in USD per million tokens, such as \"0.05\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Usd, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Usd, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<Usd, E> {
            // The shortest text that reads back as the same number is what was
            // written.
            self.visit_str(&number.to_string())
        }
    }

    deserializer.deserialize_any(Price)
}
