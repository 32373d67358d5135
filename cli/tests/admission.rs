// SPDX-License-Identifier: Apache-2.0
//! The chart's admission policies (Kubernetes 1.30): what each lets a stolen token do. The expressions
//! are run by an interpreter of CEL, on objects as an API server would show them.

use cel::{Context, Program, Value as Cel, to_value};
use serde_json::{Value, json};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const TEMPLATE: &str = include_str!("../../daemonset/chart/templates/admission.yaml");

/// A policy's expressions: when it counts, and what must hold then.
struct Policy {
    counts: Vec<String>,
    must_hold: Vec<String>,
}

// === impl Policy ===

impl Policy {
    fn of(name: &str) -> Result<Self> {
        let ours = |document: &&Value| {
            document["kind"] == "ValidatingAdmissionPolicy" && document["metadata"]["name"] == name
        };
        let documents = documents()?;
        let policy = documents.iter().find(ours).ok_or("no such policy")?;
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        Ok(Self {
            counts: expressions(&policy["spec"]["matchConditions"])?,
            must_hold: expressions(&policy["spec"]["validations"])?,
        })
    }

    /// Whether a change of this user's passes. An expression that fails does not hold.
    fn lets(&self, user: &Value, old: &Value, new: &Value) -> Result<bool> {
        let mut context = Context::default();
        context.add_variable_from_value("request", to_value(json!({"userInfo": user}))?);
        context.add_variable_from_value("oldObject", to_value(old)?);
        context.add_variable_from_value("object", to_value(new)?);
        let holds = |text: &String| -> Result<bool> {
            let program = Program::compile(text).map_err(|error| format!("{error}: {text}"))?;
            Ok(matches!(program.execute(&context), Ok(Cel::Bool(true))))
        };
        for condition in &self.counts {
            if !holds(condition)? {
                return Ok(true);
            }
        }
        for validation in &self.must_hold {
            if !holds(validation)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The template without its labels, which only a renderer knows.
fn documents() -> Result<Vec<Value>> {
    let lines = TEMPLATE
        .lines()
        .map(|line| line.replace("{{ .Release.Namespace }}", "culvert"));
    let lines: Vec<_> = lines.filter(|line| !line.contains("{{")).collect();
    let documents = lines.join("\n");
    let documents = documents.split("\n---\n");
    let read = documents.map(|text| Ok(serde_saphyr::from_str(text)?));
    read.collect()
}

fn expressions(list: &Value) -> Result<Vec<String>> {
    let list = list.as_array().ok_or("no list")?.iter();
    let texts = list.map(|item| Ok(item["expression"].as_str().ok_or("no text")?.to_owned()));
    texts.collect()
}

/// The agent of a node, by its bound token.
fn agent_of(node: &str) -> Value {
    json!({
        "username": "system:serviceaccount:culvert:culvert-agent",
        "extra": {"authentication.kubernetes.io/node-name": [node]},
    })
}

fn node() -> Value {
    json!({
        "metadata": {
            "name": "n1", "uid": "u", "resourceVersion": "1",
            "labels": {"zone": "a"}, "annotations": {"other": "1"},
        },
        "spec": {"podCIDR": "10.0.0.0/24", "taints": [
            {"key": "node.culvert.io/agent-not-ready", "effect": "NoSchedule"},
            {"key": "dedicated", "effect": "NoSchedule"},
        ]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}

/// The object with something at a place.
fn with(object: &Value, place: &str, value: Value) -> Value {
    let mut changed = object.clone();
    let (parent, key) = place.rsplit_once('/').unwrap_or(("", place));
    if let Some(parent) = changed.pointer_mut(parent).and_then(Value::as_object_mut) {
        parent.insert(key.replace("~1", "/"), value);
    }
    assert_ne!(&changed, object, "{place}");
    changed
}

#[test]
fn an_agent_does_its_work() -> Result<()> {
    let policy = Policy::of("culvert-agent")?;
    let (agent, node) = (agent_of("n1"), node());
    let annotated = with(
        &node,
        "/metadata/annotations/culvert.io~1agent",
        json!("{}"),
    );
    let annotated = with(&annotated, "/metadata/resourceVersion", json!("2"));
    assert!(policy.lets(&agent, &node, &annotated)?);
    assert!(policy.lets(&agent, &annotated, &node)?);
    let bare = with(&node, "/metadata/annotations", json!({}));
    let mut none = bare.clone();
    none["metadata"]
        .as_object_mut()
        .map(|metadata| metadata.remove("annotations"));
    let first = with(
        &bare,
        "/metadata/annotations/culvert.io~1agent",
        json!("{}"),
    );
    assert!(policy.lets(&agent, &none, &first)?);
    assert!(policy.lets(&agent, &first, &none)?);
    let other = json!([{"key": "dedicated", "effect": "NoSchedule"}]);
    let untainted = with(&node, "/spec/taints", other);
    assert!(policy.lets(&agent, &node, &untainted)?);
    let only = with(
        &node,
        "/spec",
        json!({"taints": [
        {"key": "node.culvert.io/agent-not-ready", "effect": "NoSchedule"}]}),
    );
    for emptied in [json!({}), json!({"taints": []})] {
        assert!(policy.lets(&agent, &only, &with(&only, "/spec", emptied))?);
    }
    Ok(())
}

#[test]
fn a_stolen_token_of_an_agent_changes_nothing_else() -> Result<()> {
    let policy = Policy::of("culvert-agent")?;
    let node = node();
    let tainted = json!([
        {"key": "node.culvert.io/agent-not-ready", "effect": "NoSchedule"},
        {"key": "dedicated", "effect": "NoSchedule"},
        {"key": "evil", "effect": "NoExecute"},
    ]);
    let more = json!([{"key": "dedicated", "effect": "NoExecute"}]);
    let changes = [
        ("/metadata/labels/zone", json!("b")),
        ("/metadata/labels/more", json!("b")),
        ("/metadata/finalizers", json!(["a/b"])),
        ("/metadata/annotations/other", json!("2")),
        ("/metadata/annotations/more", json!("2")),
        ("/metadata/annotations", json!({})),
        ("/metadata/labels", json!({})),
        ("/spec/taints", tainted),
        ("/spec/taints", more),
        ("/spec/taints", json!([])),
        ("/spec/unschedulable", json!(true)),
        ("/spec", json!({})),
        ("/status/addresses", json!([])),
    ];
    for (place, value) in changes {
        let changed = with(&node, place, value);
        assert!(
            !policy.lets(&agent_of("n1"), &node, &changed)?,
            "{place}: {changed}"
        );
    }
    Ok(())
}

#[test]
fn an_agent_stays_on_its_node_and_others_are_not_concerned() -> Result<()> {
    let policy = Policy::of("culvert-agent")?;
    let node = node();
    let annotated = with(
        &node,
        "/metadata/annotations/culvert.io~1agent",
        json!("{}"),
    );
    assert!(!policy.lets(&agent_of("n2"), &node, &annotated)?);
    let unbound = json!({"username": "system:serviceaccount:culvert:culvert-agent"});
    assert!(!policy.lets(&unbound, &node, &annotated)?);
    let kubelet = json!({"username": "system:node:n1"});
    let cordoned = with(&node, "/spec/unschedulable", json!(true));
    assert!(policy.lets(&kubelet, &node, &cordoned)?);
    Ok(())
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "web", "resourceVersion": "1", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1"},
        "status": {
            "phase": "Running", "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn control() -> Value {
    json!({"username": "system:serviceaccount:culvert:culvert-control"})
}

#[test]
fn control_does_its_work() -> Result<()> {
    let policy = Policy::of("culvert-control")?;
    let pod = pod();
    let ready = json!({"type": "Ready", "status": "True"});
    let meshed = |status: &str| json!({"type": "culvert.io/Meshed", "status": status});
    let first = with(&pod, "/status/conditions", json!([meshed("True"), ready]));
    let second = with(&pod, "/status/conditions", json!([ready, meshed("False")]));
    assert!(policy.lets(&control(), &pod, &first)?);
    assert!(policy.lets(&control(), &first, &second)?);
    assert!(policy.lets(&control(), &second, &pod)?);
    let fresh = json!({"metadata": {"name": "web"}, "spec": {}, "status": {}});
    let told = with(&fresh, "/status/conditions", json!([meshed("True")]));
    assert!(policy.lets(&control(), &fresh, &told)?);
    Ok(())
}

#[test]
fn a_stolen_token_of_control_changes_nothing_else() -> Result<()> {
    let policy = Policy::of("culvert-control")?;
    let pod = pod();
    let not_ready = json!([{"type": "Ready", "status": "False"}]);
    let changes = [
        ("/metadata/labels/app", json!("db")),
        ("/metadata/annotations", json!({"a": "b"})),
        ("/metadata/labels", json!({})),
        ("/spec/nodeName", json!("n2")),
        ("/status/podIP", json!("10.0.0.2")),
        ("/status/podIPs", json!([{"ip": "10.0.0.2"}])),
        ("/status/phase", json!("Failed")),
        ("/status/conditions", not_ready),
        ("/status/conditions", json!([])),
        ("/status", json!({})),
    ];
    for (place, value) in changes {
        let changed = with(&pod, place, value);
        assert!(
            !policy.lets(&control(), &pod, &changed)?,
            "{place}: {changed}"
        );
    }
    let user = json!({"username": "admin"});
    let moved = with(&pod, "/status/podIP", json!("10.0.0.2"));
    assert!(policy.lets(&user, &pod, &moved)?);
    Ok(())
}

#[test]
fn each_policy_is_bound_and_denies() -> Result<()> {
    let documents = documents()?;
    for name in ["culvert-agent", "culvert-control"] {
        let bindings = documents.iter().filter(|document| {
            document["kind"] == "ValidatingAdmissionPolicyBinding"
                && document["spec"]["policyName"] == name
                && document["spec"]["validationActions"] == json!(["Deny"])
        });
        assert_eq!(bindings.count(), 1, "{name}");
    }
    Ok(())
}
