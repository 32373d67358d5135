// SPDX-License-Identifier: Apache-2.0
//! Readiness as a set of things that are still waited for.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What the process still waits for before it is ready. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    waiting: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Readiness {
    /// The process is not ready while `what` is pending.
    pub fn pending(&self, what: &'static str) {
        self.lock().insert(what);
    }

    /// `what` is there.
    pub fn done(&self, what: &'static str) {
        self.lock().remove(what);
    }

    /// `what` is there, or no longer.
    pub fn set(&self, what: &'static str, there: bool) {
        match there {
            true => self.done(what),
            false => self.pending(what),
        }
    }

    /// What is still waited for; empty when ready.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_nothing_is_pending() {
        let readiness = Readiness::default();
        readiness.pending("agent");
        readiness.pending("control");
        readiness.done("agent");
        assert_eq!(readiness.waiting_for(), ["control"]);
        readiness.done("control");
        assert!(readiness.waiting_for().is_empty());
    }
}
