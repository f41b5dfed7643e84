//! The time that the processes of a database are on a processor. Unlike a rate it is
//! hardly moved by what else runs on the machine.

use std::fs;
use std::path::Path;

use crate::harness::market::Failure;

/// Units of processor time in a second, as Linux counts it for programs.
const TICKS_A_SECOND: f64 = 100.0;

/// Seconds that all processes of a cluster have been on a processor: the postmaster,
/// its living children, and those that have ended, whose time went to the postmaster.
///
/// # Errors
/// No process of the cluster is found.
pub(crate) fn processor_time(cluster: &Path) -> Result<f64, Failure> {
    let file = fs::read_to_string(cluster.join("postmaster.pid"))?;
    let postmaster: u32 = file.lines().next().unwrap_or_default().trim().parse()?;
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // A process may end while it is looked at.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name, which may hold anything, ends with the last parenthesis.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let field = |number: usize| fields.get(number).and_then(|text| text.parse::<u64>().ok());
        let (Some(parent), Some(user), Some(system)) = (field(1), field(11), field(12)) else {
            continue;
        };
        if pid == postmaster {
            ticks += user + system + field(13).unwrap_or(0) + field(14).unwrap_or(0);
        } else if parent == u64::from(postmaster) {
            ticks += user + system;
        }
    }
    if ticks == 0 {
        return Err("No process of the database was found in /proc.".into());
    }
    Ok(ticks as f64 / TICKS_A_SECOND)
}
