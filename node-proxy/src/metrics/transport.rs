// SPDX-License-Identifier: Apache-2.0
//! The `tcp_*` series: one set per leg of a connection and peer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    bounds::Charge,
    exposition::Page,
    families::Family,
    labels::{Labels, Leg, Peer},
    sets::Idle,
    value::{Count, Used},
};

/// The bytes of one side of a connection, in resolved handles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    pub(crate) read: Count,
    pub(crate) write: Count,
}

/// The series of one side of connections with one [`Leg`].
#[derive(Debug)]
pub(super) struct Side {
    opened: AtomicU64,
    closed: AtomicU64,
    meter: Meter,
    errnos: Mutex<BTreeMap<String, Closed>>,
    used: Used,
    charge: Charge,
}

/// Connections that ended in the same way.
#[derive(Debug)]
struct Closed {
    count: u64,
    _charge: Charge,
}

/// One side of an open connection. Dropped, it counts as closed.
#[derive(Debug)]
#[must_use]
pub(crate) struct OpenSide {
    side: Arc<Side>,
    errno: String,
}

/// Both sides of an open connection. Dropped, it counts as closed without error.
#[derive(Debug)]
#[must_use]
pub(crate) struct OpenLeg {
    source: OpenSide,
    destination: OpenSide,
}

// === impl Side ===

impl Side {
    /// How many series this is at first.
    pub(super) const SERIES: usize = 4;

    pub(super) fn new(charge: Charge) -> Self {
        Self {
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            meter: Meter::default(),
            errnos: Mutex::default(),
            used: Used::now(),
            charge,
        }
    }

    /// `labels` are those of the pod.
    pub(super) fn expose(&self, page: &mut Page, labels: Labels, leg: &Leg, peer: Peer) {
        let labels = labels
            .direction(leg.direction)
            .always("peer", peer.as_str());
        let labels = leg.add_to(labels.always("tls", leg.tls_of(peer).as_str()));
        let closed = self.closed.load(Ordering::Relaxed);
        let opened = self.opened.load(Ordering::Relaxed);
        page.count(Family::TcpOpenTotal, labels.clone(), opened);
        page.gauge(
            Family::TcpOpen,
            labels.clone(),
            opened.saturating_sub(closed),
        );
        page.count(Family::TcpRead, labels.clone(), self.meter.read.get());
        page.count(Family::TcpWrite, labels.clone(), self.meter.write.get());
        for (errno, closed) in self.errnos().iter() {
            let labels = labels.clone().always("errno", errno);
            page.count(Family::TcpClose, labels, closed.count);
        }
    }

    fn close(&self, errno: &str) {
        self.used.touch();
        self.closed.fetch_add(1, Ordering::Relaxed);
        let mut errnos = self.errnos();
        if let Some(closed) = errnos.get_mut(errno) {
            closed.count += 1;
            return;
        }
        // Of errors the kernel has few.
        let _charge = self.charge.bound().take_anyway(1);
        errnos.insert(errno.to_owned(), Closed { count: 1, _charge });
    }

    fn errnos(&self) -> MutexGuard<'_, BTreeMap<String, Closed>> {
        self.errnos.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle for Side {
    fn idle(&self) -> Duration {
        self.used.idle()
    }
}

// === impl OpenSide ===

impl OpenSide {
    pub(super) fn new(side: Arc<Side>) -> Self {
        side.used.touch();
        side.opened.fetch_add(1, Ordering::Relaxed);
        let errno = String::new();
        Self { side, errno }
    }

    /// Its bytes.
    pub(crate) fn meter(&self) -> &Meter {
        &self.side.meter
    }

    /// It ends with an error; `errno` is its name (`ECONNRESET`). The first one counts.
    pub(crate) fn broke(&mut self, errno: String) {
        if self.errno.is_empty() {
            self.errno = errno;
        }
    }
}

impl Drop for OpenSide {
    fn drop(&mut self) {
        self.side.close(&self.errno);
    }
}

// === impl OpenLeg ===

impl OpenLeg {
    pub(super) fn new(source: OpenSide, destination: OpenSide) -> Self {
        Self {
            source,
            destination,
        }
    }

    /// The bytes of the side that dialled.
    pub(crate) fn source(&self) -> Meter {
        self.source.meter().clone()
    }

    /// The bytes of the side that is dialled.
    pub(crate) fn destination(&self) -> Meter {
        self.destination.meter().clone()
    }

    /// The connection ended; `errno` is the error's name (`ECONNRESET`), empty if there was none.
    pub(crate) fn close(mut self, errno: String) {
        self.source.broke(errno.clone());
        self.destination.broke(errno);
    }
}
