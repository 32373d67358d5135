// SPDX-License-Identifier: Apache-2.0
//! Which endpoints of a service a node uses.

use super::*;

const ZONES: [(&str, &str); 3] = [("n1", "east"), ("n2", "west"), ("n3", "east")];

fn nodes(zones: &[(&str, &str)]) -> String {
    let node = |(name, zone): &(&str, &str)| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
        )
    };
    zones.iter().map(node).collect()
}

/// A pod on each of n1, n2 and n4, of which n4 has none of `zones`, and the service with `fields`.
fn cluster(fields: &str, on: &[&str], zones: &[(&str, &str)]) -> Index {
    let service = SERVICE.replace("spec:\n", &format!("spec:\n  {fields}\n"));
    let pod = |node: &&str| {
        pod(
            &format!("on-{node}"),
            node,
            &[&format!("10.0.0.{}", &node[1..])],
        )
    };
    let pods: String = on.iter().map(pod).collect();
    index(&format!("{service}{pods}{}", nodes(zones)))
}

/// The pods that a node's pods reach.
pub(super) fn seen_from(index: &Index, node: &str) -> Vec<String> {
    let address = "10.96.0.1:80".parse().unwrap_or_else(|e| panic!("{e}"));
    match index.view().borrow().resolve_for(node, address) {
        Destination::Service(service) => service
            .endpoints
            .values()
            .map(|peer| peer.workload.name.clone())
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_zone_of_the_node_is_preferred_where_that_is_asked_for() {
    for ask in [
        "trafficDistribution: PreferClose",
        "trafficDistribution: PreferSameZone",
    ] {
        let index = cluster(ask, &["n1", "n2"], &ZONES);
        for (node, seen) in [
            ("n1", ["on-n1"].as_slice()),
            ("n2", &["on-n2"]),
            ("n3", &["on-n1"]),
            ("n9", &["on-n1", "on-n2"]),
        ] {
            assert_eq!(seen_from(&index, node), seen, "{ask} {node}");
        }
    }
    let index = cluster("type: ClusterIP", &["n1", "n2"], &ZONES);
    assert_eq!(seen_from(&index, "n1"), ["on-n1", "on-n2"], "nobody asked");
}

#[test]
fn the_annotation_asks_too() {
    for (mode, seen) in [
        ("service.kubernetes.io/topology-mode: Auto", 1),
        ("service.kubernetes.io/topology-aware-hints: auto", 1),
        ("service.kubernetes.io/topology-mode: Disabled", 2),
        ("service.kubernetes.io/topology-mode: Magic", 2),
    ] {
        let service = SERVICE.replace("shop}", &format!("shop, annotations: {{{mode}}}}}"));
        let (a, b) = (pod("a", "n1", &["10.0.0.1"]), pod("b", "n2", &["10.0.0.2"]));
        let index = index(&format!("{service}{a}{b}{}", nodes(&ZONES)));
        assert_eq!(seen_from(&index, "n1").len(), seen, "{mode}");
        let refused = !index.view().borrow().refusals.is_empty();
        assert_eq!(refused, mode.ends_with("Magic"));
    }
}

#[test]
fn one_endpoint_of_an_unknown_zone_and_a_zone_without_any_mean_all() {
    let close = "trafficDistribution: PreferClose";
    let all = ["on-n1", "on-n2", "on-n4"];
    assert_eq!(
        seen_from(&cluster(close, &["n1", "n2", "n4"], &ZONES), "n1"),
        all
    );
    let north = [ZONES.as_slice(), &[("n5", "north")]].concat();
    assert_eq!(
        seen_from(&cluster(close, &["n1", "n2"], &north), "n5"),
        all[..2]
    );
}

#[test]
fn local_traffic_stays_on_the_node_whatever_the_zones() {
    let local = "internalTrafficPolicy: Local\n  trafficDistribution: PreferClose";
    let index = cluster(local, &["n1", "n2"], &ZONES);
    assert_eq!(seen_from(&index, "n1"), ["on-n1"]);
    assert!(seen_from(&index, "n3").is_empty(), "of the same zone");
    assert!(index.view().borrow().refusals.is_empty());
}

#[test]
fn what_is_not_known_is_refused_by_name_and_means_all() {
    for field in [
        "trafficDistribution: PreferSameNode",
        "internalTrafficPolicy: Magic",
        "sessionAffinity: ClientIP",
    ] {
        let index = cluster(field, &["n1", "n2"], &ZONES);
        assert_eq!(seen_from(&index, "n1"), ["on-n1", "on-n2"]);
        let refusals = index.view().borrow().refusals.clone();
        let name = field.split(':').next().unwrap_or_default();
        assert!(
            refusals.len() == 1 && refusals.iter().all(|refusal| refusal.contains(name)),
            "{refusals:?}"
        );
    }
}
