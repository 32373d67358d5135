// SPDX-License-Identifier: Apache-2.0
//! The data path's metrics, under Linkerd's names, per workload and peer identity.
//!
//! Label values are looked up once per connection and cached per pod; bytes and requests are added to
//! resolved handles. A peer's series go when it is idle, a pod's when the pod is gone and its last
//! connection ended. How many there are is bounded ([`bounds`]); what is beyond is counted in series
//! with `overflow="true"`, so that sums stay right.

mod bounds;
mod exposition;
mod families;
mod fault;
mod handshakes;
mod http;
mod labels;
mod limit;
mod pod;
mod sets;
mod tally;
mod transport;
mod value;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use culvert_api::workload::Workload;
use prometheus::Registry;

use self::{
    bounds::{AllSeries, Bound, MAX_SERIES},
    exposition::Exposition,
    families::Globals,
    labels::PodLabels,
    limit::Limit,
    pod::PodSeries,
};
pub(crate) use self::{
    fault::Fault,
    handshakes::Handshaking,
    http::{HttpLeg, HttpSeries, Outcome},
    labels::{Leg, Peer, Tls},
    limit::{Admitted, Dialling},
    pod::PodMetrics,
    tally::{Counter, Tally},
    transport::{Meter, OpenLeg, OpenSide},
};

/// The most connections that are open at once in this process.
const MAX_CONNECTIONS: usize = 100_000;

/// The most connections that one pod has open at once: one noisy workload leaves room for the rest.
///
/// Above the 28,232 that Linux has ports for to one destination: that limit is the application's.
const MAX_POD_CONNECTIONS: usize = 50_000;

/// How often it is said that descriptors are scarce.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The data path's metrics and limits. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    globals: Globals,
    series: Arc<AllSeries>,
    limit: Arc<Limit>,
    /// Connections that will need a second descriptor.
    dialling: Arc<AtomicUsize>,
    said: Mutex<Option<Instant>>,
    pods: Mutex<HashMap<PodLabels, Labelled>>,
}

/// The series of one set of labels: a pod that is made again under its old name goes on with them.
#[derive(Debug)]
struct Labelled {
    users: usize,
    series: Arc<PodSeries>,
}

// === impl Metrics ===

impl Metrics {
    /// Registers every family.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Self::bounded(registry, MAX_SERIES)
    }

    /// With so many series at most.
    fn bounded(registry: &Registry, max: usize) -> Result<Self, prometheus::Error> {
        let metrics = Self(Arc::new(Shared {
            globals: Globals::register(registry)?,
            series: AllSeries::new(max),
            limit: Arc::new(Limit::new(MAX_CONNECTIONS)),
            dialling: Arc::default(),
            said: Mutex::default(),
            pods: Mutex::default(),
        }));
        registry.register(Box::new(Exposition::new(metrics.clone())?))?;
        Ok(metrics)
    }

    /// The metrics of one pod, to be held as long as its connections.
    pub fn pod(&self, workload: &Workload) -> PodMetrics {
        let labels = PodLabels::from(workload);
        let mut pods = self.0.lock();
        let labelled = pods.entry(labels.clone()).or_insert_with(|| Labelled {
            users: 0,
            series: Arc::new(PodSeries::new(labels, Bound::new(self.0.series.clone()))),
        });
        labelled.users += 1;
        PodMetrics::new(self.clone(), labelled.series.clone(), MAX_POD_CONNECTIONS)
    }

    /// A connection's task panicked. It cost that connection only.
    pub(crate) fn panicked(&self) {
        self.0.globals.panics.inc();
    }

    fn pods(&self) -> Vec<Arc<PodSeries>> {
        let pods = self.0.lock();
        pods.values().map(|pod| pod.series.clone()).collect()
    }

    /// How many series there are, and may be.
    fn series(&self) -> (usize, usize) {
        (self.0.series.taken(), self.0.series.max())
    }

    fn release(&self, series: &PodSeries) {
        let mut pods = self.0.lock();
        let Some(labelled) = pods.get_mut(series.labels()) else {
            return;
        };
        labelled.users -= 1;
        if labelled.users == 0 {
            pods.remove(series.labels());
        }
    }
}

impl Shared {
    /// A connection was refused because descriptors are scarce.
    fn scarce(&self) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_some_and(|said| said.elapsed() < SAY_AGAIN) {
            return;
        }
        *said = Some(Instant::now());
        tracing::warn!(
            connections = self.limit.open(),
            "Connections are refused: the process is about to run out of file descriptors; raise \
             its RLIMIT_NOFILE to more than two for each connection"
        );
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodLabels, Labelled>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
