// SPDX-License-Identifier: Apache-2.0
//! How fast a file is put right that somebody else keeps changing.

use std::time::{Duration, Instant};

/// So many repairs are made at once.
const AT_ONCE: u32 = 5;
/// After so long without a change the peace is believed.
const CALM: Duration = Duration::from_secs(60);
/// In between pods start without the mesh: no longer than this.
const LONGEST: Duration = Duration::from_secs(10);

/// The repairs of a file.
#[derive(Debug, Default)]
pub struct Pace {
    repairs: u32,
    last: Option<Instant>,
}

// === impl Pace ===

impl Pace {
    /// How long the next repair has to wait.
    pub fn wait(&self, now: Instant) -> Duration {
        let Some(last) = self.last else {
            return Duration::ZERO;
        };
        let since = now.saturating_duration_since(last);
        match self.repairs.checked_sub(AT_ONCE) {
            Some(more) if since < CALM => {
                let seconds = 1_u64.checked_shl(more).unwrap_or(u64::MAX);
                Duration::from_secs(seconds)
                    .min(LONGEST)
                    .saturating_sub(since)
            }
            _ => Duration::ZERO,
        }
    }

    /// A repair was made. Whether it is a fight by now.
    pub fn note(&mut self, now: Instant) -> bool {
        let calm = |last: Instant| now.saturating_duration_since(last) >= CALM;
        if self.last.is_none_or(calm) {
            self.repairs = 0;
        }
        self.repairs = self.repairs.saturating_add(1);
        self.last = Some(now);
        self.repairs >= AT_ONCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_is_slowed_down_until_it_is_over() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for nth in 1..=AT_ONCE {
            assert_eq!(pace.wait(now), Duration::ZERO, "repair {nth}");
            assert_eq!(pace.note(now), nth == AT_ONCE);
        }
        for seconds in [1, 2, 4, 8, 10, 10] {
            let wait = pace.wait(now);
            assert_eq!(wait, Duration::from_secs(seconds));
            now += wait;
            assert!(pace.wait(now).is_zero() && pace.note(now));
        }
        now += CALM;
        assert!(pace.wait(now).is_zero() && !pace.note(now));
    }

    #[test]
    fn very_many_repairs_wait_no_longer() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for _ in 0..200 {
            pace.note(now);
        }
        assert_eq!(pace.wait(now), LONGEST);
    }
}
