//! The file of the configuration, to be read and changed key by key.
//!
//! A change leaves every other line as it is, comments too, and is written only
//! if the whole file still says what it must. Keys are written with points:
//! `log`, `node.region`, `model.llama3.2:3b.price_output`.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, Value};

use super::{Config, ConfigError, Directories, Overrides, RawModel, write_private};

/// The tables of what is served, each with a `name`.
const SERVED: [&str; 2] = ["model", "container"];

/// Where a value comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A flag or a variable of the environment.
    Override,
    /// The file.
    File,
    /// Nobody said it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Override => "flag or variable",
            Self::File => "file",
            Self::Default => "default",
        })
    }
}

/// A key, its value and where that comes from.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Setting {
    /// The key, with points.
    pub key: String,
    /// Its value; texts without quotes.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// The file as it stands.
#[derive(Clone, Debug)]
pub struct ConfigDocument {
    path: PathBuf,
    document: DocumentMut,
}

/// A key: the table that it is in, with the name of what is served where there are many
/// of that table, and its own name.
struct Place<'a> {
    table: Option<&'a str>,
    served: Option<&'a str>,
    name: &'a str,
}

impl<'a> Place<'a> {
    fn of(key: &'a str) -> Self {
        let Some((table, rest)) = key.split_once('.') else {
            return Self { table: None, served: None, name: key };
        };
        match rest.rsplit_once('.') {
            Some((served, name)) if SERVED.contains(&table) => {
                Self { table: Some(table), served: Some(served), name }
            }
            _ => Self { table: Some(table), served: None, name: rest },
        }
    }
}

impl ConfigDocument {
    /// Reads the file; one that is not there is empty. A file that is wrong is
    /// refused, as everywhere.
    ///
    /// # Errors
    /// When it cannot be read, or does not say what it must.
    pub fn open(directories: &Directories) -> Result<Self, ConfigError> {
        let path = directories.config_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        Self::read(&path, &text)
    }

    fn read(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Config::read(path, text, &Overrides::default())?;
        let document = text.parse().map_err(|error: toml_edit::TomlError| ConfigError::Wrong {
            path: path.to_owned(),
            line: 1,
            message: error.message().to_owned(),
        })?;
        Ok(Self { path: path.to_owned(), document })
    }

    /// Returns what the file says for a key.
    pub fn get(&self, key: &str) -> Option<String> {
        let place = Place::of(key);
        let table = match (place.table, place.served) {
            (Some(table), Some(served)) => {
                let tables = self.document.get(table)?.as_array_of_tables()?;
                tables.iter().find(|table| is_named(table, served))?
            }
            (Some(table), None) => self.document.get(table)?.as_table()?,
            (None, _) => self.document.as_table(),
        };
        table.get(place.name)?.as_value().map(plain)
    }

    /// Sets a key, so that the file stays right: the value is taken as TOML where
    /// that fits (a number, `true`, a list), and else as a text.
    ///
    /// # Errors
    /// When there is no such key or model, or the key cannot have this value.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let text = Value::from(value);
        let Ok(typed) = value.parse::<Value>() else {
            return self.try_set(key, text);
        };
        // What says best what is wrong is what was most likely meant.
        self.try_set(key, typed).or_else(|wrong| self.try_set(key, text).map_err(|_text| wrong))
    }

    /// Takes a key out, so that its default holds. Answers whether it was there.
    ///
    /// # Errors
    /// When the file needs the key.
    pub fn unset(&mut self, key: &str) -> Result<bool, ConfigError> {
        let mut changed = self.document.clone();
        let removed = table_of(&mut changed, key, false)
            .and_then(|table| table.remove(Place::of(key).name))
            .is_some();
        self.accept(changed)?;
        Ok(removed)
    }

    /// Adds a model behind the others.
    ///
    /// # Errors
    /// When the name is taken, or the model is not as it must be.
    pub fn add_model(&mut self, model: &RawModel) -> Result<(), ConfigError> {
        let text = toml::to_string(model).expect("every value of a model has a form in TOML");
        let table: DocumentMut = text.parse().expect("what was written as TOML reads as TOML");
        let mut changed = self.document.clone();
        let models = changed
            .entry("model")
            .or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()))
            .as_array_of_tables_mut()
            .ok_or_else(|| ConfigError::NoSuchKey { key: "model".to_owned() })?;
        models.push(table.as_table().clone());
        self.accept(changed)
    }

    /// Takes a model, or an image of container jobs, out. Answers whether it was there.
    ///
    /// # Errors
    /// When the file would be wrong without it.
    pub fn remove_served(&mut self, name: &str) -> Result<bool, ConfigError> {
        let mut changed = self.document.clone();
        let mut removed = false;
        for kind in SERVED {
            let tables = changed.get_mut(kind).and_then(Item::as_array_of_tables_mut);
            let Some(tables) = tables else { continue };
            let before = tables.len();
            tables.retain(|table| !is_named(table, name));
            removed |= tables.len() < before;
            if tables.is_empty() {
                changed.remove(kind);
            }
        }
        self.accept(changed)?;
        Ok(removed)
    }

    /// Writes the file, for this user alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> Result<(), ConfigError> {
        if let Some(folder) = self.path.parent() {
            Directories::make(folder)
                .map_err(|source| ConfigError::Write { path: folder.to_owned(), source })?;
        }
        write_private(&self.path, &self.document.to_string())
    }

    /// Lists what holds: what the file says, what goes before it, and what has a
    /// default that nobody changed.
    pub fn settings(&self, config: &Config, overrides: &Overrides) -> Vec<Setting> {
        let mut settings = Vec::new();
        self.collect(&mut settings);
        let mut hold = |key: &str, value: Option<String>, origin: Origin| {
            let Some(value) = value else { return };
            match settings.iter_mut().find(|setting| setting.key == key) {
                Some(setting) if origin == Origin::Override => {
                    *setting = Setting { key: key.to_owned(), value, origin };
                }
                Some(_said) => {}
                None => settings.push(Setting { key: key.to_owned(), value, origin }),
            }
        };
        let path = |path: &PathBuf| path.display().to_string();
        hold("control.url", overrides.url.clone(), Origin::Override);
        hold("control.publishable_key", overrides.publishable_key.clone(), Origin::Override);
        hold("log", overrides.log.clone(), Origin::Override);
        hold("docker.socket", overrides.docker_socket.as_ref().map(path), Origin::Override);
        hold("log", Some(config.log().to_owned()), Origin::Default);
        hold("docker.socket", Some(path(&config.docker().socket)), Origin::Default);
        if let Ok(node) = config.node() {
            hold("node.role", Some(node.role.to_string()), Origin::Default);
            hold("node.grace_secs", Some(node.grace.as_secs().to_string()), Origin::Default);
        }
        settings.sort_by(|one, other| order(&one.key).cmp(&order(&other.key)));
        settings
    }

    fn collect(&self, settings: &mut Vec<Setting>) {
        let mut say = |key: String, value: &Value| {
            settings.push(Setting { key, value: plain(value), origin: Origin::File });
        };
        for (name, item) in self.document.iter() {
            match item {
                Item::Value(value) => say(name.to_owned(), value),
                Item::Table(table) => {
                    for (key, value) in table {
                        if let Some(value) = value.as_value() {
                            say(format!("{name}.{key}"), value);
                        }
                    }
                }
                Item::ArrayOfTables(tables) => {
                    for table in tables {
                        let model = table.get("name").and_then(Item::as_str).unwrap_or_default();
                        for (key, value) in table {
                            if let Some(value) = value.as_value() {
                                say(format!("{name}.{model}.{key}"), value);
                            }
                        }
                    }
                }
                Item::None => {}
            }
        }
    }

    fn try_set(&mut self, key: &str, mut value: Value) -> Result<(), ConfigError> {
        let mut changed = self.document.clone();
        let table = table_of(&mut changed, key, true)
            .ok_or_else(|| ConfigError::NoSuchKey { key: key.to_owned() })?;
        match table.get_mut(Place::of(key).name) {
            Some(Item::Value(old)) => {
                // A comment behind the value stays.
                *value.decor_mut() = old.decor().clone();
                *old = value;
            }
            Some(_table) => return Err(ConfigError::NoSuchKey { key: key.to_owned() }),
            None => {
                table.insert(Place::of(key).name, Item::Value(value));
            }
        }
        self.accept(changed)
    }

    /// Takes a changed document if it is right as a whole.
    fn accept(&mut self, changed: DocumentMut) -> Result<(), ConfigError> {
        *self = Self::read(&self.path, &changed.to_string())?;
        Ok(())
    }
}

/// Finds the table of a key; with `make`, one that is missing is made, though no
/// model.
fn table_of<'a>(document: &'a mut DocumentMut, key: &str, make: bool) -> Option<&'a mut Table> {
    let place = Place::of(key);
    let Some(table) = place.table else { return Some(document.as_table_mut()) };
    if let Some(served) = place.served {
        let tables = document.get_mut(table)?.as_array_of_tables_mut()?;
        return tables.iter_mut().find(|table| is_named(table, served));
    }
    if make {
        document.entry(table).or_insert_with(|| Item::Table(Table::new())).as_table_mut()
    } else {
        document.get_mut(table)?.as_table_mut()
    }
}

fn is_named(table: &Table, name: &str) -> bool {
    table.get("name").and_then(Item::as_str) == Some(name)
}

/// Writes a value for people: a text without its quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.value().clone(),
        other => other.clone().decorated("", "").to_string(),
    }
}

/// Orders keys as the example does: the log, then the tables, then the models.
fn order(key: &str) -> (usize, &str) {
    let tables = ["log", "control", "node", "docker", "proxy"];
    let table = key.split('.').next().unwrap_or_default();
    let rank = tables.iter().position(|known| *known == table).unwrap_or(tables.len());
    // Within a table the file's own order stays: sorting is stable.
    (rank, if rank == tables.len() { table } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    const FILE: &str = "\
# Of this house.
log = \"info\" # quiet

[control]
url = \"https://infernet.tech\"

[node]
# The attic.
name = \"attic\"

[[model]]
name = \"llama3.2:3b\"
engine = \"external\"
endpoint = \"http://127.0.0.1:11434/v1\"
price_input = \"0.05\"
price_output = \"0.10\" # dear
";

    fn document(text: &str) -> ConfigDocument {
        ConfigDocument::read(Path::new("/c/config.toml"), text).unwrap()
    }

    #[test]
    fn a_change_leaves_all_else_as_it_is() {
        let mut changed = document(FILE);
        changed.set("log", "debug").unwrap();
        changed.set("node.region", "eu-west").unwrap();
        changed.set("node.labels", "[\"ssd\", \"ecc\"]").unwrap();
        changed.set("node.slots", "3").unwrap();
        changed.set("model.llama3.2:3b.price_output", "0.2").unwrap();
        let expected = FILE
            .replace("\"info\" # quiet", "\"debug\" # quiet")
            .replace(
                "name = \"attic\"\n",
                "name = \"attic\"\nregion = \"eu-west\"\nlabels = [\"ssd\", \"ecc\"]\nslots = 3\n",
            )
            .replace("\"0.10\" # dear", "0.2 # dear");
        assert_eq!(changed.document.to_string(), expected);
        assert_eq!(changed.get("model.llama3.2:3b.price_output").as_deref(), Some("0.2"));
        assert_eq!(changed.get("node.labels").as_deref(), Some("[\"ssd\", \"ecc\"]"));
        assert_eq!(changed.get("node.role"), None);
        assert!(changed.unset("node.labels").unwrap());
        assert!(!changed.unset("node.labels").unwrap());
        assert_eq!(changed.get("node.labels"), None);
    }

    #[test]
    fn texts_that_look_like_numbers_stay_texts_where_texts_are_wanted() {
        let mut changed = document(FILE);
        changed.set("node.name", "42").unwrap();
        assert!(changed.document.to_string().contains("name = \"42\""));
    }

    #[test]
    fn what_would_make_the_file_wrong_is_refused_and_changes_nothing() {
        let mut changed = document(FILE);
        for (key, value, part) in [
            ("node.colour", "red", "unknown field `colour`"),
            ("colour", "red", "unknown field `colour`"),
            ("node.slots", "many", "invalid type"),
            ("node.slots", "0", "nonzero"),
            ("control.url", "ftp://x", "only https and http"),
            ("control.publishable_key", "sb_secret_x", "secret key"),
            ("model.llama3.2:3b.price_output", "cheap", "not an amount of money"),
            ("model.other.slots", "1", "There is no model.other.slots"),
            ("model", "x", "There is no model"),
        ] {
            let wrong = changed.set(key, value).unwrap_err().to_string();
            assert!(wrong.contains(part), "{key}: {wrong}");
        }
        let wrong = changed.unset("control.url").unwrap_err().to_string();
        assert!(wrong.contains("missing field `url`"), "{wrong}");
        assert_eq!(changed.document.to_string(), FILE);
    }

    #[test]
    fn what_is_served_comes_and_goes_and_all_else_stays() {
        let image = format!("sha256:{}", "0".repeat(64));
        let text = format!(
            "{FILE}\n[[container]]\nname = \"wc\"\nimage = \"{image}\"\ncommand = [\"/wc\"]\n\
             price_second = 0.5\n"
        );
        let mut changed = document(&text);
        changed.set("container.wc.price_second", "0.125").unwrap();
        assert_eq!(changed.get("container.wc.price_second").as_deref(), Some("0.125"));
        let model = RawConfig::parse(Path::new("/c"), FILE).unwrap().models.remove(0);
        let taken = changed.add_model(&model).unwrap_err().to_string();
        assert!(taken.contains("there twice"), "{taken}");
        assert!(changed.remove_served("llama3.2:3b").unwrap());
        assert!(changed.remove_served("wc").unwrap() && !changed.remove_served("wc").unwrap());
        let told = changed.document.to_string();
        assert!(told.contains("# Of this house.") && told.contains("# The attic."), "{told}");
        assert!(!told.contains("[["), "{told}");
        changed.add_model(&model).unwrap();
        assert_eq!(changed.get("model.llama3.2:3b.price_output").as_deref(), Some("0.10"));
        // The first one of an empty file.
        let mut empty = document("");
        empty.add_model(&model).unwrap();
        assert!(empty.document.to_string().starts_with("[[model]]\nname"), "{}", empty.document);
    }

    #[test]
    fn a_first_key_makes_its_table() {
        let mut changed = document("");
        changed.set("node.name", "attic").unwrap();
        assert_eq!(changed.document.to_string(), "[node]\nname = \"attic\"\n");
    }

    #[test]
    fn settings_say_where_they_come_from() {
        let overrides =
            Overrides { url: Some("http://127.0.0.1:1".to_owned()), ..Overrides::default() };
        let config = Config::read(Path::new("/c"), FILE, &overrides).unwrap();
        let told: Vec<String> = document(FILE)
            .settings(&config, &overrides)
            .into_iter()
            .map(|setting| format!("{} {} {}", setting.key, setting.value, setting.origin))
            .collect();
        assert_eq!(
            told,
            [
                "log info file",
                "control.url http://127.0.0.1:1 flag or variable",
                "node.name attic file",
                "node.role provider default",
                "node.grace_secs 30 default",
                "docker.socket /var/run/docker.sock default",
                "model.llama3.2:3b.name llama3.2:3b file",
                "model.llama3.2:3b.engine external file",
                "model.llama3.2:3b.endpoint http://127.0.0.1:11434/v1 file",
                "model.llama3.2:3b.price_input 0.05 file",
                "model.llama3.2:3b.price_output 0.10 file",
            ]
        );
    }
}
