// SPDX-License-Identifier: Apache-2.0
//! The sets of series of one pod, a set for each peer. Idle ones go, and what there is no room for
//! shares a set of its own.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Sets that nobody used for this long are removed, as in Linkerd.
pub(super) const IDLE: Duration = Duration::from_secs(600);

/// How often new peers make that happen. A scrape does so too.
const SWEEP: Duration = Duration::from_secs(10);

/// What is removed when it is idle.
pub(super) trait Idle {
    fn idle(&self) -> Duration;
}

/// Sets by what they are of; `B` is what those have in common that share one.
#[derive(Debug)]
pub(super) struct Sets<K, B, V>(Mutex<Inner<K, B, V>>);

#[derive(Debug)]
struct Inner<K, B, V> {
    of: HashMap<K, Arc<V>>,
    beyond: HashMap<B, Arc<V>>,
    swept: Instant,
}

// === impl Sets ===

impl<K, B, V> Default for Sets<K, B, V> {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            of: HashMap::new(),
            beyond: HashMap::new(),
            swept: Instant::now(),
        }))
    }
}

impl<K: Clone + Eq + Hash, B: Eq + Hash, V: Idle> Sets<K, B, V> {
    /// The set of `key`, made if there is room.
    pub(super) fn get(&self, key: &K, make: impl FnOnce() -> Option<V>) -> Option<Arc<V>> {
        let mut inner = self.lock();
        if let Some(set) = inner.of.get(key) {
            return Some(set.clone());
        }
        if inner.swept.elapsed() >= SWEEP {
            inner.sweep(IDLE);
        }
        let set = Arc::new(make()?);
        inner.of.insert(key.clone(), set.clone());
        Some(set)
    }

    /// The set that all those share for which there is no room.
    pub(super) fn beyond(&self, key: B, make: impl FnOnce() -> V) -> Arc<V> {
        let mut inner = self.lock();
        let set = inner.beyond.entry(key).or_insert_with(|| Arc::new(make()));
        set.clone()
    }

    /// Removes what nobody used for `idle`.
    pub(super) fn sweep(&self, idle: Duration) {
        self.lock().sweep(idle);
    }

    /// All there are: those of one key each, and the shared ones.
    #[expect(clippy::type_complexity, reason = "two lists of pairs")]
    pub(super) fn all(&self) -> (Vec<(K, Arc<V>)>, Vec<(B, Arc<V>)>)
    where
        B: Clone,
    {
        let inner = self.lock();
        (pairs(&inner.of), pairs(&inner.beyond))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, B, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, B, V: Idle> Inner<K, B, V> {
    fn sweep(&mut self, idle: Duration) {
        let keep = |set: &Arc<V>| Arc::strong_count(set) > 1 || set.idle() < idle;
        self.of.retain(|_, set| keep(set));
        self.beyond.retain(|_, set| keep(set));
        self.swept = Instant::now();
    }
}

fn pairs<K: Clone, V>(sets: &HashMap<K, Arc<V>>) -> Vec<(K, Arc<V>)> {
    let pair = |(key, set): (&K, &Arc<V>)| (key.clone(), set.clone());
    sets.iter().map(pair).collect()
}
