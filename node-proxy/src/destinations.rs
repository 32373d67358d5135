// SPDX-License-Identifier: Apache-2.0
//! What applications dial, as control tells it: asked for on demand, kept, and never waited for twice.

mod message;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use culvert_api::{
    grpc::v1,
    identity::{Identity, IdentityDomain},
    workload::Workload,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc::UnboundedSender, watch};

use self::message::{Change, Update};
use crate::{balance::Balancer, control_link::Ask, state::Dirty};

/// How long a connection waits for control to say what an unknown destination is.
const WAIT: Duration = Duration::from_secs(3);

/// A destination that nobody dialled for so long is forgotten.
const IDLE: Duration = Duration::from_secs(600);

/// The most destinations that are kept: an application that scans addresses costs no more.
const LIMIT: usize = 65_536;

/// The destinations that are in use on this node. Clones share them.
#[derive(Clone, Debug)]
pub struct Destinations {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    entries: RwLock<HashMap<SocketAddr, Arc<Entry>>>,
    domain: IdentityDomain,
    control: UnboundedSender<Ask>,
    dirty: Dirty,
    started: Instant,
}

#[derive(Debug)]
struct Entry {
    resolved: watch::Sender<Option<Arc<Resolved>>>,
    /// Of a service: all endpoints, to which the deltas are applied.
    endpoints: Mutex<BTreeMap<SocketAddr, Endpoint>>,
    /// When it was last dialled, in seconds since the start.
    used: AtomicU64,
}

/// What a destination is.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one of each destination, on the heap"
)]
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
}

/// A destination as the state file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    destination: SocketAddr,
    #[serde(flatten)]
    what: SavedKind,
}

#[expect(clippy::large_enum_variant, reason = "they are written and gone")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum SavedKind {
    Service {
        namespace: String,
        name: String,
        endpoints: Vec<Endpoint>,
    },
    Pod {
        endpoint: Endpoint,
    },
    Unknown,
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
    /// The workloads of this node use too many destinations at once.
    #[error("{limit} destinations are in use on this node, {destination} would be one more")]
    TooMany {
        /// What was dialled.
        destination: SocketAddr,
        /// The most that are kept.
        limit: usize,
    },
}

// === impl Destinations ===

impl Destinations {
    /// None yet. What is dialled is asked of `control`.
    pub(crate) fn new(domain: IdentityDomain, control: UnboundedSender<Ask>, dirty: Dirty) -> Self {
        let inner = Inner {
            entries: RwLock::default(),
            domain,
            control,
            dirty,
            started: Instant::now(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What `dst` is: known at once, or asked of control and waited for, at most three seconds.
    pub async fn resolve(&self, dst: SocketAddr) -> Result<Arc<Resolved>, Unresolved> {
        let dst = canonical(dst);
        let entry = self.entry(dst)?;
        entry.used.store(self.now(), Ordering::Relaxed);
        let mut resolved = entry.resolved.subscribe();
        let known = resolved.borrow_and_update().clone();
        if let Some(known) = known {
            return Ok(known);
        }
        let answer = tokio::time::timeout(WAIT, resolved.wait_for(Option::is_some)).await;
        let answer = answer.ok().and_then(Result::ok);
        answer
            .and_then(|answer| answer.clone())
            .ok_or(Unresolved::NoAnswer {
                destination: dst,
                waited_ms: WAIT.as_millis(),
            })
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
        entry.change(update);
        self.inner.dirty.mark();
    }

    /// The destinations that control is asked for.
    pub(crate) fn in_use(&self) -> Vec<SocketAddr> {
        let entries = self
            .inner
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        entries.keys().copied().collect()
    }

    /// Forgets what was not dialled for ten minutes.
    pub(crate) fn forget_idle(&self) {
        let before = self.now().checked_sub(IDLE.as_secs());
        let Some(before) = before else { return };
        let mut entries = self
            .inner
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let idle = entries.extract_if(|_, entry| entry.used.load(Ordering::Relaxed) < before);
        let idle: Vec<_> = idle.map(|(destination, _)| destination).collect();
        drop(entries);
        for destination in idle {
            self.ask(Ask::Unsubscribe(destination));
            self.inner.dirty.mark();
        }
    }

    /// What is known, for the state file.
    pub(crate) fn save(&self) -> Vec<Saved> {
        let entries = self
            .inner
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let saved = entries.iter().filter_map(|(destination, entry)| {
            let what = entry.save()?;
            Some(Saved {
                destination: *destination,
                what,
            })
        });
        saved.collect()
    }

    /// What an earlier proxy knew. It counts until control says otherwise.
    pub(crate) fn restore(&self, saved: Vec<Saved>) {
        let restored = saved
            .into_iter()
            .take(LIMIT)
            .map(|Saved { destination, what }| {
                let entry = Entry::new(self.now());
                entry.change(Update {
                    destination,
                    change: what.into(),
                });
                (destination, Arc::new(entry))
            });
        let mut entries = self
            .inner
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        entries.extend(restored);
    }

    fn find(&self, dst: SocketAddr) -> Option<Arc<Entry>> {
        let entries = self
            .inner
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        entries.get(&dst).cloned()
    }

    fn entry(&self, dst: SocketAddr) -> Result<Arc<Entry>, Unresolved> {
        if let Some(entry) = self.find(dst) {
            return Ok(entry);
        }
        let mut entries = self
            .inner
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&dst) {
            return Ok(entry.clone());
        }
        if entries.len() >= LIMIT {
            return Err(Unresolved::TooMany {
                destination: dst,
                limit: LIMIT,
            });
        }
        let entry = Arc::new(Entry::new(self.now()));
        entries.insert(dst, entry.clone());
        drop(entries);
        self.ask(Ask::Subscribe(dst));
        Ok(entry)
    }

    fn ask(&self, ask: Ask) {
        // The link outlives the connections; if it is gone, the process ends.
        let _ = self.inner.control.send(ask);
    }

    fn now(&self) -> u64 {
        self.inner.started.elapsed().as_secs()
    }
}

// === impl Entry ===

impl Entry {
    fn new(now: u64) -> Self {
        Self {
            resolved: watch::Sender::new(None),
            endpoints: Mutex::default(),
            used: AtomicU64::new(now),
        }
    }

    fn change(&self, update: Update) {
        match update.change {
            Change::Unknown => self.become_single(Resolved::Unknown),
            Change::Pod(endpoint) => self.become_single(Resolved::Pod(endpoint)),
            Change::Service {
                namespace,
                name,
                snapshot,
                set,
                removed,
            } => {
                let endpoints = self.merge(snapshot, set, &removed);
                self.become_service(namespace, name, &endpoints);
            }
        }
    }

    fn become_single(&self, resolved: Resolved) {
        let mut endpoints = self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        endpoints.clear();
        self.resolved.send_replace(Some(Arc::new(resolved)));
    }

    fn merge(&self, snapshot: bool, set: Vec<Endpoint>, removed: &[SocketAddr]) -> Vec<Endpoint> {
        let mut endpoints = self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if snapshot {
            endpoints.clear();
        }
        for addr in removed {
            endpoints.remove(addr);
        }
        endpoints.extend(set.into_iter().map(|endpoint| (endpoint.addr, endpoint)));
        endpoints.values().cloned().collect()
    }

    /// A service stays the same object, so that its connections and loads stay known.
    fn become_service(&self, namespace: String, name: String, endpoints: &[Endpoint]) {
        let known = self.resolved.borrow().clone();
        if let Some(Resolved::Service(service)) = known.as_deref()
            && (&service.namespace, &service.name) == (&namespace, &name)
        {
            service.balancer.update(endpoints);
            return;
        }
        let balancer = Balancer::default();
        balancer.update(endpoints);
        let service = ServiceEndpoints {
            namespace,
            name,
            balancer,
        };
        self.resolved
            .send_replace(Some(Arc::new(Resolved::Service(service))));
    }

    fn save(&self) -> Option<SavedKind> {
        let resolved = self.resolved.borrow().clone()?;
        Some(match &*resolved {
            Resolved::Unknown => SavedKind::Unknown,
            Resolved::Pod(endpoint) => SavedKind::Pod {
                endpoint: endpoint.clone(),
            },
            Resolved::Service(service) => {
                let endpoints = self
                    .endpoints
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                SavedKind::Service {
                    namespace: service.namespace.clone(),
                    name: service.name.clone(),
                    endpoints: endpoints.values().cloned().collect(),
                }
            }
        })
    }
}

impl From<SavedKind> for Change {
    fn from(saved: SavedKind) -> Self {
        match saved {
            SavedKind::Unknown => Self::Unknown,
            SavedKind::Pod { endpoint } => Self::Pod(endpoint),
            SavedKind::Service {
                namespace,
                name,
                endpoints,
            } => Self::Service {
                namespace,
                name,
                snapshot: true,
                set: endpoints,
                removed: Vec::new(),
            },
        }
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
