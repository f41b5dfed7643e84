//! Finds the PostgreSQL of this machine, and the account that its server runs
//! under when we are root.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::{Gid, Uid, User, geteuid};
use tokio::process::Command;

use super::PostgresError;

/// Oldest major version that the migrations run on.
const OLDEST_MAJOR: u32 = 15;
/// Newest major version that this release was tested with.
const NEWEST_MAJOR: u32 = 18;
/// Names the directory of the binaries, before any other place.
pub const BIN_VARIABLE: &str = "INFERNET_POSTGRES_BIN";

/// One installed PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Directory of `postgres` and `initdb`.
    pub bin: PathBuf,
    /// Major version.
    pub major: u32,
}

impl Installation {
    /// Finds a usable version: the newest, or exactly `wanted` where data of that
    /// version exist already.
    ///
    /// Looks at `INFERNET_POSTGRES_BIN` (and then nowhere else), the places of
    /// Debian, Red Hat and Homebrew, and `PATH`.
    pub async fn find(wanted: Option<u32>) -> Result<Self, PostgresError> {
        if let Some(bin) = env::var_os(BIN_VARIABLE).filter(|value| !value.is_empty()) {
            let bin = PathBuf::from(bin);
            let Some(found) = Self::inspect(&bin).await else {
                return Err(PostgresError::BadBinDir { path: bin });
            };
            return Self::choose(vec![found], wanted);
        }
        let mut found: Vec<Self> = Vec::new();
        for bin in candidate_dirs() {
            if let Some(installation) = Self::inspect(&bin).await {
                let known = found.iter().any(|other| other.major == installation.major);
                if !known {
                    found.push(installation);
                }
            }
        }
        Self::choose(found, wanted)
    }

    /// Picks from what was found.
    fn choose(mut found: Vec<Self>, wanted: Option<u32>) -> Result<Self, PostgresError> {
        found.sort_by_key(|installation| std::cmp::Reverse(installation.major));
        let versions = found.iter().map(|installation| installation.major.to_string());
        let versions = versions.collect::<Vec<_>>().join(", ");
        let fits = |installation: &Self| match wanted {
            Some(major) => installation.major == major,
            None => (OLDEST_MAJOR..=NEWEST_MAJOR).contains(&installation.major),
        };
        match (found.into_iter().find(fits), wanted) {
            (Some(installation), _) => Ok(installation),
            (None, Some(major)) => Err(PostgresError::OtherVersion { major, found: versions }),
            (None, None) => Err(PostgresError::NotInstalled { found: versions }),
        }
    }

    /// Asks the binaries in `bin` for their version; `None` when they are absent
    /// or do not run.
    async fn inspect(bin: &Path) -> Option<Self> {
        if !bin.join("initdb").is_file() {
            return None;
        }
        let mut command = Command::new(bin.join("postgres"));
        command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(10), command.output()).await;
        let output = output.ok()?.ok()?;
        let major = parse_major(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { bin: bin.to_owned(), major })
    }

    /// Returns the path of one of the binaries.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-1)`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_whitespace().nth(2)?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Lists the directories that may hold the binaries.
fn candidate_dirs() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for (parent, prefix, suffix) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql", "bin"),
        ("/usr/local/opt", "postgresql", "bin"),
    ] {
        let Ok(entries) = fs::read_dir(parent) else { continue };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                dirs.push(entry.path().join(suffix));
            }
        }
    }
    dirs.sort();
    dirs.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    dirs.push(PathBuf::from("/usr/local/pgsql/bin"));
    dirs
}

/// The account that the server runs under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its user id.
    pub uid: Uid,
    /// Its group id.
    pub gid: Gid,
}

impl Account {
    /// Chooses an account when we are root, since PostgreSQL refuses to run as
    /// root: `postgres` if the machine has it, else `nobody`. `None` when we are
    /// an ordinary user and need no other.
    pub fn choose() -> Result<Option<Self>, PostgresError> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let Ok(Some(user)) = User::from_name(name) {
                return Ok(Some(Self { name: name.to_owned(), uid: user.uid, gid: user.gid }));
            }
        }
        Err(PostgresError::NoAccount)
    }

    /// Makes `command` run under the account.
    pub fn apply(account: Option<&Self>, command: &mut Command) {
        if let Some(account) = account {
            command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
        }
    }

    /// Refuses a directory that the account cannot pass through to.
    pub fn check_reaches(&self, path: &Path) -> Result<(), PostgresError> {
        use std::os::unix::fs::MetadataExt as _;
        for dir in path.ancestors() {
            let Ok(metadata) = fs::metadata(dir) else { continue };
            let needed = if metadata.uid() == self.uid.as_raw() {
                0o100
            } else if metadata.gid() == self.gid.as_raw() {
                0o010
            } else {
                0o001
            };
            if metadata.mode() & needed == 0 {
                return Err(PostgresError::OutOfReach {
                    account: self.name.clone(),
                    closed: dir.to_owned(),
                    path: path.to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation(major: u32) -> Installation {
        Installation { bin: PathBuf::from(format!("/pg/{major}/bin")), major }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18.4\n"), Some(18));
        assert_eq!(parse_major("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(parse_major("something else"), None);
    }

    #[test]
    fn the_newest_usable_version_is_chosen() {
        let found = vec![installation(14), installation(16), installation(19), installation(17)];
        assert_eq!(Installation::choose(found.clone(), None).unwrap().major, 17);
        assert_eq!(Installation::choose(found.clone(), Some(16)).unwrap().major, 16);
        let error = Installation::choose(found, Some(15)).unwrap_err().to_string();
        assert!(error.contains("PostgreSQL 15") && error.contains("19, 17, 16, 14"), "{error}");
    }

    #[test]
    fn nothing_usable_says_what_to_install() {
        let error = Installation::choose(vec![], None).unwrap_err().to_string();
        assert!(error.contains("15 to 18") && error.contains("apt-get install"), "{error}");
        let error = Installation::choose(vec![installation(14)], None).unwrap_err().to_string();
        assert!(error.contains("found only version 14"), "{error}");
    }
}
