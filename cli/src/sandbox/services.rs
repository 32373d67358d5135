// SPDX-License-Identifier: Apache-2.0
//! Services: their addresses, and how pods learn of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
};

use k8s_openapi::api::core::v1::{Pod, Service};

use super::layout::fnv1a;

/// A namespace and a name.
pub type Key = (String, String);

/// The network of service addresses, a /16.
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);

/// How many addresses it has to give: neither the first nor the last.
const SIZE: u64 = (1 << 16) - 2;

/// The addresses that services without one were given. A service keeps its address while it lives,
/// and gets the same again in the next sandbox unless another one took it.
#[derive(Clone, Debug, Default)]
pub struct ClusterIps {
    given: BTreeMap<Key, Ipv4Addr>,
}

// === impl ClusterIps ===

impl ClusterIps {
    /// Completes the services with addresses, and says what is wrong with some.
    pub fn assign(&mut self, services: &mut BTreeMap<Key, Service>) -> Vec<(Key, String)> {
        self.given
            .retain(|key, _| services.get(key).is_some_and(|s| cluster_ip(s).is_none()));
        let (mut taken, problems) = explicit(services);
        self.given.retain(|_, ip| taken.insert(*ip));
        for (key, service) in services {
            if cluster_ip(service).is_none() {
                let ip = *self
                    .given
                    .entry(key.clone())
                    .or_insert_with(|| free(key, &taken));
                taken.insert(ip);
                set_cluster_ip(service, ip);
            }
        }
        problems
    }
}

/// The addresses that users gave, and those of them that are given twice or are none.
fn explicit(services: &BTreeMap<Key, Service>) -> (BTreeSet<Ipv4Addr>, Vec<(Key, String)>) {
    let (mut taken, mut problems) = (BTreeSet::new(), Vec::new());
    for (key, service) in services {
        let Some(text) = cluster_ip(service).filter(|ip| *ip != "None") else {
            continue;
        };
        let fresh = text
            .parse()
            .ok()
            .filter(in_network)
            .is_some_and(|ip| taken.insert(ip));
        if !fresh {
            let reason = format!(
                "got clusterIP {text:?}, expected None or an address of 10.96.0.0/16 that no \
                 other Service has"
            );
            problems.push((key.clone(), reason));
        }
    }
    (taken, problems)
}

fn in_network(ip: &Ipv4Addr) -> bool {
    ip.octets()[..2] == NETWORK.octets()[..2]
}

fn free(key: &Key, taken: &BTreeSet<Ipv4Addr>) -> Ipv4Addr {
    let start = fnv1a(format!("{}/{}", key.0, key.1).as_bytes());
    let nth = |step| (start.wrapping_add(step) % SIZE + 1) as u32;
    let address = |step| Ipv4Addr::from(u32::from(NETWORK) | nth(step));
    let free = (0..SIZE).map(address).find(|ip| !taken.contains(ip));
    free.unwrap_or(NETWORK)
}

fn cluster_ip(service: &Service) -> Option<&str> {
    let ip = service.spec.as_ref()?.cluster_ip.as_deref();
    ip.filter(|ip| !ip.is_empty())
}

fn set_cluster_ip(service: &mut Service, ip: Ipv4Addr) {
    let spec = service.spec.get_or_insert_default();
    spec.cluster_ip = Some(ip.to_string());
    spec.cluster_ips = Some(vec![ip.to_string()]);
}

/// The variables by which a pod of `namespace` finds its services, as Kubernetes sets them
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
pub fn environment(namespace: &str, services: &BTreeMap<Key, Service>) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for ((_, name), service) in services.iter().filter(|((ns, _), _)| ns == namespace) {
        let Some(ip) = cluster_ip(service).filter(|ip| *ip != "None") else {
            continue;
        };
        let prefix = name.to_uppercase().replace('-', "_");
        variables.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
        let ports = service
            .spec
            .iter()
            .flat_map(|spec| spec.ports.iter().flatten());
        for (nth, port) in ports.enumerate() {
            let number = port.port.to_string();
            if nth == 0 {
                variables.push((format!("{prefix}_SERVICE_PORT"), number.clone()));
            }
            if let Some(name) = &port.name {
                let name = name.to_uppercase().replace('-', "_");
                variables.push((format!("{prefix}_SERVICE_PORT_{name}"), number));
            }
        }
    }
    variables
}

/// The lines of `/etc/hosts` by which a pod of `namespace` finds all services.
pub fn hosts(namespace: &str, services: &BTreeMap<Key, Service>, endpoints: &Endpoints) -> String {
    let mut lines = String::new();
    for (key, service) in services {
        for ip in addresses(key, service, endpoints) {
            let (ns, name) = key;
            let short = if ns == namespace {
                format!("{name} ")
            } else {
                String::new()
            };
            let full = format!("{name}.{ns}.svc.cluster.local");
            // Writing to a string can't fail.
            let _ = writeln!(lines, "{ip} {short}{name}.{ns} {name}.{ns}.svc {full}");
        }
    }
    lines
}

/// The addresses of the ready pods of services without an address of their own.
pub type Endpoints = BTreeMap<Key, Vec<IpAddr>>;

fn addresses(key: &Key, service: &Service, endpoints: &Endpoints) -> Vec<IpAddr> {
    match cluster_ip(service) {
        Some("None") => endpoints.get(key).cloned().unwrap_or_default(),
        Some(ip) => ip.parse().into_iter().collect(),
        None => Vec::new(),
    }
}

/// Whether a service without an address of its own sends its clients to this pod.
pub fn selects_headless(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref())
    else {
        return false;
    };
    let labels = pod.metadata.labels.as_ref();
    let has = |(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value));
    cluster_ip(service) == Some("None")
        && service.metadata.namespace == pod.metadata.namespace
        && !selector.is_empty()
        && selector.iter().all(has)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, spec: serde_json::Value) -> (Key, Service) {
        let service = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        let service = serde_json::from_value(service).unwrap_or_else(|e| panic!("{e}"));
        (("shop".into(), name.into()), service)
    }

    fn ip(services: &BTreeMap<Key, Service>, name: &str) -> String {
        let service = &services[&("shop".to_owned(), name.to_owned())];
        cluster_ip(service).unwrap_or("").to_owned()
    }

    #[test]
    fn addresses_are_stable_distinct_and_give_way_to_explicit_ones() {
        let mut ips = ClusterIps::default();
        let mut services = BTreeMap::from([service("a", json!({})), service("b", json!({}))]);
        assert!(ips.assign(&mut services).is_empty());
        let (a, b) = (ip(&services, "a"), ip(&services, "b"));
        assert_ne!(a, b);

        let fresh = BTreeMap::from([service("a", json!({}))]);
        let mut again = fresh.clone();
        ClusterIps::default().assign(&mut again);
        assert_eq!(ip(&again, "a"), a);

        let thief = service("c", json!({"clusterIP": a}));
        let mut robbed: BTreeMap<_, _> = fresh.into_iter().chain([thief]).collect();
        assert!(ips.assign(&mut robbed).is_empty());
        assert_ne!(ip(&robbed, "a"), a);
        assert_eq!(ip(&robbed, "c"), a);
    }

    #[test]
    fn wrong_addresses_are_named() {
        let mut services = BTreeMap::from([
            service("a", json!({"clusterIP": "10.96.0.9"})),
            service("b", json!({"clusterIP": "10.96.0.9"})),
            service("c", json!({"clusterIP": "192.0.2.1"})),
            service("d", json!({"clusterIP": "None"})),
        ]);
        let problems = ClusterIps::default().assign(&mut services);
        let names: Vec<_> = problems
            .iter()
            .map(|((_, name), _)| name.as_str())
            .collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(ip(&services, "d"), "None");
    }

    #[test]
    fn pods_find_services_by_variables_and_names() {
        let ports = json!([{"name": "http-web", "port": 80}, {"name": "x", "port": 81}]);
        let spec = json!({"clusterIP": "10.96.0.9", "ports": ports});
        let services = BTreeMap::from([service("my-web", spec)]);
        let variables: BTreeMap<_, _> = environment("shop", &services).into_iter().collect();
        assert_eq!(variables["MY_WEB_SERVICE_HOST"], "10.96.0.9");
        assert_eq!(variables["MY_WEB_SERVICE_PORT"], "80");
        assert_eq!(variables["MY_WEB_SERVICE_PORT_X"], "81");
        assert!(environment("other", &services).is_empty());
        let names = "my-web.shop my-web.shop.svc my-web.shop.svc.cluster.local\n";
        let none = Endpoints::new();
        assert_eq!(
            hosts("shop", &services, &none),
            format!("10.96.0.9 my-web {names}")
        );
        assert_eq!(
            hosts("other", &services, &none),
            format!("10.96.0.9 {names}")
        );
    }

    #[test]
    fn a_headless_service_is_its_ready_pods() {
        let (key, service) = service(
            "db",
            json!({"clusterIP": "None", "selector": {"app": "db"}}),
        );
        let pod = |app: &str| {
            let meta = json!({"name": "p", "namespace": "shop", "labels": {"app": app}});
            serde_json::from_value(json!({ "metadata": meta })).unwrap_or_else(|e| panic!("{e}"))
        };
        assert!(selects_headless(&service, &pod("db")));
        assert!(!selects_headless(&service, &pod("web")));
        let endpoints = Endpoints::from([(key.clone(), vec![[10, 244, 1, 2].into()])]);
        let lines = hosts("shop", &BTreeMap::from([(key, service)]), &endpoints);
        assert!(lines.starts_with("10.244.1.2 db db.shop "));
    }
}
