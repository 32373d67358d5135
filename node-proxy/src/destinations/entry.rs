// SPDX-License-Identifier: Apache-2.0
//! One destination: what is known of it, by whom, and since when.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use culvert_api::workload::WorkloadKey;
use tokio::sync::watch;

use super::{
    Endpoint, Resolved, Said, ServiceEndpoints,
    message::{Change, Described},
    saved::SavedKind,
};
use crate::balance::{Balancer, BalancerMetrics, ServicePort};

/// How long a connection waits for control to say what an unknown destination is.
pub(super) const WAIT: Duration = Duration::from_secs(3);

/// How long the first connection that would go out in plaintext on the word of an earlier proxy
/// waits for control's own.
pub(super) const CONFIRM: Duration = Duration::from_secs(1);

/// What a service's address is at a port that is none of its. One object, to be told by that: there is
/// nothing more to know of it, and nobody gets it.
static UNDECLARED: LazyLock<Arc<Resolved>> = LazyLock::new(|| Arc::new(Resolved::Unknown));

#[derive(Debug)]
pub(super) struct Entry {
    resolved: watch::Sender<Option<Arc<Resolved>>>,
    /// Of a service: all endpoints, to which the deltas are applied.
    endpoints: Mutex<BTreeMap<SocketAddr, Endpoint>>,
    /// When it was last dialled, in milliseconds since the start.
    used: AtomicU64,
    /// The pod that was the first to dial it.
    owner: Option<WorkloadKey>,
    /// Restored, and control has neither said otherwise nor been waited for in vain.
    provisional: watch::Sender<bool>,
    balancers: BalancerMetrics,
}

/// What goes first at a limit: what is no service and no pod, then what was not used for longest.
pub(super) type Rank = (bool, u64);

pub(super) fn is_undeclared(resolved: &Arc<Resolved>) -> bool {
    Arc::ptr_eq(resolved, &UNDECLARED)
}

// === impl Entry ===

impl Entry {
    /// One that `owner` was the first to dial.
    pub(super) fn new(owner: WorkloadKey, now: Duration, balancers: BalancerMetrics) -> Self {
        Self::made(Some(owner), now, false, balancers)
    }

    /// What an earlier proxy knew.
    pub(super) fn restored(known: Change, now: Duration, balancers: BalancerMetrics) -> Self {
        let entry = Self::made(None, now, true, balancers);
        entry.change(known);
        entry
    }

    fn made(
        owner: Option<WorkloadKey>,
        now: Duration,
        provisional: bool,
        balancers: BalancerMetrics,
    ) -> Self {
        let entry = Self {
            resolved: watch::Sender::new(None),
            endpoints: Mutex::default(),
            used: AtomicU64::default(),
            owner,
            provisional: watch::Sender::new(provisional),
            balancers,
        };
        entry.touch(now);
        entry
    }

    pub(super) fn owner(&self) -> Option<&WorkloadKey> {
        self.owner.as_ref()
    }

    /// It is dialled now.
    pub(super) fn touch(&self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.used.store(now, Ordering::Relaxed);
    }

    /// When it was last dialled, since the start.
    pub(super) fn used(&self) -> Duration {
        Duration::from_millis(self.used.load(Ordering::Relaxed))
    }

    /// When it goes at a limit; never while a connection waits for it or is balanced by it.
    /// Whoever holds the table may ask: nobody begins to hold the entry meanwhile.
    pub(super) fn rank(entry: &Arc<Self>) -> Option<Rank> {
        let resolved = entry.resolved.borrow();
        let balances = resolved.as_ref().is_some_and(|resolved| {
            matches!(**resolved, Resolved::Service(_)) && Arc::strong_count(resolved) > 1
        });
        let known = !matches!(resolved.as_deref(), None | Some(Resolved::Unknown));
        let held = balances || Arc::strong_count(entry) > 1;
        (!held).then(|| (known, entry.used.load(Ordering::Relaxed)))
    }

    /// What it is, waited for if need be. `None`: control did not say.
    pub(super) async fn resolve(&self) -> Option<Arc<Resolved>> {
        let known = self.resolved.borrow().clone();
        match known {
            Some(known) if self.is_doubtful(&known) => {
                self.confirmed().await;
                self.resolved.borrow().clone()
            }
            Some(known) => Some(known),
            None => {
                let mut resolved = self.resolved.subscribe();
                let answer = tokio::time::timeout(WAIT, resolved.wait_for(Option::is_some)).await;
                answer.ok()?.ok()?.clone()
            }
        }
    }

    /// Whether plaintext would be sent on the word of an earlier proxy: what was no pod of the mesh
    /// then may be one by now. What was meshed is dialled with TLS or not at all.
    fn is_doubtful(&self, known: &Resolved) -> bool {
        *self.provisional.borrow()
            && match known {
                Resolved::Unknown => true,
                Resolved::Pod(endpoint) => !endpoint.meshed,
                Resolved::Service(_) => {
                    let endpoints = self.lock_endpoints();
                    endpoints.values().any(|endpoint| !endpoint.meshed)
                }
            }
    }

    /// Waits for control's word. While control is away only the first connections do: then what
    /// is known is served.
    async fn confirmed(&self) {
        let mut provisional = self.provisional.subscribe();
        let confirmed = provisional.wait_for(|provisional| !provisional);
        if tokio::time::timeout(CONFIRM, confirmed).await.is_err() {
            self.provisional.send_replace(false);
        }
    }

    /// Control's word.
    pub(super) fn apply(&self, change: Change) {
        if self.is_out_of_place(&change) {
            return;
        }
        self.change(change);
        self.provisional.send_replace(false);
    }

    /// A delta of an earlier subscription, which ended while it was under way.
    fn is_out_of_place(&self, change: &Change) -> bool {
        let delta = matches!(
            change,
            Change::Service {
                snapshot: false,
                ..
            }
        );
        delta && (self.resolved.borrow().is_none() || *self.provisional.borrow())
    }

    fn change(&self, change: Change) {
        match change {
            Change::Unknown => self.become_single(Arc::new(Resolved::Unknown)),
            Change::Undeclared => self.become_single(Arc::clone(&UNDECLARED)),
            Change::Pod(endpoint) => self.become_single(Arc::new(Resolved::Pod(endpoint))),
            Change::Service {
                service,
                snapshot,
                set,
                removed,
            } => {
                let endpoints = self.merge(snapshot, set, &removed);
                self.become_service(service, snapshot, &endpoints);
            }
        }
    }

    fn become_single(&self, resolved: Arc<Resolved>) {
        let mut endpoints = self.lock_endpoints();
        endpoints.clear();
        self.replace(resolved);
    }

    /// Who still holds the service that this was finds no endpoint in it any more.
    fn replace(&self, resolved: Arc<Resolved>) {
        let before = self.resolved.send_replace(Some(resolved));
        if let Some(Resolved::Service(service)) = before.as_deref() {
            service.balancer.update(&[], true);
        }
    }

    fn merge(&self, snapshot: bool, set: Vec<Endpoint>, removed: &[SocketAddr]) -> Vec<Endpoint> {
        let mut endpoints = self.lock_endpoints();
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
    fn become_service(&self, now: Described, snapshot: bool, endpoints: &[Endpoint]) {
        let known = self.resolved.borrow().clone();
        if let Some(Resolved::Service(service)) = known.as_deref()
            && (&service.namespace, &service.name) == (&now.namespace, &now.name)
        {
            service.protocol.set(now.protocol);
            service.balancer.update(endpoints, snapshot);
            return;
        }
        let balancer = self.balancer(&now);
        balancer.update(endpoints, true);
        let service = ServiceEndpoints {
            namespace: now.namespace,
            name: now.name,
            port: now.port,
            protocol: Said::new(now.protocol),
            balancer,
        };
        self.replace(Arc::new(Resolved::Service(service)));
    }

    fn balancer(&self, of: &Described) -> Balancer {
        let service = ServicePort {
            namespace: of.namespace.clone(),
            name: of.name.clone(),
            port: of.port,
        };
        Balancer::measured(self.balancers.clone(), service)
    }

    /// What the state file keeps of it.
    pub(super) fn save(&self) -> Option<SavedKind> {
        let resolved = self.resolved.borrow().clone()?;
        if is_undeclared(&resolved) {
            return None;
        }
        Some(match &*resolved {
            Resolved::Unknown => SavedKind::Unknown,
            Resolved::Pod(endpoint) => SavedKind::Pod {
                endpoint: endpoint.clone(),
            },
            Resolved::Service(service) => {
                let endpoints = self.lock_endpoints();
                SavedKind::Service {
                    namespace: service.namespace.clone(),
                    name: service.name.clone(),
                    protocol: service.protocol.get(),
                    endpoints: endpoints.values().cloned().collect(),
                }
            }
        })
    }

    fn lock_endpoints(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Endpoint>> {
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
