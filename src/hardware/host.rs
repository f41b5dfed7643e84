//! Processors and memory.

use serde::Serialize;

/// Returns operating system and processor kind, such as `linux-x86_64`.
#[must_use]
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

/// Returns the processors that this process may use, at least one.
#[must_use]
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What this machine computes with, beside GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Operating system and processor kind.
    pub platform: String,
    /// The processor's product name, where the system tells.
    pub processor: Option<String>,
    /// Processors that this process may use.
    pub cpus: usize,
    /// The size of memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// What a new program could have of it, in bytes.
    pub memory_available_bytes: Option<u64>,
}

/// Looks at processors and memory.
#[must_use]
pub fn look() -> Host {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Host {
        platform: platform(),
        processor: parse_processor(&cpuinfo),
        cpus: cpus(),
        memory_bytes: parse_size(&meminfo, "MemTotal:"),
        memory_available_bytes: parse_size(&meminfo, "MemAvailable:"),
    }
}

/// Returns the size of memory in bytes; `None` where the system does not say in
/// `/proc/meminfo`.
#[must_use]
pub fn memory_bytes() -> Option<u64> {
    parse_size(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// Reads a line such as `MemTotal: N kB`.
fn parse_size(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Reads the first line `model name : …`; not every kind of processor has one.
fn parse_processor(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    let name = line.split_once(':')?.1.split_whitespace().collect::<Vec<_>>().join(" ");
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        let text = "MemTotal:       24682008 kB\nMemFree:        1 kB\nMemAvailable:   2 kB\n";
        assert_eq!(parse_size(text, "MemTotal:"), Some(24_682_008 * 1024));
        assert_eq!(parse_size(text, "MemAvailable:"), Some(2048));
        assert_eq!(parse_size("MemFree: 1 kB\n", "MemTotal:"), None);
        assert_eq!(parse_size("MemTotal: many kB\n", "MemTotal:"), None);
    }

    #[test]
    fn the_processor_is_read_from_cpuinfo() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 7B13   64-Core\n\nprocessor\t: 1\n";
        assert_eq!(parse_processor(text).as_deref(), Some("AMD EPYC 7B13 64-Core"));
        assert_eq!(parse_processor("processor\t: 0\nmodel name\t:\n"), None);
        assert_eq!(parse_processor("CPU part: 0xd0c\n"), None);
    }
}
