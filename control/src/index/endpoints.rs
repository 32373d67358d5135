// SPDX-License-Identifier: Apache-2.0
//! The endpoints of services: those that EndpointSlices list, or where nobody makes slices the
//! ready pods that the selectors find.
//!
//! Which endpoints of a slice count is kube-proxy's rule: the ready ones, and if there are none
//! those that serve while they end; of each node, where traffic stays on the node. Hints are not
//! looked at: zones are the nodes' own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use culvert_api::workload::{PodUid, Workload};
use culvert_manifests::{NamespacedName, Objects};
use k8s_openapi::{
    api::{
        core::v1::{PodStatus, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    addresses,
    build::{Entries, Entry},
    topology::Traffic,
    view::Peer,
};

/// The label of a slice with the name of its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

type Endpoints = BTreeMap<SocketAddr, Arc<Peer>>;

/// All that endpoints are made of.
pub(super) struct Source<'e, 'a> {
    pub(super) entries: &'e Entries<'a>,
    /// Live pods by their own addresses.
    pub(super) addresses: &'e HashMap<IpAddr, Arc<Peer>>,
    /// The zones of nodes.
    pub(super) zones: &'e HashMap<String, String>,
    slices: Option<HashMap<NamespacedName, Vec<&'a EndpointSlice>>>,
}

/// What is behind a service.
pub(super) enum Behind<'e, 'a> {
    Selected(Vec<&'e Entry<'a>>),
    Sliced(&'e Source<'e, 'a>, &'e [&'a EndpointSlice]),
}

// === impl Source ===

impl<'e, 'a> Source<'e, 'a> {
    pub(super) fn new(
        objects: &'a Objects,
        entries: &'e Entries<'a>,
        addresses: &'e HashMap<IpAddr, Arc<Peer>>,
        zones: &'e HashMap<String, String>,
        refusals: &mut BTreeSet<String>,
    ) -> Self {
        let slices = objects.endpoint_slices.as_ref();
        let slices = slices.map(|slices| {
            let slices = slices.iter().map(|(key, slice)| (key, &**slice));
            refusals.extend(slices.clone().filter_map(unsupported));
            by_service(slices)
        });
        Self {
            entries,
            addresses,
            zones,
            slices,
        }
    }

    pub(super) fn behind(&'e self, key: &NamespacedName, spec: &ServiceSpec) -> Behind<'e, 'a> {
        match &self.slices {
            None => Behind::Selected(selected(&key.0, spec, self.entries)),
            Some(slices) => {
                let slices = slices.get(key).map(Vec::as_slice);
                Behind::Sliced(self, slices.unwrap_or_default())
            }
        }
    }

    fn listed(
        &self,
        slices: &[&EndpointSlice],
        port: &ServicePort,
        vip: IpAddr,
        traffic: Traffic,
    ) -> Endpoints {
        let (mut ready, mut ending) = (Endpoints::new(), Endpoints::new());
        for slice in slices.iter().filter(|slice| is_of(slice, vip)) {
            let Some(number) = number(slice, port) else {
                continue;
            };
            for endpoint in slice.endpoints.iter().flatten() {
                let among = match Standing::of(endpoint) {
                    Standing::Ready => &mut ready,
                    Standing::Ending => &mut ending,
                    Standing::Out => continue,
                };
                if let Some((ip, peer)) = self.peer(slice, endpoint) {
                    among.insert(SocketAddr::new(ip, number), peer);
                }
            }
        }
        counting(ready, ending, traffic)
    }

    /// Who is at an endpoint, as the pods' own addresses tell, and only then as the slice does: a
    /// slice may be ahead of its pod's status, and anybody may write one. None: the pod is not
    /// known yet, or not any more.
    fn peer(&self, slice: &EndpointSlice, endpoint: &Endpoint) -> Option<(IpAddr, Arc<Peer>)> {
        // All addresses of an endpoint are the same, and clients may use the first one only,
        // <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/>.
        let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let ip = ip.to_canonical();
        if let Some(peer) = self.addresses.get(&ip) {
            return Some((ip, Arc::clone(peer)));
        }
        let target = endpoint.target_ref.as_ref();
        let Some(target) = target.filter(|target| target.kind.as_deref() == Some("Pod")) else {
            return Some((ip, Arc::new(self.stranger(slice, endpoint))));
        };
        let namespace = target.namespace.as_ref();
        let namespace = namespace.or(slice.metadata.namespace.as_ref())?.clone();
        let entry = self.entries.get(&(namespace, target.name.clone()?))?;
        let uid = &entry.pod.peer.workload.uid;
        let same = target.uid.as_ref().is_none_or(|target| *target == uid.0);
        (same && entry.pod.live).then(|| (ip, Arc::clone(&entry.pod.peer)))
    }

    /// An endpoint that is no pod: it is not meshed.
    fn stranger(&self, slice: &EndpointSlice, endpoint: &Endpoint) -> Peer {
        let node = endpoint.node_name.clone().unwrap_or_default();
        let zone = endpoint.zone.clone();
        Peer {
            workload: Workload {
                uid: PodUid(String::new()),
                namespace: slice.metadata.namespace.clone().unwrap_or_default(),
                name: String::new(),
                service_account: String::new(),
                owner_kind: String::new(),
                owner_name: String::new(),
            },
            zone: zone.or_else(|| self.zones.get(&node).cloned()),
            node,
            meshed: false,
            ports: Arc::default(),
        }
    }
}

/// The ready ones and those that serve while they end, in place of none.
fn counting(ready: Endpoints, mut ending: Endpoints, traffic: Traffic) -> Endpoints {
    match traffic {
        _ if ready.is_empty() => ending,
        Traffic::Local => {
            let nodes: HashSet<_> = ready.values().map(|peer| &peer.node).collect();
            ending.retain(|_, peer| !nodes.contains(&peer.node));
            ending.extend(ready);
            ending
        }
        Traffic::Cluster | Traffic::Zone => ready,
    }
}

fn by_service<'a>(
    slices: impl Iterator<Item = (&'a NamespacedName, &'a EndpointSlice)>,
) -> HashMap<NamespacedName, Vec<&'a EndpointSlice>> {
    let mut by_service: HashMap<_, Vec<_>> = HashMap::new();
    for ((namespace, _), slice) in slices {
        let labels = slice.metadata.labels.as_ref();
        if let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) {
            let key = (namespace.clone(), service.clone());
            by_service.entry(key).or_default().push(slice);
        }
    }
    by_service
}

fn unsupported(((namespace, name), slice): (&NamespacedName, &EndpointSlice)) -> Option<String> {
    let family = slice.address_type.as_str();
    (!matches!(family, "IPv4" | "IPv6")).then(|| {
        format!(
            "EndpointSlice {namespace}/{name} has addresses of type {family:?}, expected IPv4 or \
             IPv6; its endpoints are left out"
        )
    })
}

fn is_of(slice: &EndpointSlice, vip: IpAddr) -> bool {
    slice.address_type == if vip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Where a service's port is on the endpoints of a slice. They have the same name.
fn number(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let name = port.name.as_deref().unwrap_or_default();
    let mut ports = slice.ports.iter().flatten();
    let port = ports.find(|listed| {
        let tcp = matches!(listed.protocol.as_deref(), None | Some("TCP"));
        tcp && listed.name.as_deref().unwrap_or_default() == name
    })?;
    u16::try_from(port.port?).ok()
}

// === impl Behind ===

impl Behind<'_, '_> {
    /// The endpoints of a port, of the family of the address that it was dialled by.
    pub(super) fn endpoints(&self, port: &ServicePort, vip: IpAddr, traffic: Traffic) -> Endpoints {
        match self {
            Self::Selected(entries) => of_selected(entries, port, vip),
            Self::Sliced(source, slices) => source.listed(slices, port, vip, traffic),
        }
    }
}

/// How an endpoint of a slice is.
enum Standing {
    Ready,
    /// It still serves, but its pod is being deleted.
    Ending,
    Out,
}

// === impl Standing ===

impl Standing {
    /// A condition that is not there means ready and, as old releases leave it out, serving as far
    /// as it is ready.
    fn of(endpoint: &Endpoint) -> Self {
        let conditions = endpoint.conditions.as_ref();
        let of = |it: Option<bool>, default| it.unwrap_or(default);
        let ready = of(conditions.and_then(|it| it.ready), true);
        let serving = of(conditions.and_then(|it| it.serving), ready);
        let ending = of(conditions.and_then(|it| it.terminating), false);
        match (ready, serving && ending) {
            (true, _) => Self::Ready,
            (false, true) => Self::Ending,
            (false, false) => Self::Out,
        }
    }
}

/// The pods behind a service.
fn selected<'e, 'a>(
    namespace: &str,
    spec: &ServiceSpec,
    entries: &'e Entries<'a>,
) -> Vec<&'e Entry<'a>> {
    let Some(selector) = spec
        .selector
        .as_ref()
        .filter(|selector| !selector.is_empty())
    else {
        return Vec::new();
    };
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let first = (namespace.to_owned(), String::new());
    entries
        .range::<NamespacedName, _>(first..)
        .take_while(|(key, _)| key.0 == namespace)
        .map(|(_, entry)| entry)
        .filter(|entry| selects(selector, &entry.object.metadata))
        .filter(|entry| entry.pod.live && (unready_too || is_ready(entry)))
        .collect()
}

fn of_selected(selected: &[&Entry<'_>], port: &ServicePort, vip: IpAddr) -> Endpoints {
    let addresses = selected.iter().flat_map(|entry| {
        let number = addresses::target_port(port, entry.object);
        let ips = entry
            .pod
            .addresses
            .iter()
            .filter(|ip| ip.is_ipv4() == vip.is_ipv4());
        ips.filter_map(move |ip| Some((SocketAddr::new(*ip, number?), Arc::clone(&entry.pod.peer))))
    });
    addresses.collect()
}

fn selects(selector: &BTreeMap<String, String>, meta: &ObjectMeta) -> bool {
    let labels = meta.labels.as_ref();
    let has = |(name, value): (&String, &String)| {
        labels.and_then(|labels| labels.get(name)) == Some(value)
    };
    selector.iter().all(has)
}

fn is_ready(entry: &Entry<'_>) -> bool {
    let ready = |status: &PodStatus| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let deleted = entry.object.metadata.deletion_timestamp.is_some();
    !deleted && entry.object.status.as_ref().is_some_and(ready)
}
