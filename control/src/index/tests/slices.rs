// SPDX-License-Identifier: Apache-2.0
//! Endpoints by EndpointSlices, as controllers of Kubernetes 1.20 to 1.35 write them.

use super::*;

const SPLIT: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd96::1']
  ports: [{name: http, port: 80, targetPort: anything}, {name: raw, port: 9000}, {port: 7}]
";

/// A slice of the service `web` with these ports and endpoints, in JSON's short form.
fn slice(name: &str, family: &str, ports: &str, endpoints: &[&str]) -> String {
    format!(
        "\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: {family}
ports: [{ports}]
endpoints: [{}]
",
        endpoints.join(", ")
    )
}

fn of_pod(ip: &str, pod: &str, conditions: &str) -> String {
    format!(
        "{{addresses: ['{ip}'], conditions: {{{conditions}}}, targetRef: {{kind: Pod, namespace: shop, name: {pod}, uid: uid-{pod}}}}}"
    )
}

const HTTP: &str = "{name: http, port: 8080, protocol: TCP}";

fn with(slices: &[String]) -> Index {
    let pods = pod("a", "n1", &["10.0.0.1", "fd00::1"]) + &pod("b", "n2", &["10.0.0.2"]);
    index(&format!("{SPLIT}{pods}{}", slices.concat()))
}

#[test]
fn ports_are_matched_by_name_and_families_by_the_address() {
    let both = [
        slice(
            "v4",
            "IPv4",
            "{name: http, port: 8080}, {name: raw, port: 1234, protocol: TCP}, {name: raw, port: 1, protocol: UDP}",
            &[&of_pod("10.0.0.1", "a", "ready: true")],
        ),
        slice(
            "v6",
            "IPv6",
            HTTP,
            &[&of_pod("fd00::1", "a", "ready: true")],
        ),
    ];
    let index = with(&both);
    assert_eq!(endpoints(&index, "10.96.0.1:80"), ["10.0.0.1:8080 a"]);
    assert_eq!(endpoints(&index, "10.96.0.1:9000"), ["10.0.0.1:1234 a"]);
    assert_eq!(endpoints(&index, "[fd96::1]:80"), ["[fd00::1]:8080 a"]);
    assert!(endpoints(&index, "10.96.0.1:7").is_empty());
}

#[test]
fn pods_of_one_service_have_a_named_port_at_different_numbers() {
    let one = |name, pod, ip, port| {
        slice(
            name,
            "IPv4",
            &format!("{{name: http, port: {port}}}"),
            &[&of_pod(ip, pod, "")],
        )
    };
    let index = with(&[
        one("x", "a", "10.0.0.1", 8080),
        one("y", "b", "10.0.0.2", 81),
    ]);
    let expected = ["10.0.0.1:8080 a", "10.0.0.2:81 b"];
    assert_eq!(endpoints(&index, "10.96.0.1:80"), expected);
}

#[test]
fn what_ends_serves_only_while_nothing_is_ready() {
    let ends = of_pod(
        "10.0.0.1",
        "a",
        "ready: false, serving: true, terminating: true",
    );
    let of = |other: &str| {
        let other = of_pod("10.0.0.2", "b", other);
        let index = with(&[slice("x", "IPv4", HTTP, &[&ends, &other])]);
        endpoints(&index, "10.96.0.1:80")
    };
    assert_eq!(of("ready: true"), ["10.0.0.2:8080 b"]);
    assert_eq!(of(""), ["10.0.0.2:8080 b"], "not said is ready");
    assert_eq!(of("ready: false"), ["10.0.0.1:8080 a"]);
    // As for publishNotReadyAddresses.
    let kept = "ready: true, serving: false, terminating: true";
    assert_eq!(of(kept), ["10.0.0.2:8080 b"]);
    let gone = "ready: false, serving: false, terminating: true";
    assert_eq!(of(gone), ["10.0.0.1:8080 a"]);
}

#[test]
fn what_ends_serves_its_own_node_where_traffic_stays_there() {
    let local = SPLIT.replace("spec:", "spec:\n  internalTrafficPolicy: Local");
    let ends = "ready: false, serving: true, terminating: true";
    let pods = pod("a", "n1", &["10.0.0.1"]) + &pod("b", "n2", &["10.0.0.2"]);
    let pods = pods + &pod("c", "n2", &["10.0.0.3"]);
    let endpoints = [
        &of_pod("10.0.0.1", "a", ends),
        &of_pod("10.0.0.2", "b", "ready: true"),
        &of_pod("10.0.0.3", "c", ends),
    ];
    let slice = slice("x", "IPv4", HTTP, &endpoints.map(String::as_str));
    let index = index(&format!("{local}{pods}{slice}"));
    let seen = |node| super::topology::seen_from(&index, node);
    assert_eq!(seen("n1"), ["a"], "none is ready there");
    assert_eq!(seen("n2"), ["b"]);
    assert!(seen("n3").is_empty());
}

#[test]
fn an_endpoint_in_several_slices_is_one() {
    let twice = [
        slice(
            "x",
            "IPv4",
            HTTP,
            &[&of_pod("10.0.0.1", "a", "ready: false")],
        ),
        slice(
            "y",
            "IPv4",
            HTTP,
            &[&of_pod("10.0.0.1", "a", "ready: true")],
        ),
        slice(
            "z",
            "IPv4",
            HTTP,
            &[&of_pod("10.0.0.1", "a", "ready: true")],
        ),
    ];
    assert_eq!(
        endpoints(&with(&twice), "10.96.0.1:80"),
        ["10.0.0.1:8080 a"]
    );
}

/// The address decides: an endpoint that a slice gives to nobody, or to another, is dialled as
/// the pod that has the address.
#[test]
fn a_meshed_pod_is_meshed_whatever_a_slice_says() {
    let bare = "{addresses: ['10.0.0.1']}";
    let lies = of_pod("10.0.0.2", "a", "ready: true");
    let mut index = with(&[slice("x", "IPv4", HTTP, &[bare, &lies])]);
    for (node, name) in [("n1", "a"), ("n2", "b")] {
        let applied = index.report(node, &report(name, 1, 1, true));
        assert!(applied.is_ok(), "{applied:?}");
    }
    let reports = Reports::clone(&index.reports().borrow());
    index.written(&reports);
    let expected = ["10.0.0.1:8080 a+", "10.0.0.2:8080 b+"];
    assert_eq!(endpoints(&index, "10.96.0.1:80"), expected);
}

#[test]
fn endpoints_without_pods_are_not_meshed() {
    let external = "{addresses: ['192.0.2.1'], nodeName: n1, zone: eu-1}";
    let index = with(&[slice("x", "IPv4", HTTP, &[external])]);
    let Destination::Service(service) = resolve(&index, "10.96.0.1:80") else {
        panic!("no service");
    };
    let peers: Vec<_> = service.endpoints.values().collect();
    let [peer] = peers[..] else {
        panic!("{peers:?}");
    };
    assert!(!peer.meshed && peer.workload.name.is_empty() && peer.workload.uid.0.is_empty());
    assert_eq!(
        (peer.node.as_str(), peer.zone.as_deref()),
        ("n1", Some("eu-1"))
    );
}

/// Slices and pods come by watches of their own: what is not known is not dialled in plaintext.
#[test]
fn a_slice_that_is_ahead_of_its_pod_waits_for_it() {
    let unknown = of_pod("10.0.0.9", "later", "ready: true");
    let replaced = "{addresses: ['10.0.0.8'], targetRef: {kind: Pod, name: a, uid: uid-older}}";
    let moved = of_pod("10.0.0.7", "a", "ready: true");
    let index = with(&[slice("x", "IPv4", HTTP, &[&unknown, replaced, &moved])]);
    assert_eq!(endpoints(&index, "10.96.0.1:80"), ["10.0.0.7:8080 a"]);
}

#[test]
fn names_are_refused_by_name_and_selectors_count_for_nothing() {
    let index = with(&[slice("x", "FQDN", HTTP, &["{addresses: [a.example]}"])]);
    assert!(endpoints(&index, "10.96.0.1:80").is_empty());
    let refusals = index.view().borrow().refusals.clone();
    assert!(
        refusals.iter().any(|it| it.contains("\"FQDN\"")),
        "{refusals:?}"
    );
}
