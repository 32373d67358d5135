// SPDX-License-Identifier: Apache-2.0
//! What the control plane knows at one moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use culvert_api::{
    policy::InboundPolicy,
    workload::{Addresses, PodUid, Workload},
};

/// What the control plane knows at one moment.
#[derive(Debug, Default)]
pub struct View {
    /// Grows with each change.
    pub version: u64,
    /// What the objects ask for and this release refuses, in sentences.
    pub refusals: BTreeSet<String>,
    pub(super) pods: HashMap<PodUid, Arc<Pod>>,
    pub(super) addresses: HashMap<IpAddr, Arc<Peer>>,
    pub(super) services: HashMap<SocketAddr, Arc<Service>>,
}

/// A pod as others dial it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub workload: Workload,
    /// Where it is scheduled; empty while it is not.
    pub node: String,
    /// Its node reported it steered.
    pub meshed: bool,
}

/// A pod as its own node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// As others dial it.
    pub peer: Arc<Peer>,
    /// Its own addresses; those of a pod in the host's network are the node's.
    pub addresses: Addresses,
    /// Neither succeeded nor failed.
    pub live: bool,
    /// Who may connect to it.
    pub policy: InboundPolicy,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// The port's name; empty where it has none.
    pub port_name: String,
    /// The ready pods behind it, of the address family that it was dialled by.
    pub endpoints: BTreeMap<SocketAddr, Arc<Peer>>,
}

/// What an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A port of a service.
    Service(Arc<Service>),
    /// A pod's own address.
    Pod(Arc<Peer>),
    /// Nothing that the cluster knows.
    Unknown,
}

// === impl View ===

impl View {
    /// What an address is now. A service's address beats a pod's.
    pub fn resolve(&self, address: SocketAddr) -> Destination {
        if let Some(service) = self.services.get(&address) {
            return Destination::Service(Arc::clone(service));
        }
        let pod = self.addresses.get(&address.ip());
        pod.map_or(Destination::Unknown, |pod| {
            Destination::Pod(Arc::clone(pod))
        })
    }

    /// The pod of a uid, whatever its state.
    pub fn pod(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    /// Whether live pods are scheduled on a node.
    pub fn has_pods(&self, node: &str) -> bool {
        self.pods
            .values()
            .any(|pod| pod.live && pod.peer.node == node)
    }

    /// Whether anything but the version is another.
    pub(super) fn differs(&self, other: &Self) -> bool {
        self.refusals != other.refusals
            || self.pods != other.pods
            || self.addresses != other.addresses
            || self.services != other.services
    }
}
