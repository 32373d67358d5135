// SPDX-License-Identifier: Apache-2.0
//! How many series there may be. Peers, statuses and identities make them, so that a pod, or who
//! talks to it, could make more than a scrape can carry.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The most series of this process; a histogram is as many as it has lines. About 45 MB of text.
pub(super) const MAX_SERIES: usize = 100_000;

/// The most series of one pod.
const MAX_POD_SERIES: usize = 20_000;

/// A pod with more than this gets no more once half of [`MAX_SERIES`] are taken: the rest is for
/// the pods that are content with less.
const FAIR_SHARE: usize = 2_000;

/// The series of this process.
#[derive(Debug)]
pub(super) struct AllSeries {
    taken: AtomicUsize,
    max: usize,
}

/// The series of one pod.
#[derive(Debug)]
pub(super) struct Bound {
    all: Arc<AllSeries>,
    of_pod: AtomicUsize,
}

/// Series that count until this is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    bound: Arc<Bound>,
    series: usize,
}

// === impl AllSeries ===

impl AllSeries {
    pub(super) fn new(max: usize) -> Arc<Self> {
        let taken = AtomicUsize::new(0);
        Arc::new(Self { taken, max })
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

// === impl Bound ===

impl Bound {
    pub(super) fn new(all: Arc<AllSeries>) -> Arc<Self> {
        let of_pod = AtomicUsize::new(0);
        Arc::new(Self { all, of_pod })
    }

    /// Some more, if there is room. Threads that ask at once may exceed it by what they ask for.
    pub(super) fn take(self: &Arc<Self>, series: usize) -> Option<Charge> {
        let of_pod = self.of_pod.load(Ordering::Relaxed) + series;
        let max = match of_pod > FAIR_SHARE {
            true => self.all.max / 2,
            false => self.all.max,
        };
        let room = of_pod <= MAX_POD_SERIES && self.all.taken() + series <= max;
        room.then(|| self.take_anyway(series))
    }

    /// Some more of which there are few by their nature.
    pub(super) fn take_anyway(self: &Arc<Self>, series: usize) -> Charge {
        self.of_pod.fetch_add(series, Ordering::Relaxed);
        self.all.taken.fetch_add(series, Ordering::Relaxed);
        let bound = self.clone();
        Charge { bound, series }
    }
}

// === impl Charge ===

impl Charge {
    /// Whose room this is.
    pub(super) fn bound(&self) -> &Arc<Bound> {
        &self.bound
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Bound { all, of_pod } = &*self.bound;
        of_pod.fetch_sub(self.series, Ordering::Relaxed);
        all.taken.fetch_sub(self.series, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_its_limit() {
        let all = AllSeries::new(MAX_SERIES);
        let pod = Bound::new(all.clone());
        let first = pod.take(MAX_POD_SERIES);
        assert!(first.is_some() && pod.take(1).is_none());
        assert!(Bound::new(all.clone()).take(1).is_some());
        drop(first);
        assert!(pod.take(1).is_some());
        assert_eq!(all.taken(), 0);
    }

    #[test]
    fn greedy_pods_leave_half_to_the_others() {
        let all = AllSeries::new(3 * FAIR_SHARE);
        let (greedy, modest) = (Bound::new(all.clone()), Bound::new(all.clone()));
        let _share = greedy.take(FAIR_SHARE);
        assert!(greedy.take(FAIR_SHARE + 1).is_none());
        let _half = greedy.take(FAIR_SHARE / 2);
        assert!(greedy.take(1).is_none());
        let _rest = modest.take(FAIR_SHARE);
        assert_eq!(all.taken(), 5 * FAIR_SHARE / 2);
        assert!(modest.take(1).is_none());
        let _full = Bound::new(all.clone()).take(FAIR_SHARE / 2);
        assert!(Bound::new(all).take(1).is_none());
    }
}
