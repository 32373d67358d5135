// SPDX-License-Identifier: Apache-2.0
//! What of a manifest the sandbox does. Everything else is refused by name, and what can make no
//! difference here is said to have no effect: nothing is ignored in silence.

use culvert_api::annotations::{TOPOLOGY_MODE, own};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde::Serialize;
use serde_json::Value;

/// What the sandbox makes of an object.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why the object is not carried out; empty when it is.
    pub refused: Vec<String>,
    /// What of it makes no difference here.
    pub no_effect: Vec<String>,
}

/// Fields by what becomes of them; those in no list are refused.
struct Fields {
    /// Carried out, or checked further.
    works: &'static [&'static str],
    /// Makes no difference here, and the user is told.
    no_effect: &'static [&'static str],
}

const POD: Fields = Fields {
    works: &[
        "containers",
        "enableServiceLinks",
        "hostAliases",
        "hostname",
        "initContainers",
        "nodeName",
        "restartPolicy",
        "serviceAccount",
        "serviceAccountName",
        "terminationGracePeriodSeconds",
    ],
    no_effect: &[
        "automountServiceAccountToken",
        "dnsPolicy",
        "imagePullSecrets",
        "preemptionPolicy",
        "priority",
        "priorityClassName",
        "schedulerName",
        "tolerations",
    ],
};

/// The image is ignored by design: the command runs on the machine's own file system.
const CONTAINER: Fields = Fields {
    works: &[
        "args",
        "command",
        "env",
        "image",
        "imagePullPolicy",
        "livenessProbe",
        "name",
        "ports",
        "readinessProbe",
        "workingDir",
    ],
    no_effect: &[
        "resources",
        "terminationMessagePath",
        "terminationMessagePolicy",
    ],
};

const PORT: Fields = Fields {
    works: &["containerPort", "name", "protocol"],
    no_effect: &[],
};

const PROBE: Fields = Fields {
    works: &[
        "exec",
        "failureThreshold",
        "httpGet",
        "initialDelaySeconds",
        "periodSeconds",
        "successThreshold",
        "tcpSocket",
        "timeoutSeconds",
    ],
    no_effect: &[],
};

const SERVICE: Fields = Fields {
    works: &[
        "clusterIP",
        "clusterIPs",
        "internalTrafficPolicy",
        "ipFamilies",
        "ipFamilyPolicy",
        "ports",
        "selector",
        "trafficDistribution",
        "type",
    ],
    no_effect: &["sessionAffinityConfig"],
};

/// What matters of a node are its labels: the zone is one.
const NODE: Fields = Fields {
    works: &[],
    no_effect: &["podCIDR", "podCIDRs", "providerID"],
};

const DEPLOYMENT: Fields = Fields {
    works: &["replicas", "selector", "template"],
    no_effect: &[
        "progressDeadlineSeconds",
        "revisionHistoryLimit",
        "strategy",
    ],
};

/// As Kubernetes spells them.
const TOPOLOGY_MODES: [&str; 5] = ["Auto", "auto", "Disabled", "disabled", ""];

/// The fields of a pod that an environment variable may show.
pub const FIELD_PATHS: [&str; 8] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.podIP",
    "status.podIPs",
];

/// What the sandbox makes of a pod.
pub fn pod(pod: &Pod) -> Verdict {
    let mut verdict = Verdict::default();
    let spec = json(&pod.spec);
    verdict.fields("spec", &spec, &POD);
    verdict.value(
        &spec,
        "spec.restartPolicy",
        &["Always", "OnFailure", "Never"],
    );
    if list(&spec, "containers").is_empty() {
        verdict.refuse("spec.containers is empty, expected at least one");
    }
    for kind in ["initContainers", "containers"] {
        for one in list(&spec, kind) {
            let name = one["name"].as_str().unwrap_or_default();
            verdict.container(&format!("spec.{kind}[{name}]"), one);
        }
    }
    verdict
}

/// What the sandbox makes of a service.
pub fn service(service: &Service) -> Verdict {
    let mut verdict = Verdict::default();
    let spec = json(&service.spec);
    verdict.fields("spec", &without(&spec, "sessionAffinity"), &SERVICE);
    verdict.value(&spec, "spec.type", &["ClusterIP"]);
    verdict.value(&spec, "spec.sessionAffinity", &["None"]);
    verdict.value(&spec, "spec.internalTrafficPolicy", &["Cluster", "Local"]);
    verdict.value(
        &spec,
        "spec.trafficDistribution",
        &["PreferClose", "PreferSameZone"],
    );
    let annotations = service.metadata.annotations.as_ref();
    let mode = annotations.and_then(|annotations| own(TOPOLOGY_MODE, annotations));
    if let Some(got) = mode.filter(|got| !TOPOLOGY_MODES.contains(got)) {
        verdict.refuse(format!(
            "got the annotation {} {got:?}, the sandbox supports Auto, Disabled",
            TOPOLOGY_MODE[0]
        ));
    }
    verdict
}

/// What the sandbox makes of a node.
pub fn node(node: &Node) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.fields("spec", &json(&node.spec), &NODE);
    if !is_default(&json(&node.status)) {
        let reason = "status has no effect in the sandbox";
        verdict.no_effect.push(reason.to_owned());
    }
    verdict
}

/// What the sandbox makes of a deployment, apart from its template.
pub fn deployment(deployment: &impl Serialize) -> Verdict {
    let mut verdict = Verdict::default();
    let deployment = json(deployment);
    verdict.fields("spec", &deployment["spec"], &DEPLOYMENT);
    let selector = &deployment["spec"]["selector"];
    if selector.get("matchExpressions").is_some() {
        verdict.refuse("spec.selector.matchExpressions is not supported in the sandbox");
    }
    let strategy = deployment["spec"]["strategy"]["type"].as_str();
    if let Some(got) = strategy.filter(|got| *got != "RollingUpdate") {
        verdict.refuse(format!(
            "got spec.strategy.type {got:?}, the sandbox supports RollingUpdate"
        ));
    }
    let policy = deployment["spec"]["template"]["spec"]["restartPolicy"].as_str();
    if let Some(got) = policy.filter(|got| *got != "Always") {
        verdict.refuse(format!(
            "got spec.template.spec.restartPolicy {got:?}, a Deployment restarts Always"
        ));
    }
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let wanted = selector["matchLabels"].as_object();
    let fits = wanted.is_some_and(|wanted| wanted.iter().all(|(k, v)| labels.get(k) == Some(v)));
    if !fits {
        verdict.refuse("spec.selector.matchLabels does not select the labels of spec.template");
    }
    verdict
}

// === impl Verdict ===

impl Verdict {
    fn refuse(&mut self, reason: impl Into<String>) {
        self.refused.push(reason.into());
    }

    fn fields(&mut self, path: &str, object: &Value, fields: &Fields) {
        for (name, value) in object.as_object().into_iter().flatten() {
            if is_default(value) || fields.works.contains(&name.as_str()) {
                continue;
            }
            if fields.no_effect.contains(&name.as_str()) {
                self.no_effect
                    .push(format!("{path}.{name} has no effect in the sandbox"));
            } else {
                self.refuse(format!("{path}.{name} is not supported in the sandbox"));
            }
        }
    }

    /// `path` is `spec.` and a field.
    fn value(&mut self, spec: &Value, path: &str, allowed: &[&str]) {
        let field = path.strip_prefix("spec.").unwrap_or(path);
        let got = spec[field].as_str();
        if let Some(got) = got.filter(|got| !allowed.contains(got)) {
            let allowed = allowed.join(", ");
            self.refuse(format!(
                "got {path} {got:?}, the sandbox supports {allowed}"
            ));
        }
    }

    fn container(&mut self, path: &str, container: &Value) {
        self.fields(path, container, &CONTAINER);
        if list(container, "command").is_empty() {
            self.refuse(format!(
                "{path}.command is missing: the sandbox ignores the image and needs a command of \
                 this machine"
            ));
        }
        for port in list(container, "ports") {
            self.fields(&format!("{path}.ports"), port, &PORT);
        }
        for probe in ["readinessProbe", "livenessProbe"] {
            if let Some(value) = container.get(probe) {
                self.probe(&format!("{path}.{probe}"), value);
            }
        }
        for variable in list(container, "env") {
            self.variable(path, variable);
        }
    }

    fn probe(&mut self, path: &str, probe: &Value) {
        self.fields(path, probe, &PROBE);
        let handlers = ["exec", "httpGet", "tcpSocket", "grpc"];
        if handlers
            .iter()
            .filter(|kind| probe.get(kind).is_some())
            .count()
            != 1
        {
            self.refuse(format!("{path} needs one of exec, httpGet and tcpSocket"));
        }
        if probe["httpGet"]["scheme"]
            .as_str()
            .is_some_and(|scheme| scheme != "HTTP")
        {
            self.refuse(format!("{path}.httpGet.scheme: the sandbox supports HTTP"));
        }
    }

    fn variable(&mut self, path: &str, variable: &Value) {
        let Some(from) = variable.get("valueFrom") else {
            return;
        };
        let field = from["fieldRef"]["fieldPath"].as_str();
        if !field.is_some_and(|field| FIELD_PATHS.contains(&field)) {
            let name = variable["name"].as_str().unwrap_or_default();
            self.refuse(format!(
                "{path}.env[{name}].valueFrom: the sandbox supports fieldRef to {}",
                FIELD_PATHS.join(", ")
            ));
        }
    }
}

fn json(value: &impl Serialize) -> Value {
    // What was read from JSON or YAML can be written as JSON.
    serde_json::to_value(value).unwrap_or_default()
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn without(object: &Value, field: &str) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
    object
}

/// A field that says what holds without it.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn verdict(spec: Value) -> Verdict {
        let object = serde_json::from_value(json!({ "spec": spec }));
        pod(&object.unwrap_or_else(|e| panic!("{e}")))
    }

    #[test]
    fn an_ordinary_pod_works() {
        let container = json!({
            "name": "c", "image": "nginx", "command": ["nginx"], "securityContext": {},
            "ports": [{"name": "http", "containerPort": 80}],
            "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        });
        let got = verdict(json!({"containers": [container], "hostNetwork": false}));
        assert_eq!(got, Verdict::default());
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let container = json!({
            "name": "c", "resources": {"limits": {"cpu": "1"}},
            "securityContext": {"runAsUser": 1},
            "readinessProbe": {"grpc": {"port": 1}},
            "env": [{"name": "S", "valueFrom": {"secretKeyRef": {"key": "k", "name": "s"}}}],
        });
        let spec =
            json!({"containers": [container], "hostNetwork": true, "restartPolicy": "Maybe"});
        let Verdict { refused, no_effect } = verdict(spec);
        for part in [
            "spec.hostNetwork is",
            "got spec.restartPolicy \"Maybe\"",
            "spec.containers[c].securityContext is",
            "spec.containers[c].command is missing",
            "spec.containers[c].readinessProbe.grpc is",
            "spec.containers[c].env[S].valueFrom",
        ] {
            assert!(
                refused.iter().any(|reason| reason.starts_with(part)),
                "{part}: {refused:?}"
            );
        }
        assert_eq!(refused.len(), 6, "{refused:?}");
        assert_eq!(
            no_effect,
            ["spec.containers[c].resources has no effect in the sandbox"]
        );
    }

    #[test]
    fn services_of_other_types_and_strange_deployments_are_refused() {
        let typed = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let typed: Service = serde_json::from_value(typed).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(service(&typed).refused.len(), 1);
        let annotations = json!({"service.kubernetes.io/topology-mode": "Magic"});
        let placed = json!({"metadata": {"annotations": annotations}, "spec": {
            "internalTrafficPolicy": "Near", "trafficDistribution": "PreferSameNode", "sessionAffinity": "ClientIP"
        }});
        let placed: Service = serde_json::from_value(placed).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(service(&placed).refused.len(), 4);
        let near = json!({"spec": {"internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose"}});
        let near: Service = serde_json::from_value(near).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(service(&near), Verdict::default());
        let template = json!({"metadata": {"labels": {"app": "b"}}});
        let selector = json!({"matchLabels": {"app": "a"}});
        let strange = json!({"spec": {"selector": selector, "template": template, "paused": true, "strategy": {"type": "Recreate"}}});
        assert_eq!(deployment(&strange).refused.len(), 3);
    }
}
