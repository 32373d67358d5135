// SPDX-License-Identifier: Apache-2.0
//! How many endpoints there are.

use std::sync::Arc;

use super::Series;

/// The endpoints of one balancer, counted in its series from when it has them.
#[derive(Debug, Default)]
pub(in crate::balance) struct Population {
    ready: i64,
    pending: i64,
    resets: u64,
    added: u64,
    removed: u64,
    series: Vec<Arc<Series>>,
}

// === impl Population ===

impl Population {
    /// Counts in `series` too from now on.
    pub(in crate::balance) fn measure(&mut self, series: Series) -> Arc<Series> {
        let series = Arc::new(series);
        series.updates_reset.inc_by(self.resets);
        series.updates_add.inc_by(self.added);
        series.updates_remove.inc_by(self.removed);
        count(&series, self.ready, self.pending);
        self.series.push(series.clone());
        series
    }

    /// There are so many more of each.
    pub(in crate::balance) fn count(&mut self, ready: i64, pending: i64) {
        self.ready += ready;
        self.pending += pending;
        for series in &self.series {
            count(series, ready, pending);
        }
    }

    /// Discovery said which there are.
    pub(in crate::balance) fn reset(&mut self) {
        self.resets += 1;
        for series in &self.series {
            series.updates_reset.inc();
        }
    }

    /// Discovery said what changed.
    pub(in crate::balance) fn updated(&mut self, added: u64, removed: u64) {
        self.added += added;
        self.removed += removed;
        for series in &self.series {
            series.updates_add.inc_by(added);
            series.updates_remove.inc_by(removed);
        }
    }
}

impl Drop for Population {
    fn drop(&mut self) {
        self.count(-self.ready, -self.pending);
    }
}

fn count(series: &Series, ready: i64, pending: i64) {
    series.ready.add(ready);
    series.pending.add(pending);
    series.endpoints.add(ready + pending);
}
