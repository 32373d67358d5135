// SPDX-License-Identifier: Apache-2.0
//! A moving average that follows a peak at once and forgets it over [`DECAY`].

use std::time::Duration;

use tokio::time::Instant;

/// What an endpoint is taken for before it was ever used.
const DEFAULT: Duration = Duration::from_millis(30);
/// A past observation counts 1/e after this long.
const DECAY: Duration = Duration::from_secs(10);

/// The estimate, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeakEwma {
    seconds: f64,
    /// Below this, differences are noise.
    floor: f64,
    at: Instant,
}

impl PeakEwma {
    pub(super) fn new(floor: Duration, now: Instant) -> Self {
        Self {
            seconds: DEFAULT.as_secs_f64(),
            floor: floor.as_secs_f64(),
            at: now,
        }
    }

    /// Begins with `seconds`, if that is less than the default.
    pub(super) fn expect(&mut self, seconds: f64) {
        self.seconds = self.seconds.min(seconds);
    }

    /// The estimate of now: while nothing is observed it decays, so that an endpoint that looked
    /// bad is tried again. Never below the floor.
    pub(super) fn estimate(&self, now: Instant) -> f64 {
        (self.seconds * self.past(now)).max(self.floor)
    }

    /// As in linkerd2-proxy's `ewma` a peak is what is more than is left of earlier ones.
    pub(super) fn observe(&mut self, took: Duration, now: Instant) {
        let (took, past) = (took.as_secs_f64(), self.past(now));
        let left = self.seconds * past;
        self.seconds = if took > left {
            took
        } else {
            left + took * (1.0 - past)
        };
        self.at = now;
    }

    /// The weight of what was before.
    fn past(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Duration = Duration::from_millis(10);

    #[test]
    fn peaks_count_at_once_and_fade() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut ewma = PeakEwma::new(FLOOR, start);
        assert!((ewma.estimate(start) - 0.030).abs() < 1e-9);
        ewma.observe(Duration::from_millis(500), after(1));
        assert!((ewma.estimate(after(1)) - 0.5).abs() < 1e-9);
        ewma.observe(Duration::from_millis(20), after(11));
        let expected = 0.5 / std::f64::consts::E + 0.02 * (1.0 - 1.0 / std::f64::consts::E);
        assert!((ewma.estimate(after(11)) - expected).abs() < 1e-9);
    }

    #[test]
    fn what_is_left_of_a_peak_is_what_a_new_one_is_held_against() {
        let start = Instant::now();
        let mut ewma = PeakEwma::new(FLOOR, start);
        ewma.observe(Duration::from_millis(500), start);
        let later = start + DECAY * 3;
        ewma.observe(Duration::from_millis(400), later);
        assert!((ewma.estimate(later) - 0.4).abs() < 1e-9);
    }

    #[test]
    fn a_second_is_forgotten_within_a_minute() {
        let start = Instant::now();
        let mut ewma = PeakEwma::new(FLOOR, start);
        ewma.observe(Duration::from_secs(1), start);
        assert!(ewma.estimate(start) >= 1.0);
        let later = ewma.estimate(start + Duration::from_secs(60));
        assert!((later - FLOOR.as_secs_f64()).abs() < 1e-9);
    }
}
