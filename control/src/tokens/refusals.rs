// SPDX-License-Identifier: Apache-2.0
//! Callers that are refused: counted by reason, and logged seldom, as whoever connects makes them.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::metrics::Metrics;

/// How often one of them is logged, at most.
const SELDOM: Duration = Duration::from_secs(1);

/// Callers that are refused.
pub(super) struct Refusals {
    metrics: Metrics,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    last: Option<Instant>,
    /// How many were passed over since.
    passed: u64,
}

// === impl Refusals ===

impl Refusals {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            log: Mutex::default(),
        }
    }

    /// A caller is refused.
    pub(super) fn note(&self, reason: &'static str, error: &impl fmt::Display) {
        self.metrics.caller_refused(reason);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = log.note(Instant::now());
        drop(log);
        if let Some(passed) = passed {
            tracing::warn!(%error, reason, not_logged = passed, "Refused a caller");
        }
    }
}

// === impl Log ===

impl Log {
    /// How many were passed over before this one, if it is to be logged.
    fn note(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now - last < SELDOM) {
            self.passed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_second_is_logged_with_how_many_were_not() {
        let (mut log, now) = (Log::default(), Instant::now());
        let mut logged = (0..10_000).map(|_| log.note(now));
        assert_eq!(logged.next(), Some(Some(0)));
        assert!(logged.all(|logged| logged.is_none()));
        assert_eq!(log.note(now + SELDOM), Some(9_999));
        assert_eq!(log.note(now + 2 * SELDOM), Some(0));
    }
}
