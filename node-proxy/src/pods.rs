// SPDX-License-Identifier: Apache-2.0
//! The enrolled pods of this node: what the agent announced, what control says of them, and the
//! tasks that serve their listeners.

mod departed;
mod listeners;
mod policy;
mod registry;
mod report;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use culvert_api::{
    agent::{FromProxy, Listener, SocketPool},
    identity::Identity,
    policy::{AccessLogFormat, InboundPolicy},
    workload::{Addresses, PodUid, Workload, WorkloadKey},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc::UnboundedSender, watch},
};

pub(crate) use self::listeners::BadListeners;
use self::{
    departed::Departed,
    listeners::Served,
    registry::{Entry, Registry},
};
use crate::{
    agent_link::ToAgent,
    app::Proxy,
    control_link::Ask,
    http::Pool,
    metrics::PodMetrics,
    sockets::{Recycler, SocketMetrics, Sockets},
    state::Dirty,
};

/// How long peers keep dialling as they did after control said that all of them know.
const GRACE: Duration = Duration::from_millis(500);

/// How long a pod that left keeps its idle sockets and its key: as long as a connection that was
/// accepted just before may take to dial three endpoints.
const LEAVING: Duration = Duration::from_secs(5);

/// One enrolled pod.
#[derive(Debug)]
pub struct Pod {
    /// The enrolment.
    pub key: WorkloadKey,
    /// Who the pod is.
    pub workload: Workload,
    /// Whom it is certified as.
    pub identity: Identity,
    /// The sockets to dial with.
    pub sockets: Sockets,
    /// The connections that its requests go out on.
    pub(crate) http: Pool,
    metrics: PodMetrics,
    addresses: ArcSwap<Vec<IpAddr>>,
    own_listeners: ArcSwap<Vec<SocketAddr>>,
    policy: watch::Sender<Arc<InboundPolicy>>,
}

/// A pod as the agent announces it.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) key: WorkloadKey,
    pub(crate) workload: Workload,
    pub(crate) addresses: Addresses,
    pub(crate) live: bool,
    pub(crate) listeners: Vec<(Listener, OwnedFd)>,
}

/// What the pods need of the rest of the proxy.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) proxy: Arc<Proxy>,
    /// Where connections are served.
    pub(crate) data: Handle,
    pub(crate) agent: UnboundedSender<ToAgent>,
    pub(crate) control: UnboundedSender<Ask>,
    pub(crate) dirty: Dirty,
    pub(crate) recycler: Recycler,
    pub(crate) socket_metrics: SocketMetrics,
}

/// All enrolled pods. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Pods {
    around: Arc<Surroundings>,
    registry: Arc<Mutex<Registry>>,
}

// === impl Pod ===

impl Pod {
    /// The pod's own addresses.
    pub fn addresses(&self) -> Arc<Vec<IpAddr>> {
        self.addresses.load_full()
    }

    /// The policy in force: strict while control's is unknown, permissive until a live pod is reported.
    pub fn policy(&self) -> watch::Receiver<Arc<InboundPolicy>> {
        self.policy.subscribe()
    }

    /// Whether dialling `addr` in the pod would come back to this proxy: it is loopback,
    /// unspecified, or one of the pod's listeners.
    pub fn is_own_listener(&self, addr: SocketAddr) -> bool {
        let ip = addr.ip().to_canonical();
        let addr = SocketAddr::new(ip, addr.port());
        ip.is_loopback() || ip.is_unspecified() || self.own_listeners.load().contains(&addr)
    }

    /// The pod's metrics, made once per pod.
    pub fn metrics(&self) -> &PodMetrics {
        &self.metrics
    }

    /// How requests to its application are logged.
    pub(crate) fn access_log(&self) -> Option<AccessLogFormat> {
        self.policy.borrow().access_log
    }

    /// Changes the policy in force.
    pub(crate) fn enforce(&self, policy: &Arc<InboundPolicy>) {
        self.policy.send_if_modified(|current| {
            let changed = current != policy;
            if changed {
                *current = policy.clone();
            }
            changed
        });
    }
}

// === impl Pods ===

impl Pods {
    /// None yet, with the policies and reports that an earlier proxy knew.
    pub(crate) fn new(
        around: Surroundings,
        policies: BTreeMap<PodUid, InboundPolicy>,
        reported: BTreeSet<WorkloadKey>,
    ) -> Self {
        let policies = policies.into_iter();
        let registry = Registry {
            entries: BTreeMap::new(),
            policies: policies
                .map(|(uid, policy)| (uid, Arc::new(policy)))
                .collect(),
            reported,
            departed: Departed::default(),
        };
        Self {
            around: Arc::new(around),
            registry: Arc::new(Mutex::new(registry)),
        }
    }

    /// A pod was enrolled, its listeners were replaced, or its withdrawal was called off.
    pub(crate) fn add(&self, announced: Announced) -> Result<(), BadListeners> {
        let listeners = listeners::check(announced.listeners)?;
        let key = announced.key;
        if self.is_somebody_else(&key, &announced.workload) {
            self.remove(&key);
        }
        let mut registry = self.lock();
        let registry = &mut *registry;
        let entry = registry
            .entries
            .entry(key.clone())
            .or_insert_with_key(|key| {
                self.ask(Ask::SubscribePolicy(key.uid.clone()));
                let pod = self.make(key, announced.workload);
                Entry {
                    pod,
                    served: Served::default(),
                    live: false,
                    in_grace: false,
                    report: registry.departed.take(key),
                }
            });
        entry.live |= announced.live;
        if entry.report.call_off_withdrawal() {
            // Until they are told again.
            entry.live = true;
            registry.reported.remove(&key);
            self.around.dirty.mark();
        }
        entry.pod.sockets.refill(&announced.addresses);
        entry.pod.addresses.store(Arc::new(announced.addresses));
        self.around.proxy.identities.hold(&entry.pod.identity, &key);
        let settled = registry.settle(&key, &self.around);
        let served = match (settled, registry.entries.get_mut(&key)) {
            (Some(settled), Some(entry)) => entry.serve(listeners, &settled, &self.around),
            _ => Ok(()),
        };
        registry.settle(&key, &self.around);
        served
    }

    /// The pod's addresses changed.
    pub(crate) fn set_addresses(&self, key: &WorkloadKey, addresses: Addresses) {
        if let Some(entry) = self.lock().entries.get(key) {
            entry.pod.sockets.refill(&addresses);
            entry.pod.addresses.store(Arc::new(addresses));
        }
    }

    /// New sockets of a pod. Those of a pod that is gone are closed.
    pub(crate) fn receive_sockets(
        &self,
        key: &WorkloadKey,
        pool: SocketPool,
        sockets: Vec<OwnedFd>,
    ) {
        if let Some(Entry { pod, .. }) = self.lock().entries.get(key) {
            pod.sockets.receive(pool, sockets, pod.metrics().owed());
        }
    }

    /// The pod leaves the mesh: peers are told first.
    pub(crate) fn withdraw(&self, key: &WorkloadKey) {
        let mut registry = self.lock();
        let known = registry.reported.contains(key);
        let Some(entry) = registry.entries.get_mut(key) else {
            self.withdrawn(key);
            return;
        };
        if entry.report.withdraw(known) {
            self.withdrawn(key);
        }
        registry.settle(key, &self.around);
    }

    /// The pod is gone: its listeners are closed, its idle sockets and its key a little later; its
    /// open connections go on.
    pub(crate) fn remove(&self, key: &WorkloadKey) {
        let mut registry = self.lock();
        let known = registry.reported.remove(key);
        let Some(mut entry) = registry.entries.remove(key) else {
            return;
        };
        let last = registry.entries.keys().all(|other| other.uid != key.uid);
        if last {
            registry.policies.remove(&key.uid);
        }
        entry.report.withdraw(known);
        entry.send_report(&self.around);
        registry.departed.keep(key, entry.report);
        drop(registry);
        entry.served.close();
        self.leave_in_time(entry.pod.clone());
        if last {
            self.ask(Ask::UnsubscribePolicy(key.uid.clone()));
        }
        self.around.dirty.mark();
        tracing::info!(pod.name = %entry.pod.workload, "The pod left");
    }

    /// Connections that were accepted a moment ago still have to dial, and to prove who they are.
    fn leave_in_time(&self, pod: Arc<Pod>) {
        let pods = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LEAVING).await;
            pod.http.close();
            pod.sockets.close();
            let back = pods.lock().entries.contains_key(&pod.key);
            if !back {
                let identities = &pods.around.proxy.identities;
                identities.release(&pod.identity, &pod.key);
            }
        });
    }

    /// The agent's snapshot ended: pods that it did not name are gone.
    pub(crate) fn retain(&self, named: &BTreeSet<WorkloadKey>) {
        let keys: Vec<_> = self.lock().entries.keys().cloned().collect();
        for key in keys.iter().filter(|key| !named.contains(key)) {
            self.remove(key);
        }
        let mut registry = self.lock();
        for report in registry.left_unseen(named) {
            self.ask(Ask::Report(report));
        }
        registry
            .policies
            .retain(|uid, _| named.iter().any(|key| key.uid == *uid));
    }

    /// Control said what a pod's policy is.
    pub(crate) fn set_policy(&self, uid: &PodUid, policy: InboundPolicy) {
        let mut registry = self.lock();
        let keys: Vec<_> = registry
            .entries
            .keys()
            .filter(|key| key.uid == *uid)
            .cloned()
            .collect();
        if keys.is_empty() {
            return;
        }
        registry.policies.insert(uid.clone(), Arc::new(policy));
        for key in keys {
            registry.settle(&key, &self.around);
        }
        self.around.dirty.mark();
    }

    /// Control said that every peer knows of a report.
    pub(crate) fn reported(&self, key: &WorkloadKey, generation: u64) {
        let mut registry = self.lock();
        let registry = &mut *registry;
        let Some(entry) = registry.entries.get_mut(key) else {
            registry.departed.acknowledge(key, generation);
            self.around.dirty.mark();
            return;
        };
        match entry.report.acknowledge(generation) {
            Some(true) => {
                // Control says it again on each new stream.
                let news = registry.reported.insert(key.clone());
                if news && entry.live {
                    entry.in_grace = true;
                    self.strict_soon(key.clone(), generation);
                }
            }
            Some(false) => {
                registry.reported.remove(key);
                self.withdrawn_soon(key.clone(), generation);
            }
            None => return,
        }
        registry.settle(key, &self.around);
        self.around.dirty.mark();
    }

    /// The identity has a certificate now.
    pub(crate) fn certified(&self, identity: &Identity) {
        let mut registry = self.lock();
        let of_identity = |entry: &&Entry| entry.pod.identity == *identity;
        let entries = registry.entries.values().filter(of_identity);
        let keys: Vec<_> = entries.map(|entry| entry.pod.key.clone()).collect();
        for key in keys {
            registry.settle(&key, &self.around);
        }
    }

    /// What control must be asked and told by a stream that begins.
    pub(crate) fn wanted(&self) -> Vec<Ask> {
        let registry = self.lock();
        let uids: BTreeSet<_> = registry.entries.keys().map(|key| key.uid.clone()).collect();
        let policies = uids.into_iter().map(Ask::SubscribePolicy);
        let reports = registry.entries.values().filter_map(Entry::report);
        let reports = reports.chain(registry.departed.reports());
        policies.chain(reports.map(Ask::Report)).collect()
    }

    /// The policies and reports for the state file. A pod that left counts as reported until every
    /// peer knows better: the next proxy tells them.
    pub(crate) fn save(&self) -> (BTreeMap<PodUid, InboundPolicy>, BTreeSet<WorkloadKey>) {
        let registry = self.lock();
        let policies = registry.policies.iter();
        let policies = policies.map(|(uid, policy)| (uid.clone(), (**policy).clone()));
        let departed = registry.departed.keys().cloned();
        let reported = registry.reported.iter().cloned().chain(departed);
        (policies.collect(), reported.collect())
    }

    /// Closes sockets that were not used for a while.
    pub(crate) fn trim(&self) {
        for entry in self.lock().entries.values() {
            entry.pod.sockets.trim();
        }
    }

    /// How many connections of the pods that are here are open.
    pub(crate) fn open_connections(&self) -> usize {
        let registry = self.lock();
        let pods = registry.entries.values().map(|entry| &entry.pod);
        pods.map(|pod| pod.metrics().open_connections()).sum()
    }

    /// Accepts no connection any more. The agent keeps the listeners: new connections wait there.
    pub(crate) fn stop_accepting(&self) {
        for entry in self.lock().entries.values_mut() {
            entry.served.close();
        }
    }

    /// How many pods there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().entries.len()
    }

    fn make(&self, key: &WorkloadKey, workload: Workload) -> Arc<Pod> {
        let Surroundings {
            proxy,
            agent,
            socket_metrics,
            recycler,
            ..
        } = &*self.around;
        let name = &workload.service_account;
        tracing::info!(pod.name = %workload, pod.uid = %key.uid, "A pod was enrolled");
        Arc::new(Pod {
            key: key.clone(),
            identity: proxy.domain.identity(&workload.namespace, name),
            sockets: Sockets::new(key, agent, socket_metrics, recycler.clone()),
            http: Pool::default(),
            metrics: proxy.metrics.pod(&workload),
            addresses: ArcSwap::default(),
            own_listeners: ArcSwap::default(),
            policy: watch::Sender::new(Arc::new(InboundPolicy::strict())),
            workload,
        })
    }

    fn is_somebody_else(&self, key: &WorkloadKey, workload: &Workload) -> bool {
        let registry = self.lock();
        let known = registry.entries.get(key);
        known.is_some_and(|known| known.pod.workload != *workload)
    }

    /// What peers sent in plaintext before they knew may still be on its way.
    fn strict_soon(&self, key: WorkloadKey, generation: u64) {
        let pods = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            let mut registry = pods.lock();
            if let Some(entry) = registry.entries.get_mut(&key)
                && entry.report.current() == Some((generation, true))
            {
                entry.in_grace = false;
                registry.settle(&key, &pods.around);
            }
        });
    }

    /// After the grace, unless the withdrawal is called off meanwhile.
    fn withdrawn_soon(&self, key: WorkloadKey, generation: u64) {
        let pods = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            let registry = pods.lock();
            let entry = registry.entries.get(&key);
            if entry.is_some_and(|entry| entry.report.is_withdrawn(generation)) {
                pods.withdrawn(&key);
            }
        });
    }

    fn withdrawn(&self, key: &WorkloadKey) {
        let message = FromProxy::Withdrawn { key: key.clone() };
        // The link outlives the pods; if it is gone, the process ends.
        let _ = self.around.agent.send(ToAgent::from(message));
    }

    fn ask(&self, ask: Ask) {
        // As above.
        let _ = self.around.control.send(ask);
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
