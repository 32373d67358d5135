// SPDX-License-Identifier: Apache-2.0
//! Waiting longer after each failure in a row.

use std::time::{Duration, Instant};

/// Doubles from `first` to `most`, and begins again after a good time.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
    last: Instant,
}

impl Backoff {
    /// A wait that begins with `first`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
            last: Instant::now(),
        }
    }

    /// How long to wait now. What went well for twice the longest wait is forgiven.
    pub fn wait(&mut self) -> Duration {
        self.wait_at(Instant::now())
    }

    fn wait_at(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.last) > self.most * 2 {
            self.next = self.first;
        }
        let wait = self.next;
        self.last = now + wait;
        self.next = (wait * 2).min(self.most);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_forgiven() {
        let (first, most) = (Duration::from_millis(100), Duration::from_millis(300));
        let mut backoff = Backoff::new(first, most);
        let now = Instant::now();
        let waits = [(); 4].map(|()| backoff.wait_at(now).as_millis());
        assert_eq!(waits, [100, 200, 300, 300]);
        assert_eq!(backoff.wait_at(now + most * 4), first);
    }
}
