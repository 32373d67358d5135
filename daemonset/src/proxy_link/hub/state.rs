// SPDX-License-Identifier: Apache-2.0
//! The pods, keys and connections behind the hub's lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_api::{agent::FromAgent, workload::WorkloadKey};
use tokio::sync::mpsc::UnboundedSender;

use super::{ConnectionId, Handover, Outgoing, supply::Pools};
use crate::{keys::Keys, proxy_link::budget::Budget};

/// How long after a proxy first knew a pod that ran before its enrolment, its peers may still
/// dial it in plaintext.
pub const LIVE: Duration = Duration::from_secs(15);

/// All that proxies are to know.
#[derive(Debug, Default)]
pub struct State {
    pub pods: BTreeMap<WorkloadKey, Pod>,
    pub keys: Keys,
    pub connections: BTreeMap<ConnectionId, UnboundedSender<Outgoing>>,
    last_connection: u64,
    last_seq: u64,
}

/// An enrolled pod.
#[derive(Debug)]
pub struct Pod {
    pub handover: Handover,
    pub budget: Budget,
    /// When a proxy first acknowledged it.
    pub known_since: Option<Instant>,
    withdrawal: Option<Withdrawal>,
}

/// A pod that is to leave the mesh.
#[derive(Debug, Default)]
struct Withdrawal {
    by: BTreeSet<ConnectionId>,
    since: Option<Instant>,
}

// === impl State ===

impl State {
    /// A pod is new, or is handed over anew.
    pub fn announce(&mut self, key: &WorkloadKey, handover: Handover) {
        let earlier = self.pods.remove(key);
        let called_off = earlier.as_ref().is_some_and(|pod| pod.withdrawal.is_some());
        let pod = Pod {
            handover,
            budget: earlier.map_or_else(|| Budget::new(Instant::now()), |pod| pod.budget),
            known_since: None,
            withdrawal: None,
        };
        if called_off {
            // For a proxy that has told the pod's peers already it is another pod.
            self.broadcast_remove(key);
        }
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.send_pod(id, key, &pod);
        }
        self.pods.insert(key.clone(), pod);
    }

    /// A pod is to leave.
    pub fn withdraw(&mut self, key: &WorkloadKey) {
        if let Some(pod) = self.pods.get_mut(key) {
            pod.withdrawal = Some(Withdrawal::default());
            self.broadcast(|seq| FromAgent::Withdraw {
                seq,
                key: key.clone(),
            });
        }
    }

    /// A proxy told a pod's peers.
    pub fn withdrawn_by(&mut self, id: ConnectionId, key: &WorkloadKey) {
        let pod = self.pods.get_mut(key);
        if let Some(withdrawal) = pod.and_then(|pod| pod.withdrawal.as_mut()) {
            withdrawal.by.insert(id);
            withdrawal.since.get_or_insert_with(Instant::now);
        }
    }

    /// How many of the connected proxies have not told a pod's peers, and since when one has.
    /// None: nobody has. A pod that is not there has no peers.
    pub fn stragglers(&self, key: &WorkloadKey) -> Option<(usize, Instant)> {
        let Some(pod) = self.pods.get(key) else {
            return Some((0, Instant::now()));
        };
        let withdrawal = pod.withdrawal.as_ref()?;
        let missing = |id: &&ConnectionId| !withdrawal.by.contains(id);
        let stragglers = self.connections.keys().filter(missing).count();
        Some((stragglers, withdrawal.since?))
    }

    /// A pod is gone.
    pub fn remove(&mut self, key: &WorkloadKey) {
        if self.pods.remove(key).is_some() {
            let State { pods, keys, .. } = self;
            keys.retain(pods.values().map(|pod| &pod.handover.workload));
            self.broadcast_remove(key);
        }
    }

    fn broadcast_remove(&mut self, key: &WorkloadKey) {
        self.broadcast(|seq| FromAgent::Remove {
            seq,
            key: key.clone(),
        });
    }

    /// A proxy is there: sends the snapshot, and says what sockets it begins with.
    pub fn connect(
        &mut self,
        sender: UnboundedSender<Outgoing>,
    ) -> (ConnectionId, Vec<(WorkloadKey, Pools)>) {
        self.last_connection += 1;
        let id = ConnectionId(self.last_connection);
        self.connections.insert(id, sender);
        for (identity, fd) in self.keys.all() {
            let identity = identity.clone();
            self.send(id, FromAgent::Key { identity }, vec![Arc::clone(fd)]);
        }
        let pods = std::mem::take(&mut self.pods);
        for (key, pod) in &pods {
            self.send_pod(id, key, pod);
        }
        let pools = |pod: &Pod| super::supply::initial(&pod.handover.addresses);
        let supplies = pods
            .iter()
            .map(|(key, pod)| (key.clone(), pools(pod)))
            .collect();
        self.pods = pods;
        let seq = self.next_seq();
        self.send(id, FromAgent::SnapshotEnd { seq }, Vec::new());
        (id, supplies)
    }

    /// Queues a message for every proxy.
    pub fn broadcast(&mut self, message: impl Fn(u64) -> FromAgent) {
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            let seq = self.next_seq();
            self.send(id, message(seq), Vec::new());
        }
    }

    /// Queues a message for one proxy, which may be just leaving.
    pub fn send(&self, id: ConnectionId, body: FromAgent, fds: Vec<Arc<OwnedFd>>) {
        if let Some(sender) = self.connections.get(&id) {
            drop(sender.send(Outgoing { body, fds }));
        }
    }

    fn send_pod(&mut self, id: ConnectionId, key: &WorkloadKey, pod: &Pod) {
        let seq = self.next_seq();
        let Handover {
            workload,
            addresses,
            listeners,
            live: _,
            netns: _,
        } = &pod.handover;
        let (named, fds) = listeners.iter().cloned().unzip();
        let body = FromAgent::Pod {
            seq,
            key: key.clone(),
            workload: workload.clone(),
            addresses: addresses.clone(),
            live: pod.is_live(),
            listeners: named,
        };
        self.send(id, body, fds);
        if pod.withdrawal.is_some() {
            let (seq, key) = (self.next_seq(), key.clone());
            self.send(id, FromAgent::Withdraw { seq, key }, Vec::new());
        }
    }

    const fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }
}

// === impl Pod ===

impl Pod {
    fn is_live(&self) -> bool {
        let fresh = |since: Instant| since.elapsed() < LIVE;
        self.handover.live && self.known_since.is_none_or(fresh)
    }
}
