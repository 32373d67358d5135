// SPDX-License-Identifier: Apache-2.0
//! How long to wait before trying again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);

/// Waits that double, each between half and all of it, so that replicas don't come at once.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

// === impl Backoff ===

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.pause(rand::random())).await;
    }

    fn pause(&mut self, share: f64) -> Duration {
        let pause = self.next.mul_f64(0.5 + share / 2.0);
        self.next = (self.next * 2).min(MOST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_and_stops_growing() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause(1.0)).collect();
        assert_eq!(pauses[..2], [FIRST, 2 * FIRST]);
        assert_eq!(pauses[7], MOST);
        assert_eq!(backoff.pause(0.0), MOST / 2);
    }
}
