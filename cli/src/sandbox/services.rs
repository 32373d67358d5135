// SPDX-License-Identifier: Apache-2.0
//! Services: their addresses, and how pods learn of them.

use std::{collections::BTreeMap, fmt::Write, net::IpAddr};

use k8s_openapi::api::core::v1::{Pod, Service};

use super::families::IpFamily;

mod cluster_ips;
mod families;

pub use self::cluster_ips::ClusterIps;

/// A namespace and a name.
pub type Key = (String, String);

fn cluster_ip(service: &Service) -> Option<&str> {
    let ip = service.spec.as_ref()?.cluster_ip.as_deref();
    ip.filter(|ip| !ip.is_empty())
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
    if cluster_ip(service) == Some("None") {
        return endpoints.get(key).cloned().unwrap_or_default();
    }
    let ips = cluster_ips(service).iter();
    ips.filter_map(|ip| ip.parse().ok()).collect()
}

/// The addresses of a service, of each of its families.
pub fn cluster_ips(service: &Service) -> &[String] {
    let spec = service.spec.as_ref();
    let ips = spec.and_then(|spec| spec.cluster_ips.as_deref());
    ips.unwrap_or_default()
}

/// Whether a service has this family.
pub fn has_family(service: &Service, family: IpFamily) -> bool {
    let spec = service.spec.as_ref();
    let mut families = spec
        .and_then(|spec| spec.ip_families.as_ref())
        .into_iter()
        .flatten();
    families.any(|name| name == family.as_str())
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

    #[test]
    fn pods_find_services_by_variables_and_names() {
        let ports = json!([{"name": "http-web", "port": 80}, {"name": "x", "port": 81}]);
        let ips = json!(["10.96.0.9", "fd00:96::9"]);
        let spec = json!({"clusterIP": "10.96.0.9", "clusterIPs": ips, "ports": ports});
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
            format!("10.96.0.9 my-web {names}fd00:96::9 my-web {names}")
        );
        assert_eq!(
            hosts("other", &services, &none),
            format!("10.96.0.9 {names}fd00:96::9 {names}")
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
