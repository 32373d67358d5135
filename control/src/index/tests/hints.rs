// SPDX-License-Identifier: Apache-2.0
//! What ports speak, and how requests are logged.

use culvert_api::{
    policy::{AccessLogFormat, InboundPolicy},
    protocol::Hint::{self, Detect, Http1, Http2, Opaque},
};

use super::*;

/// A database's service: a port of the default list, one with a name, and one more.
const DB: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  clusterIP: 10.96.0.2
  selector: {app: web}
  ports:
  - {name: sql, port: 3306}
  - {name: http, port: 80, targetPort: 8080}
  - {name: other, port: 9000}
";

fn annotated(object: &str, annotation: &str) -> String {
    object.replacen(
        "namespace: shop",
        &format!("namespace: shop, annotations: {{{annotation}}}"),
        1,
    )
}

fn namespace(annotation: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{annotation}}}}}\n"
    )
}

/// What the ports 3306, 80 and 9000 of `10.96.0.2` speak.
fn of_service(index: &Index) -> [Hint; 3] {
    [3306, 80, 9000].map(|port| match resolve(index, &format!("10.96.0.2:{port}")) {
        Destination::Service(service) => service.protocol,
        other => panic!("{port}: {other:?}"),
    })
}

/// What the ports 3306, 8080 and 9000 of the pod `a` speak, to its clients and to its own node.
fn of_pod(index: &Index) -> [Hint; 3] {
    let (peer, policy) = (peer(index, "10.0.0.1:1"), policy(index));
    [3306, 8080, 9000].map(|port| {
        assert_eq!(peer.ports.of(port), policy.protocol(port), "{port}");
        policy.protocol(port)
    })
}

fn policy(index: &Index) -> InboundPolicy {
    let view = index.view().borrow().clone();
    let pod = view.pod(&PodUid("uid-a".into()));
    pod.map_or_else(|| panic!("no pod"), |pod| pod.policy.clone())
}

fn refusals(index: &Index) -> Vec<String> {
    index.view().borrow().refusals.iter().cloned().collect()
}

fn a() -> String {
    pod("a", "n1", &["10.0.0.1"])
}

#[test]
fn the_list_of_opaque_ports_is_replaced() {
    let default = index(&format!("{DB}{}", a()));
    assert_eq!(of_service(&default), [Opaque, Detect, Detect]);
    assert_eq!(of_pod(&default), [Opaque, Detect, Detect]);
    for name in ["config.linkerd.io", "culvert.io"] {
        for list in ["8000-9500,80", "http, 9000"] {
            let list = format!("{name}/opaque-ports: '{list}'");
            let annotated = format!("{}{}", annotated(DB, &list), annotated(&a(), &list));
            let index = index(&annotated);
            assert_eq!(of_service(&index), [Detect, Opaque, Opaque], "{list}");
            assert_eq!(of_pod(&index), [Detect, Opaque, Opaque], "{list}");
            assert!(refusals(&index).is_empty());
        }
    }
}

#[test]
fn a_service_and_its_pods_are_told_apart_and_both_beat_their_namespace() {
    let own = "culvert.io/opaque-ports: '9000'";
    let of_namespace = namespace("config.linkerd.io/opaque-ports: 'http,nothing'");
    let inherited = index(&format!("{of_namespace}{DB}{}", a()));
    assert_eq!(of_service(&inherited), [Detect, Opaque, Detect]);
    assert_eq!(of_pod(&inherited), [Detect, Opaque, Detect]);
    assert!(refusals(&inherited).is_empty(), "not each has the port");
    let service = index(&format!("{of_namespace}{}{}", annotated(DB, own), a()));
    assert_eq!(of_service(&service), [Detect, Detect, Opaque]);
    assert_eq!(of_pod(&service), [Detect, Opaque, Detect]);
    let pod = index(&format!("{of_namespace}{DB}{}", annotated(&a(), own)));
    assert_eq!(of_service(&pod), [Detect, Opaque, Detect]);
    assert_eq!(of_pod(&pod), [Detect, Detect, Opaque]);
    let none = index(&format!(
        "{of_namespace}{DB}{}",
        annotated(&a(), "culvert.io/opaque-ports: ''")
    ));
    assert_eq!(of_pod(&none), [Detect; 3], "an empty list is one");
}

#[test]
fn a_list_that_cannot_be_read_is_named_and_the_default_holds() {
    for bad in ["70000", "80,", "9000-80", "-80", "nothing"] {
        let bad = format!("config.linkerd.io/opaque-ports: '{bad}'");
        let annotated = format!("{}{}", annotated(DB, &bad), annotated(&a(), &bad));
        let index = index(&annotated);
        assert_eq!(of_service(&index), [Opaque, Detect, Detect], "{bad}");
        assert_eq!(of_pod(&index), [Opaque, Detect, Detect], "{bad}");
        let refusals = refusals(&index);
        let about = [
            "Pod shop/a has a list of opaque",
            "Service shop/db has a list of opaque",
        ];
        let named = refusals
            .iter()
            .zip(about)
            .all(|(got, about)| got.starts_with(about));
        assert!(named && refusals.len() == 2, "{refusals:?}");
    }
    let of_namespace = namespace("config.linkerd.io/opaque-ports: '80-'");
    assert_eq!(refusals(&index(&format!("{of_namespace}{}", a()))).len(), 1);
}

#[test]
fn the_application_protocol_of_a_port_counts_before_opaque_ports() {
    for (protocol, hint) in [
        ("http", Http1),
        ("HTTP", Http1),
        ("kubernetes.io/ws", Http1),
        ("kubernetes.io/h2c", Http2),
        ("linkerd.io/tcp", Opaque),
        ("linkerd.io/opaque", Opaque),
        ("", Opaque),
    ] {
        let port = format!("port: 3306, appProtocol: '{protocol}'");
        let index = index(&format!("{}{}", DB.replace("port: 3306", &port), a()));
        assert_eq!(of_service(&index), [hint, Detect, Detect], "{protocol}");
        assert!(refusals(&index).is_empty());
    }
    for unknown in ["grpc", "https", "kubernetes.io/wss", "mysql"] {
        let port = format!("port: 9000, appProtocol: {unknown}");
        let index = index(&DB.replace("port: 9000", &port));
        assert_eq!(of_service(&index), [Opaque, Detect, Opaque]);
        let refusals = refusals(&index);
        let named = format!("Service shop/db says appProtocol {unknown:?} of port 9000");
        assert!(refusals[0].starts_with(&named), "{refusals:?}");
    }
}

#[test]
fn requests_are_logged_as_the_pod_or_its_namespace_asks() {
    let json = "config.linkerd.io/access-log: json";
    let apache = "culvert.io/access-log: apache";
    let of = |text: &str| policy(&index(text)).access_log;
    assert_eq!(of(&a()), None);
    assert_eq!(of(&annotated(&a(), json)), Some(AccessLogFormat::Json));
    let inherited = format!("{}{}", namespace(apache), a());
    assert_eq!(of(&inherited), Some(AccessLogFormat::Apache));
    for (own, expected) in [
        (json, Some(AccessLogFormat::Json)),
        ("culvert.io/access-log: ''", None),
    ] {
        let both = format!("{}{}", namespace(apache), annotated(&a(), own));
        assert_eq!(of(&both), expected);
    }
    let unknown = index(&annotated(&a(), "culvert.io/access-log: xml"));
    assert_eq!(policy(&unknown).access_log, None);
    assert!(refusals(&unknown)[0].starts_with("Pod shop/a asks for the access log \"xml\""));
}
