//! Processors and memory.

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

/// Returns the size of memory in bytes; `None` where the system does not say in
/// `/proc/meminfo`.
#[must_use]
pub fn memory_bytes() -> Option<u64> {
    parse_total(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Reads the line `MemTotal: N kB`.
fn parse_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        let text = "MemTotal:       24682008 kB\nMemFree:        1 kB\n";
        assert_eq!(parse_total(text), Some(24_682_008 * 1024));
        assert_eq!(parse_total("MemFree: 1 kB\n"), None);
        assert_eq!(parse_total("MemTotal: many kB\n"), None);
    }
}
