//! What the system says of a running process.

use std::time::Duration;

use super::market::Failure;

/// The processor time that a process has used so far, with its own threads.
///
/// # Errors
/// The process is gone.
pub(crate) fn processor_time(pid: u32) -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may have spaces and brackets of its own; the fields follow the last.
    let fields: Vec<&str> =
        stat.rsplit_once(") ").ok_or("A process has no name.")?.1.split(' ').collect();
    let ticks = |index: usize| -> Result<u64, Failure> {
        Ok(fields.get(index).ok_or("A process has too few fields.")?.parse()?)
    };
    // Linux counts in hundredths of a second.
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}

/// A line of a process's `status`, in bytes: `VmRSS` now, `VmHWM` at most so far.
///
/// # Errors
/// The process is gone.
pub(crate) fn memory(pid: u32, line: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes: u64 = status
        .lines()
        .find_map(|found| found.strip_prefix(line)?.strip_prefix(':')?.split_whitespace().next())
        .ok_or("The system does not say how much memory the process has.")?
        .parse()?;
    Ok(kilobytes * 1024)
}
