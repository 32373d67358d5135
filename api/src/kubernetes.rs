// SPDX-License-Identifier: Apache-2.0
//! What Culvert writes on Kubernetes' objects, for its own processes, `culvert check` and people.

use serde::{Deserialize, Serialize};

/// The pod condition that says whether a pod is steered: True while it is. Written by control.
pub const MESHED_CONDITION: &str = "culvert.io/Meshed";
/// The taint that keeps pods from a node whose agent is not ready. Taken away by the agent.
pub const NOT_READY_TAINT: &str = "node.culvert.io/agent-not-ready";
/// The annotation of a node with its agent's [`NodeStatus`], in JSON. Written by the agent when it
/// changes, taken away at uninstall.
pub const NODE_STATUS_ANNOTATION: &str = "culvert.io/agent";
/// The source of the agent's events.
pub const AGENT_EVENTS: &str = "culvert-agent";
/// The reason of the agent's event of a pod that can't be meshed, whatever it asks for.
pub const UNSUPPORTED: &str = "Unsupported";
/// The source of control's events.
pub const CONTROL_EVENTS: &str = "culvert-control";

/// What only a node itself can tell. Fields that a release does not know are passed over, fields
/// that it misses have their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    /// The agent's release.
    pub version: String,
    /// What the agent still waits for; empty when it is ready.
    pub waiting_for: Vec<String>,
    /// The kernel's release, as the node has it.
    pub kernel: String,
    /// The cgroup that the programs are attached to.
    pub cgroup: String,
    /// How many proxies are connected to the agent.
    pub proxies: u32,
    /// The chained CNI configuration.
    pub cni: CniStatus,
    /// What is wrong with the node, each with what to do; empty when nothing is.
    pub problems: Vec<String>,
}

/// The chained CNI configuration of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CniStatus {
    /// Whether the runtime's first configuration is ours, in step with the primary's, and the
    /// plugin's binary is in its place.
    pub chained: bool,
    /// The path of our configuration on the node.
    pub conflist: String,
    /// The path of the configuration that it chains after.
    pub primary: String,
    /// Why it is not chained; empty when it is.
    pub problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_another_release_is_read() -> serde_json::Result<()> {
        let text = r#"{"version":"9","cni":{"chained":true,"later":1},"later":{}}"#;
        let status: NodeStatus = serde_json::from_str(text)?;
        assert!(status.cni.chained && status.version == "9" && status.problems.is_empty());
        Ok(())
    }
}
