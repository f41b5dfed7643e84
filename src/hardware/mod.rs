//! What this machine is made of: processors, memory and GPUs.
//!
//! [`inventory`] makes the coarse description that a node registers with. It names
//! kinds and sizes, never serial numbers, host names or exact amounts, so that it
//! tells a market what a node can do without telling which machine it is.

pub mod host;
pub mod nvml;

use serde::Serialize;

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

/// Looks at this machine. GPUs that cannot be asked are left out, with a line in the
/// log: a node without them still serves.
#[must_use]
pub fn inventory() -> Inventory {
    let mut gpus = nvml::gpus().unwrap_or_else(|error| {
        tracing::info!(%error, "no NVIDIA GPU can be used");
        Vec::new()
    });
    gpus.sort_by_key(|gpu| std::cmp::Reverse(gpu.memory_bytes));
    Inventory {
        platform: host::platform(),
        cpus: host::cpus(),
        ram_gb: host::memory_bytes().map(|bytes| bytes.saturating_add(1 << 29) >> 30),
        gpus: gpus
            .into_iter()
            .map(|gpu| GpuSummary {
                vendor: "nvidia".to_owned(),
                vram_tier: vram_tier(gpu.memory_bytes),
                model: gpu.name,
            })
            .collect(),
    }
}

/// Returns the size of memory that a GPU with so many bytes is sold with. Drivers report
/// somewhat less than that, or somewhat more.
fn vram_tier(bytes: u64) -> String {
    const SOLD_GB: [u64; 22] =
        [2, 3, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 128, 141, 192, 288];
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
    fn this_machine_has_an_inventory() {
        let inventory = inventory();
        assert!(inventory.cpus > 0);
        assert!(inventory.platform.contains('-'));
        let json = serde_json::to_string(&inventory).unwrap();
        assert!(json.len() < 8192, "{json}");
    }
}
