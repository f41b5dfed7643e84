//! `infernet init`: makes this machine a node, or a place to ask from.

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::ArgGroup;
use serde_json::json;
use url::Url;

use super::Context;
use super::ask::Ask;
use super::join::{self, Joined};
use crate::agent;
use crate::command_error::{CommandError, Kind};
use crate::config::{
    Config, Directories, NodeRole, RawConfig, RawControl, RawModel, RawNode, check_model_name,
    check_node_name, write_private,
};
use crate::control::{BaseUrl, ControlPlane, Info, PlainHttp};
use crate::engine::catalogue::{EXTERNAL_ENGINE, PrefixCache};
use crate::engine::found::{FoundServer, find_servers};
use crate::engine::model_file::sha256_of;
use crate::identity::Keys;
use crate::money::Usd;

/// The control plane of `--cloud`.
const CLOUD: &str = "https://infernet.tech";

/// The engine of a model file, unless told otherwise.
const FILE_ENGINE: &str = "llama.cpp";

/// What is asked for a million tokens, unless told otherwise.
const PRICE_INPUT: &str = "0.10";
const PRICE_OUTPUT: &str = "0.40";

/// The arguments of `infernet init`.
#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("weights").args(["path", "endpoint"]),
    after_help = "\
Asks for what is not given. Writes config.toml and the keys, each readable by you alone; a key
that is there is kept. Then signs in, enrols the node and registers what it offers.

Examples:
  infernet init --cloud
  infernet init --url http://127.0.0.1:54321 --yes --path /models/smollm2.gguf
  infernet init --url http://10.0.0.5:54321 --enrolment enrol-…"
)]
pub(crate) struct Args {
    /// Join infernet.tech
    #[arg(long, conflicts_with = "url")]
    cloud: bool,
    /// Call the node this [default: the machine's name]
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    name: Option<String>,
    /// Let the node do this
    #[arg(long, value_enum)]
    role: Option<NodeRole>,
    /// Join the owner who made this code (infernet owner enrol), whose key stays elsewhere
    #[arg(
        long,
        value_name = "CODE",
        env = "INFERNET_ENROLMENT",
        hide_env_values = true,
        conflicts_with = "owner_key"
    )]
    enrolment: Option<String>,
    /// Take the owner's key from this file, or - for stdin, instead of making one
    #[arg(long, value_name = "FILE")]
    owner_key: Option<PathBuf>,
    /// Serve a model under this name
    #[arg(long, value_name = "NAME", value_parser = model_name)]
    model: Option<String>,
    /// Serve this model file
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// Serve what this OpenAI-compatible server on this host serves
    #[arg(long, value_name = "URL")]
    endpoint: Option<Url>,
    /// Serve it with this entry of the engine catalogue
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Ask this many USD per million tokens of input
    #[arg(long, value_name = "USD")]
    price_input: Option<Usd>,
    /// Ask this many USD per million tokens of output
    #[arg(long, value_name = "USD")]
    price_output: Option<Usd>,
    /// Serve this many jobs at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: Option<u32>,
    /// Let this many tokens fit the context
    #[arg(long, value_name = "N")]
    context_length: Option<NonZeroU32>,
    /// Write the files only; infernet login does the rest later
    #[arg(long)]
    offline: bool,
    /// Replace a configuration that is there; it is kept as config.toml.old
    #[arg(long)]
    force: bool,
    /// Ask nothing and take the defaults
    #[arg(short, long)]
    yes: bool,
}

fn node_name(text: &str) -> Result<String, String> {
    check_node_name(text).map(|()| text.to_owned())
}

pub(super) fn model_name(text: &str) -> Result<String, String> {
    check_model_name(text).map(|()| text.to_owned())
}

/// Asks, writes, and joins.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CommandError> {
    let ask = Ask::new(args.yes);
    let directories = &context.directories;
    let replaced = may_replace(&args, &ask, directories)?;
    let url = base_url(&args, &ask, context)?;
    let info = if args.offline { None } else { Some(discover(&url, context).await?) };
    let role = match args.role {
        Some(role) => role,
        None => role(&ask)?,
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let name = ask.text("Name of this node", Some(&machine_name()), "--name")?;
            node_name(&name).map_err(CommandError::user)?
        }
    };
    let model = if role == NodeRole::Provider { model(&args, &ask, context).await? } else { None };
    let owner = owner(&args, &ask)?;

    Directories::make(directories.config()).map_err(|source| {
        CommandError::from(crate::config::ConfigError::Write {
            path: directories.config().to_owned(),
            source,
        })
    })?;
    let raw = RawConfig {
        control: Some(RawControl {
            url: toml::Spanned::new(0..0, url.to_string()),
            plain_http: (!url.is_https() && !url.is_private()).then_some(true),
            publishable_key: info.as_ref().map(|info| info.publishable_key.clone()),
        }),
        node: Some(RawNode {
            name: name.clone(),
            role: Some(role),
            slots: None,
            region: None,
            labels: Vec::new(),
            grace_secs: None,
        }),
        models: model.into_iter().collect(),
        ..RawConfig::default()
    };
    let config = write(directories, &raw, replaced)?;
    let keys = make_keys(directories, &owner, context)?;

    let joined = match (&info, args.offline) {
        (Some(_), false) => {
            let control = context.control(&config).await?;
            Some(
                Box::pin(join::join(&control, &config, &keys, owner.code(), context))
                    .await
                    .map_err(|error| {
                        error.hint(
                            "The files are written. When it is put right, run: infernet login",
                        )
                    })?,
            )
        }
        _ => None,
    };
    conclude(context, &url, &keys, joined.as_ref())
}

/// The keys of this machine.
pub(super) struct MachineKeys {
    /// The person's, if it is here.
    pub(super) owner: Option<Keys>,
    /// The node's.
    pub(super) node: Keys,
}

/// Whose the node becomes.
enum Owner {
    /// Of the key on this machine, which is made if there is none.
    Here,
    /// Of this key, which is kept on this machine.
    Given(Keys),
    /// Of whoever made this code.
    Elsewhere(String),
}

impl Owner {
    fn code(&self) -> Option<&str> {
        match self {
            Self::Elsewhere(code) => Some(code),
            Self::Here | Self::Given(_) => None,
        }
    }
}

/// Says whether there is a configuration, having asked whether to replace it.
fn may_replace(args: &Args, ask: &Ask, directories: &Directories) -> Result<bool, CommandError> {
    let path = directories.config_file();
    if !path.exists() {
        return Ok(false);
    }
    let question =
        format!("{} is there already. Replace it? (It is kept as .old.)", path.display());
    if args.force || ask.confirm(&question, false)? {
        return Ok(true);
    }
    Err(CommandError::new(
        Kind::Config,
        format!("{} is there already, and nothing was changed.", path.display()),
    )
    .hint("Replace it with --force; the old one is kept beside it, and keys are never replaced."))
}

fn base_url(args: &Args, ask: &Ask, context: &Context) -> Result<BaseUrl, CommandError> {
    let text = match (&context.overrides.url, args.cloud) {
        (_, true) => CLOUD.to_owned(),
        (Some(url), false) => url.clone(),
        (None, false) => ask.text("URL of the control plane", None, "--url or --cloud")?,
    };
    let plain_http =
        if context.overrides.plain_http { PlainHttp::Anywhere } else { PlainHttp::PrivateOnly };
    BaseUrl::parse(&text, plain_http).map_err(|error| {
        let hint = matches!(error, crate::control::BaseUrlError::PlainHttp { .. });
        let failure = CommandError::from(error);
        if hint { failure.hint("If you know the network, add --plain-http.") } else { failure }
    })
}

async fn discover(url: &BaseUrl, context: &Context) -> Result<Info, CommandError> {
    // The URL was checked above.
    let (_plane, info) = ControlPlane::discover(&url.to_string(), PlainHttp::Anywhere).await?;
    let fee = info.fee_rate.as_deref().map(|rate| format!(", fee {}", percent(rate)));
    context.output.talk(&format!("{} at {url}{}", info.name, fee.unwrap_or_default()));
    if !url.is_https() && !url.is_private() {
        context.output.warn("Warning: keys, prompts and answers go there in the clear.");
    }
    Ok(info)
}

/// Writes a rate such as `0.05` as `5 %`.
fn percent(rate: &str) -> String {
    rate.parse::<rust_decimal::Decimal>().map_or_else(
        |_error| rate.to_owned(),
        |rate| format!("{} %", (rate * rust_decimal::Decimal::ONE_HUNDRED).normalize()),
    )
}

fn role(ask: &Ask) -> Result<NodeRole, CommandError> {
    let text = ask.text(
        "Role: provider (serves models), client (only asks) or aggregator",
        Some("provider"),
        "--role",
    )?;
    <NodeRole as clap::ValueEnum>::from_str(&text, true)
        .map_err(|_error| CommandError::user(format!("\"{text}\" is not a role.")))
}

fn owner(args: &Args, ask: &Ask) -> Result<Owner, CommandError> {
    if let Some(code) = args.enrolment.as_ref().filter(|code| !code.is_empty()) {
        return Ok(Owner::Elsewhere(code.clone()));
    }
    if let Some(path) = &args.owner_key {
        let keys = if path.as_os_str() == "-" {
            Keys::import(std::io::stdin().lock())?
        } else {
            Keys::load(path)?
        };
        return Ok(Owner::Given(keys));
    }
    if ask.confirm("Keep the owner's key on this machine?", true)? {
        return Ok(Owner::Here);
    }
    ask.text("Enrolment code (made by: infernet owner enrol)", None, "--enrolment")
        .map(Owner::Elsewhere)
}

/// What a model is made of.
struct Weights {
    /// A file or folder of this machine.
    path: Option<PathBuf>,
    /// Or a server of it, and how that is spoken to.
    endpoint: Option<Url>,
    engine: &'static str,
    /// Its name, where that is known already.
    name: Option<String>,
    /// Whether its engine shows consumers which prompts of others it remembers.
    share_prefix_cache: bool,
}

impl Weights {
    fn file(path: &Path) -> Result<Self, CommandError> {
        Ok(Self {
            path: Some(existing(path)?),
            endpoint: None,
            engine: FILE_ENGINE,
            name: None,
            share_prefix_cache: false,
        })
    }

    fn endpoint(url: Url) -> Self {
        Self {
            path: None,
            endpoint: Some(url),
            engine: EXTERNAL_ENGINE,
            name: None,
            share_prefix_cache: false,
        }
    }
}

/// Finds out what to serve; nothing is fine: models can be added later.
async fn model(
    args: &Args,
    ask: &Ask,
    context: &Context,
) -> Result<Option<RawModel>, CommandError> {
    let weights = match (&args.path, &args.endpoint) {
        (Some(path), _) => Some(Weights::file(path)?),
        (None, Some(url)) => Some(Weights::endpoint(url.clone())),
        (None, None) => choose(ask, context).await?,
    };
    let Some(weights) = weights else {
        if args.model.is_some() {
            return Err(CommandError::new(Kind::Usage, "A model needs its file or its server.")
                .hint("Add --path FILE or --endpoint URL."));
        }
        return Ok(None);
    };
    let name = match &args.model {
        Some(name) => name.clone(),
        None => {
            let known = weights.path.as_deref().map(name_of_file);
            let known = known.or_else(|| weights.name.as_deref().map(market_name));
            let name = ask.text("Name of the model", known.as_deref(), "--model")?;
            model_name(&name).map_err(CommandError::user)?
        }
    };
    let price = |given: Option<Usd>, question: &str, default: &str, flag: &str| match given {
        Some(price) => Ok(price),
        None => ask
            .text(question, Some(default), flag)?
            .parse::<Usd>()
            .map_err(|error| CommandError::new(Kind::User, error)),
    };
    let sha256 = match &weights.path {
        Some(path) if path.is_file() => Some(digest(path).await?),
        _ => None,
    };
    Ok(Some(RawModel {
        endpoint_model: weights.name.filter(|theirs| *theirs != name),
        name: toml::Spanned::new(0..0, name),
        engine: args.engine.clone().unwrap_or_else(|| weights.engine.to_owned()),
        path: weights.path,
        sha256,
        url: None,
        endpoint: weights.endpoint,
        threads: None,
        memory_mb: None,
        gpus: Vec::new(),
        gpu_memory_mb: None,
        share_prefix_cache: weights.share_prefix_cache.then_some(true),
        slots: args.slots,
        context_length: args.context_length,
        price_input: price(
            args.price_input,
            "Price in USD per million tokens of input",
            PRICE_INPUT,
            "--price-input",
        )?,
        price_output: price(
            args.price_output,
            "Price in USD per million tokens of output",
            PRICE_OUTPUT,
            "--price-output",
        )?,
    }))
}

/// Lets the person choose among the servers that are on this machine already, or name
/// a file.
async fn choose(ask: &Ask, context: &Context) -> Result<Option<Weights>, CommandError> {
    let servers = find_servers().await;
    let found: Vec<(&FoundServer, &String)> = servers
        .iter()
        .flat_map(|server| server.models.iter().map(move |model| (server, model)))
        .collect();
    for (number, (server, model)) in found.iter().enumerate() {
        let (number, url, engine) = (number + 1, &server.url, server.engine);
        context.output.talk(&format!("{number:>3}) {model}, which {engine} serves at {url}"));
    }
    let question = if found.is_empty() {
        "Model file to serve, such as /models/smollm2.gguf (empty: none yet)"
    } else {
        "Serve which: a number of these, or a model file (empty: none yet)"
    };
    let Some(answer) = ask.optional(question)? else {
        if !found.is_empty() {
            context.output.talk("None of them is served. To serve one: infernet model add");
        }
        return Ok(None);
    };
    let Ok(number) = answer.parse::<usize>() else {
        return Weights::file(Path::new(&answer)).map(Some);
    };
    let Some((server, model)) = number.checked_sub(1).and_then(|index| found.get(index)) else {
        return Err(CommandError::user(format!("There is no number {number}.")));
    };
    let mixes = agent::catalogue(&context.directories)?
        .get(server.engine)
        .is_some_and(|entry| entry.prefix_cache == PrefixCache::Shared);
    let question = format!(
        "{} cannot keep the prompts of consumers apart: by how fast an answer begins one may \
         guess what others asked. Serve it all the same?",
        server.engine
    );
    if mixes && !ask.confirm(&question, false)? {
        return Ok(None);
    }
    let url = Url::parse(&server.url).map_err(|error| CommandError::new(Kind::Internal, error))?;
    Ok(Some(Weights {
        engine: server.engine,
        name: Some((*model).clone()),
        share_prefix_cache: mixes,
        ..Weights::endpoint(url)
    }))
}

/// Makes the path of a model absolute; it must be there.
pub(super) fn existing(path: &Path) -> Result<PathBuf, CommandError> {
    path.canonicalize().map_err(|error| {
        CommandError::user(format!("The model file {} cannot be used ({error}).", path.display()))
            .word("model_missing")
            .hint("Fetch it, or correct the path.")
    })
}

/// Makes a model's name from its file's.
fn name_of_file(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
    market_name(&stem.unwrap_or_default().replace(['/', ':'], "-"))
}

/// Makes a name for the market from one that may have any characters.
fn market_name(name: &str) -> String {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "._:/-".contains(letter);
    let name: String =
        name.chars().map(|letter| if allowed(letter) { letter } else { '-' }).collect();
    let name = name.trim_start_matches(|letter: char| !letter.is_ascii_alphanumeric());
    if name.is_empty() { "model".to_owned() } else { name.chars().take(100).collect() }
}

/// Computes the hex sha256 of a file, off the async threads.
pub(super) async fn digest(path: &Path) -> Result<String, CommandError> {
    let file = path.to_owned();
    let computed = tokio::task::spawn_blocking(move || sha256_of(&mut fs::File::open(file)?))
        .await
        .map_err(|error| CommandError::new(Kind::Internal, error))?;
    computed.map_err(|error| {
        CommandError::user(format!("The model file {} cannot be read ({error}).", path.display()))
    })
}

/// Returns the machine's name, as the default for the node's.
fn machine_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_error| fs::read_to_string("/etc/hostname"))
        .unwrap_or_default();
    let name = name.trim();
    if check_node_name(name).is_ok() { name.to_owned() } else { "node".to_owned() }
}

/// Writes the configuration and reads it back.
fn write(
    directories: &Directories,
    raw: &RawConfig,
    replaced: bool,
) -> Result<Config, CommandError> {
    let path = directories.config_file();
    let text = format!(
        "# Written by infernet init. Every key is explained in config/infernet.example.toml of the\n\
         # source. Keys are files of their own beside this one.\n\n{}",
        raw.to_text()
    );
    let config = Config::read(&path, &text, &crate::config::Overrides::default())?;
    if replaced {
        let old = path.with_extension("toml.old");
        fs::rename(&path, &old)
            .map_err(|source| crate::config::ConfigError::Write { path: old, source })?;
    }
    write_private(&path, &text)?;
    Ok(config)
}

/// Loads the keys of this machine, making those that are not there.
fn make_keys(
    directories: &Directories,
    owner: &Owner,
    context: &Context,
) -> Result<MachineKeys, CommandError> {
    let path = directories.owner_key();
    let backup = || {
        context.output.talk(&format!(
            "The owner's key is {}. Back it up: whoever has it has the balance and the earnings. \
             A node that is enrolled works without it, so it may be moved to another machine.",
            path.display()
        ));
    };
    let owner = match owner {
        Owner::Here => {
            let (keys, made) = Keys::load_or_create(&path)?;
            if made {
                backup();
            }
            Some(keys)
        }
        Owner::Given(keys) => {
            match Keys::load(&path) {
                Ok(there) if there == *keys => {}
                _ => {
                    keys.store(&path)?;
                    backup();
                }
            }
            Some(keys.clone())
        }
        Owner::Elsewhere(_) => None,
    };
    let (node, _made) = Keys::load_or_create(&directories.node_key())?;
    Ok(MachineKeys { owner, node })
}

/// Says what there is now, and what comes next.
fn conclude(
    context: &Context,
    url: &BaseUrl,
    keys: &MachineKeys,
    joined: Option<&Joined>,
) -> Result<(), CommandError> {
    let config = context.directories.config_file();
    if context.output.is_json() {
        context.output.object(&json!({
            "config": config,
            "url": url.to_string(),
            "owner": keys.owner.as_ref().map(Keys::public_hex),
            "node": joined.map(Joined::object),
            "node_key": keys.node.public_hex(),
        }))?;
        return Ok(());
    }
    context.output.line(&format!("Configuration: {}", config.display()))?;
    match joined {
        Some(joined) => joined.tell(context),
        None => {
            context.output.talk("Nothing was sent. To sign in and enrol the node: infernet login");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_is_made_from_its_file() {
        let name = |path: &str| name_of_file(Path::new(path));
        assert_eq!(name("/m/SmolLM2-135M-Instruct.Q4_K_M.gguf"), "smollm2-135m-instruct.q4_k_m");
        assert_eq!(name("/m/my model.gguf"), "my-model");
        assert_eq!(name("/m/.gguf"), "gguf");
        assert!(check_model_name(&name("/m/-- é.gguf")).is_ok());
        assert_eq!(market_name("hf.co/bartowski/Llama 3.2:3b"), "hf.co/bartowski/Llama-3.2:3b");
        assert!(check_model_name(&market_name(&"é".repeat(300))).is_ok());
    }

    #[test]
    fn a_rate_is_shown_in_percent() {
        assert_eq!(percent("0.05"), "5 %");
        assert_eq!(percent("0.125"), "12.5 %");
    }
}
