// SPDX-License-Identifier: Apache-2.0

mod conditions;
mod hints;
mod slices;
mod topology;

use std::net::SocketAddr;

use super::*;
use crate::testing::{SERVICE, objects, pod, report};

fn index(text: &str) -> Index {
    let mut index = Index::new(Reports::default());
    index.reset(objects(text));
    index
}

fn resolve(index: &Index, address: &str) -> Destination {
    let address: SocketAddr = address.parse().unwrap_or_else(|e| panic!("{e}"));
    index.view().borrow().resolve(address)
}

/// The endpoints of a service: address, pod, and `+` if meshed.
fn endpoints(index: &Index, address: &str) -> Vec<String> {
    let Destination::Service(service) = resolve(index, address) else {
        panic!("{address} is no service");
    };
    let endpoints = service.endpoints.iter();
    let text = |(at, peer): (&SocketAddr, &Arc<Peer>)| {
        format!(
            "{at} {}{}",
            peer.workload.name,
            if peer.meshed { "+" } else { "" }
        )
    };
    endpoints.map(text).collect()
}

fn peer(index: &Index, address: &str) -> Arc<Peer> {
    match resolve(index, address) {
        Destination::Pod(peer) => peer,
        other => panic!("{address} is {other:?}"),
    }
}

/// Applies a report as if it was on disk at once, and answers the version of the view that has it.
fn version(index: &mut Index, node: &str, report: &Report) -> Option<u64> {
    index.report(node, report).ok()?;
    write(index);
    Some(index.version_of(&report.uid))
}

fn write(index: &mut Index) {
    let newest = Arc::clone(&index.reports().borrow());
    index.written(&newest);
}

fn ready() -> String {
    format!(
        "{SERVICE}{}{}",
        pod("a", "n1", &["10.0.0.1", "fd00::1"]),
        pod("b", "n2", &["10.0.0.2"])
    )
}

#[test]
fn a_service_is_its_ready_pods_of_the_family() {
    let index = index(&ready());
    assert_eq!(
        endpoints(&index, "10.96.0.1:80"),
        ["10.0.0.1:8080 a", "10.0.0.2:8080 b"]
    );
    assert_eq!(endpoints(&index, "[fd96::1]:80"), ["[fd00::1]:8080 a"]);
    assert_eq!(
        endpoints(&index, "10.96.0.1:9000"),
        ["10.0.0.1:9000 a", "10.0.0.2:9000 b"]
    );
    for undeclared in ["10.96.0.1:81", "10.96.0.1:53", "[fd96::1]:81"] {
        let got = resolve(&index, undeclared);
        assert_eq!(got, Destination::Undeclared, "{undeclared}");
    }
    assert_eq!(resolve(&index, "1.1.1.1:80"), Destination::Unknown);
    assert_eq!(peer(&index, "10.0.0.2:1234").workload.name, "b");
    assert_eq!(peer(&index, "[fd00::1]:1").node, "n1");
}

#[test]
fn who_is_not_ready_is_no_endpoint() {
    for (from, to) in [
        ("status: 'True'", "status: 'False'"),
        ("phase: Running", "phase: Failed"),
        (
            "uid: uid-b",
            "uid: uid-b, deletionTimestamp: '2026-01-01T00:00:00Z'",
        ),
        (
            "app: web}}\nspec:\n  nodeName: n2",
            "app: other}}\nspec:\n  nodeName: n2",
        ),
        (
            "namespace: shop, uid: uid-b",
            "namespace: other, uid: uid-b",
        ),
    ] {
        let b = pod("b", "n2", &["10.0.0.2"]).replace(from, to);
        let index = index(&format!("{SERVICE}{}{b}", pod("a", "n1", &["10.0.0.1"])));
        assert_eq!(
            endpoints(&index, "10.96.0.1:80"),
            ["10.0.0.1:8080 a"],
            "{to}"
        );
    }
}

#[test]
fn unready_pods_are_endpoints_where_the_service_says_so() {
    let service = SERVICE.replace("spec:", "spec:\n  publishNotReadyAddresses: true");
    let pod = pod("a", "n1", &["10.0.0.1"]).replace("'True'", "'False'");
    let index = index(&format!("{service}{pod}"));
    assert_eq!(endpoints(&index, "10.96.0.1:80"), ["10.0.0.1:8080 a"]);
}

#[test]
fn a_pod_without_the_named_port_is_no_endpoint() {
    let pod = pod("a", "n1", &["10.0.0.1"])
        .replace("name: http, containerPort: 8080", "containerPort: 1");
    let index = index(&format!("{SERVICE}{pod}"));
    assert!(endpoints(&index, "10.96.0.1:80").is_empty());
    assert_eq!(endpoints(&index, "10.96.0.1:9000").len(), 1);
}

#[test]
fn headless_services_and_those_without_selector_have_no_endpoints() {
    let headless = SERVICE
        .replace("10.96.0.1", "None")
        .replace(", 'fd96::1'", "");
    let headless = index(&format!("{headless}{}", pod("a", "n1", &["10.0.0.1"])));
    assert!(headless.view().borrow().services.is_empty());
    let bare = SERVICE.replace("  selector: {app: web}\n", "");
    let bare = index(&format!("{bare}{}", pod("a", "n1", &["10.0.0.1"])));
    assert!(endpoints(&bare, "10.96.0.1:80").is_empty());
}

#[test]
fn a_pod_in_the_host_network_is_an_endpoint_but_not_its_address() {
    let pod =
        pod("a", "n1", &["192.0.2.1"]).replace("nodeName: n1", "nodeName: n1\n  hostNetwork: true");
    let mut index = index(&format!("{SERVICE}{pod}"));
    assert!(version(&mut index, "n1", &report("a", 1, 1, true)).is_some());
    assert_eq!(
        endpoints(&index, "10.96.0.1:80"),
        ["192.0.2.1:8080 a"],
        "and never meshed"
    );
    assert_eq!(resolve(&index, "192.0.2.1:22"), Destination::Unknown);
}

#[test]
fn an_address_of_a_finished_pod_is_of_its_next_user() {
    let old = pod("z", "n1", &["10.0.0.1"]);
    let finished = old.replace("Running", "Succeeded");
    let new = pod("a", "n1", &["10.0.0.1"]);
    assert_eq!(
        peer(&index(&format!("{finished}{new}")), "10.0.0.1:1")
            .workload
            .name,
        "a"
    );
    let dying = old.replace("uid: ", "deletionTimestamp: '2026-01-01T00:00:00Z', uid: ");
    assert_eq!(
        peer(&index(&format!("{dying}{new}")), "10.0.0.1:1")
            .workload
            .name,
        "a"
    );
    assert_eq!(
        resolve(&index(&finished), "10.0.0.1:1"),
        Destination::Unknown
    );
}

#[test]
fn owners_are_named_as_people_know_them() {
    let owner = |kind: &str, name: &str, hash: &str| {
        let reference = format!(
            "ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: u, \
             controller: true}}], uid: "
        );
        let pod = pod("a", "n1", &["10.0.0.1"]).replace("uid: ", &reference);
        let pod = pod.replace("app: web", &format!("app: web{hash}"));
        let workload = peer(&index(&pod), "10.0.0.1:1").workload.clone();
        (workload.owner_kind, workload.owner_name)
    };
    let own = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    let hash = ", pod-template-hash: 5d4f";
    assert_eq!(
        owner("ReplicaSet", "web-5d4f", hash),
        own("deployment", "web")
    );
    assert_eq!(
        owner("ReplicaSet", "web-other", hash),
        own("replicaset", "web-other")
    );
    assert_eq!(owner("Deployment", "web", ""), own("deployment", "web"));
    assert_eq!(owner("StatefulSet", "db", ""), own("statefulset", "db"));
    let bare = index(&pod("a", "n1", &["10.0.0.1"]));
    assert_eq!(peer(&bare, "10.0.0.1:1").workload.owner_kind, "pod");
    assert_eq!(peer(&bare, "10.0.0.1:1").workload.service_account, "web");
}

#[test]
fn the_annotation_makes_the_policy_and_what_is_unknown_is_strict() {
    let policy = |pod_says: &str, namespace_says: &str| {
        let namespace =
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {a: b}}\n";
        let says =
            |value| format!("annotations: {{culvert.io/default-inbound-policy: {value}, a: b");
        let namespace = namespace.replace("annotations: {a: b", &says(namespace_says));
        let pod = pod("a", "n1", &[]).replace("uid: ", &format!("{}}}, uid: ", says(pod_says)));
        let index = index(&format!("{namespace}{pod}"));
        let view = index.view().borrow().clone();
        let pod = view
            .pod(&PodUid("uid-a".into()))
            .unwrap_or_else(|| panic!("no pod"));
        (
            pod.policy.requires_identity(),
            view.refusals.iter().cloned().collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        policy("all-unauthenticated", "all-authenticated"),
        (false, vec![])
    );
    assert_eq!(
        policy("all-authenticated", "all-unauthenticated"),
        (true, vec![])
    );
    assert_eq!(policy("audit", "deny"), (false, vec![]));
    assert_eq!(policy("deny", "audit"), (true, vec![]));
    let (strict, refusals) = policy("cluster-authenticated", "all-unauthenticated");
    assert!(strict);
    assert!(
        refusals[0].contains("Pod shop/a") && refusals[0].contains("\"cluster-authenticated\""),
        "{refusals:?}"
    );
}

#[test]
fn what_a_service_asks_in_vain_is_named() {
    let text = SERVICE.replace("spec:", "spec:\n  sessionAffinity: ClientIP");
    let twin = SERVICE.replace("name: web", "name: zwin");
    let index = index(&format!("{text}{twin}"));
    let refusals = index.view().borrow().refusals.clone();
    assert!(
        refusals
            .iter()
            .any(|text| text.contains("sessionAffinity \"ClientIP\"")),
        "{refusals:?}"
    );
    assert!(
        refusals
            .iter()
            .any(|text| text.contains("10.96.0.1:80 of Service shop/web")),
        "{refusals:?}"
    );
}

#[test]
fn only_the_pods_own_node_makes_it_meshed() {
    let mut index = index(&ready());
    let denied = index.report("n2", &report("a", 1, 1, true));
    assert!(
        matches!(&denied, Err(Refused::OtherNode { node, .. }) if node == "n1"),
        "{denied:?}"
    );
    let unknown = index.report("n1", &report("c", 1, 1, true));
    assert!(
        matches!(unknown, Err(Refused::UnknownPod { .. })),
        "{unknown:?}"
    );
    assert!(!peer(&index, "10.0.0.1:1").meshed);
    assert_eq!(version(&mut index, "n1", &report("a", 1, 1, true)), Some(2));
    assert!(peer(&index, "10.0.0.1:1").meshed);
    assert_eq!(
        endpoints(&index, "10.96.0.1:80"),
        ["10.0.0.1:8080 a+", "10.0.0.2:8080 b"]
    );
}

#[test]
fn older_reports_are_ignored_and_repeated_ones_change_nothing() {
    let mut index = index(&ready());
    assert_eq!(version(&mut index, "n1", &report("a", 1, 5, true)), Some(2));
    let stale = index.report("n1", &report("a", 1, 4, false));
    let expected = Stale {
        got: 4,
        known: 5,
        elsewhere: false,
    };
    assert_eq!(stale, Err(Refused::Stale(expected)));
    assert_eq!(
        version(&mut index, "n1", &report("a", 1, 5, true)),
        Some(2),
        "the version that had it"
    );
    assert_eq!(
        version(&mut index, "n1", &report("a", 1, 6, false)),
        Some(3)
    );
    assert!(!peer(&index, "10.0.0.1:1").meshed);
}

#[test]
fn another_network_namespace_begins_anew_and_the_old_one_takes_nothing_back() {
    let mut index = index(&ready());
    assert!(version(&mut index, "n1", &report("a", 1, 9, true)).is_some());
    assert!(version(&mut index, "n1", &report("a", 2, 1, true)).is_some());
    assert!(version(&mut index, "n1", &report("a", 1, 10, false)).is_some());
    assert!(peer(&index, "10.0.0.1:1").meshed);
    index.reset(objects(&pod("a", "n1", &["10.0.0.9"])));
    assert!(
        peer(&index, "10.0.0.9:1").meshed,
        "its address came after its report"
    );
    index.reset(objects(&pod("a", "n1", &["10.0.0.10"])));
    assert!(
        !peer(&index, "10.0.0.10:1").meshed,
        "nobody reported it there"
    );
}

#[test]
fn a_report_may_be_ahead_of_the_address_and_survives_a_restart() {
    let mut first = index(&pod("a", "n1", &[]));
    assert!(version(&mut first, "n1", &report("a", 1, 1, true)).is_some());
    first.reset(objects(&pod("a", "n1", &["10.0.0.1"])));
    assert!(peer(&first, "10.0.0.1:1").meshed);
    first.reset(objects(&pod("a", "n1", &["10.0.0.1", "fd00::1"])));
    assert!(
        peer(&first, "[fd00::1]:1").meshed,
        "an address of another family was added"
    );
    first.reset(objects(""));
    let kept = serde_json::to_string(&**first.reports().borrow());
    let kept = serde_json::from_str(&kept.unwrap_or_else(|e| panic!("{e}")));
    let mut second = Index::new(kept.unwrap_or_else(|e| panic!("{e}")));
    second.reset(objects(&pod("a", "n1", &["10.0.0.1"])));
    assert!(
        peer(&second, "10.0.0.1:1").meshed,
        "its file was gone for a moment only"
    );
    assert_eq!(
        version(&mut second, "n1", &report("a", 1, 1, true)),
        Some(0),
        "known since before"
    );
    let other = pod("a", "n1", &["10.0.0.1"]).replace("uid-a", "uid-other");
    second.reset(objects(&other));
    assert!(
        !peer(&second, "10.0.0.1:1").meshed,
        "another pod of the same name"
    );
}

#[test]
fn a_pod_that_is_gone_is_withdrawn_by_its_node_only() {
    let mut index = index(&ready());
    assert!(version(&mut index, "n1", &report("a", 1, 1, true)).is_some());
    index.reset(objects(""));
    for (node, cookie, meshed) in [("n2", 1, true), ("n1", 9, true), ("n1", 1, false)] {
        assert_eq!(
            version(&mut index, node, &report("a", cookie, 2, false)),
            Some(3)
        );
        let mut later = Index::new(Reports::clone(&index.reports().borrow()));
        later.reset(objects(&ready()));
        assert_eq!(peer(&later, "10.0.0.1:1").meshed, meshed, "{node} {cookie}");
    }
    assert_eq!(
        version(&mut index, "n1", &report("unheard-of", 1, 1, false)),
        Some(3)
    );
}

#[test]
fn what_did_not_change_is_not_told() {
    let mut index = index(&ready());
    let mut view = index.view();
    let before = view.borrow_and_update().clone();
    index.reset(objects(&ready()));
    assert!(!view.has_changed().unwrap_or_else(|e| panic!("{e}")));
    assert!(version(&mut index, "n1", &report("a", 1, 1, true)).is_some());
    let after = view.borrow_and_update().clone();
    assert_eq!((before.version, after.version), (1, 2));
    let b = PodUid("uid-b".into());
    let same = before
        .pod(&b)
        .zip(after.pod(&b))
        .is_some_and(|(old, new)| Arc::ptr_eq(old, new));
    assert!(same, "an unchanged pod is shared");
}

#[test]
fn a_pod_is_meshed_once_that_is_on_disk_and_unmeshed_at_once() {
    let mut index = index(&ready());
    let meshed = |index: &Index| peer(index, "10.0.0.1:1").meshed;
    let steer = |index: &mut Index, generation| {
        assert!(
            index
                .report("n1", &report("a", 1, generation, true))
                .is_ok()
        );
        Arc::clone(&index.reports().borrow())
    };
    let first = steer(&mut index, 1);
    assert!(!meshed(&index));
    let unrelated = index.report("n2", &report("b", 1, 1, true));
    assert!(unrelated.is_ok() && !meshed(&index));
    index.written(&first);
    assert!(meshed(&index));
    assert_eq!(index.version_of(&PodUid("uid-a".into())), 2);
    assert!(!peer(&index, "10.0.0.2:1").meshed, "not written yet");
    let withdrawn = index.report("n1", &report("a", 1, 2, false));
    assert!(withdrawn.is_ok() && !meshed(&index));
    let withdrawn = Arc::clone(&index.reports().borrow());
    index.written(&first);
    assert!(!meshed(&index), "what is written is old");
    let again = steer(&mut index, 3);
    assert!(!meshed(&index), "the withdrawal may be on disk by now");
    index.written(&withdrawn);
    assert!(!meshed(&index));
    index.written(&again);
    assert!(meshed(&index));
}

#[test]
fn a_meshed_pod_stays_so_while_its_next_report_is_written() {
    let mut index = index(&ready());
    assert!(version(&mut index, "n1", &report("a", 1, 1, true)).is_some());
    let next = index.report("n1", &report("a", 1, 2, true));
    assert!(next.is_ok() && peer(&index, "10.0.0.1:1").meshed);
    index.reset(objects(&pod("a", "n1", &["10.0.0.1", "10.0.0.3"])));
    index.reset(objects(&pod("a", "n1", &["10.0.0.3"])));
    assert!(peer(&index, "10.0.0.3:1").meshed, "it kept an address");
}

#[test]
fn a_clock_that_stepped_back_is_believed_once_the_stream_before_it_ended() {
    let mut index = index(&ready());
    let (old, new) = (Arc::default(), Arc::default());
    let of = |token: &Arc<()>, generation, steered| Report {
        reporter: Reporter::of(token),
        ..report("a", 1, generation, steered)
    };
    assert_eq!(version(&mut index, "n1", &of(&old, 9, true)), Some(2));
    assert_eq!(version(&mut index, "n1", &of(&old, 8, false)), None);
    assert_eq!(version(&mut index, "n1", &of(&new, 5, false)), None);
    drop(old);
    assert_eq!(version(&mut index, "n1", &of(&new, 5, false)), Some(3));
    assert_eq!(version(&mut index, "n1", &of(&new, 4, true)), None);
    assert!(!peer(&index, "10.0.0.1:1").meshed);
}
