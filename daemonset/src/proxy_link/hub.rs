// SPDX-License-Identifier: Apache-2.0
//! What every proxy is to know: the enrolled pods and the kept keys. Changes are queued for each
//! connection under one lock, so that each hears them in the same order behind its snapshot.

mod state;
mod supply;

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use culvert_api::{
    agent::{FromAgent, Listener, SocketPool},
    identity::Identity,
    workload::{Addresses, NetnsCookie, Workload, WorkloadKey},
};
use tokio::sync::{Notify, Semaphore, mpsc};

pub use self::state::LIVE;
use self::state::State;
use crate::{ebpf::Ebpf, keys, metrics::Metrics, netns::Netns};

/// When one of several proxies said that a pod is withdrawn, how long the others may take.
const STRAGGLERS: Duration = Duration::from_secs(30);

/// How many namespaces are entered for sockets at a time.
const MAKERS: usize = 4;

/// What proxies are to know. Clones share it.
#[derive(Clone, Debug)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Somebody withdrew, connected or left.
    changed: Notify,
    makers: Semaphore,
    ebpf: Ebpf,
    metrics: Metrics,
    node: String,
}

/// What a proxy gets of an enrolled pod.
#[derive(Clone, Debug)]
pub struct Handover {
    /// Who the pod is.
    pub workload: Workload,
    /// Its own addresses.
    pub addresses: Addresses,
    /// Whether it ran before it was enrolled.
    pub live: bool,
    /// Its listeners.
    pub listeners: Vec<(Listener, Arc<OwnedFd>)>,
    /// Where its sockets are made.
    pub netns: Netns,
}

/// One connection of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A message that waits to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// What to say.
    pub body: FromAgent,
    /// The descriptors beside it.
    pub fds: Vec<Arc<OwnedFd>>,
}

// === impl Hub ===

impl Hub {
    /// A hub of a node without pods.
    pub fn new(node: String, ebpf: Ebpf, metrics: Metrics) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            changed: Notify::new(),
            makers: Semaphore::new(MAKERS),
            ebpf,
            metrics,
            node,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The name of the node.
    pub fn node(&self) -> &str {
        &self.shared.node
    }

    /// How many proxies are connected.
    pub fn connected(&self) -> usize {
        self.lock().connections.len()
    }

    /// The enrolled pods.
    pub fn workloads(&self) -> Vec<(NetnsCookie, Workload)> {
        let state = self.lock();
        let pods = state.pods.iter();
        pods.map(|(key, pod)| (key.cookie, pod.handover.workload.clone()))
            .collect()
    }

    /// A pod is enrolled, its listeners were replaced, or its withdrawal is called off.
    pub fn announce(&self, key: &WorkloadKey, handover: Handover) {
        let pools = supply::initial(&handover.addresses);
        let mut state = self.lock();
        state.announce(key, handover);
        let connections: Vec<_> = state.connections.keys().copied().collect();
        drop(state);
        for id in connections {
            self.supply(id, vec![(key.clone(), pools.clone())]);
        }
    }

    /// A pod's addresses changed.
    pub fn readdress(&self, key: &WorkloadKey, addresses: Addresses) {
        let mut state = self.lock();
        if let Some(pod) = state.pods.get_mut(key) {
            pod.handover.addresses.clone_from(&addresses);
            state.broadcast(|seq| FromAgent::Addresses {
                seq,
                key: key.clone(),
                addresses: addresses.clone(),
            });
        }
    }

    /// A pod is to leave the mesh.
    pub fn withdraw(&self, key: &WorkloadKey) {
        self.lock().withdraw(key);
    }

    /// Waits until the proxies told the pod's peers. Without a proxy it waits for one.
    pub async fn withdrawn(&self, key: &WorkloadKey) {
        loop {
            let changed = self.shared.changed.notified();
            let wait = match self.lock().stragglers(key) {
                None => Duration::MAX,
                Some((0, _)) => return,
                Some((_, since)) => STRAGGLERS.saturating_sub(since.elapsed()),
            };
            if wait.is_zero() {
                return;
            }
            // Either way the state is looked at again.
            drop(tokio::time::timeout(wait, changed).await);
        }
    }

    /// A pod is gone or un-enrolled. The keys that no other pod needs go with it.
    pub fn remove(&self, key: &WorkloadKey) {
        self.lock().remove(key);
    }

    /// A proxy connected: queues all that it has to know.
    pub fn connect(&self) -> (ConnectionId, mpsc::UnboundedReceiver<Outgoing>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (id, pods) = self.lock().connect(sender);
        self.supply(id, pods);
        self.shared.changed.notify_waiters();
        (id, receiver)
    }

    /// A proxy is gone.
    pub fn disconnect(&self, id: ConnectionId) {
        self.lock().connections.remove(&id);
        self.shared.changed.notify_waiters();
    }

    /// A proxy knows of a pod.
    pub fn acked(&self, key: &WorkloadKey) {
        if let Some(pod) = self.lock().pods.get_mut(key) {
            pod.known_since.get_or_insert_with(Instant::now);
        }
    }

    /// A proxy told a pod's peers that it leaves the mesh.
    pub fn withdrawn_by(&self, id: ConnectionId, key: &WorkloadKey) {
        self.lock().withdrawn_by(id, key);
        self.shared.changed.notify_waiters();
    }

    /// A proxy gives a key to keep.
    pub fn keep(&self, identity: Identity, fds: Vec<OwnedFd>) -> Result<(), keys::Refused> {
        let State { pods, keys, .. } = &mut *self.lock();
        let workloads = pods.values().map(|pod| &pod.handover.workload);
        keys.keep(identity, fds, workloads).inspect_err(|error| {
            let refused = &self.shared.metrics.keys_refused;
            refused.with_label_values(&[error.label()]).inc();
        })
    }

    fn enqueue_sockets(
        &self,
        id: ConnectionId,
        key: &WorkloadKey,
        pool: SocketPool,
        fds: Vec<Arc<OwnedFd>>,
    ) {
        let state = self.lock();
        // They would keep the namespace of a pod alive that is gone.
        if state.pods.contains_key(key) {
            let key = key.clone();
            state.send(id, FromAgent::Sockets { key, pool }, fds);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = &self.shared.state;
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
