// SPDX-License-Identifier: Apache-2.0
//! What agents left on nodes that they are gone from. An agent takes its annotation off its node after all else, so where the
//! annotation is and no agent, there is the rest, too: a CNI configuration that no pod gets past.

use culvert_api::kubernetes::{NODE_STATUS_ANNOTATION, NodeStatus};
use k8s_openapi::api::core::v1::Node;

/// Where the configuration is, if its agent did not say.
const CONFLIST: &str = "/etc/cni/net.d/00-culvert.conflist";

/// What to do on such a node, by hand.
pub const REMEDY: &str = "On each, as root: remove the file named if it is there, reboot, then rm -r /var/lib/culvert; after that: \
                          kubectl annotate node NODE culvert.io/agent-";

/// A node that its agent has not cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name.
    pub node: String,
    /// The CNI configuration that the agent made.
    pub conflist: String,
}

/// What is left on a node, if no agent is there any more.
pub fn on(node: &Node) -> Option<Left> {
    let annotations = node.metadata.annotations.as_ref()?;
    let status = annotations.get(NODE_STATUS_ANNOTATION)?;
    // What can't be read is as good as nothing told.
    let status: NodeStatus = serde_json::from_str(status).unwrap_or_default();
    let conflist = Some(status.cni.conflist).filter(|path| !path.is_empty());
    Some(Left {
        node: node.metadata.name.clone().unwrap_or_default(),
        conflist: conflist.unwrap_or_else(|| CONFLIST.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn conflist(metadata: Value) -> Option<String> {
        let node = serde_json::from_value(json!({"metadata": metadata}));
        let node = node.unwrap_or_else(|e| panic!("{e}"));
        on(&node).map(|left| left.conflist)
    }

    #[test]
    fn a_node_that_is_not_clean_is_named_with_its_file() {
        let told =
            |status: &str| conflist(json!({"annotations": {NODE_STATUS_ANNOTATION: status}}));
        assert_eq!(
            told(r#"{"cni": {"conflist": "/x/00-culvert.conflist"}}"#).as_deref(),
            Some("/x/00-culvert.conflist")
        );
        assert_eq!(told("{}").as_deref(), Some(CONFLIST));
        assert_eq!(told("nonsense").as_deref(), Some(CONFLIST));
        assert_eq!(conflist(json!({"name": "a"})), None);
    }
}
