// SPDX-License-Identifier: Apache-2.0
//! How long to wait after failures.

use std::time::Duration;

/// Doubles from the first wait to the longest. Each is cut by up to a half at random, so that the
/// nodes of a cluster do not come back all at once.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

// === impl Backoff ===

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    pub(crate) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = self.longest.min(wait * 2);
        wait.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_a_limit_and_begins_again() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(300));
        for longest in [100, 200, 300, 300] {
            let wait = backoff.wait();
            assert!((ms(longest / 2)..=ms(longest)).contains(&wait), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= ms(100));
    }
}
