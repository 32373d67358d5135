// SPDX-License-Identifier: Apache-2.0
//! How many clients of one pod may be unknown at once: those that hold a connection without having
//! said who they are. They cost memory and time, and can be had for a SYN each.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus::IntGauge;

/// The most of one pod.
const MAX: usize = 10_000;

/// The most of one pod from one address, so that a single client leaves room for the others.
const MAX_OF_ONE: usize = 5_000;

/// The handshakes of one pod.
#[derive(Debug)]
pub(super) struct Handshakes {
    under_way: Mutex<UnderWay>,
    gauge: IntGauge,
}

#[derive(Debug, Default)]
struct UnderWay {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// A client that is not known yet. Counted until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Handshaking {
    handshakes: Arc<Handshakes>,
    from: IpAddr,
}

// === impl Handshakes ===

impl Handshakes {
    pub(super) fn new(gauge: IntGauge) -> Self {
        Self {
            under_way: Mutex::default(),
            gauge,
        }
    }

    /// One more, if there is room for it.
    pub(super) fn begin(self: &Arc<Self>, from: IpAddr) -> Option<Handshaking> {
        if !self.lock().take(from) {
            return None;
        }
        self.gauge.inc();
        let handshakes = self.clone();
        Some(Handshaking { handshakes, from })
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl UnderWay ===

impl UnderWay {
    fn take(&mut self, from: IpAddr) -> bool {
        let of_one = self.of.get(&from).copied().unwrap_or_default();
        let room = self.all < MAX && of_one < MAX_OF_ONE;
        if room {
            self.all += 1;
            self.of.insert(from, of_one + 1);
        }
        room
    }

    fn give_back(&mut self, from: IpAddr) {
        self.all -= 1;
        if let Some(of_one) = self.of.get_mut(&from) {
            *of_one -= 1;
            if *of_one == 0 {
                self.of.remove(&from);
            }
        }
    }
}

// === impl Handshaking ===

impl Drop for Handshaking {
    fn drop(&mut self) {
        self.handshakes.lock().give_back(self.from);
        self.handshakes.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_others() {
        let gauge = IntGauge::new("handshakes", "Of the test").unwrap_or_else(|e| panic!("{e}"));
        let handshakes = Arc::new(Handshakes::new(gauge.clone()));
        let from = |last| IpAddr::from([10, 0, 0, last]);
        let fill = |from| std::iter::from_fn(|| handshakes.begin(from)).collect::<Vec<_>>();
        let first = fill(from(1));
        assert_eq!(first.len(), MAX_OF_ONE);
        let second = fill(from(2));
        assert_eq!(second.len(), MAX - MAX_OF_ONE);
        assert!(handshakes.begin(from(3)).is_none());
        drop(second);
        assert!(handshakes.begin(from(3)).is_some());
        assert!(handshakes.begin(from(1)).is_none());
        drop(first);
        assert_eq!(gauge.get(), 0);
        assert!(handshakes.lock().of.is_empty());
    }
}
