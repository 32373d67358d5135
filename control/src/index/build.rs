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
    unmeshable::MIRROR,
    workload::{PodUid, Workload},
};
use culvert_manifests::{NamespacedName, Objects};
use k8s_openapi::{
    api::core::v1::{self, ServicePort, ServiceSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{
    Reports, addresses, endpoints,
    made::{Made, Of},
    policy,
    ports::{self, Owner},
    topology::Traffic,
    view::{Peer, Pod, Service, View},
};

/// A pod object with what was made of it.
pub(super) struct Entry<'a> {
    pub(super) object: &'a v1::Pod,
    pub(super) pod: Arc<Pod>,
}

/// All that pods are made of.
struct PodSource<'a> {
    objects: &'a Objects,
    reports: &'a Reports,
    old: &'a View,
    zones: &'a HashMap<String, String>,
    admitted: bool,
}

pub(super) type Entries<'a> = BTreeMap<&'a NamespacedName, Entry<'a>>;

/// Makes the view that follows `old`. `admitted`: Kubernetes gave each pod its ServiceAccount.
/// `made` has what `old` was made of.
pub(super) fn view(
    objects: &Objects,
    reports: &Reports,
    old: &View,
    admitted: bool,
    made: &mut Made,
) -> View {
    let mut refusals = BTreeSet::new();
    let zones = zones(objects);
    let source = PodSource {
        objects,
        reports,
        old,
        zones: &zones,
        admitted,
    };
    let entries = source.entries(made, &mut refusals);
    let addresses = by_address(&entries);
    let source = endpoints::Source::new(objects, &entries, &addresses, &zones, &mut refusals);
    let services = services(objects, &source, old, &mut refusals);
    View {
        version: old.version + 1,
        addresses,
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
    let zone = |(name, node): (&String, &Arc<v1::Node>)| {
        let zone = node.metadata.labels.as_ref()?.get(ZONE_LABEL)?;
        (!zone.is_empty()).then(|| (name.clone(), zone.clone()))
    };
    objects.nodes.iter().filter_map(zone).collect()
}

// === impl PodSource ===

impl<'a> PodSource<'a> {
    fn entries(&self, made: &mut Made, refusals: &mut BTreeSet<String>) -> Entries<'a> {
        let mut next = Made::with_capacity(self.objects.pods.len());
        let mut entries = Vec::with_capacity(self.objects.pods.len());
        for (key, object) in &self.objects.pods {
            let Some(uid) = object.metadata.uid.clone().map(PodUid) else {
                refusals.insert(format!(
                    "Pod {}/{} has no uid and is left out",
                    key.0, key.1
                ));
                continue;
            };
            let of = self.of(key, object, &uid);
            let pod = made.pod(&mut next, of, refusals, |of, refusals| {
                self.pod(key, uid, of, refusals)
            });
            entries.push((key, Entry { object, pod }));
        }
        *made = next;
        // Sorted as they are, they make the map without a search for each.
        entries.into_iter().collect()
    }

    fn of(&self, key: &NamespacedName, object: &Arc<v1::Pod>, uid: &PodUid) -> Of {
        let node = object.spec.as_ref().and_then(|it| it.node_name.as_ref());
        Of {
            object: Arc::clone(object),
            namespace: self.objects.namespaces.get(&key.0).cloned(),
            zone: node.and_then(|node| self.zones.get(node)).cloned(),
            meshed: !is_host_network(object) && self.reports.meshed(uid),
        }
    }

    fn pod(
        &self,
        key: &NamespacedName,
        uid: PodUid,
        of: &Of,
        refusals: &mut BTreeSet<String>,
    ) -> Arc<Pod> {
        let object = &*of.object;
        let owner = owner_of("Pod", self.objects, key, &object.metadata);
        let ports = ports::of_pod(&owner, object.spec.as_ref(), refusals);
        let policy = InboundPolicy {
            ports,
            ..policy(&owner, refusals)
        };
        let peer = Peer {
            ports: Arc::new(policy.ports.clone()),
            zone: of.zone.clone(),
            meshed: of.meshed,
            ..peer(key, object, &uid, self.admitted)
        };
        let peer = reuse_peer(self.old, peer);
        let opted_in =
            !is_host_network(object) && policy::opts_in(owner.annotations, owner.namespace);
        reuse(&self.old.pods, &uid, pod(object, peer, policy, opted_in))
    }
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
         all-unauthenticated, all-authenticated, audit or deny; it gets all-authenticated"
    )
}

/// Apart from its ports and its zone, and unmeshed.
fn peer(key: &NamespacedName, object: &v1::Pod, uid: &PodUid, admitted: bool) -> Peer {
    let (owner_kind, owner_name) = owner(&object.metadata, &key.1);
    let spec = object.spec.as_ref();
    Peer {
        workload: Workload {
            uid: uid.clone(),
            namespace: key.0.clone(),
            name: key.1.clone(),
            service_account: account(object, admitted).unwrap_or_default(),
            owner_kind,
            owner_name,
        },
        node: spec
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default(),
        zone: None,
        meshed: false,
        ports: Arc::default(),
    }
}

/// The ServiceAccount of a pod. On Kubernetes each pod has one once it is `admitted`, apart from
/// those that a kubelet makes of its files, in whatever namespace it likes: they are nobody.
/// A directory's pods have `default` by default, as if they were.
fn account(pod: &v1::Pod, admitted: bool) -> Option<String> {
    let annotations = pod.metadata.annotations.as_ref();
    if annotations.is_some_and(|all| all.contains_key(MIRROR)) {
        return None;
    }
    let spec = pod.spec.as_ref();
    let named = spec.and_then(|spec| {
        let deprecated = spec.service_account.as_ref();
        spec.service_account_name.as_ref().or(deprecated).cloned()
    });
    named.or_else(|| (!admitted).then(|| "default".to_owned()))
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

fn pod(object: &v1::Pod, peer: Arc<Peer>, policy: InboundPolicy, opted_in: bool) -> Pod {
    Pod {
        peer,
        addresses: addresses::of_pod(object.status.as_ref()),
        live: is_live(object),
        opted_in,
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
    let mut addresses = HashMap::with_capacity(owned.len());
    for entry in owned {
        let peer = &entry.pod.peer;
        let of_pod = entry.pod.addresses.iter();
        addresses.extend(of_pod.map(|ip| (*ip, Arc::clone(peer))));
    }
    addresses
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
    source: &endpoints::Source<'_, '_>,
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
        let behind = source.behind(key, spec);
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
                endpoints: behind.endpoints(port, address.ip(), traffic),
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

fn is_live(pod: &v1::Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
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
