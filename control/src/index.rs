// SPDX-License-Identifier: Apache-2.0
//! The synchronous index: objects and reports in, a watch channel with a [`View`] out.
//!
//! Every change makes a new, immutable view, which shares with the one before what did not change.
//! Whoever follows it compares what it last told with the newest view, so that changes coalesce
//! and nothing queues up.

mod addresses;
mod build;
mod conditions;
mod endpoints;
mod made;
mod policy;
mod ports;
mod reports;
mod topology;
mod view;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_api::workload::PodUid;
use culvert_manifests::Objects;
use tokio::sync::watch;

use self::{conditions::Conditions, made::Made};
pub use self::{
    conditions::{Seen, Unwritten, Write},
    reports::{Condition, Known, Report, Reporter, Reports, Stale},
    topology::{Place, Traffic},
    view::{Destination, Peer, Pod, Service, View},
};

/// What the control plane knows.
#[derive(Debug)]
pub struct Index {
    objects: watch::Sender<Arc<Objects>>,
    reports: watch::Sender<Arc<Reports>>,
    /// Those that say meshed, on disk as well as now: only they are told to peers.
    told: Reports,
    view: watch::Sender<Arc<View>>,
    /// Where the reports are kept, if that is not a file.
    conditions: Option<Conditions>,
    /// What the view was made of.
    made: Made,
}

/// A report is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The revision of the reports that has it.
    pub revision: u64,
}

/// A report is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The pod is not there, or not yet: its report may be ahead of its object.
    #[error("no pod has the uid {uid}")]
    UnknownPod {
        /// The uid of the report.
        uid: PodUid,
    },
    /// The caller speaks for another node's pod.
    #[error("pod {namespace}/{name} is scheduled on node {node:?}, not on {caller:?}")]
    OtherNode {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The pod's node.
        node: String,
        /// The node that reported.
        caller: String,
    },
    /// A newer report is known.
    #[error(transparent)]
    Stale(#[from] Stale),
}

// === impl Index ===

impl Index {
    /// The shared index, also after a panic of who held it.
    pub(crate) fn lock(shared: &Mutex<Self>) -> MutexGuard<'_, Self> {
        shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An index without objects, with the reports of an earlier run.
    pub fn new(reports: Reports) -> Self {
        Self {
            objects: watch::Sender::default(),
            told: reports.clone(),
            reports: watch::Sender::new(Arc::new(reports)),
            view: watch::Sender::default(),
            conditions: None,
            made: Made::default(),
        }
    }

    /// An index without objects, whose reports are kept in the conditions of pods.
    pub fn of_conditions() -> Self {
        Self {
            conditions: Some(Conditions::default()),
            ..Self::new(Reports::default())
        }
    }

    /// Replaces all objects.
    pub fn reset(&mut self, objects: Arc<Objects>) {
        self.objects.send_replace(objects);
        match self.conditions.take() {
            None => self.follow(),
            Some(conditions) => self.conditions = Some(self.observe(conditions)),
        }
        self.rebuild();
        if let Some(conditions) = &mut self.conditions {
            conditions.viewed(self.view.borrow().version);
        }
    }

    fn follow(&mut self) {
        self.reports.send_if_modified(|reports| {
            let followed = reports.followed(&self.objects.borrow());
            followed
                .map(|followed| *reports = Arc::new(followed))
                .is_some()
        });
        if let Some(told) = self.told.followed(&self.objects.borrow()) {
            self.told = told;
        }
    }

    fn observe(&mut self, mut conditions: Conditions) -> Conditions {
        let next = self.view.borrow().version + 1;
        self.reports.send_modify(|reports| {
            conditions.reset(&self.objects.borrow(), Arc::make_mut(reports), next);
        });
        let mut told = conditions.steered().told_after(&self.told, next);
        // What somebody takes out of a condition, or writes over, is told until it is put back.
        told.keep_of(&self.told, &self.reports.borrow());
        self.told = told;
        conditions
    }

    /// Tells peers of `reports`, which are on disk: a restart tells them the same.
    pub fn written(&mut self, reports: &Reports) {
        let next = self.view.borrow().version + 1;
        let written = reports.followed(&self.objects.borrow());
        let written = written.unwrap_or_else(|| reports.clone());
        let same = self.told.steers_as(&written);
        self.told = written.told_after(&self.told, next);
        if !same {
            self.rebuild();
        }
    }

    /// Applies what `node` reports of one of its pods. What was known already is taken too.
    pub fn report(&mut self, node: &str, report: &Report) -> Result<Applied, Refused> {
        let next = self.view.borrow().version + 1;
        let known = match self.pod_of(node, &report.uid) {
            Ok(pod) => self.reports.borrow().apply(report, &pod, next)?,
            // Objects go before their pods do.
            Err(Refused::UnknownPod { .. }) if !report.steered => {
                let known = self.reports.borrow().withdrawn(report, node);
                self.keep(&report.uid, known);
                return Ok(self.applied());
            }
            Err(refused) => return Err(refused),
        };
        self.keep(&report.uid, known);
        Ok(self.applied())
    }

    /// The version of the view that first had the last report of a pod, once that is written.
    pub fn version_of(&self, uid: &PodUid) -> u64 {
        let view = self.view.borrow();
        let version = match view.pod(uid) {
            None => u64::MAX,
            Some(_) if self.told.meshed(uid) => self.told.version_of(uid),
            Some(_) => self.reports.borrow().version_of(uid),
        };
        version.min(view.version)
    }

    fn applied(&self) -> Applied {
        Applied {
            revision: self.reports.borrow().revision(),
        }
    }

    fn keep(&mut self, uid: &PodUid, known: Option<Known>) {
        let Some(known) = known else { return };
        if let Some(conditions) = &self.conditions {
            conditions.report(uid, &known);
        }
        let withdrawn = !known.is_steered() && self.told.remove(uid);
        self.reports.send_modify(|reports| {
            Arc::make_mut(reports).insert(uid.clone(), known);
        });
        // What is new is told once it is kept; then it comes as an object, or by `written`.
        if withdrawn {
            self.rebuild();
        }
    }

    /// All objects, as they are.
    pub fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        self.objects.subscribe()
    }

    /// The newest view.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// All reports, to be kept for the next run.
    pub fn reports(&self) -> watch::Receiver<Arc<Reports>> {
        self.reports.subscribe()
    }

    /// The reports that are to be written into conditions; none where they are kept in a file.
    pub fn unwritten(&self) -> watch::Receiver<Arc<Unwritten>> {
        let conditions = self.conditions.as_ref();
        conditions.map_or_else(|| watch::channel(Arc::default()).1, Conditions::unwritten)
    }

    /// What is to be written into the condition of a pod, and the version of the pod.
    pub fn unwritten_of(&self, uid: &PodUid) -> Option<(Write, u64)> {
        self.conditions.as_ref()?.open(uid)
    }

    /// How new the objects are, as Kubernetes counts; none where they are from a directory.
    pub fn seen(&self) -> Option<watch::Receiver<Seen>> {
        self.conditions.as_ref().map(Conditions::seen)
    }

    /// The version of a pod's object that every replica of control comes to see; 0: none is to be
    /// waited for.
    pub fn object_version_of(&self, uid: &PodUid) -> u64 {
        let conditions = self.conditions.as_ref();
        conditions.map_or(0, |conditions| conditions.version_of(uid))
    }

    /// The condition of a pod has a report since this version of the pod. It counts once it is
    /// seen there.
    pub fn condition_written(&self, uid: &PodUid, known: &Known, version: u64) {
        if let Some(conditions) = &self.conditions {
            conditions.written(uid, known, version);
        }
    }

    fn pod_of(&self, node: &str, uid: &PodUid) -> Result<Arc<Pod>, Refused> {
        let view = self.view.borrow();
        let unknown = || Refused::UnknownPod { uid: uid.clone() };
        let pod = view.pod(uid).ok_or_else(unknown)?;
        if pod.peer.node == node {
            return Ok(Arc::clone(pod));
        }
        Err(Refused::OtherNode {
            namespace: pod.peer.workload.namespace.clone(),
            name: pod.peer.workload.name.clone(),
            node: pod.peer.node.clone(),
            caller: node.to_owned(),
        })
    }

    fn rebuild(&mut self) {
        self.told.cut(&self.reports.borrow());
        self.view.send_if_modified(|view| {
            let admitted = self.conditions.is_some();
            let made = &mut self.made;
            let next = build::view(&self.objects.borrow(), &self.told, view, admitted, made);
            let modified = next.differs(view);
            if modified {
                *view = Arc::new(next);
            }
            modified
        });
    }
}

#[cfg(test)]
mod tests;
