// SPDX-License-Identifier: Apache-2.0
//! What only the nodes themselves can tell, as their agents wrote it on the node objects; and the
//! taint that keeps pods from a new node.

use culvert_api::kubernetes::{NODE_STATUS_ANNOTATION, NOT_READY_TAINT, NodeStatus};
use k8s_openapi::api::core::v1::Node;

use super::{
    facts::{After, Reason},
    named,
    nodes::KEEP_OFF,
    processes::selects,
    report::Check,
    unanswered,
};
use crate::left::{self, Left};

/// All that agents told.
pub fn checks(facts: &After) -> Vec<Check> {
    let description = "every node's agent tells how it is";
    let (set, nodes) = match (&facts.agent, &facts.nodes) {
        (Ok(set), Ok(nodes)) => (set, nodes),
        (Err(refusal), Ok(nodes)) if refusal.reason == Reason::NotFound => {
            return vec![unanswered(description, refusal), left_over(nodes.iter())];
        }
        (Err(refusal), _) | (_, Err(refusal)) => return vec![unanswered(description, refusal)],
    };
    let (nodes, others): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| selects(set, node));
    vec![
        told(&nodes),
        needs(&nodes),
        chained(&nodes),
        taints(&nodes),
        left_over(others.into_iter()),
    ]
}

/// Nodes that are to have no agent. One that is still there cleans up, and takes its annotation off when it has.
fn left_over<'a>(nodes: impl Iterator<Item = &'a Node>) -> Check {
    let found = nodes.filter_map(left::on).map(|Left { node, conflist }| {
        format!("node {node}: its agent went without cleaning up; while {conflist} is there, new pods wait")
    });
    Check::unless(
        found.collect(),
        "nodes without an agent have nothing of Culvert's left",
        format!(
            "{}\nor give these nodes an agent again: `culvert install`, or the chart's agent.nodeSelector",
            left::REMEDY
        ),
    )
    .heals()
}

/// What the node's agent wrote last; nothing if it wrote nothing.
pub fn status(node: &Node) -> Option<serde_json::Result<NodeStatus>> {
    let annotations = node.metadata.annotations.as_ref()?;
    let text = annotations.get(NODE_STATUS_ANNOTATION)?;
    Some(serde_json::from_str(text))
}

fn told(nodes: &[&Node]) -> Check {
    let found = nodes.iter().filter_map(|node| {
        let why = match status(node) {
            Some(Ok(_)) => return None,
            Some(Err(error)) => format!("its annotation {NODE_STATUS_ANNOTATION}: {error}"),
            None => "nothing told yet".to_owned(),
        };
        Some(format!("node {}: {why}", named(&node.metadata)))
    });
    Check::unless(
        found.collect(),
        "every node's agent tells how it is",
        "an agent that runs may patch its node: is the ClusterRole culvert-agent as installed?",
    )
    .heals()
}

fn needs(nodes: &[&Node]) -> Check {
    let found = statuses(nodes).flat_map(|(name, status)| {
        let problems = status.problems.into_iter();
        problems.map(move |problem| format!("node {name}: {problem}"))
    });
    Check::unless(
        found.collect(),
        "nodes have what an agent needs (kernel, cgroup v2, bpffs)",
        format!("put it right on the node, or {KEEP_OFF}"),
    )
}

fn chained(nodes: &[&Node]) -> Check {
    let found = statuses(nodes).filter_map(|(name, status)| {
        let cni = status.cni;
        if cni.chained {
            return None;
        }
        let why = match (cni.problem.as_str(), cni.conflist.as_str()) {
            ("", "") => "not installed".to_owned(),
            ("", conflist) => format!("{conflist} is not in step"),
            (problem, _) => problem.to_owned(),
        };
        Some(format!("node {name}: {why}"))
    });
    Check::unless(
        found.collect(),
        "the CNI plugin is chained on every node",
        "until it is, new pods of the node may start without the mesh, or wait; the chart's \
         paths.cniNetDir and paths.cniBinDir (or platform) must name the container runtime's",
    )
    .heals()
}

fn taints(nodes: &[&Node]) -> Check {
    let tainted = nodes.iter().filter(|node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        taints
            .into_iter()
            .flatten()
            .any(|taint| taint.key == NOT_READY_TAINT)
    });
    let found = tainted.map(|node| format!("node {} has {NOT_READY_TAINT}", named(&node.metadata)));
    Check::unless(
        found.collect(),
        "no node has the start-up taint left over",
        "its agent takes it away once its CNI plugin is chained and a proxy is connected",
    )
    .heals()
}

/// What can't be read is a failure of its own.
fn statuses<'a>(nodes: &'a [&'a Node]) -> impl Iterator<Item = (&'a str, NodeStatus)> {
    let known = |node: &&'a Node| Some((named(&node.metadata), status(node)?.ok()?));
    nodes.iter().filter_map(known)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::{
        facts::Refusal,
        report::Outcome,
        testing::{facts, from},
    };

    fn node(status: &str, taint: &str) -> Node {
        let node = json!({
            "metadata": {"name": "n1", "annotations": {NODE_STATUS_ANNOTATION: status}},
            "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]},
        });
        serde_json::from_value(node).unwrap_or_else(|e| panic!("{e}"))
    }

    fn outcomes(node: &Node) -> [Outcome; 4] {
        let nodes = [node];
        [told(&nodes), needs(&nodes), chained(&nodes), taints(&nodes)].map(|it| it.outcome)
    }

    #[test]
    fn a_node_whose_agent_says_that_all_is_well_is_good() {
        let node = node(r#"{"cni":{"chained":true}}"#, "other");
        assert_eq!(outcomes(&node), [Outcome::Success; 4]);
    }

    fn left(facts: &After) -> Vec<String> {
        let description = "nodes without an agent have nothing of Culvert's left";
        let checks = checks(facts).into_iter();
        let mut found = checks.filter(|check| check.description == description);
        found.next().map(|check| check.found).unwrap_or_default()
    }

    const LEFT: [&str; 1] = [
        "node n1: its agent went without cleaning up; while /etc/cni/net.d/00-culvert.conflist is there, new pods wait",
    ];

    #[test]
    fn a_node_that_is_not_selected_any_more_is_to_be_clean() {
        let mut facts = facts();
        assert_eq!(left(&facts), [""; 0]);
        facts.agent = Ok(from(
            json!({"metadata": {}, "spec": {"selector": {}, "template": {
                "spec": {"containers": [], "nodeSelector": {"pool": "meshed"}},
            }}}),
        ));
        assert_eq!(left(&facts), LEFT);
        for node in facts.nodes.iter_mut().flatten() {
            node.metadata.annotations = None;
        }
        assert_eq!(left(&facts), [""; 0]);
    }

    #[test]
    fn without_an_installation_nodes_are_to_be_clean() {
        let mut facts = facts();
        let asked = "get DaemonSet culvert-agent".to_owned();
        let refusal = |reason| Refusal {
            asked: asked.clone(),
            reason,
        };
        facts.agent = Err(refusal(Reason::NotFound));
        assert_eq!(left(&facts), LEFT);
        // Who may not ask does not know.
        facts.agent = Err(refusal(Reason::Forbidden(String::new())));
        assert_eq!(left(&facts), [""; 0]);
    }

    #[test]
    fn silence_and_nonsense_are_told_apart() {
        assert_eq!(told(&[&Node::default()]).found, ["node : nothing told yet"]);
        let found = told(&[&node("{", "")]).found;
        assert!(
            found[0].starts_with("node n1: its annotation culvert.io/agent: EOF"),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_wrong_with_a_node_is_named() {
        let status = r#"{"problems":["cgroup v1: boot with …"],
            "cni":{"conflist":"/etc/cni/net.d/00-culvert.conflist"}}"#;
        let node = node(status, NOT_READY_TAINT);
        let nodes = [&node];
        assert_eq!(needs(&nodes).found, ["node n1: cgroup v1: boot with …"]);
        let conflist = "node n1: /etc/cni/net.d/00-culvert.conflist is not in step";
        assert_eq!(chained(&nodes).found, [conflist]);
        let tainted = "node n1 has node.culvert.io/agent-not-ready";
        assert_eq!(taints(&nodes).found, [tainted]);
        assert!(taints(&nodes).heals && !needs(&nodes).heals);
    }
}
