// SPDX-License-Identifier: Apache-2.0
use serde_json::{Value, json};

use super::*;

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}"))
}

fn arc<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(read(value))
}

fn key(name: &str) -> Key {
    ("shop".into(), name.into())
}

fn shop() -> Objects {
    let mut objects = Objects::default();
    objects
        .namespaces
        .insert("shop".into(), arc(json!({"metadata": {"name": "shop"}})));
    objects
}

fn spec(command: &str) -> Value {
    json!({"containers": [{"name": "c", "command": [command]}]})
}

fn pod(name: &str, spec: Value) -> Pod {
    read(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}))
}

fn with_deployment(replicas: i32, command: &str) -> Objects {
    let mut objects = shop();
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": spec(command)});
    let selector = json!({"matchLabels": {"app": "web"}});
    let spec = json!({"replicas": replicas, "selector": selector, "template": template});
    let meta = json!({"name": "web", "namespace": "shop"});
    objects
        .deployments
        .insert(key("web"), arc(json!({"metadata": meta, "spec": spec})));
    objects
}

fn running(wanted: &Wanted, ready: bool) -> BTreeMap<Key, Running> {
    let pods = wanted.pods.iter();
    pods.map(|(key, pod)| {
        (
            key.clone(),
            Running {
                pod: pod.clone(),
                ready,
            },
        )
    })
    .collect()
}

fn run(objects: &Objects, running: &BTreeMap<Key, Running>) -> Wanted {
    let nodes = [NodeId(1), NodeId(2)];
    expand(objects, running, &nodes, &mut ClusterIps::default())
}

#[test]
fn a_deployment_becomes_its_pods() {
    let wanted = run(&with_deployment(2, "a"), &BTreeMap::new());
    assert_eq!(wanted.problems, []);
    assert_eq!(wanted.pods.len(), 2);
    assert!(
        wanted
            .pods
            .keys()
            .all(|(ns, name)| ns == "shop" && name.starts_with("web-"))
    );
}

#[test]
fn a_new_template_replaces_pods_one_by_one() {
    let first = run(&with_deployment(2, "a"), &BTreeMap::new());
    let changed = with_deployment(2, "b");
    let mut now = running(&first, true);
    let mut steps = Vec::new();
    for _ in 0..4 {
        let wanted = run(&changed, &now);
        steps.push(
            wanted
                .pods
                .keys()
                .filter(|key| first.pods.contains_key(*key))
                .count(),
        );
        assert!((2..=3).contains(&wanted.pods.len()));
        now = running(&wanted, true);
    }
    assert_eq!(steps, [2, 1, 0, 0]);
}

#[test]
fn a_refused_deployment_leaves_its_pods_alone() {
    let first = run(&with_deployment(2, "a"), &BTreeMap::new());
    let mut broken = with_deployment(3, "b");
    for deployment in broken.deployments.values_mut() {
        if let Some(spec) = Arc::make_mut(deployment).spec.template.spec.as_mut() {
            spec.host_network = Some(true);
        }
    }
    let wanted = run(&broken, &running(&first, true));
    assert_eq!(wanted.pods, first.pods);
    assert_eq!(wanted.problems.len(), 1);
    assert_eq!(wanted.problems[0].place, "deployment shop/web");
}

#[test]
fn a_missing_namespace_or_account_is_named() {
    let mut objects = shop();
    let mut lost = pod("lost", spec("a"));
    lost.metadata.namespace = Some("nowhere".into());
    objects
        .pods
        .insert(("nowhere".into(), "lost".into()), Arc::new(lost));
    let mut nobody = pod("nobody", spec("a"));
    if let Some(spec) = &mut nobody.spec {
        spec.service_account_name = Some("ghost".into());
    }
    objects.pods.insert(key("nobody"), Arc::new(nobody));
    let fine = Arc::new(pod("fine", spec("a")));
    objects.pods.insert(key("fine"), fine);
    let wanted = run(&objects, &BTreeMap::new());
    assert_eq!(wanted.pods.keys().collect::<Vec<_>>(), [&key("fine")]);
    let reasons: Vec<_> = wanted
        .problems
        .iter()
        .map(|problem| problem.reason.as_str())
        .collect();
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("no Namespace \"nowhere\""))
    );
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("no ServiceAccount \"ghost\""))
    );
    assert!(wanted.service_accounts.contains_key(&key("default")));
    assert!(wanted.namespaces.contains_key("default"));
}

#[test]
fn services_get_addresses_or_are_refused() {
    let mut objects = shop();
    for (name, spec) in [("web", json!({})), ("out", json!({"type": "NodePort"}))] {
        let meta = json!({"name": name, "namespace": "shop"});
        objects
            .services
            .insert(key(name), arc(json!({"metadata": meta, "spec": spec})));
    }
    let wanted = run(&objects, &BTreeMap::new());
    assert_eq!(wanted.services.keys().collect::<Vec<_>>(), [&key("web")]);
    assert_eq!(wanted.problems.len(), 1);
}

#[test]
fn nodes_of_the_sandbox_may_have_labels_and_nothing_else() {
    let mut objects = shop();
    let labels = json!({"topology.kubernetes.io/zone": "east"});
    let labelled = json!({"metadata": {"name": "n1", "labels": labels}});
    objects.nodes.insert("n1".into(), arc(labelled.clone()));
    objects.nodes.insert("n3".into(), arc(labelled));
    let taints = json!([{"key": "a", "effect": "NoSchedule"}]);
    let tainted = json!({"metadata": {"name": "n2"}, "spec": {"taints": taints}});
    objects.nodes.insert("n2".into(), arc(tainted));
    let wanted = run(&objects, &BTreeMap::new());
    assert_eq!(wanted.nodes.keys().collect::<Vec<_>>(), ["n1"]);
    let problems = wanted.problems.iter().map(Problem::clone);
    let texts = problems.map(|problem| format!("{}: {}", problem.place, problem.reason));
    assert_eq!(
        texts.collect::<Vec<_>>(),
        [
            "node n2: spec.taints is not supported in the sandbox",
            "node n3: there is no such node, the sandbox has n1, n2: see --nodes"
        ]
    );
}

#[test]
fn a_slice_of_endpoints_is_refused() {
    let slice = arc(json!({"metadata": {"name": "web-1"}, "addressType": "IPv4", "endpoints": []}));
    let endpoint_slices = Some(BTreeMap::from([(key("web-1"), slice)]));
    let objects = Objects {
        endpoint_slices,
        ..shop()
    };
    let wanted = run(&objects, &BTreeMap::new());
    assert_eq!(wanted.problems.len(), 1);
    assert_eq!(wanted.problems[0].place, "endpointslice shop/web-1");
    assert!(wanted.problems[0].refused);
}
