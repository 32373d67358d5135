// SPDX-License-Identifier: Apache-2.0
//! Where the nodes are that are not at this replica, as the Leases of the others say.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::nodes::{NodeId, Nodes};

/// How long a node is waited for after its last stream: one that is down is not to delay others.
pub const RECENT: Duration = Duration::from_secs(30);

/// What the Leases of the other replicas say at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// Whether the Leases were read at all.
    pub(super) looked: bool,
    /// How new the pods are that all nodes of a replica know, by the replica. Only of those that
    /// live.
    pub(super) known: BTreeMap<String, u64>,
    present: BTreeSet<NodeId>,
    /// When nodes were last at a replica or said to be lost by one.
    lost: BTreeMap<NodeId, Instant>,
    /// When a replica went that did not say which nodes it had.
    silent_gone: Option<Instant>,
}

/// A replica, as its Lease says.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) stage: Stage,
    pub(super) known: u64,
    /// None: an earlier release says nothing of nodes.
    pub(super) nodes: Option<Nodes>,
}

/// How a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Lives,
    /// It was not heard of for so long that its nodes are no longer waited for.
    Silent,
    /// It gave up, and said which nodes it had.
    Left,
    /// An earlier run of this replica.
    Former,
}

pub(super) type Replicas = BTreeMap<String, Said>;

// === impl Elsewhere ===

impl Elsewhere {
    /// One other replica, and what it says.
    #[cfg(test)]
    pub(crate) fn of(known: u64, present: &[&str], lost: &[&str]) -> Self {
        let ids = |names: &[&str]| names.iter().map(|name| NodeId::of(name)).collect();
        let said = Said {
            stage: Stage::Lives,
            known,
            nodes: Some(Nodes {
                present: ids(present),
                lost: ids(lost),
            }),
        };
        let said = [("other".to_owned(), said)].into();
        Self::after(&Self::default(), &Replicas::new(), &said, Instant::now())
    }

    /// How many replicas don't say that their nodes know the pods of `version`.
    pub fn behind(&self, version: u64) -> usize {
        let known = self.known.values();
        known.filter(|known| **known < version).count()
    }

    /// Whether a node is at a replica, which answers for it.
    pub fn has(&self, node: NodeId) -> bool {
        self.present.contains(&node)
    }

    /// When a node was last at a replica that it is no longer at, or may have been.
    pub fn lost(&self, node: NodeId) -> Option<Instant> {
        self.lost.get(&node).copied().max(self.silent_gone)
    }

    /// What is so after `before`, as the replicas said `old` things and now say `new` ones.
    pub(super) fn after(before: &Self, old: &Replicas, new: &Replicas, now: Instant) -> Self {
        let present = present(new);
        let mut lost = before.lost.clone();
        lost.retain(|_, since| now - *since <= RECENT);
        let gone = vanished(old, new).chain(news(old, new));
        let gone = gone.filter(|node| !present.contains(node));
        lost.extend(gone.map(|node| (node, now)));
        let live = new.iter().filter(|(_, said)| said.stage == Stage::Lives);
        Self {
            looked: true,
            known: live
                .map(|(name, said)| (name.clone(), said.known))
                .collect(),
            present,
            lost,
            silent_gone: before.silent_gone.max(lost_unsaid(old, new).then_some(now)),
        }
    }
}

fn present(replicas: &Replicas) -> BTreeSet<NodeId> {
    let live = replicas.values().filter(|said| said.stage == Stage::Lives);
    let nodes = live.filter_map(|said| said.nodes.as_ref());
    nodes.flat_map(|nodes| &nodes.present).copied().collect()
}

/// Nodes that were at a replica and are no longer there. What was not heard of for long is not
/// lost a moment ago.
fn vanished<'a>(old: &'a Replicas, new: &'a Replicas) -> impl Iterator<Item = NodeId> + 'a {
    let live = old.iter().filter(|(_, said)| said.stage == Stage::Lives);
    let live = live.filter(|(name, _)| stage(new, name) != Some(Stage::Silent));
    let nodes = live.filter_map(|(_, said)| said.nodes.as_ref());
    nodes.flat_map(|nodes| &nodes.present).copied()
}

/// Nodes that a replica says it lost, and did not say so before.
fn news<'a>(old: &'a Replicas, new: &'a Replicas) -> impl Iterator<Item = NodeId> + 'a {
    new.iter().flat_map(|(name, said)| {
        let before = old.get(name).filter(|old| old.stage == said.stage);
        let before = before.and_then(|old| old.nodes.as_ref());
        let known = move |node: &NodeId| before.is_some_and(|nodes| nodes.lost.contains(node));
        let lost = said.nodes.as_ref().filter(|_| said.stage != Stage::Silent);
        let lost = lost.into_iter().flat_map(|nodes| &nodes.lost);
        let had = said.nodes.as_ref().filter(|_| said.stage == Stage::Former);
        let had = had.into_iter().flat_map(|nodes| &nodes.present);
        lost.filter(move |node| !known(node)).chain(had).copied()
    })
}

/// Whether a replica went that did not say which nodes it had.
fn lost_unsaid(old: &Replicas, new: &Replicas) -> bool {
    let unsaid = |said: &Said| said.stage == Stage::Lives && said.nodes.is_none();
    let mut unsaid = old.iter().filter(|(_, said)| unsaid(said));
    unsaid.any(|(name, _)| {
        let stage = stage(new, name);
        stage != Some(Stage::Lives) && stage != Some(Stage::Silent)
    })
}

fn stage(replicas: &Replicas, name: &str) -> Option<Stage> {
    replicas.get(name).map(|said| said.stage)
}
