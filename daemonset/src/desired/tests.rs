// SPDX-License-Identifier: Apache-2.0

use k8s_openapi::api::core::v1::Namespace;
use serde_json::json;

use super::*;

fn pod(value: serde_json::Value) -> Pod {
    serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}"))
}

fn objects(namespace: serde_json::Value, pods: &[Pod]) -> Objects {
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": {"name": "ns", "annotations": namespace},
    }))
    .unwrap_or_else(|e| panic!("{e}"));
    let key = |pod: &Pod| {
        let name = pod.metadata.name.clone().unwrap_or_default();
        ("ns".to_owned(), name)
    };
    Objects {
        namespaces: BTreeMap::from([("ns".to_owned(), namespace)]),
        pods: pods.iter().map(|pod| (key(pod), pod.clone())).collect(),
        ..Objects::default()
    }
}

fn annotated(annotations: serde_json::Value) -> Pod {
    pod(json!({
        "metadata": {"name": "a", "namespace": "ns", "uid": "u", "annotations": annotations},
        "spec": {"nodeName": "n1", "containers": []},
    }))
}

fn wanted(namespace: serde_json::Value, annotations: serde_json::Value) -> (Wanted, Desired) {
    let desired = Desired::new(&objects(namespace, &[annotated(annotations)]), "n1");
    let wanted = desired.pod(&PodUid("u".into())).cloned();
    (wanted.unwrap_or_else(|| panic!("no pod")), desired)
}

#[test]
fn the_namespace_opts_in_and_the_pod_out() {
    let enabled = json!({"linkerd.io/inject": "enabled"});
    assert_eq!(
        wanted(enabled.clone(), json!({})).0.mesh,
        Some(Exclusions::default())
    );
    let out = wanted(enabled, json!({"culvert.io/inject": "disabled"}));
    assert_eq!(out.0.mesh, None);
    assert_eq!(out.1.unmeshed(), ["u"]);
}

#[test]
fn only_pods_of_this_node_count() {
    let objects = objects(json!({}), &[annotated(json!({}))]);
    assert!(Desired::new(&objects, "n2").pods.is_empty());
}

#[test]
fn a_bad_list_excludes_nothing_and_is_told() {
    let (got, desired) = wanted(
        json!({"culvert.io/inject": "enabled"}),
        json!({
            "config.linkerd.io/skip-inbound-ports": "25,http",
            "culvert.io/skip-outbound-ports": "4567-4568",
        }),
    );
    let exclusions = got.mesh.unwrap_or_else(|| panic!("not enrolled"));
    assert_eq!(exclusions.inbound_ports, []);
    assert_eq!(exclusions.outbound_ports, [4567..=4568]);
    let told: Vec<_> = desired
        .problems
        .iter()
        .map(|p| p.fault.to_string())
        .collect();
    assert_eq!(told.len(), 1);
    assert!(
        told[0].contains("skip-inbound-ports") && told[0].contains("\"http\""),
        "{told:?}"
    );
}

#[test]
fn an_unknown_value_is_refused_by_name() {
    let (got, desired) = wanted(json!({}), json!({"linkerd.io/inject": "ingress"}));
    assert_eq!(got.mesh, None);
    let labels: Vec<_> = desired.problems.iter().map(|p| p.fault.label()).collect();
    assert_eq!(labels, ["inject"]);
}

#[test]
fn a_pod_in_the_hosts_network_is_never_enrolled() {
    let mut host = annotated(json!({"culvert.io/inject": "enabled"}));
    host.spec = host.spec.map(|mut spec| {
        spec.host_network = Some(true);
        spec
    });
    let desired = Desired::new(&objects(json!({}), &[host]), "n1");
    assert_eq!(desired.unmeshed(), ["u"]);
    assert_eq!(desired.problems.len(), 1);
}

#[test]
fn a_runtime_finds_a_pod_by_name_and_uid() {
    let (_, desired) = wanted(json!({}), json!({}));
    let named = |uid: Option<&str>| PodRef {
        namespace: "ns".into(),
        name: "a".into(),
        uid: uid.map(|uid| PodUid(uid.into())),
    };
    assert!(desired.find(&named(None)).is_some());
    assert!(desired.find(&named(Some("u"))).is_some());
    assert!(desired.find(&named(Some("another sandbox's"))).is_none());
}

#[test]
fn the_owner_is_the_deployment_behind_a_replica_set() {
    let owned = |kind: &str, name: &str| {
        let metadata: ObjectMeta = serde_json::from_value(json!({
            "labels": {"pod-template-hash": "6d4"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "o", "controller": true}],
        }))
        .unwrap_or_else(|e| panic!("{e}"));
        owner(&metadata, "pod")
    };
    assert_eq!(
        owned("ReplicaSet", "web-6d4"),
        ("deployment".into(), "web".into())
    );
    assert_eq!(
        owned("StatefulSet", "db"),
        ("statefulset".into(), "db".into())
    );
    assert_eq!(
        owner(&ObjectMeta::default(), "x"),
        ("pod".into(), "x".into())
    );
}
