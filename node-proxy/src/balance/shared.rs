// SPDX-License-Identifier: Apache-2.0
//! What a balancer's endpoints have in common: the queues that wait for them, and their number.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    Unit,
    metrics::{Measured, Population},
    queue::Queue,
};

#[derive(Debug)]
pub(super) struct Shared {
    began: Instant,
    /// An endpoint was added or removed, or its readiness changed.
    pub(super) changed: Notify,
    requests: Queue,
    connections: Queue,
    measured: Option<Measured>,
    population: Mutex<Population>,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(measured: Option<Measured>) -> Self {
        Self {
            began: Instant::now(),
            changed: Notify::new(),
            requests: Queue::default(),
            connections: Queue::default(),
            measured,
            population: Mutex::default(),
        }
    }

    pub(super) fn queue(&self, unit: Unit) -> &Queue {
        let queue = match unit {
            Unit::Request => &self.requests,
            Unit::Connection => &self.connections,
        };
        queue.measure(|| {
            let series = self.measured.as_ref()?.series(unit);
            Some(self.population().measure(series))
        });
        queue
    }

    /// An instant in the balancer's own time.
    pub(super) fn nanos(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.began).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX - 1)
    }

    /// An instant of the balancer's own time.
    pub(super) fn instant(&self, nanos: u64) -> Instant {
        self.began + Duration::from_nanos(nanos)
    }

    pub(super) fn added(&self) {
        self.population().count(1, 0);
    }

    pub(super) fn removed(&self, ready: bool) {
        let (ready, pending) = if ready { (-1, 0) } else { (0, -1) };
        self.population().count(ready, pending);
    }

    pub(super) fn became_pending(&self) {
        self.population().count(-1, 1);
    }

    pub(super) fn became_ready(&self) {
        self.population().count(1, -1);
        self.open();
    }

    /// Discovery changed the endpoints: by a snapshot, or by so many.
    pub(super) fn updated(&self, snapshot: bool, added: u64, removed: u64) {
        let mut population = self.population();
        if snapshot {
            population.reset();
        } else {
            population.updated(added, removed);
        }
    }

    /// There is an endpoint that is ready.
    pub(super) fn open(&self) {
        self.requests.open();
        self.connections.open();
        self.say_changed();
    }

    pub(super) fn say_changed(&self) {
        self.changed.notify_waiters();
    }

    fn population(&self) -> MutexGuard<'_, Population> {
        let population = self.population.lock();
        population.unwrap_or_else(PoisonError::into_inner)
    }
}
