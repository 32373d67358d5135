// SPDX-License-Identifier: Apache-2.0
//! What applications dial, as control tells it: asked for on demand, kept, and never waited for twice.

mod entry;
mod message;
mod metrics;
mod said;
mod saved;
mod table;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use culvert_api::{
    grpc::v1,
    identity::{Identity, IdentityDomain},
    protocol::Hint,
    workload::{Workload, WorkloadKey},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use self::{
    entry::{Entry, WAIT},
    table::{Full, LIMIT, Table},
};
pub(crate) use self::{metrics::DestinationMetrics, said::Said, saved::Saved};
use crate::{balance::Balancer, control_link::Ask, state::Dirty, tcp::canonical};

/// A destination that nobody dialled for so long is forgotten.
const IDLE: Duration = Duration::from_secs(600);

/// The destinations that are in use on this node. Clones share them.
#[derive(Clone, Debug)]
pub struct Destinations {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: RwLock<Table>,
    domain: IdentityDomain,
    control: UnboundedSender<Ask>,
    dirty: Dirty,
    metrics: DestinationMetrics,
    started: Instant,
}

/// What a destination is.
#[derive(Debug)]
pub enum Resolved {
    /// A service's address: balance among its endpoints.
    Service(ServiceEndpoints),
    /// A pod's own address: exactly one endpoint.
    Pod(Endpoint),
    /// Nothing that the cluster knows: the application's own affair, in plaintext.
    Unknown,
}

/// A service and its endpoints, which change while connections hold it.
#[derive(Debug)]
pub struct ServiceEndpoints {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// The service's port.
    pub port: u16,
    pub(crate) protocol: Said,
    /// Chooses among the endpoints of now.
    pub balancer: Balancer,
}

/// One pod behind a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Who it is.
    pub workload: Workload,
    /// The node that it runs on.
    pub node: String,
    /// Whom its certificate must name.
    pub identity: Identity,
    /// Dial it with mutual TLS or not at all.
    pub meshed: bool,
    /// What its port speaks; none if control did not say.
    #[serde(default)]
    pub protocol: Option<Hint>,
}

/// A destination could not be resolved: the connection is refused, never sent in plaintext.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// Control did not answer.
    #[error("control did not say within {waited_ms} ms what {destination} is")]
    NoAnswer {
        /// What was dialled.
        destination: SocketAddr,
        /// How long the connection waited.
        waited_ms: u128,
    },
    /// A service has the address, and no such port.
    #[error("{destination} is a service's address and none of its ports")]
    Undeclared {
        /// What was dialled.
        destination: SocketAddr,
    },
    /// The pod, or all pods of this node, use too many destinations at once.
    #[error(
        "{limit} destinations are in use at once, the most there may be; {destination} would be one more"
    )]
    TooMany {
        /// What was dialled.
        destination: SocketAddr,
        /// The most that are kept: of one pod, or of all.
        limit: usize,
    },
}

// === impl Resolved ===

impl Resolved {
    /// What the connections to `port`, which was dialled, speak.
    pub(crate) fn hint(&self, port: u16) -> Hint {
        let said = match self {
            Self::Service(service) => service.protocol.get(),
            Self::Pod(endpoint) => endpoint.protocol,
            Self::Unknown => None,
        };
        said.unwrap_or_else(|| Hint::of_port(port))
    }
}

// === impl ServiceEndpoints ===

impl ServiceEndpoints {
    /// Its name and port, as every pod may call it.
    pub(crate) fn authority(&self) -> String {
        let Self {
            namespace,
            name,
            port,
            ..
        } = self;
        format!("{name}.{namespace}.svc.cluster.local:{port}")
    }
}

// === impl Destinations ===

impl Destinations {
    /// None yet. What is dialled is asked of `control`.
    pub(crate) fn new(
        domain: IdentityDomain,
        control: UnboundedSender<Ask>,
        dirty: Dirty,
        metrics: DestinationMetrics,
    ) -> Self {
        let inner = Inner {
            table: RwLock::default(),
            domain,
            control,
            dirty,
            metrics,
            started: Instant::now(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What `dst` is, for the pod that dials it: known at once, or asked of control and waited for,
    /// at most three seconds.
    pub async fn resolve(
        &self,
        pod: &WorkloadKey,
        dst: SocketAddr,
    ) -> Result<Arc<Resolved>, Unresolved> {
        let dst = canonical(dst);
        let entry = self.entry(pod, dst)?;
        entry.touch(self.now());
        let resolved = entry.resolve().await.ok_or(Unresolved::NoAnswer {
            destination: dst,
            waited_ms: WAIT.as_millis(),
        })?;
        if entry::is_undeclared(&resolved) {
            return Err(Unresolved::Undeclared { destination: dst });
        }
        Ok(resolved)
    }

    /// Control said what a destination is, or how it changed.
    pub(crate) fn apply(&self, message: &v1::Destination) {
        let update = match message::read(message, &self.inner.domain) {
            Ok(update) => update,
            Err(error) => {
                tracing::warn!(%error, "Control sent a destination that can't be read");
                return;
            }
        };
        let Some(entry) = self.find(update.destination) else {
            return;
        };
        entry.apply(update.change);
        self.inner.dirty.mark();
    }

    /// The destinations that control is asked for.
    pub(crate) fn in_use(&self) -> Vec<SocketAddr> {
        self.read().iter().map(|(dst, _)| *dst).collect()
    }

    /// Forgets what was not dialled for ten minutes, unless something is balanced by it still.
    pub(crate) fn forget_idle(&self) {
        if let Some(before) = self.now().checked_sub(IDLE) {
            self.forget_unused_since(before);
        }
    }

    fn forget_unused_since(&self, before: Duration) {
        let idle = |entry: &Arc<Entry>| entry.used() < before && Entry::rank(entry).is_some();
        let mut table = self.write();
        let idle = table.iter().filter(|(_, entry)| idle(entry));
        let idle: Vec<_> = idle.map(|(dst, _)| *dst).collect();
        for dst in idle {
            table.remove(dst);
            self.forgotten(dst);
        }
    }

    /// What is known, for the state file.
    pub(crate) fn save(&self) -> Vec<Saved> {
        let table = self.read();
        let saved = table.iter().filter_map(|(destination, entry)| {
            let what = entry.save()?;
            Some(Saved {
                destination: *destination,
                what,
            })
        });
        saved.collect()
    }

    /// What an earlier proxy knew. It counts until control says otherwise; what would send plaintext
    /// gives control a moment to say so.
    pub(crate) fn restore(&self, saved: Vec<Saved>) {
        let now = self.now();
        let mut table = self.write();
        let room = LIMIT.saturating_sub(table.len());
        for saved in saved.into_iter().take(room) {
            let balancers = self.inner.metrics.balancers.clone();
            let destination = saved.destination;
            let entry = Entry::restored(saved.into(), now, balancers);
            table.insert(destination, entry);
        }
    }

    fn find(&self, dst: SocketAddr) -> Option<Arc<Entry>> {
        self.read().find(dst)
    }

    fn entry(&self, pod: &WorkloadKey, dst: SocketAddr) -> Result<Arc<Entry>, Unresolved> {
        if let Some(entry) = self.find(dst) {
            return Ok(entry);
        }
        let mut table = self.write();
        if let Some(entry) = table.find(dst) {
            return Ok(entry);
        }
        let now = self.now();
        let gone = table.make_room(pod, now);
        let gone = gone.map_err(|full| self.refused(dst, full))?;
        self.inner.metrics.evicted.inc_by(gone.len() as u64);
        gone.into_iter().for_each(|dst| self.forgotten(dst));
        let entry = table.insert(
            dst,
            Entry::new(pod.clone(), now, self.inner.metrics.balancers.clone()),
        );
        self.ask(Ask::Subscribe(dst));
        Ok(entry)
    }

    fn refused(&self, destination: SocketAddr, Full { limit }: Full) -> Unresolved {
        self.inner.metrics.refused.inc();
        Unresolved::TooMany { destination, limit }
    }

    /// Told while the table is held: who dials it again, asks after this.
    fn forgotten(&self, dst: SocketAddr) {
        self.ask(Ask::Unsubscribe(dst));
        self.inner.dirty.mark();
    }

    fn ask(&self, ask: Ask) {
        // The link outlives the connections; if it is gone, the process ends.
        let _ = self.inner.control.send(ask);
    }

    /// Since the start.
    fn now(&self) -> Duration {
        self.inner.started.elapsed()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        let table = &self.inner.table;
        table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        let table = &self.inner.table;
        table.write().unwrap_or_else(PoisonError::into_inner)
    }
}
