// SPDX-License-Identifier: Apache-2.0
//! Culvert's own processes: control, and an agent and a proxy on every node.

use std::fmt::Display;

use culvert_api::kubernetes::NodeStatus;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::{Event, Node, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    cni,
    facts::{After, Reason},
    named,
    nodes::is_meshable,
    report::Check,
    trouble, unanswered,
};

/// The Deployment of control, and its service.
pub const CONTROL: &str = "culvert-control";
/// The DaemonSet of the agents.
pub const AGENT: &str = "culvert-agent";
/// The DaemonSet of the proxies.
pub const PROXY: &str = "culvert-proxy";

/// Whether what the installation makes is there.
pub fn exist(facts: &After) -> Check {
    let description = format!("Culvert's objects are in namespace {}", facts.namespace);
    let refusals: Vec<_> = [
        facts.control.as_ref().err(),
        facts.service.as_ref().err(),
        facts.agent.as_ref().err(),
        facts.proxy.as_ref().err(),
        facts.anchors.as_ref().err(),
        facts.issuer.as_ref().err(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let (missing, unknown): (Vec<_>, Vec<_>) = refusals
        .into_iter()
        .partition(|refusal| refusal.reason == Reason::NotFound);
    // What could not be asked fails the checks that need it.
    if let (true, Some(refusal)) = (missing.is_empty(), unknown.first()) {
        return unanswered(description, refusal).at_most_warning();
    }
    Check::unless(
        missing.into_iter().map(ToString::to_string).collect(),
        description,
        "install it with `culvert install | kubectl apply -f -`; in another namespace: -L NAMESPACE",
    )
}

/// Whether control is ready and answers.
pub fn control(facts: &After) -> Vec<Check> {
    let mut checks = vec![control_ready(facts)];
    // Who does not run can't be asked.
    if !facts.admin.is_empty() {
        checks.push(control_answers(facts));
    }
    checks
}

fn control_ready(facts: &After) -> Check {
    let description = "control is ready";
    let (control, own) = match (&facts.control, &facts.own) {
        (Ok(control), Ok(own)) => (control, own),
        (Err(refusal), _) | (_, Err(refusal)) => return unanswered(description, refusal),
    };
    let pods: Vec<_> = of_control(own).collect();
    let ready = pods.iter().filter(|pod| is_ready(pod)).count();
    let said = said(facts);
    let troubles = pods.iter().filter_map(|pod| trouble::of(pod, said));
    let mut found: Vec<_> = troubles.collect();
    if ready > 0 && found.is_empty() {
        return Check::good(description);
    }
    if found.is_empty() {
        found.push(no_pods(control));
    }
    let logs = logs(&facts.namespace, "deployment", CONTROL);
    let check = Check::failed(description, found, logs).heals();
    if ready > 0 {
        check.at_most_warning()
    } else {
        check
    }
}

fn no_pods(control: &Deployment) -> String {
    if control.spec.replicas == Some(0) {
        return "it is scaled to 0 replicas".to_owned();
    }
    let conditions = control
        .status
        .as_ref()
        .and_then(|it| it.conditions.as_ref());
    let failed = conditions.into_iter().flatten();
    let failed = failed.filter(|it| is(&it.type_, "ReplicaFailure") && is(&it.status, "True"));
    let why = failed.filter_map(|it| it.message.clone()).next();
    why.unwrap_or_else(|| "it has no pod".to_owned())
}

fn is(found: &Option<String>, wanted: &str) -> bool {
    found.as_deref() == Some(wanted)
}

/// The pods of control.
pub fn of_control(own: &[Pod]) -> impl Iterator<Item = &Pod> {
    own.iter().filter(|pod| {
        let owner = owner(&pod.metadata, "ReplicaSet");
        owner.is_some_and(|name| name.starts_with(CONTROL))
    })
}

fn control_answers(facts: &After) -> Check {
    let description = "control answers";
    let found = facts.admin.iter().filter_map(|(pod, answer)| {
        let error: &dyn Display = match &answer.ready {
            Ok(ready) if ready.trim() == "ready" => return None,
            Ok(other) => other,
            Err(refusal) => refusal,
        };
        Some(format!("pod {pod}: {}", error.to_string().trim()))
    });
    let found: Vec<_> = found.collect();
    let all = found.len() == facts.admin.len();
    let check = Check::unless(
        found,
        description,
        format!(
            "asked through the API server's proxy for pods; a NetworkPolicy of namespace {} may \
             refuse that\nits log: {}",
            facts.namespace,
            logs(&facts.namespace, "deployment", CONTROL)
        ),
    );
    if all {
        check.heals()
    } else {
        check.at_most_warning()
    }
}

/// Whether each node has a ready pod of this DaemonSet.
pub fn on_every_node(facts: &After, name: &'static str) -> Check {
    let description = format!(
        "every node's {} is ready",
        name.trim_start_matches("culvert-")
    );
    let set = if name == AGENT {
        &facts.agent
    } else {
        &facts.proxy
    };
    let (set, nodes, own) = match (set, &facts.nodes, &facts.own) {
        (Ok(set), Ok(nodes), Ok(own)) => (set, nodes, own),
        (Err(refusal), ..) | (_, Err(refusal), _) | (.., Err(refusal)) => {
            return unanswered(description, refusal);
        }
    };
    let expected = nodes.iter().filter(|node| selects(set, node));
    let found = expected.filter_map(|node| {
        let on_node = own.iter().filter(|pod| is_of(pod, name, node));
        let why = absent(on_node, said(facts))? + &waits(name, node);
        Some(format!("node {}: {why}", named(&node.metadata)))
    });
    let hint = logs(&facts.namespace, "daemonset", name);
    Check::unless(found.collect(), description, hint).heals()
}

/// What was said of Culvert's own pods; that it can't be read is no news beside what they are.
fn said(facts: &After) -> &[Event] {
    facts.own_events.as_deref().unwrap_or_default()
}

/// Why none of a node's pods is ready; nothing if one is.
fn absent<'a>(pods: impl Iterator<Item = &'a Pod>, said: &[Event]) -> Option<String> {
    let mut troubles = Vec::new();
    for pod in pods {
        troubles.push(trouble::of(pod, said)?);
    }
    if troubles.is_empty() {
        return Some("it has no pod there".to_owned());
    }
    Some(troubles.join("; "))
}

/// What the agent itself says that it waits for.
fn waits(name: &str, node: &Node) -> String {
    let status = (name == AGENT).then(|| cni::status(node)).flatten();
    let status: NodeStatus = status.and_then(Result::ok).unwrap_or_default();
    if status.waiting_for.is_empty() {
        return String::new();
    }
    format!(", it waits for {}", status.waiting_for.join(", "))
}

/// Whether the DaemonSet wants a pod on the node. Culvert's tolerate all taints.
pub fn selects(set: &DaemonSet, node: &Node) -> bool {
    let template = set.spec.template.spec.as_ref();
    let selector = template.and_then(|spec| spec.node_selector.as_ref());
    let labels = node.metadata.labels.as_ref();
    let has = |(name, value): (&String, &String)| {
        labels.is_some_and(|labels| labels.get(name) == Some(value))
    };
    is_meshable(node) && selector.into_iter().flatten().all(has)
}

/// Whether the pod is the DaemonSet's, on the node.
pub fn is_of(pod: &Pod, set: &str, node: &Node) -> bool {
    let spec = pod.spec.as_ref();
    let on = spec.and_then(|spec| spec.node_name.as_deref());
    on.is_some() && on == node.metadata.name.as_deref() && is_of_set(pod, set)
}

/// Whether the pod is the DaemonSet's.
pub fn is_of_set(pod: &Pod, set: &str) -> bool {
    owner(&pod.metadata, "DaemonSet") == Some(set)
}

/// Whether the kubelet calls it ready.
pub fn is_ready(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(trouble::is_ready)
}

fn owner<'a>(metadata: &'a ObjectMeta, kind: &str) -> Option<&'a str> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|owner| owner.kind == kind)?;
    Some(&owner.name)
}

fn logs(namespace: &str, kind: &str, name: &str) -> String {
    format!("kubectl logs -n {namespace} {kind}/{name}, and `kubectl describe pods -n {namespace}`")
}

#[cfg(test)]
mod tests;
