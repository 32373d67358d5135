// SPDX-License-Identifier: Apache-2.0
//! What is kept of objects: what somebody reads. A field that is to be read is added here.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{
            Container, NodeCondition, NodeSpec, NodeStatus, PodCondition, PodSpec, PodStatus,
        },
        discovery::v1::Endpoint,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::source::Scope;

/// Annotations that tools write for themselves, long or with every change of something else.
const FOREIGN: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    "endpoints.kubernetes.io/last-change-trigger-time",
    "control-plane.alpha.kubernetes.io/leader",
    "node.alpha.kubernetes.io/ttl",
];

/// Of annotations that are not the mesh's only short ones are kept, in bytes.
const SHORT: usize = 256;

/// Says that a kubelet made the pod of a file, by being there: a kubelet writes its value.
/// <https://kubernetes.io/docs/reference/labels-annotations-taints/#kubernetes-io-config-mirror>
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn metadata(metadata: &mut ObjectMeta) {
    let all = std::mem::take(metadata);
    *metadata = ObjectMeta {
        name: all.name,
        namespace: all.namespace,
        uid: all.uid,
        resource_version: all.resource_version,
        labels: all.labels,
        annotations: all.annotations.and_then(annotations),
        owner_references: all.owner_references,
        creation_timestamp: all.creation_timestamp,
        deletion_timestamp: all.deletion_timestamp,
        ..ObjectMeta::default()
    };
}

fn annotations(mut annotations: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    if let Some(mirror) = annotations.get_mut(MIRROR).filter(|it| it.len() > SHORT) {
        *mirror = String::new();
    }
    annotations.retain(|name, value| {
        is_ours(name) || (value.len() <= SHORT && !FOREIGN.contains(&name.as_str()))
    });
    (!annotations.is_empty()).then_some(annotations)
}

fn is_ours(name: &str) -> bool {
    let domain = name.split_once('/').map_or("", |(domain, _)| domain);
    ["culvert.io", "linkerd.io"].iter().any(|ours| {
        let sub = domain.strip_suffix(ours);
        sub.is_some_and(|sub| sub.is_empty() || sub.ends_with('.'))
    })
}

pub(super) fn node_spec(all: NodeSpec) -> NodeSpec {
    NodeSpec {
        pod_cidr: all.pod_cidr,
        pod_cidrs: all.pod_cidrs,
        taints: all.taints,
        unschedulable: all.unschedulable,
        ..NodeSpec::default()
    }
}

/// Without the heartbeats.
pub(super) fn node_status(all: NodeStatus) -> NodeStatus {
    let conditions = all.conditions.into_iter().flatten();
    let ready = conditions.filter(|condition| condition.type_ == "Ready");
    let ready = ready.map(|condition| NodeCondition {
        type_: condition.type_,
        status: condition.status,
        ..NodeCondition::default()
    });
    NodeStatus {
        addresses: all.addresses,
        conditions: Some(ready.collect()),
        node_info: all.node_info,
        ..NodeStatus::default()
    }
}

/// The types of the conditions that make the pod ready.
pub(super) fn gates(spec: Option<&PodSpec>) -> Vec<String> {
    let gates = spec.and_then(|spec| spec.readiness_gates.as_deref());
    let gates = gates.unwrap_or_default().iter();
    gates.map(|gate| gate.condition_type.clone()).collect()
}

pub(super) fn pod_spec(all: PodSpec, scope: &Scope) -> PodSpec {
    let init_containers = all.init_containers.map(|all| containers(all, scope));
    PodSpec {
        node_name: all.node_name,
        service_account: all.service_account,
        service_account_name: all.service_account_name,
        host_network: all.host_network,
        host_pid: all.host_pid,
        hostname: all.hostname,
        subdomain: all.subdomain,
        runtime_class_name: all.runtime_class_name,
        restart_policy: all.restart_policy,
        readiness_gates: all.readiness_gates,
        os: all.os,
        containers: containers(all.containers, scope),
        init_containers: init_containers.filter(|all| !all.is_empty()),
        ..PodSpec::default()
    }
}

/// A container takes 2 KiB, and of all the pods of a cluster only named ports are read.
fn containers(all: Vec<Container>, scope: &Scope) -> Vec<Container> {
    let all = all.into_iter().map(container);
    let mut kept: Vec<_> = all
        .filter(|container| *scope != Scope::Cluster || container.ports.is_some())
        .collect();
    kept.shrink_to_fit();
    kept
}

fn container(all: Container) -> Container {
    let ports = all.ports.into_iter().flatten();
    let mut named: Vec<_> = ports.filter(|port| port.name.is_some()).collect();
    named.shrink_to_fit();
    Container {
        name: all.name,
        ports: (!named.is_empty()).then_some(named),
        restart_policy: all.restart_policy,
        ..Container::default()
    }
}

/// Without what containers do, and when.
pub(super) fn pod_status(all: PodStatus, gates: &[String]) -> PodStatus {
    let conditions = all.conditions.into_iter().flatten();
    let read = conditions.filter(|condition| {
        let type_ = condition.type_.as_str();
        type_ == "Ready" || is_ours(type_) || gates.iter().any(|gate| gate == type_)
    });
    let mut conditions: Vec<_> = read.map(condition).collect();
    conditions.shrink_to_fit();
    PodStatus {
        phase: all.phase,
        reason: all.reason,
        pod_ip: all.pod_ip,
        pod_ips: all.pod_ips,
        host_ip: all.host_ip,
        host_ips: all.host_ips,
        start_time: all.start_time,
        conditions: (!conditions.is_empty()).then_some(conditions),
        ..PodStatus::default()
    }
}

fn condition(all: PodCondition) -> PodCondition {
    let ours = is_ours(&all.type_);
    PodCondition {
        type_: all.type_,
        status: all.status,
        reason: all.reason.filter(|_| ours),
        message: all.message.filter(|_| ours),
        last_transition_time: all.last_transition_time.filter(|_| ours),
        ..PodCondition::default()
    }
}

/// The version of the pod is another one with each of its changes.
pub(super) fn endpoint(endpoint: &mut Endpoint) {
    endpoint.deprecated_topology = None;
    if let Some(target) = &mut endpoint.target_ref {
        target.resource_version = None;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};

    use super::Scope;
    use crate::kinds::{self, Watched};

    fn slim<K: Watched + serde::Serialize>(value: Value, scope: &Scope) -> Value {
        let object: K = serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}"));
        serde_json::to_value(kinds::slim(object, scope)).unwrap_or_else(|e| panic!("{e}"))
    }

    fn on_node() -> Scope {
        Scope::Node("n1".into())
    }

    #[test]
    fn what_the_mesh_reads_of_a_pod_is_kept() {
        let kept = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u",
                "labels": {"app": "web"},
                "annotations": {"config.linkerd.io/skip-outbound-ports": "9".repeat(300)},
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "r"},
                ],
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "deletionTimestamp": "2026-01-02T00:00:00Z",
            },
            "spec": {
                "nodeName": "n1", "serviceAccountName": "web", "hostNetwork": true,
                "runtimeClassName": "gvisor", "os": {"name": "linux"}, "readinessGates": [{"conditionType": "a.example/b"}],
                "containers": [{"name": "web", "ports": [{"containerPort": 80, "name": "http"}]}],
                "initContainers": [{"name": "log", "restartPolicy": "Always"}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [
                    {"type": "Ready", "status": "True"},
                    {"type": "a.example/b", "status": "True"},
                    {"type": "culvert.io/Meshed", "status": "True", "reason": "Steered", "message": "7"},
                ],
            },
        });
        assert_eq!(slim::<Pod>(kept.clone(), &on_node()), kept);
    }

    #[test]
    fn what_nobody_reads_is_not() {
        let fat = json!({
            "metadata": {
                "name": "web", "namespace": "shop", "resourceVersion": "7", "generateName": "web-",
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:metadata": {}}}],
                "finalizers": ["a"],
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{}",
                    "example/long": "x".repeat(300),
                    "evilculvert.io/long": "x".repeat(300),
                },
            },
            "spec": {
                "volumes": [{"name": "v", "emptyDir": {}}],
                "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "web", "image": "i", "env": [{"name": "A", "value": "secret"}],
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                    "readinessProbe": {"tcpSocket": {"port": 80}},
                }],
            },
            "status": {
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [{
                    "name": "web", "image": "i", "imageID": "i", "ready": true, "restartCount": 1,
                }],
            },
        });
        let kept = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "resourceVersion": "7",
            },
            "spec": {"containers": [{"name": "web"}]},
            "status": {},
        });
        assert_eq!(slim::<Pod>(fat, &on_node()), kept);
    }

    #[test]
    fn a_mirror_pod_is_one_whatever_its_kubelet_writes() {
        for (value, kept) in [("", ""), ("hash", "hash"), (&"x".repeat(300), "")] {
            let pod = json!({"metadata": {"name": "m", "annotations": {"kubernetes.io/config.mirror": value}}});
            let slim = slim::<Pod>(pod, &Scope::Cluster);
            assert_eq!(
                slim["metadata"]["annotations"]["kubernetes.io/config.mirror"],
                kept
            );
        }
    }

    #[test]
    fn of_a_clusters_containers_only_named_ports_are_read() {
        let ports = json!([{"containerPort": 80}, {"containerPort": 81, "name": "http"}]);
        let pod = json!({
            "metadata": {"name": "web"},
            "spec": {
                "containers": [{"name": "log"}, {"name": "web", "ports": ports}],
                "initContainers": [{"name": "wait"}],
            },
        });
        let kept = json!({"containers": [
            {"name": "web", "ports": [{"containerPort": 81, "name": "http"}]},
        ]});
        assert_eq!(slim::<Pod>(pod.clone(), &Scope::Cluster)["spec"], kept);
        let on_node = slim::<Pod>(pod, &on_node());
        assert_eq!(on_node["spec"]["containers"][0]["name"], "log");
        assert_eq!(on_node["spec"]["initContainers"][0]["name"], "wait");
    }

    #[test]
    fn a_heartbeat_changes_nothing() {
        let node = |at: &str| {
            json!({
                "metadata": {"name": "n1", "labels": {"a": "b"}},
                "spec": {"taints": [{"key": "node.culvert.io/agent-not-ready", "effect": "NoSchedule"}]},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                    "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": at}],
                    "images": [{"names": ["a"], "sizeBytes": 1}],
                },
            })
        };
        let first = slim::<Node>(node("2026-01-01T00:00:00Z"), &on_node());
        assert_eq!(
            first,
            slim::<Node>(node("2026-01-01T00:00:10Z"), &on_node())
        );
        assert_eq!(first["spec"]["taints"][0]["effect"], "NoSchedule");
        assert_eq!(first["status"]["addresses"][0]["address"], "10.0.0.1");
        assert_eq!(first["status"]["conditions"][0]["type"], "Ready");
    }
}
