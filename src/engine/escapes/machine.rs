//! Which versions of what contains containers run on this machine.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How long a package manager may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// The components of the table, and the packages that they come in. A package of a
/// project's own (`containerd.io`) follows upstream's versions, as no package does.
pub(super) const COMPONENTS: [(&str, &[&str]); 4] = [
    ("runc", &["runc"]),
    ("containerd", &["containerd", "containerd.io"]),
    ("docker", &["docker.io", "docker-ce", "moby-engine", "docker"]),
    ("nvidia-container-toolkit", &["nvidia-container-toolkit"]),
];

/// What was found on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The distribution and its version, such as `debian-12`.
    pub release: String,
    /// What is known to run.
    pub components: Vec<Component>,
}

/// A program that keeps containers in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name in the table.
    pub name: String,
    /// Its version: that of its package, if it has one.
    pub version: String,
    /// The package that it comes in.
    pub package: Option<String>,
    /// The fixes that the package's changelog names.
    pub changelog: Vec<String>,
}

/// A package that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
}

/// The package manager of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Dpkg,
    Rpm,
}

impl Machine {
    /// Looks at this machine. `reported` is what the daemon says of itself and its
    /// parts: names and versions.
    pub async fn look(reported: &[(String, String)]) -> Self {
        let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let (manager, packages) = installed().await;
        let mut components = Vec::new();
        for (name, names_of_packages) in COMPONENTS {
            let said = reported.iter().find(|(part, _)| component_of(part) == Some(name));
            let said = said.map(|(_, version)| plain(version));
            let package = packages
                .iter()
                .filter(|package| names_of_packages.contains(&package.name.as_str()))
                .find(|package| said.is_none_or(|said| is_of_package(said, &package.version)));
            let (version, package) = match (package, said) {
                (Some(package), _) => (package.version.clone(), Some(package.name.clone())),
                (None, Some(said)) => (said.to_owned(), None),
                // Nothing runs it, or it came without a package.
                (None, None) => match toolkit(name).await {
                    Some(version) => (version, None),
                    None => continue,
                },
            };
            let changelog = match (manager, &package) {
                (Some(manager), Some(package)) => fixes(&changelog(manager, package).await),
                _ => Vec::new(),
            };
            components.push(Component { name: name.to_owned(), version, package, changelog });
        }
        Self { release: release(&os_release), components }
    }
}

/// Translates what a daemon calls a part of itself.
fn component_of(part: &str) -> Option<&'static str> {
    match part {
        "Engine" => Some("docker"),
        "runc" | "OCI Runtime (runc)" => Some("runc"),
        "containerd" => Some("containerd"),
        _ => None,
    }
}

/// Returns the version in what a daemon reports; Podman hands on all that runc prints.
fn plain(said: &str) -> &str {
    let line = said.lines().next().unwrap_or_default();
    line.rsplit_once("version ").map_or(line, |(_, version)| version).trim()
}

/// Says whether what a daemon reports comes from a package of this version: Docker says
/// `1.1.5+ds1` of `1.1.5+ds1-1+deb12u1`, and `v1.7.25` of `1.7.25-1`.
fn is_of_package(said: &str, version: &str) -> bool {
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    let said = said.trim_start_matches('v');
    let longer =
        |rest: &str| rest.is_empty() || !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    version.strip_prefix(said).is_some_and(longer)
}

/// Returns distribution and version from `/etc/os-release`.
fn release(os_release: &str) -> String {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    format!("{}-{}", value("ID"), value("VERSION_ID"))
}

/// Asks the package managers which of the packages are there.
async fn installed() -> (Option<Manager>, Vec<Package>) {
    let names: Vec<&str> = COMPONENTS.iter().flat_map(|(_, names)| *names).copied().collect();
    let mut dpkg = Command::new("dpkg-query");
    dpkg.args(["--show", "--showformat", "${Package} ${Version} ${db:Status-Status}\\n"]);
    // Both end with a failure when one of the packages is not there.
    let text = ask(dpkg.args(&names)).await;
    let packages = parse_packages(&text);
    if !packages.is_empty() {
        return (Some(Manager::Dpkg), packages);
    }
    let mut rpm = Command::new("rpm");
    rpm.args(["--query", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE} installed\\n"]);
    let text = ask(rpm.args(&names)).await;
    let packages = parse_packages(&text);
    ((!packages.is_empty()).then_some(Manager::Rpm), packages)
}

/// Reads lines `name version installed`.
fn parse_packages(text: &str) -> Vec<Package> {
    let package = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next()?, words.next()?);
        let there = words.next() == Some("installed");
        there.then(|| Package { name: name.to_owned(), version: version.to_owned() })
    };
    text.lines().filter_map(package).collect()
}

/// Returns the changelog that a package brings, or nothing.
async fn changelog(manager: Manager, package: &str) -> String {
    match manager {
        Manager::Dpkg => {
            let path = format!("/usr/share/doc/{package}/changelog.Debian.gz");
            if !Path::new(&path).exists() {
                return String::new();
            }
            ask(Command::new("gzip").args(["--decompress", "--stdout"]).arg(path)).await
        }
        Manager::Rpm => ask(Command::new("rpm").args(["--query", "--changelog", package])).await,
    }
}

/// Returns the numbers of the fixes that a changelog names.
fn fixes(changelog: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (at, _) in changelog.match_indices("CVE-") {
        let rest = &changelog[at + 4..];
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(rest.len());
        found.push(format!("CVE-{}", rest[..end].trim_end_matches('-')));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Asks NVIDIA's toolkit itself, where no package manager knows of it.
async fn toolkit(name: &str) -> Option<String> {
    if name != "nvidia-container-toolkit" {
        return None;
    }
    let text = ask(Command::new("nvidia-ctk").arg("--version")).await;
    parse_toolkit(&text)
}

/// Reads `NVIDIA Container Toolkit CLI version 1.17.8`.
fn parse_toolkit(text: &str) -> Option<String> {
    let version = text.lines().next()?.rsplit_once("version ")?.1.trim();
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// Returns what a program prints, or nothing when it is not there or takes too long.
async fn ask(command: &mut Command) -> String {
    command.env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(ASK_TIMEOUT, command.output()).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_daemon_says_is_found_among_the_packages() {
        assert!(is_of_package("1.1.5+ds1", "1.1.5+ds1-1+deb12u1"));
        assert!(is_of_package("20.10.24+dfsg1", "20.10.24+dfsg1-1+deb12u1+b6"));
        assert!(is_of_package("28.0.1", "5:28.0.1-1~debian.12~bookworm"));
        assert!(is_of_package("v1.7.25", "1.7.25-1"));
        assert!(!is_of_package("1.1.4", "1.1.5+ds1-1+deb12u1"));
        assert!(!is_of_package("1.1", "1.1.5-1"));
        assert!(!is_of_package("1.7.2", "1.7.25-1"));
        assert_eq!(plain("runc version 1.1.12\ncommit: v1.1.12-0\n"), "1.1.12");
        assert_eq!(plain("1.1.5+ds1"), "1.1.5+ds1");
    }

    #[test]
    fn packages_are_read_from_either_manager() {
        let text = "runc 1.1.5+ds1-1+deb12u1 installed\ndocker.io 20 config-files\n\
                    package docker-ce is not installed\n";
        let packages = parse_packages(text);
        assert_eq!(packages.len(), 1, "{packages:?}");
        assert_eq!(packages[0].version, "1.1.5+ds1-1+deb12u1");
    }

    #[test]
    fn a_changelog_names_its_fixes() {
        let text = "  * CVE-2024-21626: several container breakouts\n  * Fixes: CVE-2025-64329.\n\
                    again CVE-2024-21626";
        assert_eq!(fixes(text), ["CVE-2024-21626", "CVE-2025-64329"]);
    }

    #[test]
    fn release_and_toolkit_are_read() {
        assert_eq!(release("NAME=x\nID=debian\nVERSION_ID=\"12\"\n"), "debian-12");
        assert_eq!(release("ID=arch\n"), "arch-");
        let text = "NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80\n";
        assert_eq!(parse_toolkit(text).as_deref(), Some("1.17.8"));
        assert_eq!(parse_toolkit("bash: nvidia-ctk: command not found"), None);
    }
}
