//! Pauses between attempts: exponential, with full jitter above a floor.

use std::time::Duration;

/// How fast a pause grows.
const FACTOR: u32 = 2;

/// Counts attempts and gives the pause before the next one.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts with pauses of up to `first`, doubling up to `longest`.
    pub(super) fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, next: first }
    }

    /// Returns the next pause: anything from a tenth of the current bound up to
    /// the bound, so that clients that were cut off together come back apart.
    pub(super) fn pause(&mut self) -> Duration {
        let bound = self.next;
        self.next = bound.saturating_mul(FACTOR).min(self.longest);
        bound.mul_f64(0.1 + 0.9 * fastrand::f64())
    }

    /// Starts again with the first pause.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_start_again() {
        let mut backoff = Backoff::new((Duration::from_millis(100), Duration::from_secs(1)));
        for bound in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.pause();
            assert!(pause <= Duration::from_millis(bound), "{pause:?} above {bound} ms");
            assert!(pause >= Duration::from_millis(bound / 10), "{pause:?} below a tenth");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
