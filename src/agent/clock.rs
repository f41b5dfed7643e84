//! How far this machine's clock is from the control plane's.
//!
//! No decision rests on a node's clock, but a login does: an event that is a
//! minute off is refused. So the difference is measured with every heartbeat
//! and told before it hurts.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// A difference worth telling the owner.
const WORTH_TELLING: SignedDuration = SignedDuration::from_secs(5);

/// Estimates by how much the local clock is ahead of the server's, in
/// milliseconds: `sent` is the local time before the call, which took `took`;
/// the server is taken to have looked at its clock half-way.
pub(crate) fn ahead_ms(server: Timestamp, sent: Timestamp, took: Duration) -> i64 {
    let half = i64::try_from(took.as_millis() / 2).unwrap_or(i64::MAX);
    let local = sent.as_millisecond().saturating_add(half);
    local.saturating_sub(server.as_millisecond())
}

/// Says in words that the clock is off, when it is by more than five seconds.
pub(crate) fn complaint(ahead_ms: i64) -> Option<String> {
    let off = SignedDuration::from_millis(ahead_ms);
    if off.abs() <= WORTH_TELLING {
        return None;
    }
    let direction = if ahead_ms > 0 { "ahead of" } else { "behind" };
    Some(format!(
        "This machine's clock is {} s {direction} the control plane's. Logins are refused beyond \
         60 s: set the clock, for example with `timedatectl set-ntp true`.",
        off.abs().as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_round_trip_is_allowed_for() {
        let server = Timestamp::from_millisecond(1_000_100).unwrap();
        let sent = Timestamp::from_millisecond(1_000_000).unwrap();
        assert_eq!(ahead_ms(server, sent, Duration::from_millis(200)), 0);
        assert_eq!(ahead_ms(server, sent, Duration::from_millis(20)), -90);
    }

    #[test]
    fn only_a_difference_that_matters_is_told() {
        assert_eq!(complaint(5_000), None);
        assert_eq!(complaint(-4_000), None);
        let ahead = complaint(120_000).unwrap();
        assert!(ahead.starts_with("This machine's clock is 120 s ahead of the control plane's."));
        assert!(complaint(-61_000).unwrap().contains("61 s behind the control plane's"));
    }
}
