// SPDX-License-Identifier: Apache-2.0
//! What the control plane knows at one moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use culvert_api::{
    policy::InboundPolicy,
    protocol::{Hint, PortHints},
    workload::{Addresses, PodUid, Workload},
};

use super::topology::{Place, Traffic};

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
    /// The addresses of services.
    pub(super) virtual_ips: HashSet<IpAddr>,
    /// Those of nodes.
    pub(super) zones: HashMap<String, String>,
}

/// A pod as others dial it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub workload: Workload,
    /// Where it is scheduled; empty while it is not.
    pub node: String,
    /// The zone of that node.
    pub zone: Option<String>,
    /// Its node reported it steered.
    pub meshed: bool,
    /// What its ports speak.
    pub ports: Arc<PortHints>,
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
    /// It, or its namespace, asks to be meshed, and it has a network of its own.
    pub opted_in: bool,
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
    /// What the port speaks.
    pub protocol: Hint,
    /// Which of its endpoints a node uses.
    pub traffic: Traffic,
    /// What is behind it, of the address family that it was dialled by: who is ready, and where
    /// nobody is who serves while it ends. Mostly pods; an EndpointSlice may list others.
    pub endpoints: BTreeMap<SocketAddr, Arc<Peer>>,
}

/// What an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A port of a service.
    Service(Arc<Service>),
    /// A pod's own address.
    Pod(Arc<Peer>),
    /// The address of a service, and none of its ports.
    Undeclared,
    /// Nothing that the cluster knows.
    Unknown,
}

// === impl View ===

impl View {
    /// What an address is now, for the pods of a node: a service has the endpoints that they use.
    pub fn resolve_for(&self, node: &str, address: SocketAddr) -> Destination {
        match self.resolve(address) {
            Destination::Service(service) => Destination::Service(self.seen_from(node, service)),
            other => other,
        }
    }

    fn seen_from(&self, node: &str, service: Arc<Service>) -> Arc<Service> {
        let zone = self.zones.get(node).map(String::as_str);
        let place = Place { node, zone };
        match service.traffic.chosen(&service.endpoints, place) {
            None => service,
            Some(endpoints) => Arc::new(Service {
                endpoints,
                ..Service::clone(&service)
            }),
        }
    }

    /// What an address is now. A service's address beats a pod's.
    pub fn resolve(&self, address: SocketAddr) -> Destination {
        if let Some(service) = self.services.get(&address) {
            return Destination::Service(Arc::clone(service));
        }
        if self.virtual_ips.contains(&address.ip()) {
            return Destination::Undeclared;
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

    /// The uid of a pod by its name.
    pub fn uid_of(&self, namespace: &str, name: &str) -> Option<&PodUid> {
        let mut pods = self.pods.values().map(|pod| &pod.peer.workload);
        let workload = pods.find(|it| it.namespace == namespace && it.name == name)?;
        Some(&workload.uid)
    }

    /// Whether live pods are scheduled on a node.
    pub fn has_pods(&self, node: &str) -> bool {
        self.pods
            .values()
            .any(|pod| pod.live && pod.peer.node == node)
    }

    /// The nodes that have a live pod of a ServiceAccount, each once.
    pub fn nodes_of(&self, namespace: &str, service_account: &str) -> Vec<String> {
        let live = self
            .pods
            .values()
            .filter(|pod| pod.live)
            .map(|pod| &pod.peer);
        let of = live.filter(|peer| {
            peer.workload.service_account == service_account && peer.workload.namespace == namespace
        });
        let nodes: BTreeSet<_> = of
            .map(|peer| &peer.node)
            .filter(|node| !node.is_empty())
            .collect();
        nodes.into_iter().cloned().collect()
    }

    /// Whether anything but the version is another.
    pub(super) fn differs(&self, other: &Self) -> bool {
        self.refusals != other.refusals
            || self.pods != other.pods
            || self.addresses != other.addresses
            || self.services != other.services
            || self.virtual_ips != other.virtual_ips
            || self.zones != other.zones
    }
}
