// SPDX-License-Identifier: Apache-2.0
//! Where Kubernetes keeps the reports, in the conditions of pods: which say what, and which are
//! still to be written.
//!
//! The conditions are the truth that all replicas of control share: what one of them says is told
//! to peers, what this replica heard is not until it is there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use culvert_api::workload::PodUid;
use culvert_manifests::{NamespacedName, Objects};
use k8s_openapi::api::core::v1;
use tokio::sync::watch;

use super::{
    addresses,
    reports::{Known, Reports},
};

/// Reports that the conditions of their pods don't say yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unwritten {
    /// By the pod.
    pub pods: BTreeMap<PodUid, Write>,
}

/// A report that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The pod's namespace and name.
    pub pod: NamespacedName,
    /// The report.
    pub known: Known,
    /// Whether the condition says the contrary, or nothing yet.
    pub turns: bool,
    /// The version of the pod that had it first, once it was written.
    pub written: Option<u64>,
    /// The newest generation that was known when it came: what is later was said later.
    newest: u64,
}

/// How new the objects of a view are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The newest version of any pod. Kubernetes' versions grow across all objects of a kind,
    /// <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.
    pub newest: u64,
    /// The version of the view that has it.
    pub view: u64,
    /// Grows when the condition of any pod says something else.
    pub turns: u64,
}

#[derive(Debug, Default)]
pub(super) struct Conditions {
    objects: Arc<Objects>,
    pods: HashMap<PodUid, Place>,
    observed: BTreeMap<PodUid, Known>,
    unwritten: watch::Sender<Arc<Unwritten>>,
    seen: watch::Sender<Seen>,
    /// How often the condition of any pod said something else.
    turns: u64,
    /// The newest version of any pod when all were listed first.
    listed: Option<u64>,
}

/// Where a pod is, and its version.
#[derive(Debug)]
struct Place {
    key: NamespacedName,
    version: u64,
    /// The version that had first what its condition says. Later ones may be a list's, of changes
    /// that other replicas don't look at.
    said: u64,
}

// === impl Conditions ===

impl Conditions {
    pub(super) fn unwritten(&self) -> watch::Receiver<Arc<Unwritten>> {
        self.unwritten.subscribe()
    }

    pub(super) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// The version of a pod since which its condition says what it does, which every replica comes
    /// to see; 0 if it is gone or was so from the beginning: a list has versions that no watch
    /// tells.
    pub(super) fn version_of(&self, uid: &PodUid) -> u64 {
        let version = self.pods.get(uid).map_or(0, |place| place.said);
        let listed = self.listed.unwrap_or_default();
        if version > listed { version } else { 0 }
    }

    /// What the conditions say that is to be told to peers.
    pub(super) fn steered(&self) -> Reports {
        Reports::steered(&self.observed)
    }

    /// Follows the objects, and what other replicas wrote into them.
    pub(super) fn reset(&mut self, objects: &Arc<Objects>, reports: &mut Reports, next: u64) {
        let mut changed = self.look(objects);
        reports.retain(|uid| self.pods.contains_key(uid));
        let mut unwritten = Unwritten::clone(&self.unwritten.borrow());
        changed.extend(unwritten.pods.keys().cloned());
        self.settle(&mut unwritten);
        for uid in changed {
            let Some(place) = self.pods.get(&uid) else {
                continue;
            };
            let observed = self.observed.get(&uid);
            let pod = objects.pods.get(&place.key);
            let now = addresses::of_pod(pod.and_then(|pod| pod.status.as_ref()));
            let pending = unwritten.pods.contains_key(&uid);
            if let Some(known) = reports.reconcile(&uid, observed, now, pending, next) {
                let write = Write::new(&place.key, known, observed);
                unwritten.pods.insert(uid, write);
            }
        }
        unwritten.pods.retain(|uid, _| reports.has(uid));
        self.replace(unwritten);
    }

    /// Takes what this replica heard of a pod.
    pub(super) fn report(&self, uid: &PodUid, known: &Known) {
        let pending = self.unwritten.borrow().pods.contains_key(uid);
        let Some(place) = self.pods.get(uid) else {
            return;
        };
        let observed = self.observed.get(uid);
        if pending || known.is_news_to(observed) {
            self.unwritten.send_modify(|unwritten| {
                let pods = &mut Arc::make_mut(unwritten).pods;
                let write = Write::new(&place.key, known.clone(), observed);
                let write = write.after(pods.get(uid));
                pods.insert(uid.clone(), write);
            });
        }
    }

    /// A report that is to be written, and the version of its pod.
    pub(super) fn open(&self, uid: &PodUid) -> Option<(Write, u64)> {
        let write = self.unwritten.borrow().pods.get(uid).cloned();
        let write = write.filter(|write| write.written.is_none())?;
        Some((write, self.pods.get(uid)?.version))
    }

    /// A report was written; `version` is the pod's since.
    pub(super) fn written(&self, uid: &PodUid, known: &Known, version: u64) {
        let seen = self.pods.get(uid).map_or(0, |place| place.version);
        self.unwritten.send_if_modified(|unwritten| {
            let pods = &mut Arc::make_mut(unwritten).pods;
            let Some(write) = pods.get_mut(uid).filter(|write| write.known == *known) else {
                return false;
            };
            write.written = Some(version);
            if seen >= version {
                pods.remove(uid);
            }
            true
        });
    }

    /// A view has the objects of the last reset.
    pub(super) fn viewed(&mut self, view: u64) {
        let newest = self.pods.values().map(|place| place.version).max();
        let newest = newest.unwrap_or_default().max(self.seen.borrow().newest);
        self.listed.get_or_insert(newest);
        let turns = self.turns;
        let seen = Seen {
            newest,
            view,
            turns,
        };
        self.seen.send_if_modified(|held| {
            let modified = *held != seen;
            *held = seen;
            modified
        });
    }

    /// Looks at the pods that are not the same as before. Answers which these are.
    fn look(&mut self, objects: &Arc<Objects>) -> BTreeSet<PodUid> {
        let old = std::mem::replace(&mut self.objects, Arc::clone(objects));
        let mut before = HashMap::new();
        for (key, pod) in &old.pods {
            let same = objects.pods.get(key).is_some_and(|it| Arc::ptr_eq(it, pod));
            if let Some(uid) = uid(pod).filter(|_| !same) {
                let known = self.observed.remove(&uid);
                let place = self.pods.remove(&uid);
                before.extend(place.map(|place| (uid, (known, place.said))));
            }
        }
        let is_new = |(key, pod): &(&NamespacedName, &Arc<v1::Pod>)| {
            !old.pods.get(*key).is_some_and(|it| Arc::ptr_eq(it, pod))
        };
        let new: Vec<_> = objects.pods.iter().filter(is_new).collect();
        let new = new.into_iter().filter_map(|(key, pod)| self.note(key, pod));
        let new: BTreeSet<_> = new.collect();
        let turned = new.iter().filter(|uid| self.has_turned(uid, &before));
        self.turns += u64::from(turned.count() > 0);
        new
    }

    /// Whether the condition of a pod says something else than before; else since when it does.
    fn has_turned(&mut self, uid: &PodUid, before: &HashMap<PodUid, (Option<Known>, u64)>) -> bool {
        let old = before.get(uid);
        if self.observed.get(uid) != old.and_then(|(known, _)| known.as_ref()) {
            return true;
        }
        if let (Some((_, said)), Some(place)) = (old, self.pods.get_mut(uid)) {
            place.said = *said;
        }
        false
    }

    fn note(&mut self, key: &NamespacedName, pod: &v1::Pod) -> Option<PodUid> {
        let uid = uid(pod)?;
        if let Some(known) = Known::observed(pod) {
            self.observed.insert(uid.clone(), known);
        }
        let version = pod.metadata.resource_version.as_deref();
        let version = version.and_then(|version| version.parse().ok());
        let version = version.unwrap_or_default();
        let place = Place {
            key: key.clone(),
            version,
            said: version,
        };
        self.pods.insert(uid.clone(), place);
        Some(uid)
    }

    /// Takes out what is there, what another replica said later or wrote over, and pods that are
    /// gone.
    fn settle(&self, unwritten: &mut Unwritten) {
        unwritten.pods.retain(|uid, write| {
            let Some(place) = self.pods.get(uid) else {
                return false;
            };
            let observed = self.observed.get(uid);
            let settled = observed.is_some_and(|observed| write.is_settled_by(observed));
            let past = write
                .written
                .is_some_and(|written| place.version >= written);
            !settled && !past
        });
    }

    fn replace(&self, unwritten: Unwritten) {
        self.unwritten.send_if_modified(|held| {
            let modified = **held != unwritten;
            if modified {
                *held = Arc::new(unwritten);
            }
            modified
        });
    }
}

fn uid(pod: &v1::Pod) -> Option<PodUid> {
    pod.metadata.uid.clone().map(PodUid)
}

// === impl Write ===

impl Write {
    fn new(pod: &NamespacedName, known: Known, observed: Option<&Known>) -> Self {
        let newest = observed.map_or(0, Known::generation);
        Self {
            pod: pod.clone(),
            turns: observed.is_none_or(|observed| observed.is_steered() != known.is_steered()),
            newest: newest.max(known.generation()),
            known,
            written: None,
        }
    }

    /// In the place of `earlier`, which may be on its way.
    fn after(self, earlier: Option<&Self>) -> Self {
        let newest = earlier.map_or(0, |earlier| earlier.newest);
        Self {
            newest: self.newest.max(newest),
            ..self
        }
    }

    /// Whether a pod, as it is now, says this or what was said later, so that nothing is to be
    /// written into it.
    pub fn is_settled_in(&self, pod: &v1::Pod) -> bool {
        Known::observed(pod).is_some_and(|observed| self.is_settled_by(&observed))
    }

    fn is_settled_by(&self, observed: &Known) -> bool {
        self.known.is_kept_by(observed) || observed.generation() > self.newest
    }
}
