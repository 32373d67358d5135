// SPDX-License-Identifier: Apache-2.0
//! The values behind the series, and the lock-free list that a request finds them in.

use std::{
    array,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::proto;

/// A counter. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicU64>);

/// The upper bounds of a histogram's buckets.
#[derive(Debug)]
pub(super) struct Buckets<const N: usize> {
    /// In microseconds, ascending.
    pub(super) bounds: [u64; N],
    /// How many microseconds the unit of the exposition has.
    pub(super) unit: u64,
}

/// A histogram of durations.
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    buckets: &'static Buckets<N>,
    counts: [AtomicU64; N],
    above: AtomicU64,
    /// In microseconds.
    sum: AtomicU64,
}

/// When something was last used.
#[derive(Debug)]
pub(super) struct Used {
    made: Instant,
    /// In milliseconds after `made`.
    last: AtomicU64,
}

/// Values that are only ever added, found without a lock. Made for a few: every search begins at
/// the first.
#[derive(Debug)]
pub(super) struct List<T>(OnceLock<Box<Node<T>>>);

#[derive(Debug)]
struct Node<T> {
    value: T,
    next: List<T>,
}

// === impl Count ===

impl Count {
    pub(crate) fn inc(&self) {
        self.inc_by(1);
    }

    pub(crate) fn inc_by(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Histogram ===

impl<const N: usize> Histogram<N> {
    pub(super) fn new(buckets: &'static Buckets<N>) -> Self {
        Self {
            buckets,
            counts: array::from_fn(|_| AtomicU64::new(0)),
            above: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    pub(super) fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.buckets.bounds.partition_point(|&bound| bound < micros);
        let count = self.counts.get(bucket).unwrap_or(&self.above);
        count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn expose(&self) -> proto::Histogram {
        let mut total = 0;
        let bucket = |(count, bound): (&AtomicU64, &u64)| {
            total += count.load(Ordering::Relaxed);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(self.in_units(*bound));
            bucket.set_cumulative_count(total);
            bucket
        };
        let buckets = self.counts.iter().zip(&self.buckets.bounds).map(bucket);
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(total + self.above.load(Ordering::Relaxed));
        histogram.set_sample_sum(self.in_units(self.sum.load(Ordering::Relaxed)));
        histogram
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus has floats only")]
    fn in_units(&self, micros: u64) -> f64 {
        micros as f64 / self.buckets.unit as f64
    }
}

// === impl Used ===

impl Used {
    pub(super) fn now() -> Self {
        Self {
            made: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    pub(super) fn touch(&self) {
        let now = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    pub(super) fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.made.elapsed().saturating_sub(last)
    }
}

// === impl List ===

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T> List<T> {
    /// The first that fits, or else what is made, unless there are `max` already or nothing is.
    pub(super) fn find_or_add(
        &self,
        max: usize,
        fits: impl Fn(&T) -> bool,
        make: impl Fn() -> Option<T>,
    ) -> Option<&T> {
        let mut at = self;
        for _ in 0..max {
            let node = match at.0.get() {
                Some(node) => node,
                None => at.add(make()?),
            };
            if fits(&node.value) {
                return Some(&node.value);
            }
            at = &node.next;
        }
        None
    }

    /// Whatever is in this place now: another thread may have been faster.
    fn add(&self, value: T) -> &Node<T> {
        let next = Self::default();
        self.0.get_or_init(|| Box::new(Node { value, next }))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let first = self.0.get();
        let nodes = std::iter::successors(first, |node| node.next.0.get());
        nodes.map(|node| &node.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static BUCKETS: Buckets<2> = Buckets {
        bounds: [1_000, 2_000],
        unit: 1_000,
    };

    #[test]
    fn a_bound_is_part_of_its_bucket() {
        let histogram = Histogram::new(&BUCKETS);
        for micros in [0, 1_000, 1_001, 2_500] {
            histogram.observe(Duration::from_micros(micros));
        }
        let exposed = histogram.expose();
        let buckets: Vec<_> = exposed.get_bucket().iter().collect();
        let of = |i: usize| (buckets[i].upper_bound(), buckets[i].cumulative_count());
        assert_eq!((of(0), of(1)), ((1.0, 2), (2.0, 3)));
        assert_eq!(exposed.get_sample_count(), 4);
        assert!((exposed.get_sample_sum() - 4.501).abs() < 1e-9);
    }

    #[test]
    fn a_list_has_each_value_once_whoever_adds_it() {
        let list = List::<u32>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for value in 0..32 {
                        let found = list.find_or_add(32, |has| *has == value, || Some(value));
                        assert_eq!(found, Some(&value));
                    }
                });
            }
        });
        assert!(list.iter().copied().eq(0..32));
        assert_eq!(list.find_or_add(32, |has| *has == 40, || Some(40)), None);
    }
}
