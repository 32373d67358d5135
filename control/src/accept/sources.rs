// SPDX-License-Identifier: Apache-2.0
//! How much each source address has.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Places, of which each source address has a few only.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    most: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place of a source. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct Place {
    source: IpAddr,
    sources: Sources,
}

// === impl Sources ===

impl Sources {
    /// At most `most` places for each source.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    /// A place, unless the source has all that it may.
    pub(super) fn enter(&self, source: IpAddr) -> Option<Place> {
        let source = source.to_canonical();
        let mut all = self.lock();
        let taken = all.get(&source).copied().unwrap_or_default();
        if taken >= self.most {
            return None;
        }
        all.insert(source, taken + 1);
        Some(Place {
            source,
            sources: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.sources.lock();
        match all.get_mut(&self.source) {
            Some(taken) if *taken > 1 => *taken -= 1,
            _ => {
                all.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_source_has_a_few_places_and_another_has_its_own() {
        let sources = Sources::new(2);
        let one = Ipv4Addr::new(10, 0, 0, 1);
        let mapped = IpAddr::V6(one.to_ipv6_mapped());
        let (first, second) = (sources.enter(one.into()), sources.enter(mapped));
        assert!(first.is_some() && second.is_some());
        assert!(sources.enter(one.into()).is_none());
        assert!(sources.enter(Ipv4Addr::LOCALHOST.into()).is_some());
        drop(first);
        assert!(sources.enter(one.into()).is_some());
        drop(second);
        assert!(sources.lock().is_empty(), "nothing stays behind");
    }
}
