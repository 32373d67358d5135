// SPDX-License-Identifier: Apache-2.0
//! The nodes: what their objects tell of them. The rest only their agents can tell ([`super::cni`]).

use k8s_openapi::api::core::v1::{Node, NodeSystemInfo};

use super::{facts::Answer, named, report::Check, unanswered};

/// `sk_lookup` and `cgroup/connect` links, bpf_get_netns_cookie, sk_storage in all of them.
const LEAST_KERNEL: (u32, u32) = (5, 17);
/// The programs are compiled for little-endian machines.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// Labels of nodes that are no machines, and run no DaemonSet.
const VIRTUAL: [(&str, &str); 2] = [
    ("eks.amazonaws.com/compute-type", "fargate"),
    ("type", "virtual-kubelet"),
];

/// Of agent and proxy, since either without the other is a node that does not work.
pub const KEEP_OFF: &str = "keep Culvert off them with the chart's agent.nodeSelector and proxy.nodeSelector, both the same";

/// All that node objects tell.
pub fn checks(nodes: &Answer<Vec<Node>>) -> Vec<Check> {
    match nodes {
        Ok(nodes) => vec![
            supported(nodes),
            kernels(nodes),
            architectures(nodes),
            runtimes(nodes),
            ready(nodes),
        ],
        Err(refusal) => vec![unanswered("can list the nodes", refusal)],
    }
}

/// Whether Culvert's DaemonSets run on a node of this kind.
pub fn is_meshable(node: &Node) -> bool {
    unsupported(node).is_none()
}

fn supported(nodes: &[Node]) -> Check {
    let description = "nodes are Linux machines";
    if !nodes.iter().any(is_meshable) {
        let found = vec!["no node is one".to_owned()];
        return Check::failed(description, found, "Culvert runs on Linux nodes only");
    }
    let found = nodes.iter().filter_map(|node| {
        Some(format!(
            "node {}: {}",
            named(&node.metadata),
            unsupported(node)?
        ))
    });
    Check::unless(
        found.collect(),
        description,
        "their pods can't be meshed, and talk in plaintext to meshed ones that let them",
    )
    .at_most_warning()
}

fn unsupported(node: &Node) -> Option<String> {
    let system = info(node).map(|info| info.operating_system.as_str());
    if let Some(system) = system.filter(|system| !system.is_empty() && *system != "linux") {
        return Some(format!("runs {system}"));
    }
    let labels = node.metadata.labels.as_ref()?;
    let (name, value) = VIRTUAL
        .iter()
        .find(|(name, value)| labels.get(*name).is_some_and(|found| found == value))?;
    Some(format!("is virtual (label {name}={value})"))
}

fn kernels(nodes: &[Node]) -> Check {
    let (major, minor) = LEAST_KERNEL;
    let found = machines(nodes).filter_map(|(name, info)| {
        let kernel = &info.kernel_version;
        let old = release(kernel).is_none_or(|release| release < LEAST_KERNEL);
        old.then(|| format!("node {name} runs {kernel:?}"))
    });
    Check::unless(
        found.collect(),
        format!("kernels are {major}.{minor} or later"),
        format!("upgrade these nodes' system, or {KEEP_OFF}"),
    )
}

/// Major and minor of such as "6.1.0-28-cloud-amd64".
fn release(kernel: &str) -> Option<(u32, u32)> {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn architectures(nodes: &[Node]) -> Check {
    let found = machines(nodes).filter_map(|(name, info)| {
        let architecture = info.architecture.as_str();
        let known = ARCHITECTURES.contains(&architecture);
        (!known).then(|| format!("node {name} is {architecture}"))
    });
    Check::unless(
        found.collect(),
        format!("nodes are {}", ARCHITECTURES.join(" or ")),
        KEEP_OFF,
    )
}

fn runtimes(nodes: &[Node]) -> Check {
    let found = machines(nodes).filter_map(|(name, info)| {
        let runtime = &info.container_runtime_version;
        let known = runtime.starts_with("containerd://") || runtime.starts_with("cri-o://");
        (!known).then(|| format!("node {name} runs {runtime:?}"))
    });
    Check::unless(
        found.collect(),
        "container runtimes are containerd or CRI-O",
        "others work if they run chained CNI plugins and speak the CRI; give the chart their socket, paths.criSocket",
    )
    .at_most_warning()
}

fn ready(nodes: &[Node]) -> Check {
    let found = nodes.iter().filter_map(not_ready);
    Check::unless(
        found.collect(),
        "nodes are ready",
        "`kubectl describe node` tells why; Culvert waits for them",
    )
    .at_most_warning()
}

/// Whether its kubelet is heard of and well.
pub fn is_ready(node: &Node) -> bool {
    not_ready(node).is_none()
}

fn not_ready(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|it| it.type_ == "Ready")?;
    (ready.status != "True").then(|| {
        let reason = ready.reason.as_deref().unwrap_or("not ready");
        format!("node {}: {reason}", named(&node.metadata))
    })
}

fn machines(nodes: &[Node]) -> impl Iterator<Item = (&str, &NodeSystemInfo)> {
    let machines = nodes.iter().filter(|node| is_meshable(node));
    machines.filter_map(|node| Some((named(&node.metadata), info(node)?)))
}

fn info(node: &Node) -> Option<&NodeSystemInfo> {
    node.status.as_ref()?.node_info.as_ref()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::report::Outcome;

    fn node(name: &str, kernel: &str, more: serde_json::Value) -> Node {
        let mut info = json!({
            "kernelVersion": kernel, "operatingSystem": "linux", "architecture": "amd64",
            "containerRuntimeVersion": "containerd://1.7.1", "osImage": "", "bootID": "",
            "machineID": "", "systemUUID": "", "kubeletVersion": "", "kubeProxyVersion": "",
        });
        if let (Some(info), Some(more)) = (info.as_object_mut(), more.as_object()) {
            info.extend(more.clone());
        }
        let node = json!({"metadata": {"name": name}, "status": {
            "nodeInfo": info,
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        serde_json::from_value(node).unwrap_or_else(|e| panic!("{e}"))
    }

    fn outcomes(nodes: Vec<Node>) -> Vec<Outcome> {
        checks(&Ok(nodes))
            .iter()
            .map(|check| check.outcome)
            .collect()
    }

    #[test]
    fn usual_nodes_are_good() {
        let nodes = vec![
            node("n1", "5.17.0-1-amd64", json!({})),
            node("n2", "6.1.0", json!({"architecture": "arm64"})),
        ];
        assert_eq!(outcomes(nodes), [Outcome::Success; 5]);
    }

    #[test]
    fn an_old_or_unreadable_kernel_is_named() {
        let nodes = [
            node("n1", "5.15.0-91-generic", json!({})),
            node("n2", "", json!({})),
            node("n3", "10.0", json!({})),
        ];
        let check = kernels(&nodes);
        assert_eq!(check.outcome, Outcome::Error);
        let found = [r#"node n1 runs "5.15.0-91-generic""#, r#"node n2 runs """#];
        assert_eq!(check.found, found);
    }

    #[test]
    fn what_is_no_linux_machine_is_named_and_its_kernel_not_judged() {
        let mut fargate = node("n2", "4.14", json!({}));
        let labels = VIRTUAL.iter().take(1);
        let labels = labels.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        fargate.metadata.labels = Some(labels.collect());
        let windows = node("n3", "10.0.17763", json!({"operatingSystem": "windows"}));
        let nodes = vec![node("n1", "6.1", json!({})), fargate, windows];
        let checked = checks(&Ok(nodes));
        assert_eq!(checked[0].outcome, Outcome::Warning);
        let virtually = "node n2: is virtual (label eks.amazonaws.com/compute-type=fargate)";
        assert_eq!(checked[0].found, [virtually, "node n3: runs windows"]);
        assert_eq!(checked[1].outcome, Outcome::Success);
    }

    #[test]
    fn without_a_linux_node_there_is_no_mesh() {
        let windows = node("n3", "10.0", json!({"operatingSystem": "windows"}));
        assert_eq!(supported(&[windows]).outcome, Outcome::Error);
        assert_eq!(supported(&[]).outcome, Outcome::Error);
    }

    #[test]
    fn other_machines_and_runtimes_are_named() {
        let nodes = vec![node(
            "n1",
            "6.1",
            json!({"architecture": "s390x", "containerRuntimeVersion": "docker://20"}),
        )];
        let expected = [
            Outcome::Success,
            Outcome::Success,
            Outcome::Error,
            Outcome::Warning,
            Outcome::Success,
        ];
        assert_eq!(outcomes(nodes), expected);
    }
}
