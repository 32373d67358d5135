// SPDX-License-Identifier: Apache-2.0
//! How many sockets one pod's proxy may have made: a token bucket. Spent sockets are recycled by
//! the proxy, so that it wants new ones only for more connections at a time.

use std::time::{Duration, Instant};

/// How many at once.
const BURST: usize = 4096;
/// One more each.
const REFILL: Duration = Duration::from_millis(2);

/// What a pod has left.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    left: usize,
    at: Instant,
}

// === impl Budget ===

impl Budget {
    /// A full one.
    pub const fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            at: now,
        }
    }

    /// Takes up to `count`.
    pub fn take(&mut self, count: usize, now: Instant) -> usize {
        self.refill(now);
        let taken = count.min(self.left);
        self.left -= taken;
        taken
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        let more = elapsed.as_millis() / REFILL.as_millis();
        let more = usize::try_from(more).unwrap_or(usize::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        assert_eq!(budget.take(BURST - 1, start), BURST - 1);
        assert_eq!(budget.take(64, start), 1);
        assert_eq!(budget.take(64, start), 0);
        assert_eq!(budget.take(64, start + 10 * REFILL), 10);
        assert_eq!(
            budget.take(usize::MAX, start + Duration::from_secs(3600)),
            BURST
        );
    }
}
