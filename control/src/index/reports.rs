// SPDX-License-Identifier: Apache-2.0
//! What the nodes reported of their pods. It outlives the node's stream and, kept on disk,
//! control: a peer that was told that a pod is meshed must never be told otherwise by a restart.

mod condition;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Weak},
};

use culvert_api::workload::{Addresses, NetnsCookie, PodUid};
use culvert_manifests::Objects;
use serde::{Deserialize, Serialize};

pub use self::condition::Condition;
use super::{addresses, view::Pod};

/// How many reports of pods that are gone are kept. A uid is never used again, so that one of them
/// says nothing wrong; but a pod whose file is replaced may be gone for a moment.
const MAX_ABSENT: usize = 4096;

/// A node says whether one of its pods is steered and answers mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The pod.
    pub uid: PodUid,
    /// The network namespace that it is steered in.
    pub cookie: NetnsCookie,
    /// Grows with each report of this pod.
    pub generation: u64,
    /// Steered, or no longer.
    pub steered: bool,
    /// The stream that it came by.
    pub reporter: Reporter,
}

/// A stream of a node, known by the token that it holds while it lives. The default has ended.
#[derive(Clone, Debug, Default)]
pub struct Reporter(Weak<()>);

/// A newer report is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("got generation {got}, but generation {known} is known")]
pub struct Stale {
    /// The generation of the report.
    pub got: u64,
    /// The newest generation of the pod and its network namespace.
    pub known: u64,
    /// Another stream, which lives, said the newest; once that ends this report may count.
    pub elsewhere: bool,
}

/// The last report of each pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reports {
    pods: BTreeMap<PodUid, Known>,
    /// Grows with each change, in this run.
    #[serde(skip)]
    revision: u64,
}

/// The last report of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    node: String,
    cookie: NetnsCookie,
    generation: u64,
    steered: bool,
    /// The pod's addresses, as far as they were known.
    addresses: Addresses,
    /// They may change once: the report of a new network namespace is ahead of its addresses.
    moving: bool,
    /// The version of the view that had it first, of this run.
    #[serde(skip)]
    version: u64,
    /// The stream that it came by; that of an earlier run has ended.
    #[serde(skip)]
    reporter: Reporter,
}

// === impl Reports ===

impl Reports {
    /// Which state of the reports this is, in this run.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the pod's own node last said that it is steered.
    pub(super) fn meshed(&self, uid: &PodUid) -> bool {
        self.pods.get(uid).is_some_and(|known| known.steered)
    }

    pub(super) fn version_of(&self, uid: &PodUid) -> u64 {
        self.pods.get(uid).map_or(0, |known| known.version)
    }

    pub(super) fn insert(&mut self, uid: PodUid, known: Known) {
        self.revision += 1;
        self.pods.insert(uid, known);
    }

    /// These, as the newest on disk and after `told`: with what `next` tells first marked so.
    pub(super) fn told_after(mut self, told: &Self, next: u64) -> Self {
        for (uid, known) in &mut self.pods {
            known.version = match told.pods.get(uid) {
                Some(told) if told.steered => told.version,
                _ => next,
            };
        }
        self
    }

    /// Adds those of `told` that `newest` says still.
    pub(super) fn keep_of(&mut self, told: &Self, newest: &Self) {
        for (uid, known) in told.pods.iter().filter(|(uid, _)| newest.meshed(uid)) {
            let held = self.pods.entry(uid.clone());
            held.or_insert_with(|| known.clone());
        }
    }

    /// Forgets what `newest` no longer says.
    pub(super) fn cut(&mut self, newest: &Self) {
        self.pods.retain(|uid, _| newest.meshed(uid));
    }

    /// Forgets a pod. Answers whether it was there.
    pub(super) fn remove(&mut self, uid: &PodUid) -> bool {
        self.pods.remove(uid).is_some()
    }

    /// Whether both say the same pods steered.
    pub(super) fn steers_as(&self, other: &Self) -> bool {
        let steered = |reports: &Self| {
            let steered = reports.pods.iter().filter(|(_, known)| known.steered);
            steered.map(|(uid, _)| uid.clone()).collect::<BTreeSet<_>>()
        };
        steered(self) == steered(other)
    }

    /// What is known after a report of `pod`, or nothing new.
    pub(super) fn apply(
        &self,
        report: &Report,
        pod: &Pod,
        version: u64,
    ) -> Result<Option<Known>, Stale> {
        let known = self.pods.get(&report.uid);
        let same = known.filter(|known| known.cookie == report.cookie);
        if let Some(known) = same.filter(|known| known.outdates(report)) {
            return Err(Stale {
                got: report.generation,
                known: known.generation,
                elsewhere: known.reporter != report.reporter,
            });
        }
        let elsewhere = known.is_some() && same.is_none();
        if elsewhere && !report.steered || same.is_some_and(|known| known.says(report)) {
            return Ok(None);
        }
        let early = pod.addresses.is_empty() || elsewhere;
        Ok(Some(Known {
            node: pod.peer.node.clone(),
            cookie: report.cookie,
            generation: report.generation,
            steered: report.steered,
            addresses: pod.addresses.clone(),
            moving: early || same.is_some_and(|known| known.moving),
            version,
            reporter: report.reporter.clone(),
        }))
    }

    /// What is known after the withdrawal of a pod whose object is gone, or nothing new.
    pub(super) fn withdrawn(&self, report: &Report, node: &str) -> Option<Known> {
        let known = self.pods.get(&report.uid)?;
        let same = known.cookie == report.cookie && known.node == node;
        let newer = !known.outdates(report) && known.generation != report.generation;
        (same && newer).then(|| Known {
            generation: report.generation,
            steered: false,
            reporter: report.reporter.clone(),
            ..known.clone()
        })
    }

    /// What holds with new objects, if that is anything else: a pod that is at another address
    /// than the one that it was reported at is not the one that was reported.
    pub(super) fn followed(&self, objects: &Objects) -> Option<Self> {
        let mut next = self.clone();
        let mut absent: BTreeSet<_> = self.pods.keys().cloned().collect();
        for pod in objects.pods.values() {
            let Some(uid) = pod.metadata.uid.clone().map(PodUid) else {
                continue;
            };
            next.follow(&uid, addresses::of_pod(pod.status.as_ref()));
            absent.remove(&uid);
        }
        for uid in absent.iter().skip(MAX_ABSENT) {
            next.pods.remove(uid);
        }
        let modified = next != *self;
        next.revision += 1;
        modified.then_some(next)
    }

    fn follow(&mut self, uid: &PodUid, addresses: Addresses) {
        let Some(known) = self.pods.get_mut(uid) else {
            return;
        };
        if known.follow(addresses) == Followed::Lost {
            self.pods.remove(uid);
        }
    }

    /// Those that say steered, of `observed`.
    pub(super) fn steered(observed: &BTreeMap<PodUid, Known>) -> Self {
        let steered = observed.iter().filter(|(_, known)| known.steered);
        Self {
            pods: steered.map(|(uid, it)| (uid.clone(), it.clone())).collect(),
            revision: 0,
        }
    }

    pub(super) fn has(&self, uid: &PodUid) -> bool {
        self.pods.contains_key(uid)
    }

    /// Forgets pods that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(&PodUid) -> bool) {
        self.pods.retain(|uid, _| is_there(uid));
    }

    /// What holds of a pod whose condition says `observed`, which another replica may have
    /// written. Answers what is to be written there, if anything; `pending` is a report that is
    /// on its way there already.
    pub(super) fn reconcile(
        &mut self,
        uid: &PodUid,
        observed: Option<&Known>,
        now: Addresses,
        pending: bool,
        version: u64,
    ) -> Option<Known> {
        let own = self.pods.get_mut(uid);
        let stands = own.filter(|own| pending || own.holds_against(observed));
        let Some(own) = stands else {
            self.adopt(uid, observed, version);
            return None;
        };
        let differs = !observed.is_some_and(|observed| own.agrees(observed));
        match own.follow(now) {
            Followed::Lost => {
                self.pods.remove(uid);
                None
            }
            Followed::Moved => Some(own.clone()),
            Followed::Same => (differs && !pending).then(|| own.clone()),
        }
    }

    fn adopt(&mut self, uid: &PodUid, observed: Option<&Known>, version: u64) {
        match observed {
            Some(observed) => {
                let version = match self.pods.get(uid) {
                    Some(own) if own.agrees(observed) => own.version,
                    _ => version,
                };
                let observed = Known {
                    version,
                    ..observed.clone()
                };
                self.pods.insert(uid.clone(), observed);
            }
            None => drop(self.pods.remove(uid)),
        }
    }
}

/// What became of a report with the addresses that its pod has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Followed {
    Same,
    /// It is about these addresses now.
    Moved,
    /// The pod is not the one that was reported.
    Lost,
}

/// An address came or went, but one stayed.
fn is_same_pod(old: &[IpAddr], new: &[IpAddr]) -> bool {
    old.iter().any(|address| new.contains(address))
}

// === impl Known ===

impl Known {
    fn says(&self, report: &Report) -> bool {
        self.generation == report.generation
            && self.steered == report.steered
            && self.reporter == report.reporter
    }

    pub(super) fn is_steered(&self) -> bool {
        self.steered
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The same of the same network namespace, whoever said it and when.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        self.cookie == other.cookie && self.steered == other.steered
    }

    /// Whether the two say the same in each word that a condition keeps.
    pub(super) fn is_kept_by(&self, condition: &Self) -> bool {
        self.agrees(condition)
            && self.generation == condition.generation
            && self.addresses == condition.addresses
            && self.moving == condition.moving
    }

    /// Whether it is news to a pod's condition.
    pub(super) fn is_news_to(&self, observed: Option<&Self>) -> bool {
        observed.map_or(self.steered, |observed| !self.agrees(observed))
    }

    /// Its stream lives, and nobody said anything else later; or nobody says anything any more:
    /// who withdraws says so, and silence unmeshes no pod.
    fn holds_against(&self, observed: Option<&Self>) -> bool {
        let Some(observed) = observed else {
            return self.steered;
        };
        self.reporter.lives() && (self.agrees(observed) || self.generation > observed.generation)
    }

    fn follow(&mut self, now: Addresses) -> Followed {
        if now.is_empty() || self.addresses == now {
            return Followed::Same;
        }
        if !self.moving && !is_same_pod(&self.addresses, &now) {
            return Followed::Lost;
        }
        self.addresses = now;
        self.moving = false;
        Followed::Moved
    }

    /// Generations follow the node's clock, which may step back: they order the reports of streams
    /// that live at one time, and what a stream that ended said outdates nothing.
    fn outdates(&self, report: &Report) -> bool {
        let ordered = self.reporter == report.reporter || self.reporter.lives();
        ordered && self.generation > report.generation
    }
}

// === impl Reporter ===

impl Reporter {
    /// The stream that holds this token.
    pub fn of(token: &Arc<()>) -> Self {
        Self(Arc::downgrade(token))
    }

    fn lives(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl PartialEq for Reporter {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl Eq for Reporter {}
