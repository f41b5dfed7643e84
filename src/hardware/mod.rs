//! What this machine is made of: processors, memory and GPUs.
//!
//! [`inventory`] makes the coarse description that a node registers with. It names
//! kinds and sizes, never serial numbers, host names or exact amounts, so that it
//! tells a market what a node can do without telling which machine it is. What
//! [`gpus`] finds besides (identities, use, temperatures, complaints) is for the owner
//! alone, and shown by `infernet gpu`.
//!
//! In reading order: [`gpu`] holds the questions to a driver and what follows from its
//! answers, [`nvml`] asks NVIDIA's, [`xid`] reads its complaints, [`host`] knows
//! processors and memory.

pub mod gpu;
pub mod host;
pub mod nvml;
pub mod xid;

use serde::Serialize;

pub use self::gpu::{Card, Condition, GpuDriver, GpuReport, Instance};
pub use self::nvml::NvidiaDriver;

/// The most GPUs that a description names, and the length of a name; a control plane
/// takes no more.
const MOST_GPUS: usize = 64;
const NAME_LENGTH: usize = 80;

/// The coarse description of a machine, as `register_node` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// Operating system and processor kind, such as `linux-x86_64`.
    pub platform: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Memory in GiB, rounded; `None` where it cannot be told.
    pub ram_gb: Option<u64>,
    /// GPUs, largest first.
    pub gpus: Vec<GpuSummary>,
}

/// A GPU, coarsely.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct GpuSummary {
    /// Its maker, such as `nvidia`.
    pub vendor: String,
    /// Its product name.
    pub model: String,
    /// The size of its memory among those that are sold, such as `24GB`.
    pub vram_tier: String,
}

/// Asks the drivers of this machine for their GPUs; none without a driver.
#[must_use]
pub fn gpus() -> GpuReport {
    let nothing = GpuReport { driver: None, cards: Vec::new() };
    let driver = match NvidiaDriver::load() {
        Ok(driver) => driver,
        Err(error) => {
            tracing::info!(%error, "no NVIDIA GPU can be used");
            return nothing;
        }
    };
    gpu::look(&driver).unwrap_or_else(|refusal| {
        tracing::warn!(%refusal, "the GPUs cannot be counted");
        nothing
    })
}

/// Looks at this machine. GPUs that cannot be asked are left out, with a line in the
/// log: a node without them still serves.
#[must_use]
pub fn inventory() -> Inventory {
    inventory_of(&gpus())
}

/// Describes this machine with these GPUs: the one place in which something of them
/// becomes a description that leaves the machine. A sick card is not offered, and a
/// partitioned one is offered as its instances.
#[must_use]
pub fn inventory_of(report: &GpuReport) -> Inventory {
    let mut usable: Vec<(&str, u64)> = Vec::new();
    for card in &report.cards {
        if card.condition == Condition::Sick {
            tracing::warn!(card = card.index, complaints = ?card.complaints, "a GPU is left out");
        } else if card.partitioned {
            usable
                .extend(card.instances.iter().map(|part| (part.name.as_str(), part.memory_bytes)));
        } else if let (Some(name), Some(bytes)) = (&card.name, card.memory_bytes) {
            usable.push((name, bytes));
        }
    }
    usable.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    Inventory {
        platform: host::platform(),
        cpus: host::cpus(),
        ram_gb: host::memory_bytes().map(|bytes| bytes.saturating_add(1 << 29) >> 30),
        gpus: usable
            .into_iter()
            .take(MOST_GPUS)
            .map(|(name, bytes)| GpuSummary {
                vendor: "nvidia".to_owned(),
                model: plain_name(name),
                vram_tier: vram_tier(bytes),
            })
            .collect(),
    }
}

/// Returns a product's name as a control plane takes it: a driver's name with any other
/// character would have the whole machine refused.
fn plain_name(name: &str) -> String {
    let plain: String = name
        .trim_start_matches(|c: char| !c.is_ascii_alphanumeric())
        .chars()
        .filter(|&c| c.is_ascii_alphanumeric() || " ._()/+-".contains(c))
        .take(NAME_LENGTH)
        .collect();
    if plain.is_empty() { "unknown".to_owned() } else { plain }
}

/// Returns the size of memory that a GPU with so many bytes is sold with. Drivers report
/// somewhat less than that, or somewhat more.
#[must_use]
pub fn vram_tier(bytes: u64) -> String {
    const SOLD_GB: [u64; 25] = [
        2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 18, 20, 24, 32, 40, 48, 64, 71, 80, 94, 96, 128, 141,
        192, 288,
    ];
    let megabytes = bytes / 1_000_000;
    let nearest = SOLD_GB.iter().min_by_key(|&&gb| {
        // Sizes are sold in units between 1000³ and 1024³ bytes.
        megabytes.abs_diff(gb * 1_037)
    });
    format!("{}GB", nearest.expect("the list of sizes is not empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_the_sizes_that_are_sold() {
        // As NVML reports them: RTX 3060, RTX 4090, A100 40 GB, A100 80 GB, H100, H200.
        for (mib, tier) in [
            (12_288, "12GB"),
            (24_564, "24GB"),
            (40_960, "40GB"),
            (81_920, "80GB"),
            (81_559, "80GB"),
            (143_771, "141GB"),
        ] {
            assert_eq!(vram_tier(mib << 20), tier, "{mib} MiB");
        }
    }

    #[test]
    fn names_are_what_a_control_plane_takes() {
        assert_eq!(plain_name("NVIDIA GeForce RTX 4090"), "NVIDIA GeForce RTX 4090");
        assert_eq!(plain_name("NVIDIA RTX™ <b>A6000</b>"), "NVIDIA RTX bA6000/b");
        assert_eq!(plain_name("™"), "unknown");
        assert_eq!(plain_name(&"x".repeat(200)).len(), NAME_LENGTH);
    }

    #[test]
    fn this_machine_has_an_inventory() {
        let inventory = inventory();
        assert!(inventory.cpus > 0);
        assert!(inventory.platform.contains('-'));
        let json = serde_json::to_string(&inventory).unwrap();
        assert!(json.len() < 8192, "{json}");
    }
}
