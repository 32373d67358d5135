// SPDX-License-Identifier: Apache-2.0
//! The `tcp_*` series: one set per leg of a connection, with the same labels but for `peer`.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use culvert_api::agent::Direction;
use prometheus::{IntCounter, IntGauge};

use super::{
    families::{Families, remove},
    pod::PodLabels,
};

/// How a leg is secured, as in Linkerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tls {
    /// The mesh's mutual TLS.
    Mutual,
    /// The application's own TLS, passed through.
    Opaque,
    /// Plaintext from or to somebody outside the mesh.
    NoIdentity,
    /// A leg that does not leave the pod.
    Loopback,
}

/// What tells the legs of a pod's connections apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leg {
    pub(crate) direction: Direction,
    pub(crate) tls: Tls,
    /// The client's SPIFFE id, inbound.
    pub(crate) client_id: Arc<str>,
    /// The server's SPIFFE id, outbound.
    pub(crate) server_id: Arc<str>,
    pub(crate) dst_namespace: Arc<str>,
    pub(crate) dst_service: Arc<str>,
    pub(crate) dst_pod: Arc<str>,
}

/// Which end of a leg the other side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Source,
    Destination,
}

/// The bytes of one leg, in resolved handles.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    pub(crate) read: IntCounter,
    pub(crate) write: IntCounter,
}

/// The series of one leg and peer.
#[derive(Debug)]
struct Series {
    labels: Vec<String>,
    open_total: IntCounter,
    open: IntGauge,
    meter: Meter,
    errnos: Mutex<BTreeSet<String>>,
}

/// The series of the two sides of connections with one [`Leg`].
#[derive(Debug)]
pub(super) struct Legs {
    source: Series,
    destination: Series,
    made: Instant,
    /// In milliseconds after `made`.
    used: AtomicU64,
}

/// An open connection. Dropped, it counts as closed without error.
#[derive(Debug)]
#[must_use]
pub(crate) struct OpenLeg {
    legs: Arc<Legs>,
    families: Families,
    errno: String,
}

// === impl Tls ===

impl Tls {
    /// The label value.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Mutual => "true",
            Self::Opaque => "opaque",
            Self::NoIdentity => "no_identity",
            Self::Loopback => "loopback",
        }
    }
}

// === impl Leg ===

impl Leg {
    /// A leg of which nothing is known beside how it is secured.
    pub(crate) fn new(direction: Direction, tls: Tls) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            direction,
            tls,
            client_id: empty.clone(),
            server_id: empty.clone(),
            dst_namespace: empty.clone(),
            dst_service: empty.clone(),
            dst_pod: empty,
        }
    }

    /// The side towards the application is plaintext and stays in the pod, whatever the wire is.
    fn tls_of(&self, peer: Peer) -> Tls {
        match (self.direction, peer) {
            (Direction::Inbound, Peer::Source) | (Direction::Outbound, Peer::Destination) => {
                self.tls
            }
            (Direction::Inbound, Peer::Destination) | (Direction::Outbound, Peer::Source) => {
                Tls::Loopback
            }
        }
    }

    fn labels(&self, pod: &PodLabels, peer: Peer) -> Vec<String> {
        let direction = match self.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        let side = match peer {
            Peer::Source => "src",
            Peer::Destination => "dst",
        };
        let tls = self.tls_of(peer).as_str();
        let ids = [&self.client_id, &self.server_id];
        let dst = [&self.dst_namespace, &self.dst_service, &self.dst_pod];
        [direction, side]
            .into_iter()
            .chain(pod.values())
            .chain([tls])
            .chain(ids.into_iter().chain(dst).map(|value| &**value))
            .map(str::to_owned)
            .collect()
    }
}

// === impl Series ===

impl Series {
    fn new(families: &Families, labels: Vec<String>) -> Self {
        Self {
            open_total: families.open_total.with_label_values(&labels),
            open: families.open.with_label_values(&labels),
            meter: Meter {
                read: families.read.with_label_values(&labels),
                write: families.write.with_label_values(&labels),
            },
            labels,
            errnos: Mutex::default(),
        }
    }

    fn opened(&self) {
        self.open_total.inc();
        self.open.inc();
    }

    fn closed(&self, families: &Families, errno: &str) {
        self.open.dec();
        let mut labels = self.labels.clone();
        labels.push(errno.to_owned());
        families.close.with_label_values(&labels).inc();
        let mut errnos = self.errnos.lock().unwrap_or_else(PoisonError::into_inner);
        if !errnos.contains(errno) {
            errnos.insert(errno.to_owned());
        }
    }

    fn remove(&self, families: &Families) {
        let mut labels: Vec<&str> = self.labels.iter().map(String::as_str).collect();
        remove(&families.open_total, &labels);
        remove(&families.open, &labels);
        remove(&families.read, &labels);
        remove(&families.write, &labels);
        for errno in self
            .errnos
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            labels.push(errno);
            remove(&families.close, &labels);
            labels.pop();
        }
    }
}

// === impl Legs ===

impl Legs {
    pub(super) fn new(families: &Families, pod: &PodLabels, leg: &Leg) -> Self {
        let series = |peer| Series::new(families, leg.labels(pod, peer));
        Self {
            source: series(Peer::Source),
            destination: series(Peer::Destination),
            made: Instant::now(),
            used: AtomicU64::new(0),
        }
    }

    pub(super) fn idle(&self) -> Duration {
        let used = Duration::from_millis(self.used.load(Ordering::Relaxed));
        self.made.elapsed().saturating_sub(used)
    }

    pub(super) fn remove(&self, families: &Families) {
        self.source.remove(families);
        self.destination.remove(families);
    }

    fn touch(&self) {
        let now = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used.store(now, Ordering::Relaxed);
    }
}

// === impl OpenLeg ===

impl OpenLeg {
    pub(super) fn new(legs: Arc<Legs>, families: Families) -> Self {
        legs.touch();
        legs.source.opened();
        legs.destination.opened();
        Self {
            legs,
            families,
            errno: String::new(),
        }
    }

    /// The bytes of the side that dialled.
    pub(crate) fn source(&self) -> Meter {
        self.legs.source.meter.clone()
    }

    /// The bytes of the side that is dialled.
    pub(crate) fn destination(&self) -> Meter {
        self.legs.destination.meter.clone()
    }

    /// The connection ended; `errno` is the error's name (`ECONNRESET`), empty if there was none.
    pub(crate) fn close(mut self, errno: String) {
        self.errno = errno;
    }
}

impl Drop for OpenLeg {
    fn drop(&mut self) {
        self.legs.touch();
        self.legs.source.closed(&self.families, &self.errno);
        self.legs.destination.closed(&self.families, &self.errno);
    }
}
