// SPDX-License-Identifier: Apache-2.0
//! One pod's series.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use culvert_api::{agent::Direction, workload::Workload};
use prometheus::IntCounterVec;

use super::{
    Metrics,
    families::{Families, remove},
    fault::Fault,
    handshakes::{Handshakes, Handshaking},
    limit::{Admitted, Dialling, Limit},
    transport::{Leg, Legs, OpenLeg, Tls},
};
use crate::descriptors::{self, Use};

/// Series of peers that nobody talked to for this long are removed, as in Linkerd.
const IDLE: Duration = Duration::from_secs(600);

/// The values of the local pod's labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PodLabels([String; 5]);

/// The metrics of one enrolled pod. Its series go with the last of these.
#[derive(Debug)]
pub struct PodMetrics {
    metrics: Metrics,
    series: Arc<PodSeries>,
    limit: Arc<Limit>,
    handshakes: Arc<Handshakes>,
}

/// The series of one set of pod labels.
#[derive(Debug)]
pub(super) struct PodSeries {
    labels: PodLabels,
    legs: Mutex<HashMap<Leg, Arc<Legs>>>,
    counters: Mutex<BTreeSet<(Counter, Vec<String>)>>,
}

/// A family of counters that are looked up when they count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counter {
    InboundErrors,
    OutboundErrors,
    Allow,
    Deny,
    Terminate,
}

// === impl PodLabels ===

impl From<&Workload> for PodLabels {
    fn from(workload: &Workload) -> Self {
        Self([
            workload.namespace.clone(),
            workload.name.clone(),
            workload.owner_kind.clone(),
            workload.owner_name.clone(),
            workload.service_account.clone(),
        ])
    }
}

impl PodLabels {
    pub(super) fn values(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

// === impl PodMetrics ===

impl PodMetrics {
    pub(super) fn new(metrics: Metrics, series: Arc<PodSeries>, max_connections: usize) -> Self {
        let gauge = metrics.0.families.handshakes.clone();
        Self {
            handshakes: Arc::new(Handshakes::new(gauge)),
            metrics,
            series,
            limit: Arc::new(Limit::new(max_connections)),
        }
    }

    /// One more connection, unless this pod or this process has too many, or descriptors are scarce.
    pub(crate) fn admit(&self, accepted: &impl AsFd) -> Option<Admitted> {
        let shared = &self.metrics.0;
        let for_a = match self.limit.open() > shared.limit.open() / 2 {
            true => Use::GreedyConnection,
            false => Use::Connection,
        };
        let owed = shared.dialling.load(Ordering::Relaxed);
        if !descriptors::suffice(accepted, owed, for_a) {
            shared.scarce();
            return None;
        }
        Admitted::new(&shared.limit, &self.limit, &shared.families.connections)
    }

    /// One more client that is not known yet, unless this pod has too many, or too many of its address.
    pub(crate) fn handshake(&self, from: IpAddr) -> Option<Handshaking> {
        self.handshakes.begin(from)
    }

    /// A connection will need a second descriptor, until this is dropped.
    pub(crate) fn dialling(&self) -> Dialling {
        Dialling::new(&self.metrics.0.dialling)
    }

    /// A connection was opened.
    pub(crate) fn open(&self, leg: Leg) -> OpenLeg {
        let families = &self.metrics.0.families;
        OpenLeg::new(self.series.legs(families, leg), families.clone())
    }

    /// A connection was refused or broken off.
    pub(crate) fn fault(&self, direction: Direction, fault: Fault) {
        let counter = match direction {
            Direction::Inbound => Counter::InboundErrors,
            Direction::Outbound => Counter::OutboundErrors,
        };
        self.count(counter, &[fault.as_str()]);
    }

    /// The policy was asked, or changed its mind.
    pub(crate) fn authorized(&self, answer: Counter, rule: &str, tls: Tls, client_id: &str) {
        self.count(answer, &[rule, tls.as_str(), client_id]);
    }

    fn count(&self, counter: Counter, rest: &[&str]) {
        self.series.count(&self.metrics.0.families, counter, rest);
    }
}

impl Drop for PodMetrics {
    fn drop(&mut self) {
        self.metrics.release(&self.series);
    }
}

// === impl PodSeries ===

impl PodSeries {
    pub(super) fn new(labels: PodLabels) -> Self {
        Self {
            labels,
            legs: Mutex::default(),
            counters: Mutex::default(),
        }
    }

    pub(super) fn labels(&self) -> &PodLabels {
        &self.labels
    }

    pub(super) fn remove(&self, families: &Families) {
        lock(&self.legs)
            .drain()
            .for_each(|(_, legs)| legs.remove(families));
        for (counter, labels) in std::mem::take(&mut *lock(&self.counters)) {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            remove(counter.family(families), &labels);
        }
    }

    fn legs(&self, families: &Families, leg: Leg) -> Arc<Legs> {
        let mut all = lock(&self.legs);
        if let Some(legs) = all.get(&leg) {
            return legs.clone();
        }
        collect_idle(&mut all, families);
        let legs = Arc::new(Legs::new(families, &self.labels, &leg));
        all.insert(leg, legs.clone());
        legs
    }

    fn count(&self, families: &Families, counter: Counter, rest: &[&str]) {
        let labels: Vec<_> = self.labels.values().chain(rest.iter().copied()).collect();
        counter.family(families).with_label_values(&labels).inc();
        let key = (counter, labels.into_iter().map(str::to_owned).collect());
        lock(&self.counters).insert(key);
    }
}

/// Runs when a new peer appears, so that the series of one pod stay bounded by those in use.
fn collect_idle(all: &mut HashMap<Leg, Arc<Legs>>, families: &Families) {
    all.retain(|_, legs| {
        let keep = Arc::strong_count(legs) > 1 || legs.idle() < IDLE;
        if !keep {
            legs.remove(families);
        }
        keep
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Counter ===

impl Counter {
    fn family(self, families: &Families) -> &IntCounterVec {
        match self {
            Self::InboundErrors => &families.inbound_errors,
            Self::OutboundErrors => &families.outbound_errors,
            Self::Allow => &families.allow,
            Self::Deny => &families.deny,
            Self::Terminate => &families.terminate,
        }
    }
}
