//! Where this program keeps what.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::ConfigError;

/// The three folders of this program. Each follows the platform's habit and can
/// be moved by a variable, so that two nodes fit one machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Directories {
    config: PathBuf,
    state: PathBuf,
    runtime: PathBuf,
}

impl Directories {
    /// Finds the folders: `INFERNET_CONFIG_DIR`, `INFERNET_STATE_DIR` and
    /// `INFERNET_RUNTIME_DIR`, else the platform's own.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::resolve(|name| std::env::var_os(name))
    }

    /// Finds the folders with another environment.
    pub fn resolve(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let given = |name: &str| {
            variable(name).filter(|value| !value.is_empty()).map(|value| absolute(value.into()))
        };
        let platform = directories::ProjectDirs::from("", "", "infernet");
        let of_platform = |folder: fn(&directories::ProjectDirs) -> PathBuf| {
            platform.as_ref().map(folder).ok_or(ConfigError::NoHome)
        };
        let config = match given("INFERNET_CONFIG_DIR") {
            Some(folder) => folder,
            None => of_platform(|dirs| dirs.config_dir().to_owned())?,
        };
        let state = match given("INFERNET_STATE_DIR") {
            Some(folder) => folder,
            None => of_platform(|dirs| {
                dirs.state_dir().unwrap_or_else(|| dirs.data_local_dir()).to_owned()
            })?,
        };
        // Without a session of its own (a bare server, cron) a user has no
        // runtime folder; one below the state survives a reboot, which the PID
        // file and the socket in it must bear anyway.
        let runtime = given("INFERNET_RUNTIME_DIR")
            .or_else(|| platform.as_ref().and_then(|d| d.runtime_dir().map(Path::to_owned)))
            .unwrap_or_else(|| state.join("run"));
        Ok(Self { config, state, runtime })
    }

    /// Returns the folder of the configuration and the keys.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Returns the folder of journals, logs and caches.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Returns the folder of the PID file and the admin socket.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Returns the configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.config.join("config.toml")
    }

    /// Returns the key that clients of the proxy show.
    pub fn proxy_key(&self) -> PathBuf {
        self.config.join("proxy.key")
    }

    /// Returns the key of the person: owner, consumer or operator.
    pub fn owner_key(&self) -> PathBuf {
        self.config.join("owner.key")
    }

    /// Returns the key of the node.
    pub fn node_key(&self) -> PathBuf {
        self.config.join("node.key")
    }

    /// Makes a folder of this user alone (0700), with those above it.
    pub fn make(folder: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
    }
}

/// Makes a path independent of the working directory, which a daemon leaves.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_move_the_folders() {
        let directories = Directories::resolve(|name| match name {
            "INFERNET_CONFIG_DIR" => Some("/a".into()),
            "INFERNET_STATE_DIR" => Some("/b".into()),
            "INFERNET_RUNTIME_DIR" => Some("/c".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!(directories.config_file(), Path::new("/a/config.toml"));
        assert_eq!(directories.state(), Path::new("/b"));
        assert_eq!(directories.runtime(), Path::new("/c"));
    }

    #[test]
    fn a_relative_folder_is_made_absolute() {
        let directories = Directories::resolve(|_name| Some("x".into())).unwrap();
        assert!(directories.config().is_absolute());
    }
}
