// SPDX-License-Identifier: Apache-2.0
//! How many connections may be open at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prometheus::IntGauge;

/// A number of connections that is not exceeded.
#[derive(Debug)]
pub(super) struct Limit {
    max: usize,
    open: AtomicUsize,
}

/// A connection that both limits let in. Counted until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Admitted {
    limits: [Arc<Limit>; 2],
    gauge: IntGauge,
}

/// A connection whose other leg is still to come. Counted until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Dialling {
    all: Arc<AtomicUsize>,
}

impl Limit {
    pub(super) fn new(max: usize) -> Self {
        let open = AtomicUsize::new(0);
        Self { max, open }
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        let room = self.open.fetch_add(1, Ordering::Relaxed) < self.max;
        if !room {
            self.give_back();
        }
        room
    }

    fn give_back(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admitted {
    /// One more connection, if every limit has room for it.
    pub(super) fn new(process: &Arc<Limit>, pod: &Arc<Limit>, gauge: &IntGauge) -> Option<Self> {
        if !process.take() {
            return None;
        }
        if !pod.take() {
            process.give_back();
            return None;
        }
        gauge.inc();
        Some(Self {
            limits: [process.clone(), pod.clone()],
            gauge: gauge.clone(),
        })
    }
}

// === impl Dialling ===

impl Dialling {
    pub(super) fn new(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self { all: all.clone() }
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.limits.iter().for_each(|limit| limit.give_back());
        self.gauge.dec();
    }
}
