//! When to look for messages of the database: at once when the gateway itself
//! has committed something, else at intervals that are short while others send
//! and grow when they do not.

use std::time::Duration;

use tokio::time::Instant;

/// How often to look while others than the gateway send messages.
const BUSY_INTERVAL: Duration = Duration::from_millis(2);
/// How often to look when nobody does.
const IDLE_INTERVAL: Duration = Duration::from_millis(25);
/// How often to look when there was no message at all for a while, or nobody
/// would hear of one.
const DORMANT_INTERVAL: Duration = Duration::from_millis(50);
/// How long after such a message others are taken to be sending.
const BUSY_FOR: Duration = Duration::from_millis(200);
/// How long after any message more are expected.
const AWAKE_FOR: Duration = Duration::from_secs(5);
/// The pause after each look, so that however much is committed, the database does
/// not spend itself on being asked.
const REST: Duration = Duration::from_millis(1);

/// Why a look was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The gateway committed something.
    Told,
    /// The interval was over.
    Interval,
}

/// The times of the next look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    interval: Duration,
    busy_until: Option<Instant>,
    awake_until: Option<Instant>,
    /// When to look if nobody tells of anything.
    pub(super) due: Instant,
    /// When to look at the earliest.
    pub(super) earliest: Instant,
}

impl Pace {
    /// Makes one that looks at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            interval: IDLE_INTERVAL,
            busy_until: None,
            awake_until: None,
            due: now,
            earliest: now,
        }
    }

    /// Plans the next look after one that began and ended then. `heard` says
    /// whether any channel is joined.
    pub(super) fn looked(
        &mut self,
        cause: Cause,
        (found, heard): (bool, bool),
        began: Instant,
        ended: Instant,
    ) {
        // What the gateway tells of needs no looking for: only what is found
        // without it shows that others send.
        if found && cause == Cause::Interval {
            self.busy_until = Some(ended + BUSY_FOR);
        }
        if found {
            self.awake_until = Some(ended + AWAKE_FOR);
        }
        let is_before = |until: Option<Instant>| until.is_some_and(|until| ended < until);
        self.interval = if !heard {
            DORMANT_INTERVAL
        } else if is_before(self.busy_until) {
            BUSY_INTERVAL
        } else if is_before(self.awake_until) {
            (self.interval * 2).min(IDLE_INTERVAL)
        } else {
            DORMANT_INTERVAL
        };
        self.earliest = ended + REST;
        self.due = self.earliest.max(began + self.interval);
    }

    /// Says whether others are sending just now.
    pub(super) fn is_busy(&self) -> bool {
        self.interval == BUSY_INTERVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// Lets looks of a tenth of a millisecond happen when they are due, and returns
    /// the time from one to the next.
    fn look(pace: &mut Pace, cause: Cause, found: bool) -> Duration {
        let began = pace.due;
        pace.looked(cause, (found, true), began, began + MILLI / 10);
        pace.due - began
    }

    #[test]
    fn looks_are_frequent_while_others_send_and_rare_afterwards() {
        let mut pace = Pace::new(Instant::now());
        assert_eq!(look(&mut pace, Cause::Interval, false), DORMANT_INTERVAL);
        assert_eq!(look(&mut pace, Cause::Interval, true), BUSY_INTERVAL);
        let last = pace.due;
        let mut pauses = vec![look(&mut pace, Cause::Interval, false)];
        while pauses.last() != Some(&IDLE_INTERVAL) {
            pauses.push(look(&mut pace, Cause::Interval, false));
        }
        assert!(pauses.is_sorted(), "{pauses:?}");
        let took = pace.due - last;
        assert!(took > BUSY_FOR && took < BUSY_FOR + 4 * IDLE_INTERVAL, "{took:?}");
        let last = pace.due;
        while look(&mut pace, Cause::Interval, false) != DORMANT_INTERVAL {}
        let took = pace.due - last;
        assert!(took > AWAKE_FOR / 2 && took < 2 * AWAKE_FOR, "{took:?}");
    }

    #[test]
    fn looks_are_rare_while_nobody_listens() {
        let mut pace = Pace::new(Instant::now());
        let began = pace.due;
        pace.looked(Cause::Interval, (false, false), began, began + MILLI);
        assert_eq!(pace.due - began, DORMANT_INTERVAL);
        assert_eq!(look(&mut pace, Cause::Told, true), IDLE_INTERVAL);
    }

    #[test]
    fn what_the_gateway_tells_of_leaves_the_interval_long() {
        let mut pace = Pace::new(Instant::now());
        for _ in 0..10 {
            assert_eq!(look(&mut pace, Cause::Told, true), IDLE_INTERVAL);
        }
    }

    #[test]
    fn there_is_a_pause_after_each_look() {
        let now = Instant::now();
        for took in [Duration::ZERO, MILLI, Duration::from_secs(1)] {
            let mut pace = Pace::new(now);
            pace.looked(Cause::Interval, (true, true), now, now + took);
            assert!(pace.is_busy());
            assert_eq!(pace.earliest, now + took + REST);
            assert_eq!(pace.due, pace.earliest.max(now + BUSY_INTERVAL));
        }
    }
}
