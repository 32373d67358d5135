// SPDX-License-Identifier: Apache-2.0
//! Chooses among a service's endpoints, per connection: the better of two random ones (P2C) by
//! peak-EWMA, Linkerd's balancer.
//!
//! An endpoint's load is its round-trip estimate times one more than the connections that are open
//! to it from this node. A round trip is what dialling takes, handshake included: of an opaque
//! stream nothing else can be timed. That is a noisy measure, so between round trips that are alike
//! only the open connections count. See [`ewma`] for the estimate.

mod ewma;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use self::ewma::PeakEwma;
use crate::destinations::Endpoint;

/// Round trips whose ratio is smaller are alike.
const ALIKE: f64 = 1.25;

/// The endpoints of one service, and how they fare.
#[derive(Debug)]
pub struct Balancer {
    backends: ArcSwap<Vec<Arc<Backend>>>,
    updates: watch::Sender<()>,
}

/// An endpoint and how it fares; kept while updates go on naming it.
#[derive(Debug)]
struct Backend {
    endpoint: Endpoint,
    open: AtomicUsize,
    round_trip: Mutex<PeakEwma>,
}

/// A chosen endpoint. It counts as loaded until this is dropped, when its connection ended.
#[derive(Debug)]
#[must_use]
pub(crate) struct Choice {
    backend: Arc<Backend>,
}

/// What two endpoints are compared by.
#[derive(Clone, Copy, Debug)]
struct Load {
    open: usize,
    /// In seconds.
    round_trip: f64,
}

// === impl Balancer ===

impl Balancer {
    /// Replaces the endpoints; one that stays keeps its estimate.
    pub fn update(&self, endpoints: &[Endpoint]) {
        let known = self.backends.load_full();
        let kept = |endpoint: &Endpoint| {
            let same = known.iter().find(|backend| backend.endpoint == *endpoint);
            same.cloned()
                .unwrap_or_else(|| Arc::new(Backend::new(endpoint.clone())))
        };
        self.backends
            .store(Arc::new(endpoints.iter().map(kept).collect()));
        self.updates.send_replace(());
    }

    /// Chooses an endpoint that is none of `tried`.
    pub(crate) fn choose(&self, tried: &[SocketAddr]) -> Option<Choice> {
        let backends = self.backends.load();
        let fresh: Vec<_> = backends
            .iter()
            .filter(|backend| !tried.contains(&backend.endpoint.addr))
            .collect();
        let backend = match two(fresh.len())? {
            (one, other) if one == other => fresh.get(one)?,
            (one, other) => better(fresh.get(one)?, fresh.get(other)?, Instant::now()),
        };
        Some(Choice::new(Arc::clone(backend)))
    }

    /// Chooses an endpoint, and waits for one while there is none at all.
    pub(crate) async fn choose_or_wait(&self, limit: Duration) -> Option<Choice> {
        let mut updates = self.updates.subscribe();
        let wait = async {
            loop {
                updates.borrow_and_update();
                if let Some(choice) = self.choose(&[]) {
                    return Some(choice);
                }
                updates.changed().await.ok()?;
            }
        };
        tokio::time::timeout(limit, wait).await.ok().flatten()
    }
}

impl Default for Balancer {
    fn default() -> Self {
        Self {
            backends: ArcSwap::default(),
            updates: watch::Sender::new(()),
        }
    }
}

/// Two different indices below `count`; the same one twice if there is only one.
fn two(count: usize) -> Option<(usize, usize)> {
    match count {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let one = rand::random_range(0..count);
            let other = rand::random_range(0..count - 1);
            Some((one, other + usize::from(other >= one)))
        }
    }
}

fn better<'a>(one: &'a Arc<Backend>, other: &'a Arc<Backend>, now: Instant) -> &'a Arc<Backend> {
    let (load, other_load) = (one.load(now), other.load(now));
    let swap = if load.is_like(other_load) {
        other_load.open < load.open
    } else {
        other_load.value() < load.value()
    };
    if swap { other } else { one }
}

// === impl Load ===

impl Load {
    fn is_like(self, other: Self) -> bool {
        let ratio = self.round_trip / other.round_trip;
        (1.0 / ALIKE..=ALIKE).contains(&ratio)
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a load is compared, not counted"
    )]
    fn value(self) -> f64 {
        self.round_trip * (self.open as f64 + 1.0)
    }
}

// === impl Backend ===

impl Backend {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            open: AtomicUsize::new(0),
            round_trip: Mutex::new(PeakEwma::new(Instant::now())),
        }
    }

    fn load(&self, now: Instant) -> Load {
        Load {
            open: self.open.load(Ordering::Relaxed),
            round_trip: self.with_round_trip(|round_trip| round_trip.estimate(now)),
        }
    }

    fn with_round_trip<T>(&self, with: impl FnOnce(&mut PeakEwma) -> T) -> T {
        with(
            &mut self
                .round_trip
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

// === impl Choice ===

impl Choice {
    fn new(backend: Arc<Backend>) -> Self {
        backend.open.fetch_add(1, Ordering::Relaxed);
        Self { backend }
    }

    /// What was chosen.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.backend.endpoint
    }

    /// Dialling it took this long.
    pub(crate) fn connected(&self, took: Duration) {
        self.backend
            .with_round_trip(|round_trip| round_trip.observe(took, Instant::now()));
    }

    /// Dialling it failed: it looks slow for a while.
    pub(crate) fn failed(&self) {
        self.backend
            .with_round_trip(|round_trip| round_trip.penalise(Instant::now()));
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        self.backend.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
