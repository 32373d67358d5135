// SPDX-License-Identifier: Apache-2.0

use std::sync::Arc;

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
        namespaces: BTreeMap::from([("ns".to_owned(), Arc::new(namespace))]),
        pods: pods
            .iter()
            .map(|pod| (key(pod), Arc::new(pod.clone())))
            .collect(),
        ..Objects::default()
    }
}

fn annotated(annotations: serde_json::Value) -> Pod {
    pod(json!({
        "metadata": {"name": "a", "namespace": "ns", "uid": "u", "annotations": annotations},
        "spec": {"nodeName": "n1", "containers": []},
    }))
}

fn rules(node: &str) -> Rules {
    Rules {
        node: node.to_owned(),
        never_mesh: BTreeSet::from(["kube-system".to_owned()]),
        unmeshed: BTreeSet::from(["old".to_owned()]),
        namespaces_may_lag: false,
    }
}

fn desired(objects: &Objects, node: &str) -> Desired {
    Desired::new(objects, &rules(node), &OwnKernels::new())
}

/// What is told of a pod that is opted in, and whether it is meshed all the same.
fn told(change: impl FnOnce(&mut Pod)) -> (Vec<&'static str>, bool) {
    let mut pod = annotated(json!({"culvert.io/inject": "enabled"}));
    change(&mut pod);
    let desired = desired(&objects(json!({}), &[pod]), "n1");
    let labels = desired.problems.iter().map(|p| p.fault.label()).collect();
    let meshed = desired.pods().all(|wanted| wanted.mesh.is_some());
    (labels, meshed)
}

fn spec(pod: &mut Pod, fields: serde_json::Value) {
    let mut spec = json!({"nodeName": "n1", "containers": []});
    if let (Some(spec), Some(fields)) = (spec.as_object_mut(), fields.as_object()) {
        spec.extend(fields.clone());
    }
    pod.spec = Some(serde_json::from_value(spec).unwrap_or_else(|e| panic!("{e}")));
}

fn wanted(namespace: serde_json::Value, annotations: serde_json::Value) -> (Wanted, Desired) {
    let desired = desired(&objects(namespace, &[annotated(annotations)]), "n1");
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

/// Whether it is meshed; none: it is unknown.
fn without_namespace(namespace: &str, annotations: serde_json::Value) -> Option<bool> {
    let mut all = objects(json!({}), &[]);
    let key = (namespace.to_owned(), "a".to_owned());
    all.pods.insert(key, Arc::new(annotated(annotations)));
    all.namespaces.clear();
    let rules = Rules {
        namespaces_may_lag: true,
        ..rules("n1")
    };
    let desired = Desired::new(&all, &rules, &OwnKernels::new());
    let found = desired.pod(&PodUid("u".into()));
    assert_eq!(desired.pods().count(), usize::from(found.is_some()));
    found.map(|wanted| wanted.mesh.is_some())
}

#[test]
fn a_pod_whose_namespace_is_not_heard_of_yet_is_unknown() {
    let says = |inject: &str| json!({"linkerd.io/inject": inject});
    assert_eq!(without_namespace("ns", json!({})), None);
    assert_eq!(without_namespace("ns", json!({"other": "x"})), None);
    assert_eq!(without_namespace("ns", says("enabled")), Some(true));
    assert_eq!(without_namespace("ns", says("disabled")), Some(false));
    assert_eq!(without_namespace("kube-system", json!({})), Some(false));
}

#[test]
fn of_a_directory_a_namespace_need_not_be_said() {
    let mut all = objects(json!({}), &[annotated(json!({}))]);
    all.namespaces.clear();
    assert_eq!(desired(&all, "n1").unmeshed(), ["u"]);
}

#[test]
fn only_pods_of_this_node_count() {
    let objects = objects(json!({}), &[annotated(json!({}))]);
    assert!(desired(&objects, "n2").pods.is_empty());
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
    let (got, desired) = wanted(json!({}), json!({"linkerd.io/inject": "yes"}));
    assert_eq!(got.mesh, None);
    let labels: Vec<_> = desired.problems.iter().map(|p| p.fault.label()).collect();
    assert_eq!(labels, ["inject"]);
}

#[test]
fn ingress_is_enabled_and_told() {
    let (got, desired) = wanted(json!({}), json!({"linkerd.io/inject": "ingress"}));
    assert_eq!(got.mesh, Some(Exclusions::default()));
    let labels: Vec<_> = desired.problems.iter().map(|p| p.fault.label()).collect();
    assert_eq!(labels, ["ingress"]);
}

#[test]
fn what_can_not_be_steered_is_told_and_left_unmeshed() {
    let told_of = |fields| told(|pod| spec(pod, fields));
    for (fields, label) in [
        (json!({"hostNetwork": true}), "host_network"),
        (json!({"os": {"name": "windows"}}), "windows"),
        (json!({"runtimeClassName": "gvisor"}), "own_kernel"),
        (json!({"runtimeClassName": "kata-qemu"}), "own_kernel"),
        (json!({"containers": [{"name": "istio-proxy"}]}), "sidecar"),
        (
            json!({"containers": [], "initContainers": [{"name": "linkerd-proxy"}]}),
            "sidecar",
        ),
    ] {
        assert_eq!(told_of(fields.clone()), (vec![label], false), "{fields}");
    }
    assert_eq!(
        told_of(json!({"runtimeClassName": "nvidia"})),
        (vec![], true)
    );
    assert_eq!(told_of(json!({"os": {"name": "linux"}})), (vec![], true));
}

#[test]
fn what_the_runtime_says_counts_too() {
    let objects = objects(
        json!({"linkerd.io/inject": "enabled"}),
        &[annotated(json!({}))],
    );
    let kernels = OwnKernels::from([(PodUid("u".into()), "io.containerd.runsc.v1".into())]);
    let desired = Desired::new(&objects, &rules("n1"), &kernels);
    assert_eq!(desired.unmeshed(), ["u"]);
    let told: Vec<_> = desired.problems.iter().map(ToString::to_string).collect();
    assert!(told[0].contains("io.containerd.runsc.v1"), "{told:?}");
}

#[test]
fn a_static_pod_is_known_by_the_kubelets_uid() {
    let mirror = annotated(json!({
        "culvert.io/inject": "enabled",
        "kubernetes.io/config.mirror": "hash",
    }));
    let desired = desired(&objects(json!({}), &[mirror]), "n1");
    assert_eq!(desired.unmeshed(), ["hash"]);
    assert_eq!(desired.problems.len(), 1);
}

#[test]
fn what_is_not_followed_is_told_of_who_has_it() {
    let (_, desired) = wanted(
        json!({"config.linkerd.io/proxy-cpu-request": "1", "other.io/x": "y"}),
        json!({
            "linkerd.io/inject": "enabled",
            "culvert.io/opaqueports": "25",
            "config.linkerd.io/default-inbound-policy": "cluster-authenticated",
            "culvert.io/access-log": "xml",
        }),
    );
    let told: Vec<_> = desired
        .problems
        .iter()
        .map(|p| (p.subject.kind, p.fault.reason()))
        .collect();
    assert_eq!(
        told,
        [
            (Kind::Namespace, "MeaninglessAnnotation"),
            (Kind::Pod, "InvalidAnnotation"),
            (Kind::Pod, "InvalidAnnotation"),
            (Kind::Pod, "UnknownAnnotation"),
        ]
    );
    let not_opted_in = wanted(json!({}), json!({"culvert.io/opaqueports": "25"}));
    assert!(not_opted_in.1.problems.is_empty());
}

#[test]
fn of_a_pod_that_is_done_nothing_is_told() {
    let done = |pod: &mut Pod| {
        spec(pod, json!({"hostNetwork": true}));
        let status = json!({"phase": "Succeeded"});
        pod.status = serde_json::from_value(status).unwrap_or_else(|e| panic!("{e}"));
    };
    assert_eq!(told(done).0, Vec::<&str>::new());
}

#[test]
fn what_is_never_meshed_waits_for_no_object() {
    let unknown = Desired::unknown(&rules("n1"));
    let found = |desired: &Desired, namespace: &str, uid: Option<&str>| {
        let found = desired.find(&PodRef {
            namespace: namespace.to_owned(),
            name: "a".to_owned(),
            uid: uid.map(|uid| PodUid(uid.to_owned())),
        });
        found.map(|wanted| wanted.mesh.is_some())
    };
    assert_eq!(found(&unknown, "kube-system", Some("x")), Some(false));
    assert_eq!(found(&unknown, "kube-system", None), None);
    assert_eq!(found(&unknown, "shop", Some("old")), Some(false));
    assert_eq!(found(&unknown, "shop", Some("x")), None);
    // With the objects it is they that count.
    let listed = desired(&objects(json!({}), &[]), "n1");
    assert_eq!(found(&listed, "shop", Some("old")), None);
    assert_eq!(found(&listed, "kube-system", Some("x")), Some(false));
}

#[test]
fn a_namespace_that_is_never_meshed_says_so() {
    let mut pod = annotated(json!({"culvert.io/inject": "enabled"}));
    pod.metadata.namespace = Some("kube-system".to_owned());
    let mut all = objects(json!({}), &[]);
    let key = ("kube-system".to_owned(), "a".to_owned());
    all.pods.insert(key, Arc::new(pod));
    let desired = desired(&all, "n1");
    assert_eq!(desired.unmeshed(), ["u"]);
    let labels: Vec<_> = desired.problems.iter().map(|p| p.fault.label()).collect();
    assert_eq!(labels, ["never_meshed"]);
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
