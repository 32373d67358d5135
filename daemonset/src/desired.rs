// SPDX-License-Identifier: Apache-2.0
//! What this node's pods should be, worked out from the objects of the cluster. Pure.

pub mod exclusions;
mod judge;
mod problem;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use culvert_api::{
    annotations::{self, Annotations, INJECT},
    unmeshable::MIRROR,
    workload::{PodUid, Workload},
};
use culvert_manifests::Objects;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};

pub use self::problem::{Fault, Kind, Problem, Severity, Subject};
use self::{exclusions::Exclusions, workload::workload};

/// By what pods are judged.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The node whose pods count.
    pub node: String,
    /// Namespaces whose pods are never meshed.
    pub never_mesh: BTreeSet<String>,
    /// Pods that were known to be unmeshed before the objects are.
    pub unmeshed: BTreeSet<String>,
    /// Whether a namespace may be heard of after its pods, as where each kind has its own watch: a
    /// pod that only its namespace could opt in is then unknown until that is there.
    pub namespaces_may_lag: bool,
}

/// Pods that the container runtime runs with a kernel of their own, and by what.
pub type OwnKernels = BTreeMap<PodUid, String>;

/// The pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pods: BTreeMap<PodUid, Wanted>,
    /// What users wrote and can't have.
    pub problems: BTreeSet<Problem>,
    /// Whether all pods of the node are here, and not only those that can be told without objects.
    pub complete: bool,
    never_mesh: Arc<BTreeSet<String>>,
    unmeshed: Arc<BTreeSet<String>>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who it is.
    pub workload: Workload,
    /// Whether it is opted in, and with what left alone.
    pub mesh: Option<Exclusions>,
    /// Whether all its containers are done for good: it has no sandbox, or soon none.
    pub finished: bool,
}

/// How a runtime names a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, which not every runtime tells.
    pub uid: Option<PodUid>,
}

// === impl Rules ===

impl Rules {
    fn waits_for_namespace(&self, namespace: &str, pod: &Pod) -> bool {
        let of_pod = || annotations_of(Some(&pod.metadata));
        self.namespaces_may_lag
            && !self.never_mesh.contains(namespace)
            && annotations::own(INJECT, &of_pod()).is_none()
    }
}

// === impl Desired ===

impl Desired {
    /// What is known before there are objects.
    pub fn unknown(rules: &Rules) -> Self {
        Self {
            never_mesh: Arc::new(rules.never_mesh.clone()),
            unmeshed: Arc::new(rules.unmeshed.clone()),
            ..Self::default()
        }
    }

    /// Works out what the pods of the node should be.
    pub fn new(objects: &Objects, rules: &Rules, own_kernels: &OwnKernels) -> Self {
        let mut desired = Self {
            never_mesh: Arc::new(rules.never_mesh.clone()),
            complete: true,
            ..Self::default()
        };
        for ((namespace, name), pod) in &objects.pods {
            let spec = pod.spec.as_ref();
            if spec.and_then(|spec| spec.node_name.as_deref()) != Some(&rules.node) {
                continue;
            }
            let of_namespace = objects.namespaces.get(namespace).map(|ns| &ns.metadata);
            if of_namespace.is_none() && rules.waits_for_namespace(namespace, pod) {
                continue;
            }
            let named = (namespace.as_str(), name.as_str());
            desired.insert(named, pod, of_namespace, own_kernels);
        }
        desired
    }

    /// The pod of this uid.
    pub fn pod(&self, uid: &PodUid) -> Option<&Wanted> {
        self.pods.get(uid)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Wanted> {
        self.pods.values()
    }

    /// The pod that a runtime names: as the objects have it, or one that is unmeshed whatever
    /// they say.
    pub fn find(&self, pod: &PodRef) -> Option<Wanted> {
        let named = |wanted: &&Wanted| {
            let workload = &wanted.workload;
            workload.namespace == pod.namespace && workload.name == pod.name
        };
        let listed = match &pod.uid {
            Some(uid) => self.pods.get(uid).filter(named),
            None => self.pods.values().find(named),
        };
        listed.cloned().or_else(|| self.presume(pod))
    }

    /// So that what the cluster itself needs to start waits for no API server.
    fn presume(&self, pod: &PodRef) -> Option<Wanted> {
        let uid = pod.uid.clone()?;
        let unmeshed =
            self.never_mesh.contains(&pod.namespace) || self.unmeshed.contains(uid.0.as_str());
        let workload = || Workload {
            uid,
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            service_account: "default".to_owned(),
            owner_kind: "pod".to_owned(),
            owner_name: pod.name.clone(),
        };
        unmeshed.then(|| Wanted {
            workload: workload(),
            mesh: None,
            finished: false,
        })
    }

    /// The uids of the pods that are not opted in.
    pub fn unmeshed(&self) -> Vec<String> {
        let unmeshed = self.pods.iter().filter(|(_, wanted)| wanted.mesh.is_none());
        unmeshed.map(|(uid, _)| uid.0.clone()).collect()
    }

    fn insert(
        &mut self,
        (namespace, name): (&str, &str),
        pod: &Pod,
        of_namespace: Option<&ObjectMeta>,
        own_kernels: &OwnKernels,
    ) {
        let Some(uid) = pod.metadata.uid.clone().filter(|uid| !uid.is_empty()) else {
            // Not admitted by an API server or a sandbox yet.
            return;
        };
        let of_pod = annotations_of(Some(&pod.metadata));
        let uid = PodUid(of_pod.get(MIRROR).cloned().unwrap_or(uid));
        let place = judge::Place {
            never_meshed: self.never_mesh.contains(namespace).then_some(namespace),
            own_kernel: own_kernels.get(&uid).map(String::as_str),
        };
        let annotations = Effective {
            pod: of_pod,
            namespace: annotations_of(of_namespace),
        };
        let judged = judge::judge(pod, &place, &annotations);
        let finished = is_finished(pod);
        let wanted = Wanted {
            workload: workload(uid.clone(), (namespace, name), pod),
            mesh: judged.mesh,
            finished,
        };
        self.pods.insert(uid, wanted);
        if finished {
            return;
        }
        let subject = Subject::pod(namespace, name, pod.metadata.uid.as_deref());
        self.add_problems(&subject, judged.of_pod);
        let uid = of_namespace.and_then(|of| of.uid.as_deref());
        self.add_problems(&Subject::namespace(namespace, uid), judged.of_namespace);
    }

    fn add_problems(&mut self, subject: &Subject, faults: Vec<Fault>) {
        let problem = |fault| Problem {
            subject: subject.clone(),
            fault,
        };
        self.problems.extend(faults.into_iter().map(problem));
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The annotations that hold for a pod.
struct Effective {
    pod: Annotations,
    namespace: Annotations,
}

impl Effective {
    fn value(&self, names: [&str; 2]) -> Option<&str> {
        annotations::effective(names, &self.pod, &self.namespace)
    }
}

fn annotations_of(metadata: Option<&ObjectMeta>) -> Annotations {
    metadata
        .and_then(|metadata| metadata.annotations.clone())
        .unwrap_or_default()
}

/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-phase>
fn is_finished(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests;
