// SPDX-License-Identifier: Apache-2.0
//! Makes a view out of objects and reports.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hash,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use culvert_api::{
    annotations::ZONE_LABEL,
    policy::InboundPolicy,
    workload::{PodUid, Workload},
};
use culvert_manifests::{NamespacedName, Objects};
use k8s_openapi::{
    api::core::v1::{self, PodStatus, ServicePort, ServiceSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{
    Reports, addresses, policy,
    ports::{self, Owner},
    topology::Traffic,
    view::{Peer, Pod, Service, View},
};

/// A pod object with what was made of it.
struct Entry<'a> {
    object: &'a v1::Pod,
    pod: Arc<Pod>,
}

type Entries<'a> = BTreeMap<&'a NamespacedName, Entry<'a>>;

/// Makes the view that follows `old`.
pub(super) fn view(objects: &Objects, reports: &Reports, old: &View) -> View {
    let mut refusals = BTreeSet::new();
    let zones = zones(objects);
    let entries = entries(objects, reports, old, &zones, &mut refusals);
    let services = services(objects, &entries, old, &mut refusals);
    View {
        version: old.version + 1,
        addresses: by_address(&entries),
        pods: by_uid(&entries),
        services,
        refusals,
        virtual_ips: virtual_ips(objects),
        zones,
    }
}

fn virtual_ips(objects: &Objects) -> HashSet<IpAddr> {
    let specs = objects.services.values().filter_map(|it| it.spec.as_ref());
    specs.flat_map(addresses::of_service).collect()
}

/// The zones of the nodes that say theirs.
fn zones(objects: &Objects) -> HashMap<String, String> {
    let zone = |(name, node): (&String, &v1::Node)| {
        let zone = node.metadata.labels.as_ref()?.get(ZONE_LABEL)?;
        (!zone.is_empty()).then(|| (name.clone(), zone.clone()))
    };
    objects.nodes.iter().filter_map(zone).collect()
}

fn entries<'a>(
    objects: &'a Objects,
    reports: &Reports,
    old: &View,
    zones: &HashMap<String, String>,
    refusals: &mut BTreeSet<String>,
) -> Entries<'a> {
    let mut entries = Entries::new();
    for (key, object) in &objects.pods {
        let Some(uid) = object.metadata.uid.clone().map(PodUid) else {
            refusals.insert(format!(
                "Pod {}/{} has no uid and is left out",
                key.0, key.1
            ));
            continue;
        };
        let owner = owner_of("Pod", objects, key, &object.metadata);
        let ports = ports::of_pod(&owner, object.spec.as_ref(), refusals);
        let policy = InboundPolicy {
            ports,
            ..policy(&owner, refusals)
        };
        let zone = |node: &String| zones.get(node).cloned();
        let peer = Peer {
            ports: Arc::new(policy.ports.clone()),
            ..peer(key, object, &uid, reports)
        };
        let peer = reuse_peer(
            old,
            Peer {
                zone: zone(&peer.node),
                ..peer
            },
        );
        let pod = reuse(&old.pods, &uid, pod(object, peer, policy));
        entries.insert(key, Entry { object, pod });
    }
    entries
}

fn owner_of<'a>(
    kind: &'static str,
    objects: &'a Objects,
    key: &'a NamespacedName,
    metadata: &'a ObjectMeta,
) -> Owner<'a> {
    let namespace = objects.namespaces.get(&key.0);
    Owner {
        kind,
        key,
        annotations: metadata.annotations.as_ref(),
        namespace: namespace.and_then(|namespace| namespace.metadata.annotations.as_ref()),
    }
}

/// Apart from the ports.
fn policy(pod: &Owner<'_>, refusals: &mut BTreeSet<String>) -> InboundPolicy {
    let policy = policy::of(pod.annotations, pod.namespace).unwrap_or_else(|value| {
        refusals.insert(unknown_policy(pod.key, value));
        InboundPolicy::strict()
    });
    let access_log = policy::access_log(pod.annotations, pod.namespace);
    let access_log = access_log.unwrap_or_else(|value| {
        refusals.insert(unknown_access_log(pod.key, value));
        None
    });
    InboundPolicy {
        access_log,
        ..policy
    }
}

fn unknown_access_log((namespace, name): &NamespacedName, value: &str) -> String {
    format!(
        "Pod {namespace}/{name} asks for the access log {value:?}, expected apache or json; it \
         gets none"
    )
}

fn unknown_policy((namespace, name): &NamespacedName, value: &str) -> String {
    format!(
        "Pod {namespace}/{name} asks for the inbound policy {value:?}, expected \
         all-unauthenticated or all-authenticated; it gets all-authenticated"
    )
}

fn peer(key: &NamespacedName, object: &v1::Pod, uid: &PodUid, reports: &Reports) -> Peer {
    let (owner_kind, owner_name) = owner(&object.metadata, &key.1);
    let spec = object.spec.as_ref();
    let account = spec.and_then(|spec| {
        let deprecated = spec.service_account.as_ref();
        spec.service_account_name.as_ref().or(deprecated).cloned()
    });
    Peer {
        workload: Workload {
            uid: uid.clone(),
            namespace: key.0.clone(),
            name: key.1.clone(),
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            owner_kind,
            owner_name,
        },
        node: spec
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default(),
        zone: None,
        meshed: !is_host_network(object) && reports.meshed(uid),
        ports: Arc::default(),
    }
}

/// What runs the pod: a Deployment rather than its ReplicaSet, as in Linkerd.
fn owner(meta: &ObjectMeta, pod: &str) -> (String, String) {
    let owners = meta.owner_references.iter().flatten();
    let controller = owners.clone().find(|owner| owner.controller == Some(true));
    let Some(owner) = controller.or_else(|| owners.clone().next()) else {
        return ("pod".to_owned(), pod.to_owned());
    };
    let hash = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match deployment {
        Some(name) => ("deployment".to_owned(), name.to_owned()),
        None => (owner.kind.to_lowercase(), owner.name.clone()),
    }
}

fn pod(object: &v1::Pod, peer: Arc<Peer>, policy: InboundPolicy) -> Pod {
    Pod {
        peer,
        addresses: addresses::of_pod(object.status.as_ref()),
        live: is_live(object),
        policy,
    }
}

fn by_uid(entries: &Entries<'_>) -> HashMap<PodUid, Arc<Pod>> {
    let pods = entries.values().map(|entry| &entry.pod);
    pods.map(|pod| (pod.peer.workload.uid.clone(), Arc::clone(pod)))
        .collect()
}

/// Live pods by their own addresses. Where two claim one, it is of the one that is not being
/// deleted, then of the younger.
fn by_address(entries: &Entries<'_>) -> HashMap<IpAddr, Arc<Peer>> {
    let mut owned: Vec<_> = entries
        .values()
        .filter(|entry| owns_addresses(entry))
        .collect();
    owned.sort_by_key(|entry| claim(&entry.object.metadata));
    let pairs = owned.into_iter().flat_map(|entry| {
        let peer = &entry.pod.peer;
        entry
            .pod
            .addresses
            .iter()
            .map(move |ip| (*ip, Arc::clone(peer)))
    });
    pairs.collect()
}

fn owns_addresses(entry: &Entry<'_>) -> bool {
    entry.pod.live && !is_host_network(entry.object)
}

fn claim(meta: &ObjectMeta) -> (bool, Option<&Time>) {
    (
        meta.deletion_timestamp.is_none(),
        meta.creation_timestamp.as_ref(),
    )
}

fn services(
    objects: &Objects,
    entries: &Entries<'_>,
    old: &View,
    refusals: &mut BTreeSet<String>,
) -> HashMap<SocketAddr, Arc<Service>> {
    let mut services: HashMap<SocketAddr, Arc<Service>> = HashMap::new();
    for (key, object) in &objects.services {
        let Some(spec) = &object.spec else { continue };
        let owner = owner_of("Service", objects, key, &object.metadata);
        let (traffic, unknown) = Traffic::of(owner.annotations, spec);
        refusals.extend(unsupported(key, affinity(spec).into_iter().chain(unknown)));
        let opaque = ports::of_service(&owner, spec.ports.as_deref().unwrap_or_default(), refusals);
        let selected = selected(&key.0, spec, entries);
        for (address, port) in ports(spec) {
            if let Some(first) = services.get(&address) {
                refusals.insert(taken(key, address, first));
                continue;
            }
            let service = Service {
                namespace: key.0.clone(),
                name: key.1.clone(),
                port_name: port.name.clone().unwrap_or_default(),
                protocol: ports::of_service_port(&owner, port, &opaque, refusals),
                traffic,
                endpoints: endpoints(&selected, port, address.ip()),
            };
            services.insert(address, reuse(&old.services, &address, service));
        }
    }
    services
}

/// A field that this release does not know how to follow, and its value.
type Unfollowed<'a> = (&'static str, &'a str);

/// A mesh that balances each request keeps no client at one endpoint.
fn affinity(spec: &ServiceSpec) -> Option<Unfollowed<'_>> {
    let affinity = spec.session_affinity.as_deref();
    let affinity = affinity.filter(|value| *value != "None");
    affinity.map(|value| ("sessionAffinity", value))
}

fn unsupported<'a>(
    (namespace, name): &'a NamespacedName,
    fields: impl Iterator<Item = Unfollowed<'a>> + 'a,
) -> impl Iterator<Item = String> + 'a {
    fields.map(move |(field, value)| {
        format!("Service {namespace}/{name} asks for {field} {value:?}, which is not supported")
    })
}

fn taken((namespace, name): &NamespacedName, address: SocketAddr, first: &Service) -> String {
    format!(
        "Service {namespace}/{name} has the address {address} of Service {}/{}, which keeps it",
        first.namespace, first.name
    )
}

fn ports(spec: &ServiceSpec) -> impl Iterator<Item = (SocketAddr, &ServicePort)> {
    let addresses = addresses::of_service(spec);
    let ports = spec.ports.iter().flatten();
    ports.flat_map(move |port| {
        let number = addresses::service_port(port);
        let addresses = addresses.clone().into_iter();
        addresses.filter_map(move |ip| Some((SocketAddr::new(ip, number?), port)))
    })
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
        .filter(|entry| entry.pod.live && (unready_too || is_ready(entry.object)))
        .collect()
}

fn endpoints(
    selected: &[&Entry<'_>],
    port: &ServicePort,
    vip: IpAddr,
) -> BTreeMap<SocketAddr, Arc<Peer>> {
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

fn is_live(pod: &v1::Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ready(pod: &v1::Pod) -> bool {
    let ready = |status: &PodStatus| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    pod.metadata.deletion_timestamp.is_none() && pod.status.as_ref().is_some_and(ready)
}

fn is_host_network(pod: &v1::Pod) -> bool {
    pod.spec
        .as_ref()
        .is_some_and(|spec| spec.host_network == Some(true))
}

fn reuse_peer(old: &View, new: Peer) -> Arc<Peer> {
    let same = old.pods.get(&new.workload.uid).map(|pod| &pod.peer);
    same.filter(|peer| ***peer == new)
        .cloned()
        .unwrap_or_else(|| Arc::new(new))
}

/// The old one where it is equal, so that comparing what is equal costs next to nothing.
fn reuse<K: Eq + Hash, V: Eq>(old: &HashMap<K, Arc<V>>, key: &K, new: V) -> Arc<V> {
    let same = old.get(key).filter(|old| ***old == new);
    same.cloned().unwrap_or_else(|| Arc::new(new))
}
