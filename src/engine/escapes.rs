//! Known ways out of a container, and whether this machine has closed them.
//!
//! The table is `config/escapes.toml`. [`Machine::look`] finds which versions run here,
//! from the daemon itself and from the package manager; [`judge`] compares.
//! Distributions bring fixes back to older versions, so that an upstream number says
//! little: a package is compared with its distribution's own, else its changelog is
//! asked, and only what belongs to no package is compared with upstream.
//!
//! `infernet doctor` shows what is found. The agent refuses to start containers while a
//! way out is open, unless the owner says otherwise ([`KnownEscapes`]).

mod machine;
mod version;

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

pub use self::machine::{Component, Machine};
pub use self::version::{compare, upstream};

/// The table that is part of the binary.
const BUILT_IN: &str = include_str!("../../config/escapes.toml");

/// What is done about known ways out of containers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownEscapes {
    /// No container is started while one is open to the containers of this node.
    #[default]
    Refuse,
    /// Nor while one is there that this node's own walls close.
    RefuseAll,
    /// The owner knows, and containers are started.
    Accept,
}

/// A known way out of a container.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Escape {
    /// Its number.
    pub cve: String,
    /// What has to be updated.
    pub component: String,
    /// What happens, as the end of a sentence.
    pub what: String,
    /// The first upstream version of each branch with the fix.
    pub fixed: Vec<String>,
    /// Where a distribution brought the fix back.
    #[serde(default)]
    package: Vec<FixedPackage>,
    /// Why no container of this node can use it.
    #[serde(default)]
    pub closed_by: Option<String>,
    /// Where the numbers are from.
    pub source: String,
}

/// A distribution's package with a fix.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FixedPackage {
    release: String,
    version: String,
    // Read so that a row without one is refused.
    #[allow(dead_code, reason = "a source is for people; the table's parser insists on it")]
    source: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    escape: Vec<Escape>,
}

static TABLE: LazyLock<Vec<Escape>> = LazyLock::new(|| {
    let table: Table =
        toml::from_str(BUILT_IN).expect("the table of escapes is tested to be valid");
    table.escape
});

/// Returns every known way out.
#[must_use]
pub fn known() -> &'static [Escape] {
    &TABLE
}

/// A known way out that a component of this machine still has.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The way out.
    pub escape: &'static Escape,
    /// The version that has it.
    pub version: String,
    /// The version to update to at least.
    pub wanted: String,
}

impl Opening {
    /// Says whether it is a reason to start no containers.
    #[must_use]
    pub fn is_refused(&self, policy: KnownEscapes) -> bool {
        match policy {
            KnownEscapes::Refuse => self.escape.closed_by.is_none(),
            KnownEscapes::RefuseAll => true,
            KnownEscapes::Accept => false,
        }
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn advice(&self) -> String {
        format!("Update {} to {} or newer.", self.escape.component, self.wanted)
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Escape { cve, component, what, closed_by, .. } = self.escape;
        write!(
            formatter,
            "{component} {} has a known way out of containers, {cve}: {what}.",
            self.version
        )?;
        match closed_by {
            Some(reason) => write!(formatter, " The sandbox closes it: {reason}."),
            None => Ok(()),
        }
    }
}

/// Compares what runs on a machine with the table.
#[must_use]
pub fn judge(machine: &Machine) -> Vec<Opening> {
    let openings = machine.components.iter().flat_map(|component| {
        known()
            .iter()
            .filter(|escape| escape.component == component.name)
            .filter_map(|escape| opening(escape, component, &machine.release))
    });
    openings.collect()
}

/// Returns how a component is open to an escape, if it is.
fn opening(escape: &'static Escape, component: &Component, release: &str) -> Option<Opening> {
    let row =
        escape.package.iter().find(|row| component.package.is_some() && row.release == release);
    let open = |wanted: &str| Opening {
        escape,
        version: component.version.clone(),
        wanted: wanted.to_owned(),
    };
    if let Some(row) = row
        && compare(&component.version, &row.version).is_ge()
    {
        return None;
    }
    if component.changelog.contains(&escape.cve) {
        return None;
    }
    if let Some(row) = row {
        return Some(open(&row.version));
    }
    if version::is_fixed_upstream(&upstream(&component.version), &escape.fixed) {
        return None;
    }
    // The nearest branch with the fix is the one that costs the least to move to.
    let above = escape.fixed.iter().find(|fixed| compare(&component.version, fixed).is_lt());
    Some(open(above.or(escape.fixed.last()).map_or("a fixed version", String::as_str)))
}

/// Puts what is refused into one text, a line each; `None` when nothing is.
#[must_use]
pub fn refusal(openings: &[Opening], policy: KnownEscapes) -> Option<String> {
    let refused: Vec<String> = openings
        .iter()
        .filter(|opening| opening.is_refused(policy))
        .map(|opening| format!("{opening} {}", opening.advice()))
        .collect();
    (!refused.is_empty()).then(|| refused.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(name: &str, version: &str, package: bool) -> Component {
        Component {
            name: name.to_owned(),
            version: version.to_owned(),
            package: package.then(|| name.to_owned()),
            changelog: Vec::new(),
        }
    }

    fn machine(release: &str, components: Vec<Component>) -> Machine {
        Machine { release: release.to_owned(), components }
    }

    /// The ways out that a machine has, and those of them that are refused.
    fn found(machine: &Machine) -> (Vec<&'static str>, Vec<&'static str>) {
        let openings = judge(machine);
        let name = |opening: &Opening| opening.escape.cve.as_str();
        let refused = openings.iter().filter(|opening| opening.is_refused(KnownEscapes::Refuse));
        (openings.iter().map(name).collect(), refused.map(name).collect())
    }

    const OF_2025: [&str; 3] = ["CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"];

    #[test]
    fn the_table_is_whole() {
        assert!(known().len() > 10);
        for escape in known() {
            assert!(escape.cve.starts_with("CVE-"), "{escape:?}");
            assert!(machine::COMPONENTS.iter().any(|(name, _)| *name == escape.component));
            assert!(!escape.fixed.is_empty() && escape.source.starts_with("https://"));
            let sorted = escape.fixed.is_sorted_by(|a, b| compare(a, b).is_lt());
            assert!(sorted, "{}: lowest branch first", escape.cve);
        }
    }

    #[test]
    fn debian_12_is_compared_with_debians_own_versions() {
        let of = |runc: &str| {
            let containerd = component("containerd", "1.6.20~ds1-1+deb12u3", true);
            machine("debian-12", vec![component("runc", runc, true), containerd])
        };
        // Upstream's 1.1.5 has the way out, Debian's with this revision has not.
        let (all, refused) = found(&of("1.1.5+ds1-1+deb12u1"));
        assert_eq!(all, OF_2025);
        assert!(refused.is_empty(), "{refused:?}");
        let (_, refused) = found(&of("1.1.5+ds1-1"));
        assert_eq!(refused, ["CVE-2024-21626"]);
        let openings = judge(&of("1.1.5+ds1-1"));
        assert_eq!(openings[0].wanted, "1.1.5+ds1-1+deb12u1");
        assert!(refusal(&openings, KnownEscapes::Refuse).unwrap().contains("deb12u1 or newer."));
    }

    #[test]
    fn the_same_number_without_a_package_is_upstreams() {
        let (_, refused) =
            found(&machine("debian-12", vec![component("runc", "1.1.5+ds1", false)]));
        assert_eq!(refused, ["CVE-2024-21626"]);
        let (all, _) = found(&machine("debian-12", vec![component("runc", "1.2.8", false)]));
        assert!(all.is_empty(), "{all:?}");
        // A branch between two fixed ones that got no fix of its own.
        let (all, _) = found(&machine("arch", vec![component("runc", "1.3.2", false)]));
        assert_eq!(all, OF_2025);
        let (all, _) = found(&machine("arch", vec![component("runc", "1.4.0-rc.2", false)]));
        assert_eq!(all, OF_2025);
        let (all, _) = found(&machine("arch", vec![component("runc", "1.5.0-rc.1", false)]));
        assert!(all.is_empty(), "{all:?}");
    }

    #[test]
    fn ubuntu_and_dockers_own_packages_are_understood() {
        let (_, refused) = found(&machine(
            "ubuntu-22.04",
            vec![component("runc", "1.1.7-0ubuntu1~22.04.2", true)],
        ));
        assert!(refused.is_empty());
        let (_, refused) = found(&machine(
            "ubuntu-22.04",
            vec![component("runc", "1.1.7-0ubuntu1~22.04.1", true)],
        ));
        assert_eq!(refused, ["CVE-2024-21626"]);
        let (all, _) = found(&machine(
            "ubuntu-24.04",
            vec![component("runc", "1.3.3-0ubuntu1~24.04.2", true)],
        ));
        assert!(all.is_empty(), "{all:?}");
        let docker = component("docker", "5:28.0.1-1~debian.12~bookworm", true);
        assert!(found(&machine("debian-12", vec![docker])).0.is_empty());
    }

    #[test]
    fn a_changelog_that_names_the_fix_is_believed() {
        let mut runc = component("runc", "1.1.9-1.el9", true);
        let of = |runc: &Component| found(&machine("rhel-9.3", vec![runc.clone()])).1;
        assert_eq!(of(&runc), ["CVE-2024-21626"]);
        runc.changelog.push("CVE-2024-21626".to_owned());
        assert!(of(&runc).is_empty());
    }

    #[test]
    fn nvidias_toolkit_has_a_floor() {
        let of = |version: &str| {
            found(&machine(
                "ubuntu-24.04",
                vec![component("nvidia-container-toolkit", version, true)],
            ))
            .1
        };
        assert_eq!(of("1.17.7-1"), ["CVE-2025-23266", "CVE-2025-23267"]);
        assert_eq!(of("1.16.1-1").len(), 4);
        assert!(of("1.17.8-1").is_empty());
        assert!(of("1.18.2-1").is_empty());
    }

    #[test]
    fn the_owner_decides() {
        let openings =
            judge(&machine("debian-12", vec![component("runc", "1.1.5+ds1-1+deb12u1", true)]));
        assert!(refusal(&openings, KnownEscapes::Refuse).is_none());
        assert_eq!(refusal(&openings, KnownEscapes::RefuseAll).unwrap().lines().count(), 3);
        let openings = judge(&machine("debian-12", vec![component("runc", "1.1.4", false)]));
        assert!(refusal(&openings, KnownEscapes::Accept).is_none());
    }
}
