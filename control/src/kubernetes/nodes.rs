// SPDX-License-Identifier: Apache-2.0
//! The nodes that a replica of control has, as its Lease says it.

use std::{collections::BTreeSet, fmt};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::coordination::v1::Lease;

/// The annotation with the nodes that are at the replica and know what it says that they know.
pub(super) const PRESENT: &str = "culvert.io/nodes";

/// The annotation with those that are not known to, or whose last stream ended there lately.
pub(super) const LOST: &str = "culvert.io/lost-nodes";

/// How many bytes of a name's hash are said.
const WIDTH: usize = 6;

/// A node: the first 48 bits of the SHA-256 of its name, as 12 hexadecimal digits. All annotations
/// of an object together may have 256 KiB, and a name 253 bytes: 5,000 nodes are 65 kB so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u64);

/// The nodes of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Those that are there, and know what it says that they know.
    pub present: BTreeSet<NodeId>,
    /// Those that are not known to, or whose last stream ended there lately.
    pub lost: BTreeSet<NodeId>,
}

// === impl NodeId ===

impl NodeId {
    /// The node of this name.
    pub fn of(name: &str) -> Self {
        let digest = digest(&SHA256, name.as_bytes());
        let first = digest.as_ref().iter().take(WIDTH);
        Self(first.fold(0, |id, byte| id << 8 | u64::from(*byte)))
    }

    /// None for what a later release may say.
    fn parse(text: &str) -> Option<Self> {
        let is_one = text.len() == 2 * WIDTH;
        u64::from_str_radix(text, 16)
            .ok()
            .filter(|_| is_one)
            .map(Self)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:01$x}", self.0, 2 * WIDTH)
    }
}

// === impl Nodes ===

impl Nodes {
    /// What a Lease says; none where an earlier release wrote it, which
    /// says nothing of nodes.
    pub(super) fn of(lease: &Lease) -> Option<Self> {
        let annotations = lease.metadata.annotations.as_ref()?;
        let lost = annotations.get(LOST).map(String::as_str);
        Some(Self {
            present: parse(annotations.get(PRESENT)?),
            lost: parse(lost.unwrap_or_default()),
        })
    }

    /// What a Lease is to say.
    pub(super) fn annotations(&self) -> [(String, String); 2] {
        [(PRESENT, &self.present), (LOST, &self.lost)]
            .map(|(name, nodes)| (name.to_owned(), text(nodes)))
    }

    /// What remains when the replica leaves: nobody is there any more.
    pub(super) fn left(mut self) -> Self {
        self.lost.append(&mut self.present);
        self
    }
}

fn parse(text: &str) -> BTreeSet<NodeId> {
    text.split(',').filter_map(NodeId::parse).collect()
}

fn text(nodes: &BTreeSet<NodeId>) -> String {
    let nodes: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
    nodes.join(",")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn lease(annotations: impl IntoIterator<Item = (String, String)>) -> Lease {
        Lease {
            metadata: ObjectMeta {
                annotations: Some(annotations.into_iter().collect()),
                ..ObjectMeta::default()
            },
            spec: None,
        }
    }

    fn nodes(present: impl Iterator<Item = String>, lost: &[&str]) -> Nodes {
        Nodes {
            present: present.map(|name| NodeId::of(&name)).collect(),
            lost: lost.iter().map(|name| NodeId::of(name)).collect(),
        }
    }

    #[test]
    fn a_lease_says_which_nodes_are_there_and_which_are_lost() {
        let said = nodes(["n1".to_owned(), "n2".to_owned()].into_iter(), &["n3"]);
        assert_eq!(Nodes::of(&lease(said.annotations())), Some(said.clone()));
        let left = said.left();
        assert_eq!(left, nodes(std::iter::empty(), &["n1", "n2", "n3"]));
        let none = Nodes::default();
        assert_eq!(Nodes::of(&lease(none.annotations())), Some(none));
    }

    /// `printf n1 | sha256sum`
    #[test]
    fn other_releases_are_understood() {
        let known = ("culvert.io/known".to_owned(), "7".to_owned());
        assert_eq!(Nodes::of(&lease([known])), None, "earlier");
        let text = "676b8bb84ce7,more-than-this-one-knows,".to_owned();
        let later = [(PRESENT.to_owned(), text)];
        let said = nodes(["n1".to_owned()].into_iter(), &[]);
        assert_eq!(Nodes::of(&lease(later)), Some(said));
    }

    #[test]
    fn thousands_of_nodes_are_well_within_the_limit_of_annotations() {
        let name = |i: usize| format!("ip-10-0-{i}.eu-central-1.compute.internal");
        for (count, bytes) in [(1000, 12_999), (5000, 64_999)] {
            let all = nodes((0..count).map(name), &[]);
            assert_eq!(all.present.len(), count, "each is told from the others");
            let [(_, text), _] = all.annotations();
            assert_eq!(text.len(), bytes);
        }
    }
}
