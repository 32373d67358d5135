// SPDX-License-Identifier: Apache-2.0
//! The last reports of pods that are gone, until every peer knows: a stream that breaks loses none.

use std::collections::BTreeMap;

use culvert_api::workload::WorkloadKey;

use super::report::Report;
use crate::control_link;

/// The most that are kept. Control forgets a deleted pod by itself, sooner or later.
const LIMIT: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Departed {
    reports: BTreeMap<WorkloadKey, Report>,
}

// === impl Departed ===

impl Departed {
    /// A pod left, and this is what control was told last. Beyond the limit the oldest goes.
    pub(super) fn keep(&mut self, key: &WorkloadKey, report: Report) {
        if !report.is_leaving() {
            return;
        }
        self.reports.insert(key.clone(), report);
        if self.reports.len() > LIMIT {
            let oldest = self.reports.iter().min_by_key(|(_, told)| told.current());
            let oldest = oldest.map(|(key, _)| key.clone());
            oldest.and_then(|oldest| self.reports.remove(&oldest));
        }
    }

    /// The pod is back. Its reports go on from the last one.
    pub(super) fn take(&mut self, key: &WorkloadKey) -> Report {
        let last = self.reports.remove(key).unwrap_or_default();
        last.next()
    }

    /// Every peer knows.
    pub(super) fn acknowledge(&mut self, key: &WorkloadKey, generation: u64) {
        let last = self.reports.get(key).and_then(Report::current);
        if last.is_some_and(|(last, _)| last <= generation) {
            self.reports.remove(key);
        }
    }

    /// Whose reports are kept.
    pub(super) fn keys(&self) -> impl Iterator<Item = &WorkloadKey> {
        self.reports.keys()
    }

    /// What a new stream has to tell.
    pub(super) fn reports(&self) -> impl Iterator<Item = control_link::Report> {
        let reports = self.reports.iter();
        reports.filter_map(|(key, report)| report.of(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::key;

    fn gone(known: bool) -> Report {
        let mut report = Report::default();
        report.withdraw(known);
        report
    }

    #[test]
    fn a_last_report_is_kept_until_it_is_acknowledged_or_the_pod_is_back() {
        let mut departed = Departed::default();
        departed.keep(&key(), gone(false));
        assert_eq!(departed.reports().count(), 0, "no peer ever knew");
        departed.keep(&key(), gone(true));
        let generation = departed.reports().next().map(|report| report.generation);
        let generation = generation.unwrap_or_else(|| panic!("it was not kept"));
        departed.acknowledge(&key(), generation - 1);
        assert_eq!(departed.reports().count(), 1);
        departed.acknowledge(&key(), generation);
        assert_eq!(departed.reports().count(), 0);
        departed.keep(&key(), gone(true));
        let mut back = departed.take(&key());
        assert_eq!(departed.reports().count(), 0);
        assert!(back.steer(true) && back.current() > Some((generation, true)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut departed = Departed::default();
        for cookie in 0..=LIMIT as u64 {
            let mut key = key();
            key.cookie.0 = cookie;
            departed.keep(&key, gone(true));
        }
        assert_eq!(departed.reports().count(), LIMIT);
    }
}
