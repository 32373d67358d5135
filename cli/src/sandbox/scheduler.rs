// SPDX-License-Identifier: Apache-2.0
//! Which node a new pod goes to.

use std::collections::BTreeMap;

use super::layout::NodeId;

/// How full the nodes are.
#[derive(Debug, Default)]
pub struct Load {
    nodes: BTreeMap<NodeId, (usize, usize)>,
}

// === impl Load ===

impl Load {
    /// Empty nodes.
    pub fn of(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let nodes = nodes.into_iter().map(|node| (node, (0, 0))).collect();
        Self { nodes }
    }

    /// A pod is on a node; of the same deployment as the new one or not.
    pub fn add(&mut self, node: NodeId, sibling: bool) {
        if let Some((siblings, pods)) = self.nodes.get_mut(&node) {
            *siblings += usize::from(sibling);
            *pods += 1;
        }
    }

    /// The node with the fewest pods of the same deployment, then the fewest pods, then the first.
    pub fn choose(&self) -> Option<NodeId> {
        let least = self
            .nodes
            .iter()
            .min_by_key(|(node, load)| (**load, **node));
        least.map(|(node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deployments_are_spread_before_anything_else() {
        let mut load = Load::of([NodeId(1), NodeId(2)]);
        assert_eq!(load.choose(), Some(NodeId(1)));
        load.add(NodeId(1), true);
        load.add(NodeId(2), false);
        load.add(NodeId(2), false);
        assert_eq!(load.choose(), Some(NodeId(2)));
        load.add(NodeId(2), true);
        assert_eq!(load.choose(), Some(NodeId(1)));
        assert_eq!(Load::default().choose(), None);
    }
}
