// SPDX-License-Identifier: Apache-2.0
//! What only the nodes themselves can tell, as their agents wrote it on the node objects; and the
//! taint that keeps pods from a new node.

use culvert_api::kubernetes::{NODE_STATUS_ANNOTATION, NOT_READY_TAINT, NodeStatus};
use k8s_openapi::api::core::v1::Node;

use super::{facts::After, named, processes::selects, report::Check, unanswered};

/// All that agents told.
pub fn checks(facts: &After) -> Vec<Check> {
    let (set, nodes) = match (&facts.agent, &facts.nodes) {
        (Ok(set), Ok(nodes)) => (set, nodes),
        (Err(refusal), _) | (_, Err(refusal)) => {
            return vec![unanswered("every node's agent tells how it is", refusal)];
        }
    };
    let nodes: Vec<_> = nodes.iter().filter(|node| selects(set, node)).collect();
    vec![told(&nodes), needs(&nodes), chained(&nodes), taints(&nodes)]
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
        "put it right on the node, or keep Culvert off it with the chart's nodeSelector",
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
    use crate::check::report::Outcome;

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
