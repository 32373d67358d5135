// SPDX-License-Identifier: Apache-2.0
//! Requests that wait for an endpoint, and the gate that shuts when none becomes ready.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Unready, metrics::Series};

/// The most that wait for an endpoint at once, as Linkerd's policy has it.
pub(super) const CAPACITY: usize = 100;

/// How long none may be ready while it is waited for, as Linkerd's policy has it.
pub(super) const FAIL_FAST: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Queue {
    waiting: AtomicUsize,
    /// Whether the gate is [`Gate::Open`].
    is_open: AtomicBool,
    gate: Mutex<Gate>,
    series: OnceLock<Option<Arc<Series>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Gate {
    #[default]
    Open,
    /// It shuts then, unless an endpoint is ready before.
    Waiting(Instant),
    Shut,
}

/// A place in the queue.
#[derive(Debug)]
pub(super) struct Place<'a> {
    queue: &'a Queue,
    since: Instant,
}

// === impl Queue ===

impl Queue {
    /// Makes its series when it is used for the first time.
    pub(super) fn measure(&self, make: impl FnOnce() -> Option<Arc<Series>>) {
        self.series.get_or_init(make);
    }

    /// One did not have to wait.
    pub(super) fn passed(&self) {
        if let Some(series) = self.series() {
            series.requests.inc();
            series.latency.observe(0.0);
        }
    }

    /// Begins to wait, if the gate is open and there is room.
    pub(super) fn enter(&self, now: Instant) -> Result<Place<'_>, Unready> {
        if *self.lock() == Gate::Shut {
            return Err(Unready::FailFast);
        }
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= CAPACITY {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(Unready::LoadShed);
        }
        if let Some(series) = self.series() {
            series.requests.inc();
            series.length.inc();
        }
        let (queue, since) = (self, now);
        Ok(Place { queue, since })
    }

    /// No endpoint is ready: when the gate shuts.
    pub(super) fn shuts(&self, now: Instant) -> Result<Instant, Unready> {
        let mut gate = self.lock();
        match *gate {
            Gate::Open => {
                let at = now + FAIL_FAST;
                *gate = Gate::Waiting(at);
                self.is_open.store(false, Ordering::Release);
                Ok(at)
            }
            Gate::Waiting(at) if now < at => Ok(at),
            Gate::Waiting(_) => {
                *gate = Gate::Shut;
                self.series().inspect(|series| series.shut());
                Err(Unready::FailFast)
            }
            Gate::Shut => Err(Unready::FailFast),
        }
    }

    /// There is an endpoint that is ready.
    pub(super) fn open(&self) {
        if self.is_open.load(Ordering::Acquire) {
            return;
        }
        let mut gate = self.lock();
        let was = std::mem::take(&mut *gate);
        self.is_open.store(true, Ordering::Release);
        if was == Gate::Shut {
            self.series().inspect(|series| series.opened());
        }
    }

    fn series(&self) -> Option<&Series> {
        self.series.get()?.as_deref()
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            is_open: AtomicBool::new(true),
            gate: Mutex::default(),
            series: OnceLock::new(),
        }
    }
}

// === impl Place ===

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, Ordering::AcqRel);
        if let Some(series) = self.queue.series() {
            series.length.dec();
            series.latency.observe(self.since.elapsed().as_secs_f64());
        }
    }
}
