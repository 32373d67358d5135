// SPDX-License-Identifier: Apache-2.0
//! Waiting between attempts: longer each time, with jitter, so that a restarted control plane is
//! not met by all nodes at once.

use std::time::Duration;

/// The waits between attempts.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits from `least` on, doubled up to `most`.
    pub(crate) fn new(least: Duration, most: Duration) -> Self {
        Self {
            least,
            most,
            next: least,
        }
    }

    /// How long to wait now: between half and all of this step.
    pub(crate) fn wait(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.most);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// An attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_most_and_start_again() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(350));
        for step in [100, 200, 350, 350] {
            let wait = backoff.wait();
            assert!(
                wait >= ms(step) / 2 && wait <= ms(step),
                "{wait:?} of {step}"
            );
        }
        backoff.reset();
        assert!(backoff.wait() <= ms(100));
    }
}
