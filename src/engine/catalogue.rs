//! The catalogue of engines and the models that a node serves with them.
//!
//! The built-in catalogue is `config/engines.toml`; an owner's file replaces entries of
//! the same name. Together with the owner's list of models it is the allow-list of
//! everything that [`super::pool`] may start: nothing else can add to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::engine::error::EngineError;

/// The catalogue that is part of the binary.
const BUILT_IN: &str = include_str!("../../config/engines.toml");

/// Where an engine's socket directory appears inside its container.
pub const SOCKET_DIRECTORY: &str = "/run/engine";

/// Where the model's file appears inside its container.
pub const MODEL_PATH: &str = "/models/model.gguf";
/// Where the model's folder appears, for an engine that takes one.
pub const MODEL_FOLDER: &str = "/models/model";

/// Paths that may be named in `paths`: whatever else a server offers stays unreachable.
const KNOWN_PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

/// The engines that this node knows, by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Entries by name, such as `llama.cpp`.
    #[serde(default)]
    engine: BTreeMap<String, EngineEntry>,
}

/// How one kind of engine is started and spoken to.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineEntry {
    /// The image: a name, a name with a digest, or an image id.
    pub image: String,
    /// The only image id that is allowed, if the owner pins one.
    #[serde(default)]
    pub image_id: Option<String>,
    /// The command that gets the image, for the message when it is missing.
    pub install: String,
    /// The licence of what is in the image.
    pub licence: String,
    /// The program, replacing whatever entry point the image has.
    pub command: Vec<String>,
    /// Its arguments, with words in braces to be replaced.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables that the program needs.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The file name of its socket.
    #[serde(default = "default_socket")]
    pub socket: String,
    /// The port of its own loopback interface that it listens on, when it cannot
    /// listen on a socket: a relay then makes the socket.
    #[serde(default)]
    pub port: Option<u16>,
    /// What a model is to it.
    #[serde(default)]
    pub model: ModelForm,
    /// How it remembers prompts, and how it is told whose.
    #[serde(default)]
    pub prefix_cache: PrefixCache,
    /// The path that answers 200 once it is ready.
    #[serde(default = "default_health")]
    pub health: String,
    /// How long it may take to become ready, in seconds.
    #[serde(default = "default_start_timeout")]
    pub start_timeout_secs: u64,
    /// The value of `HOME`, which must be below one of `tmpfs` to be writable.
    #[serde(default = "default_home")]
    pub home: String,
    /// Directories in memory that it may write to.
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// The size of `/dev/shm`, in MiB.
    #[serde(default = "default_shm")]
    pub shm_mb: u64,
    /// Whether it uses GPUs.
    #[serde(default)]
    pub gpu: GpuNeed,
    /// Memory beside the model's own size, in MiB.
    #[serde(default = "default_overhead")]
    pub overhead_mb: u64,
    /// The most processes and threads.
    #[serde(default = "default_pids")]
    pub pids: u32,
    /// The paths that requests are made to.
    #[serde(default = "default_paths")]
    pub paths: Vec<String>,
    /// Keys of a request that are handed on beside the common ones.
    #[serde(default)]
    pub request_keys: BTreeSet<String>,
    /// Keys that are set in every request.
    #[serde(default)]
    pub request: Map<String, Value>,
}

/// A directory in memory inside a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tmpfs {
    /// Where it appears.
    pub path: String,
    /// Its size, in MiB; what is in it counts as the container's memory.
    pub size_mb: u64,
    /// Whether programs in it may run: engines that compile code for a GPU load it
    /// from there.
    #[serde(default)]
    pub exec: bool,
}

/// What a model is to an engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelForm {
    /// One file.
    #[default]
    File,
    /// A folder of files.
    Folder,
}

/// How an engine remembers prompts. Consumers must not learn from it what others ask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixCache {
    /// It is started so that it remembers nothing.
    Off,
    /// As llama.cpp: each slot remembers its last prompt, and each request says which
    /// slot it wants and whether it uses what is there.
    Slots,
    /// As vLLM: each request names a word, and only the same word finds it again.
    Salt,
    /// It cannot be told, or nobody said: only models whose owner allows it are served
    /// with it.
    #[default]
    Shared,
}

/// Whether an engine uses GPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuNeed {
    /// It never sees one.
    #[default]
    None,
    /// It sees those that the model's entry names.
    Optional,
    /// A model that names none is refused.
    Required,
}

/// A model that this node serves, as the owner's configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedModel {
    /// The name under which it is offered, such as `smollm2:135m`.
    pub name: String,
    /// The catalogue's entry that runs it. Not needed with `endpoint`.
    #[serde(default = "default_engine")]
    pub engine: String,
    /// Its file. Not needed with `endpoint`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The sha256 that the file must have, in hex.
    #[serde(default)]
    pub sha256: Option<String>,
    /// An OpenAI-compatible server that is already there: `unix:/path.sock` or
    /// `http://127.0.0.1:PORT`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The name that the endpoint knows the model by, when it is another.
    #[serde(default)]
    pub endpoint_model: Option<String>,
    /// How many requests it serves at the same time.
    #[serde(default = "default_slots")]
    pub slots: u32,
    /// Tokens of context of one slot.
    #[serde(default = "default_context")]
    pub context_length: u32,
    /// Threads to compute with, and the processors that it may use; all when not given.
    #[serde(default)]
    pub threads: Option<u32>,
    /// The limit of its memory in MiB; its file's size and the entry's overhead when
    /// not given.
    #[serde(default)]
    pub memory_mb: Option<u64>,
    /// UUIDs of the GPUs that it may use.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// The memory that it takes of its GPUs together, in MiB; its file's size and the
    /// entry's overhead when not given.
    #[serde(default)]
    pub gpu_memory_mb: Option<u64>,
    /// Whether it is served although its engine may show consumers which prompts of
    /// others it remembers.
    #[serde(default)]
    pub share_prefix_cache: bool,
    /// Where its file can be fetched.
    #[serde(default)]
    pub url: Option<url::Url>,
}

/// Where the server of a model comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind<'a> {
    /// A container of this node, with the model's file.
    Container {
        /// The catalogue's entry.
        engine: &'a str,
        /// The model's file.
        path: &'a Path,
    },
    /// A server that is already on this machine.
    Endpoint {
        /// Its address.
        url: &'a str,
    },
}

fn default_socket() -> String {
    "engine.sock".to_owned()
}

fn default_health() -> String {
    "/health".to_owned()
}

fn default_start_timeout() -> u64 {
    180
}

fn default_home() -> String {
    "/tmp".to_owned()
}

fn default_shm() -> u64 {
    64
}

fn default_overhead() -> u64 {
    1024
}

fn default_pids() -> u32 {
    256
}

fn default_paths() -> Vec<String> {
    KNOWN_PATHS[..2].iter().map(|&path| path.to_owned()).collect()
}

fn default_engine() -> String {
    "llama.cpp".to_owned()
}

/// The engine of a server that says nothing of itself: no entry of the catalogue.
pub const EXTERNAL_ENGINE: &str = "external";

fn default_slots() -> u32 {
    1
}

fn default_context() -> u32 {
    2048
}

impl Catalogue {
    /// Returns the catalogue that is part of the binary.
    #[must_use]
    pub fn built_in() -> Self {
        Self::parse(BUILT_IN, "(built in)").expect("the built-in catalogue is tested to be valid")
    }

    /// Reads the built-in catalogue and lets the owner's file, if it is there, replace
    /// and add entries.
    ///
    /// # Errors
    /// [`EngineError::BadCatalogue`] when the file cannot be read or is not valid.
    pub fn load(own_file: &Path) -> Result<Self, EngineError> {
        let origin = own_file.display().to_string();
        let mut catalogue = Self::built_in();
        match std::fs::read_to_string(own_file) {
            Ok(text) => catalogue.engine.extend(Self::parse(&text, &origin)?.engine),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(EngineError::BadCatalogue { origin, reason: error.to_string() });
            }
        }
        Ok(catalogue)
    }

    /// Reads a catalogue from TOML; `origin` names it in errors.
    ///
    /// # Errors
    /// [`EngineError::BadCatalogue`].
    pub fn parse(text: &str, origin: &str) -> Result<Self, EngineError> {
        let bad = |reason: String| EngineError::BadCatalogue { origin: origin.to_owned(), reason };
        let catalogue: Self = toml::from_str(text).map_err(|error| bad(error.to_string()))?;
        for (name, entry) in &catalogue.engine {
            entry.check().map_err(|reason| bad(format!("engine {name}: {reason}")))?;
        }
        Ok(catalogue)
    }

    /// Returns an entry by its name.
    #[must_use]
    pub fn get(&self, engine: &str) -> Option<&EngineEntry> {
        self.engine.get(engine)
    }

    /// Returns the names of all entries, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.engine.keys().map(String::as_str)
    }
}

impl EngineEntry {
    /// Refuses an image of another id than the one that the entry pins, if it does.
    ///
    /// # Errors
    /// [`EngineError::ImageNotAllowed`].
    pub fn check_image(&self, id: &str) -> Result<(), EngineError> {
        match &self.image_id {
            Some(wanted) if wanted != id => Err(EngineError::ImageNotAllowed {
                image: self.image.clone(),
                found: id.to_owned(),
                wanted: wanted.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Says that the image is not here, and how to get it.
    pub fn image_missing(&self) -> EngineError {
        EngineError::ImageMissing { image: self.image.clone(), install: self.install.clone() }
    }

    /// Returns how long the engine may take to become ready.
    #[must_use]
    pub fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.start_timeout_secs)
    }

    /// Returns the command line for a model, with every word in braces replaced.
    #[must_use]
    pub fn command_line(&self, model: &ServedModel) -> Vec<String> {
        let words = self.command.iter().cloned();
        words.chain(self.args.iter().map(|argument| self.fill(argument, model))).collect()
    }

    /// Returns the environment of its container for a model.
    #[must_use]
    pub fn environment(&self, model: &ServedModel) -> Vec<(String, String)> {
        let given = self.env.iter().map(|(name, value)| (name.clone(), self.fill(value, model)));
        given.chain([("HOME".to_owned(), self.home.clone())]).collect()
    }

    /// Returns where a model appears inside its container.
    #[must_use]
    pub fn model_path(&self) -> &'static str {
        match self.model {
            ModelForm::File => MODEL_PATH,
            ModelForm::Folder => MODEL_FOLDER,
        }
    }

    /// Replaces every word in braces.
    fn fill(&self, text: &str, model: &ServedModel) -> String {
        let threads = model.threads().to_string();
        let slots = model.slots.to_string();
        let context_length = model.context_length.to_string();
        let context_total = (u64::from(model.context_length) * u64::from(model.slots)).to_string();
        let socket = format!("{SOCKET_DIRECTORY}/{}", self.socket);
        let port = self.port.unwrap_or_default().to_string();
        let gpus = model.gpus.len().max(1).to_string();
        let words = [
            ("{socket}", socket.as_str()),
            ("{port}", port.as_str()),
            ("{gpus}", gpus.as_str()),
            ("{model}", self.model_path()),
            ("{name}", model.name.as_str()),
            ("{slots}", slots.as_str()),
            ("{context_length}", context_length.as_str()),
            ("{context_total}", context_total.as_str()),
            ("{threads}", threads.as_str()),
        ];
        words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(word, value))
    }

    /// Says what is wrong with the entry, if anything is.
    fn check(&self) -> Result<(), String> {
        if self.command.is_empty() {
            return Err("command is empty".to_owned());
        }
        if self.socket.is_empty() || self.socket.contains('/') || self.socket.starts_with('.') {
            return Err(format!("socket must be a file name, not {}", self.socket));
        }
        if !self.health.starts_with('/') {
            return Err(format!("health must be a path, not {}", self.health));
        }
        if let Some(path) = self.paths.iter().find(|path| !KNOWN_PATHS.contains(&path.as_str())) {
            return Err(format!("paths may hold only {}, not {path}", KNOWN_PATHS.join(", ")));
        }
        let addressed = [&self.args, &self.env.values().cloned().collect()]
            .into_iter()
            .flatten()
            .any(|text| text.contains(if self.port.is_some() { "{port}" } else { "{socket}" }));
        if !addressed {
            return Err(
                "args or env must name {socket}, or {port} where there is a port".to_owned()
            );
        }
        if self.args.iter().chain(self.env.values()).any(|text| text.contains("0.0.0.0")) {
            return Err("args and env must not listen on every interface".to_owned());
        }
        for Tmpfs { path, size_mb, .. } in &self.tmpfs {
            if !path.starts_with('/') || path == "/" || path.contains([':', ',']) || *size_mb == 0 {
                return Err(format!("tmpfs {path} needs an absolute path and a size"));
            }
        }
        if let Some(name) = self.env.keys().find(|name| is_withheld(name)) {
            // The NVIDIA hook runs outside the sandbox and reads the container's
            // environment: the GPUs of a model are named in its own entry only.
            return Err(format!("env may not set {name}"));
        }
        Ok(())
    }
}

/// Tells whether an environment variable steers the loader or NVIDIA's hook, which act
/// outside the limits of the sandbox; images may bring such variables, and lose them.
#[must_use]
pub(super) fn is_withheld(name: &str) -> bool {
    name.starts_with("LD_")
        || name.starts_with("NVIDIA_")
        || name.starts_with("GLIBC_")
        || matches!(name, "CUDA_VISIBLE_DEVICES" | "GCONV_PATH" | "LOCPATH" | "NLSPATH")
}

impl ServedModel {
    /// Makes the entry of a model that a server on this machine already serves.
    pub fn endpoint(name: impl Into<String>, url: impl Into<String>, slots: u32) -> Self {
        let engine = EXTERNAL_ENGINE.to_owned();
        Self { endpoint: Some(url.into()), slots, engine, ..Self::file(name, "") }.without_path()
    }

    /// Makes the entry of a model in a file, with the defaults of the configuration.
    pub fn file(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            engine: default_engine(),
            path: Some(path.into()),
            sha256: None,
            endpoint: None,
            endpoint_model: None,
            slots: default_slots(),
            context_length: default_context(),
            threads: None,
            memory_mb: None,
            gpus: Vec::new(),
            gpu_memory_mb: None,
            share_prefix_cache: false,
            url: None,
        }
    }

    fn without_path(mut self) -> Self {
        self.path = None;
        self
    }

    /// Returns where the model's server comes from.
    ///
    /// # Errors
    /// [`EngineError::BadModel`] when the entry says both, or neither.
    pub fn kind(&self) -> Result<EngineKind<'_>, EngineError> {
        match (&self.path, &self.endpoint) {
            (Some(path), None) => Ok(EngineKind::Container { engine: &self.engine, path }),
            (None, Some(url)) => Ok(EngineKind::Endpoint { url }),
            (Some(_), Some(_)) => Err(self.bad("it has both a path and an endpoint")),
            (None, None) => Err(self.bad("it needs a path or an endpoint")),
        }
    }

    /// Returns the number of threads, all processors when the entry names none.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.threads.unwrap_or_else(|| {
            std::thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
        })
    }

    /// Says what is wrong with the entry, if anything is.
    ///
    /// # Errors
    /// [`EngineError::BadModel`].
    pub(super) fn check(&self) -> Result<(), EngineError> {
        self.kind()?;
        // The name becomes an argument of a command line and a label.
        let fits = |name: &str| {
            !name.is_empty()
                && name.len() <= 128
                && name.starts_with(|first: char| first.is_ascii_alphanumeric())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "._:/@+-".contains(c))
        };
        if !fits(&self.name) {
            return Err(self.bad(
                "its name must start with a letter or digit and hold only letters, digits and \
                 ._:/@+-",
            ));
        }
        if self.slots == 0 || self.slots > 1024 {
            return Err(self.bad("slots must be between 1 and 1024"));
        }
        if self.context_length == 0 {
            return Err(self.bad("context_length must be at least 1"));
        }
        if self.threads == Some(0) {
            return Err(self.bad("threads must be at least 1"));
        }
        if let Some(digest) = &self.sha256
            && (digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return Err(self.bad("sha256 must be 64 hexadecimal digits"));
        }
        Ok(())
    }

    fn bad(&self, reason: &str) -> EngineError {
        EngineError::BadModel { model: self.name.clone(), reason: reason.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn built_in_catalogue_is_valid() {
        let catalogue = Catalogue::built_in();
        let entry = catalogue.get("llama.cpp").unwrap();
        assert_eq!(entry.gpu, GpuNeed::None);
        assert!(!entry.paths.iter().any(|path| path.contains("slots")));
    }

    #[test]
    fn words_in_braces_are_replaced() {
        let catalogue = Catalogue::built_in();
        let mut model = ServedModel::file("smollm2:135m", "/m.gguf");
        (model.slots, model.context_length, model.threads) = (3, 1000, Some(2));
        let line = catalogue.get("llama.cpp").unwrap().command_line(&model);
        assert!(line.windows(2).any(|pair| pair == ["--ctx-size", "3000"]));
        assert!(line.windows(2).any(|pair| pair == ["--alias", "smollm2:135m"]));
        assert!(line.windows(2).any(|pair| pair == ["--host", "/run/engine/engine.sock"]));
        assert!(!line.iter().any(|word| word.contains('{')), "{line:?}");
    }

    #[test]
    fn own_file_replaces_and_adds() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("engines.toml");
        let built_in = Catalogue::load(&own).unwrap().names().count();
        let entry = "image = \"x\"\ninstall = \"y\"\nlicence = \"MIT\"\ncommand = [\"z\"]\n\
                     args = [\"{socket}\"]\n";
        std::fs::write(&own, format!("[engine.other]\n{entry}")).unwrap();
        let names = Catalogue::load(&own).unwrap();
        assert_eq!(names.names().count(), built_in + 1);
        assert!(names.get("other").is_some());
    }

    #[test]
    fn bad_entries_are_named() {
        let base = "image = \"x\"\ninstall = \"y\"\nlicence = \"MIT\"\ncommand = [\"z\"]\n";
        let base = format!("{base}env = {{ ADDRESS = \"{{socket}}\" }}\n");
        for (line, wanted) in [
            ("paths = [\"/slots\"]", "paths may hold only"),
            ("socket = \"../x.sock\"", "socket must be a file name"),
            ("args = [\"--host\", \"0.0.0.0\"]", "every interface"),
            ("port = 8000", "must name {socket}, or {port}"),
            ("prefix_cache = \"always\"", "unknown variant `always`"),
            ("tmpfs = [{ path = \"/\", size_mb = 1 }]", "needs an absolute path"),
            ("privileged = true", "unknown field `privileged`"),
        ] {
            let error = Catalogue::parse(&format!("[engine.e]\n{base}{line}\n"), "test.toml")
                .unwrap_err()
                .to_string();
            assert!(error.contains(wanted) && error.contains("test.toml"), "{error}");
        }
    }

    #[test]
    fn variables_that_steer_the_loader_are_refused() {
        for name in ["LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"] {
            let text = format!(
                "[engine.e]\nimage = \"x\"\ninstall = \"y\"\nlicence = \"MIT\"\ncommand = [\"z\"]\n\
                 args = [\"{{socket}}\"]\nenv = {{ {name} = \"x\" }}\n"
            );
            let error = Catalogue::parse(&text, "test.toml").unwrap_err().to_string();
            assert!(error.contains(&format!("may not set {name}")), "{error}");
        }
    }

    /// Every entry for a model, as its container is started.
    #[test]
    fn entries_are_started_as_reviewed() {
        let catalogue = Catalogue::built_in();
        let mut text = String::new();
        for (name, entry) in &catalogue.engine {
            let mut model = ServedModel::file("qwen2.5:7b", "/m");
            (model.slots, model.context_length, model.threads) = (4, 8192, Some(8));
            if entry.gpu != GpuNeed::None {
                model.gpus = vec!["GPU-1".to_owned(), "GPU-2".to_owned()];
            }
            let mut line = |text_of: String| {
                text.push_str(&text_of);
                text.push('\n');
            };
            line(format!("## {name}: {} ({})", entry.image, entry.licence));
            line(entry.command_line(&model).join(" "));
            for (name, value) in entry.environment(&model) {
                line(format!("env {name}={value}"));
            }
            let place = match entry.port {
                Some(port) => format!("127.0.0.1:{port}, relayed"),
                None => entry.socket.clone(),
            };
            line(format!("listens at {place}, healthy at {}", entry.health));
            line(format!(
                "prompts {:?}, gpu {:?}, model {:?}",
                entry.prefix_cache, entry.gpu, entry.model
            ));
            for tmpfs in &entry.tmpfs {
                line(format!("tmpfs {} {} MiB, exec {}", tmpfs.path, tmpfs.size_mb, tmpfs.exec));
            }
            line(format!(
                "shm {} MiB, {} MiB beside the model, {} processes, {} s to start",
                entry.shm_mb, entry.overhead_mb, entry.pids, entry.start_timeout_secs
            ));
            line(format!("paths {}", entry.paths.join(" ")));
            line(String::new());
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn models_are_checked() {
        let good = ServedModel::file("smollm2:135m", "/m.gguf");
        assert!(good.check().is_ok());
        assert!(ServedModel::endpoint("m", "http://127.0.0.1:1", 1).check().is_ok());
        for bad in [
            ServedModel { name: "--host".to_owned(), ..good.clone() },
            ServedModel { name: String::new(), ..good.clone() },
            ServedModel { slots: 0, ..good.clone() },
            ServedModel { path: None, ..good.clone() },
            ServedModel { endpoint: Some("http://x".to_owned()), ..good.clone() },
            ServedModel { sha256: Some("abc".to_owned()), ..good },
        ] {
            assert!(matches!(bad.check(), Err(EngineError::BadModel { .. })), "{bad:?}");
        }
    }
}
