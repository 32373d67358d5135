// SPDX-License-Identifier: Apache-2.0

use v1::destination::Kind as Of;

use culvert_api::protocol::Hint;

use super::*;
use crate::{
    index::{Index, Reports},
    testing::{SERVICE, objects, pod, report},
};

const WEB: &str = "10.96.0.1:80";

fn index(text: &str) -> Index {
    let mut index = Index::new(Reports::default());
    index.reset(objects(text));
    index
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

fn view(index: &Index) -> Arc<View> {
    index.view().borrow().clone()
}

fn service(message: &Kind) -> &v1::Service {
    match message {
        Kind::Destination(v1::Destination {
            kind: Some(Of::Service(service)),
            ..
        }) => service,
        other => panic!("no service: {other:?}"),
    }
}

fn pods(endpoints: &[v1::Endpoint]) -> Vec<&str> {
    endpoints
        .iter()
        .map(|endpoint| endpoint.pod.as_str())
        .collect()
}

#[test]
fn a_snapshot_and_then_what_changes() {
    let (a, b) = (pod("a", "n1", &["10.0.0.1"]), pod("b", "n2", &["10.0.0.2"]));
    let mut index = index(&format!("{SERVICE}{a}{b}"));
    let mut subscriptions = Subscriptions::default();
    let first = subscriptions.subscribe(address(WEB), "n1", &view(&index));
    assert!(service(&first).snapshot);
    assert_eq!(service(&first).port_name, "http");
    assert_eq!(pods(&service(&first).set), ["a", "b"]);
    assert!(subscriptions.catch_up("n1", &view(&index)).is_empty());
    let c = pod("c", "n1", &["10.0.0.3"]);
    index.reset(objects(&format!("{SERVICE}{a}{c}")));
    assert!(index.report("n1", &report("a", 1, 1, true)).is_ok());
    let written = Arc::clone(&index.reports().borrow());
    index.written(&written);
    let messages = subscriptions.catch_up("n1", &view(&index));
    let [message] = messages.as_slice() else {
        panic!("two changes are one message: {messages:?}");
    };
    let delta = service(message);
    assert!(!delta.snapshot);
    assert_eq!(pods(&delta.set), ["a", "c"]);
    assert!(delta.set[0].meshed && !delta.set[1].meshed);
    assert_eq!(delta.removed, [v1::Address::from(address("10.0.0.2:8080"))]);
}

#[test]
fn what_becomes_known_is_told() {
    let mut index = index("");
    let mut subscriptions = Subscriptions::default();
    let first = subscriptions.subscribe(address(WEB), "n1", &view(&index));
    assert!(matches!(
        first,
        Kind::Destination(v1::Destination {
            kind: Some(Of::Unknown(_)),
            ..
        })
    ));
    index.reset(objects(SERVICE));
    let messages = subscriptions.catch_up("n1", &view(&index));
    assert!(
        messages.len() == 1 && service(&messages[0]).snapshot,
        "{messages:?}"
    );
    index.reset(objects(&SERVICE.replace("name: web", "name: other")));
    let messages = subscriptions.catch_up("n1", &view(&index));
    assert!(
        service(&messages[0]).snapshot,
        "another service is not a delta: {messages:?}"
    );
    subscriptions.unsubscribe(address(WEB));
    index.reset(objects(""));
    assert!(subscriptions.catch_up("n1", &view(&index)).is_empty());
    assert_eq!(subscriptions.len(), 0);
}

#[test]
fn a_pods_address_is_one_endpoint_at_the_port_asked_for() {
    let index = index(&pod("a", "n1", &["10.0.0.1"]));
    let message = Subscriptions::default().subscribe(address("10.0.0.1:5432"), "n1", &view(&index));
    let Kind::Destination(v1::Destination {
        kind: Some(Of::Pod(pod)),
        ..
    }) = &message
    else {
        panic!("{message:?}");
    };
    let endpoint = pod.endpoint.clone().unwrap_or_default();
    assert_eq!(endpoint.address, Some(address("10.0.0.1:5432").into()));
    assert_eq!(
        (endpoint.pod_uid.as_str(), endpoint.node.as_str()),
        ("uid-a", "n1")
    );
}

#[test]
fn policies_go_to_the_pods_own_node_only() {
    let mut index = index("");
    let uid = PodUid("uid-a".into());
    let (mut own, mut other) = (Subscriptions::default(), Subscriptions::default());
    assert_eq!(own.subscribe_policy(uid.clone(), "n1", &view(&index)), None);
    assert_eq!(
        other.subscribe_policy(uid.clone(), "n2", &view(&index)),
        None
    );
    index.reset(objects(&pod("a", "n1", &[])));
    let messages = own.catch_up("n1", &view(&index));
    assert!(matches!(messages.as_slice(), [Kind::Policy(policy)] if policy.pod_uid == "uid-a"));
    assert!(other.catch_up("n2", &view(&index)).is_empty());
    assert!(own.catch_up("n1", &view(&index)).is_empty(), "told once");
    let strict = "annotations: {linkerd.io/x: y, config.linkerd.io/default-inbound-policy: all-authenticated}, uid: ";
    index.reset(objects(&pod("a", "n1", &[]).replace("uid: ", strict)));
    let messages = own.catch_up("n1", &view(&index));
    let [Kind::Policy(policy)] = messages.as_slice() else {
        panic!("{messages:?}");
    };
    assert!(InboundPolicy::from(policy).requires_identity());
    own.unsubscribe_policy(&uid);
    assert_eq!(own.len(), 0);
}

fn speaks(service: &v1::Service) -> v1::Protocol {
    service.protocol()
}

#[test]
fn what_a_live_service_speaks_is_told_without_its_endpoints() {
    let a = pod("a", "n1", &["10.0.0.1"]);
    let mut index = index(&format!("{SERVICE}{a}"));
    let mut subscriptions = Subscriptions::default();
    let first = subscriptions.subscribe(address(WEB), "n1", &view(&index));
    assert_eq!(speaks(service(&first)), v1::Protocol::Detect);
    let endpoint = &service(&first).set[0];
    assert_eq!(endpoint.protocol(), v1::Protocol::Detect);
    let h2c = SERVICE.replace("port: 80,", "port: 80, appProtocol: kubernetes.io/h2c,");
    for (text, protocol) in [
        (h2c.as_str(), v1::Protocol::Http2),
        (
            &SERVICE.replace(
                "shop}",
                "shop, annotations: {culvert.io/opaque-ports: '80'}}",
            ),
            v1::Protocol::Opaque,
        ),
    ] {
        index.reset(objects(&format!("{text}{a}")));
        let messages = subscriptions.catch_up("n1", &view(&index));
        let [message] = messages.as_slice() else {
            panic!("{messages:?}");
        };
        let delta = service(message);
        assert_eq!(speaks(delta), protocol);
        assert!(!delta.snapshot && delta.set.is_empty() && delta.removed.is_empty());
    }
    let opaque = "shop, annotations: {culvert.io/opaque-ports: '8080'}, uid";
    index.reset(objects(&format!(
        "{SERVICE}{}",
        a.replace("shop, uid", opaque)
    )));
    let messages = subscriptions.catch_up("n1", &view(&index));
    let set = &service(&messages[0]).set;
    assert_eq!(set[0].protocol(), v1::Protocol::Opaque, "the pod's own");
}

#[test]
fn each_node_is_told_its_own_endpoints_as_zones_come() {
    let text = format!(
        "{}{}{}",
        SERVICE.replace("spec:\n", "spec:\n  trafficDistribution: PreferClose\n"),
        pod("a", "n1", &["10.0.0.1"]),
        pod("b", "n2", &["10.0.0.2"])
    );
    let mut index = index(&text);
    let nodes = ["n1", "n2"];
    let mut subscriptions = nodes.map(|_| Subscriptions::default());
    for (node, subscriptions) in nodes.iter().zip(&mut subscriptions) {
        let first = subscriptions.subscribe(address(WEB), node, &view(&index));
        assert_eq!(pods(&service(&first).set), ["a", "b"], "no zones yet");
    }
    let zone = |node| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {node}, labels: {{topology.kubernetes.io/zone: z-{node}}}}}\n"
        )
    };
    index.reset(objects(&format!("{text}{}{}", zone("n1"), zone("n2"))));
    let removed = |messages: &[Kind]| service(&messages[0]).removed.clone();
    for ((node, other), subscriptions) in nodes.iter().zip(["2", "1"]).zip(&mut subscriptions) {
        let messages = subscriptions.catch_up(node, &view(&index));
        let other = address(&format!("10.0.0.{other}:8080"));
        assert_eq!(removed(&messages), [v1::Address::from(other)]);
    }
    index.reset(objects(&format!("{text}{}", zone("n1"))));
    let messages = subscriptions[0].catch_up("n1", &view(&index));
    assert_eq!(
        pods(&service(&messages[0]).set),
        ["b"],
        "a zone is not known"
    );
}

#[test]
fn policies_say_ports_and_logs() {
    let asks = "shop, annotations: {culvert.io/opaque-ports: '9000-9001', config.linkerd.io/access-log: json}, uid";
    let index = index(&pod("a", "n1", &[]).replace("shop, uid", asks));
    let uid = PodUid("uid-a".into());
    let message = Subscriptions::default().subscribe_policy(uid, "n1", &view(&index));
    let Some(Kind::Policy(policy)) = message else {
        panic!("{message:?}");
    };
    assert_eq!(policy.access_log(), v1::AccessLog::Json);
    let policy = InboundPolicy::from(&policy);
    let hints = [9000, 9001, 25].map(|port| policy.protocol(port));
    assert_eq!(hints, [Hint::Opaque, Hint::Opaque, Hint::Detect]);
}
