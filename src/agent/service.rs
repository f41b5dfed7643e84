//! The agent as a service of systemd: its unit, and `systemctl`.
//!
//! [`Unit::render`] is the whole unit file, made from nothing but what it is given,
//! so that it is reviewed as a snapshot on machines without systemd. The folders of
//! this program are written into it, so that the service and the commands of the
//! same user find the same agent.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::process::Command;
use tokio::time::timeout;

/// The name of the unit.
pub const UNIT: &str = "infernet.service";

/// What the agent needs to end beyond the time of running jobs.
const WINDING_UP: Duration = Duration::from_secs(45);

/// How long `systemctl` may take; starting waits until the agent is ready.
const SYSTEMCTL_TIME: Duration = Duration::from_secs(300);

/// How long a question to `systemctl` may take.
const QUESTION_TIME: Duration = Duration::from_secs(5);

/// Why the service could not be made, removed or asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no systemd.
    #[error("This machine has no systemd: systemctl was not found.")]
    NoSystemd,
    /// Only root may.
    #[error("A service of the whole system can only be changed by root.")]
    NotRoot,
    /// There is no such user.
    #[error("There is no user {0} on this machine.")]
    UnknownUser(String),
    /// The home directory is not known.
    #[error(
        "The folder of this user's services cannot be found: neither XDG_CONFIG_HOME nor HOME is set."
    )]
    NoHome,
    /// The unit's file could not be used.
    #[error("Cannot use {}.", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A path cannot stand in a unit.
    #[error("The path {} cannot be written into a unit: it has a line break.", .0.display())]
    BadPath(PathBuf),
    /// `systemctl` failed.
    #[error("systemctl {what} failed: {said}")]
    Systemctl {
        /// What it was told.
        what: String,
        /// What it said.
        said: String,
    },
    /// `systemctl` did not end.
    #[error("systemctl {what} did not end within {} s.", after.as_secs())]
    Slow {
        /// What it was told.
        what: String,
        /// How long was waited.
        after: Duration,
    },
}

/// Whose service it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Of the machine: starts when it boots.
    System,
    /// Of a user: starts when the user logs in, or at boot with lingering.
    User,
}

impl Scope {
    /// Returns the folder of such units.
    fn folder(self) -> Result<PathBuf, ServiceError> {
        match self {
            Self::System => Ok("/etc/systemd/system".into()),
            Self::User => {
                let given = |name| std::env::var_os(name).filter(|value| !value.is_empty());
                let config = given("XDG_CONFIG_HOME").map(PathBuf::from);
                let config = config.or_else(|| Some(PathBuf::from(given("HOME")?).join(".config")));
                Ok(config.ok_or(ServiceError::NoHome)?.join("systemd/user"))
            }
        }
    }

    /// Returns the unit's file.
    pub fn unit_file(self) -> Result<PathBuf, ServiceError> {
        Ok(self.folder()?.join(UNIT))
    }

    /// Returns what `systemctl` is told of the scope.
    const fn flag(self) -> &'static str {
        match self {
            Self::System => "--system",
            Self::User => "--user",
        }
    }
}

/// A user that a service runs as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RunAs {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
}

impl RunAs {
    /// Finds a user by name.
    pub fn find(name: &str) -> Result<Self, ServiceError> {
        match nix::unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(Self { name: user.name, uid: user.uid.as_raw() }),
            _ => Err(ServiceError::UnknownUser(name.to_owned())),
        }
    }
}

/// What a unit is made from.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Whose service it is.
    pub scope: Scope,
    /// This program.
    pub binary: PathBuf,
    /// The folder of the configuration and the keys.
    pub config: PathBuf,
    /// The folder of journals, logs and caches.
    pub state: PathBuf,
    /// The folder of the PID file and the sockets.
    pub runtime: PathBuf,
    /// Who it runs as; a service of a user runs as that user anyway.
    pub run_as: Option<RunAs>,
    /// How long running jobs may take to finish.
    pub grace: Duration,
}

impl Unit {
    /// Writes the unit as text.
    pub fn render(&self) -> Result<String, ServiceError> {
        let system = self.scope == Scope::System;
        let mut unit = String::from(
            "# Written by infernet service install, which writes it again. Your own changes\n\
             # belong into a drop-in: systemctl edit infernet\n\
             [Unit]\n\
             Description=Infernet agent, a node of an inference market\n",
        );
        let mut line = |text: &str| {
            unit.push_str(text);
            unit.push('\n');
        };
        // Docker may also be started later: the agent says so and is started again.
        if system {
            line("Wants=network-online.target");
            line("After=network-online.target docker.service podman.socket");
            if let Some(run_as) = &self.run_as
                && self.runtime.starts_with(format!("/run/user/{}", run_as.uid))
            {
                // The folder is there from the boot on, and outlives the user's sessions.
                line(&format!("Requires=user-runtime-dir@{}.service", run_as.uid));
                line(&format!("After=user-runtime-dir@{}.service", run_as.uid));
            }
        }
        line("StartLimitIntervalSec=0");
        line("\n[Service]");
        line("Type=notify");
        line("NotifyAccess=main");
        line(&format!("ExecStart={} start --foreground", quoted_command(&self.binary)?));
        if let (true, Some(run_as)) = (system, &self.run_as) {
            line(&format!("User={}", run_as.name));
        }
        for (name, path) in [
            ("INFERNET_CONFIG_DIR", &self.config),
            ("INFERNET_STATE_DIR", &self.state),
            ("INFERNET_RUNTIME_DIR", &self.runtime),
        ] {
            line(&format!("Environment={}", quoted(&format!("{name}={}", text(path)?))));
        }
        // Everything but a wrong command line may pass, such as a disk or a network
        // that comes later.
        line("Restart=on-failure");
        line("RestartSec=10");
        line("RestartPreventExitStatus=2");
        line("WatchdogSec=60");
        // Reading a new model's file through to check it takes minutes.
        line("TimeoutStartSec=1800");
        line(&format!("TimeoutStopSec={}", (self.grace + WINDING_UP).as_secs()));
        line("KillMode=mixed");
        line("UMask=0077");
        line("LimitNOFILE=65536");
        line("\n# What the agent does not need. Engines run in containers of Docker, not here.");
        for limit in [
            "NoNewPrivileges=yes",
            "LockPersonality=yes",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
            "RestrictNamespaces=yes",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service",
            "SystemCallErrorNumber=EPERM",
        ] {
            line(limit);
        }
        if system {
            // These need mounts or capabilities, which a user's manager does not have.
            for limit in [
                "ProtectSystem=strict",
                "ProtectHome=read-only",
                "ProtectClock=yes",
                "ProtectControlGroups=yes",
                "ProtectHostname=yes",
                "ProtectKernelLogs=yes",
                "ProtectKernelModules=yes",
                "ProtectKernelTunables=yes",
                "ProtectProc=invisible",
            ] {
                line(limit);
            }
            let paths = [&self.config, &self.state, &self.runtime];
            if !paths.iter().any(|path| path.starts_with("/tmp") || path.starts_with("/var/tmp")) {
                line("PrivateTmp=yes");
            }
            for path in [&self.state, &self.runtime] {
                line(&format!("ReadWritePaths={}", quoted(&format!("-{}", text(path)?))));
            }
            let root = self.run_as.as_ref().is_none_or(|run_as| run_as.uid == 0);
            // Root gives the engines' sockets to the user that containers run as.
            let capabilities = if root { "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER" } else { "" };
            line(&format!("CapabilityBoundingSet={capabilities}"));
        }
        line("\n[Install]");
        line(if system { "WantedBy=multi-user.target" } else { "WantedBy=default.target" });
        Ok(unit)
    }

    /// Writes the unit's file and has systemd start it, now and at every boot.
    pub async fn install(&self) -> Result<PathBuf, ServiceError> {
        may_change(self.scope)?;
        let text = self.render()?;
        // Asked first, so that nothing is left where systemd does not run.
        question(self.scope, &["show", "--property=Version"]).await?;
        let path = self.scope.unit_file()?;
        write(&path, &text).map_err(|source| ServiceError::File { path: path.clone(), source })?;
        systemctl(self.scope, &["daemon-reload"]).await?;
        systemctl(self.scope, &["enable", UNIT]).await?;
        systemctl(self.scope, &["restart", UNIT]).await?;
        Ok(path)
    }
}

/// Stops the service and removes its unit. Answers the file, or `None` when there
/// was none.
pub async fn uninstall(scope: Scope) -> Result<Option<PathBuf>, ServiceError> {
    let path = scope.unit_file()?;
    if !path.exists() {
        return Ok(None);
    }
    may_change(scope)?;
    systemctl(scope, &["disable", "--now", UNIT]).await?;
    fs::remove_file(&path).map_err(|source| ServiceError::File { path: path.clone(), source })?;
    systemctl(scope, &["daemon-reload"]).await?;
    Ok(Some(path))
}

/// Has systemd restart the service.
pub async fn restart(scope: Scope) -> Result<(), ServiceError> {
    may_change(scope)?;
    systemctl(scope, &["restart", UNIT]).await.map(drop)
}

/// How the service stands.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceStatus {
    /// Whose service it is.
    pub scope: Scope,
    /// The unit's file.
    pub unit_file: PathBuf,
    /// Such as `active`, `failed` or `inactive`.
    pub active: String,
    /// Such as `running` or `dead`.
    pub sub: String,
    /// Such as `enabled` or `disabled`.
    pub enabled: String,
    /// The process, while it runs.
    pub pid: Option<u32>,
    /// How often systemd started it again.
    pub restarts: u32,
}

/// Asks how the service stands; `None` when it is not installed.
pub async fn status(scope: Scope) -> Result<Option<ServiceStatus>, ServiceError> {
    let unit_file = scope.unit_file()?;
    if !unit_file.exists() {
        return Ok(None);
    }
    let asked = "--property=ActiveState,SubState,UnitFileState,MainPID,NRestarts";
    let said = question(scope, &["show", asked, UNIT]).await?;
    let value = |name: &str| {
        let found = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    };
    Ok(Some(ServiceStatus {
        scope,
        unit_file,
        active: value("ActiveState"),
        sub: value("SubState"),
        enabled: value("UnitFileState"),
        pid: value("MainPID").parse().ok().filter(|pid| *pid > 0),
        restarts: value("NRestarts").parse().unwrap_or_default(),
    }))
}

/// Finds whose service a process is, if it is one of ours.
pub async fn managing(pid: i32) -> Option<Scope> {
    for scope in [Scope::System, Scope::User] {
        let status = status(scope).await.ok().flatten();
        if status.is_some_and(|status| status.pid.map(i64::from) == Some(i64::from(pid))) {
            return Some(scope);
        }
    }
    None
}

/// Says whether a user's services run without the user being logged in.
pub fn lingers(user: &str) -> bool {
    Path::new("/var/lib/systemd/linger").join(user).exists()
}

fn may_change(scope: Scope) -> Result<(), ServiceError> {
    if scope == Scope::System && !nix::unistd::geteuid().is_root() {
        return Err(ServiceError::NotRoot);
    }
    Ok(())
}

/// Replaces the file in one step.
fn write(path: &Path, unit: &str) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    let draft = path.with_extension("service.new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&draft)?;
    io::Write::write_all(&mut file, unit.as_bytes())?;
    fs::rename(draft, path)
}

async fn systemctl(scope: Scope, arguments: &[&str]) -> Result<String, ServiceError> {
    call(scope, arguments, SYSTEMCTL_TIME).await
}

async fn question(scope: Scope, arguments: &[&str]) -> Result<String, ServiceError> {
    call(scope, arguments, QUESTION_TIME).await
}

async fn call(scope: Scope, arguments: &[&str], limit: Duration) -> Result<String, ServiceError> {
    let what = arguments.join(" ");
    let mut command = Command::new("systemctl");
    command
        .arg(scope.flag())
        .args(["--no-ask-password", "--no-pager"])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match timeout(limit, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(ServiceError::Systemctl { what, said })
        }
        Ok(Err(_not_there)) => Err(ServiceError::NoSystemd),
        Err(_slow) => Err(ServiceError::Slow { what, after: limit }),
    }
}

/// Returns a path as text of a unit.
fn text(path: &Path) -> Result<String, ServiceError> {
    let bad = || ServiceError::BadPath(path.to_owned());
    let text = path.to_str().ok_or_else(bad)?;
    if path.as_os_str().as_bytes().iter().any(|byte| byte.is_ascii_control()) {
        return Err(bad());
    }
    Ok(text.to_owned())
}

/// Quotes a word as systemd reads it: no specifiers, no escapes.
fn quoted(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('"');
    for character in word.chars() {
        match character {
            '%' => quoted.push_str("%%"),
            '"' | '\\' => {
                // Writing to a text cannot fail.
                let _written = write!(quoted, "\\{character}");
            }
            character => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// The same for a command, in which a dollar begins a variable.
fn quoted_command(path: &Path) -> Result<String, ServiceError> {
    Ok(quoted(&text(path)?).replace('$', "$$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(scope: Scope, user: Option<(&str, u32)>) -> Unit {
        Unit {
            scope,
            binary: "/usr/local/bin/infernet".into(),
            config: "/home/ada/.config/infernet".into(),
            state: "/home/ada/.local/state/infernet".into(),
            runtime: "/run/user/1000/infernet".into(),
            run_as: user.map(|(name, uid)| RunAs { name: name.to_owned(), uid }),
            grace: Duration::from_secs(30),
        }
    }

    #[test]
    fn the_units_are_as_reviewed() {
        let system = unit(Scope::System, Some(("ada", 1000))).render().unwrap();
        let user = unit(Scope::User, None).render().unwrap();
        insta::assert_snapshot!(format!("{system}\n--- of a user ---\n{user}"));
    }

    #[test]
    fn paths_are_quoted_and_cannot_add_lines() {
        let mut odd = unit(Scope::System, None);
        odd.binary = "/opt/a b/$x/100%/\"q\"/infernet".into();
        let text = odd.render().unwrap();
        assert!(
            text.contains(
                "ExecStart=\"/opt/a b/$$x/100%%/\\\"q\\\"/infernet\" start --foreground\n"
            )
        );
        odd.state = "/a\nExecStartPre=/bin/evil".into();
        assert!(matches!(odd.render(), Err(ServiceError::BadPath(_))));
    }

    #[test]
    fn root_keeps_what_sockets_of_engines_need() {
        let root = unit(Scope::System, None).render().unwrap();
        assert!(root.contains("CapabilityBoundingSet=CAP_CHOWN"));
        assert!(!root.contains("User="));
        let ada = unit(Scope::System, Some(("ada", 1000))).render().unwrap();
        assert!(ada.contains("CapabilityBoundingSet=\n"));
        assert!(RunAs::find("no-such-user-here").is_err());
        assert_eq!(RunAs::find("root").unwrap().uid, 0);
    }
}
