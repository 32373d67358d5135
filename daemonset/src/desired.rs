// SPDX-License-Identifier: Apache-2.0
//! What this node's pods should be, worked out from the objects of the cluster. Pure.

pub mod exclusions;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use culvert_api::{
    annotations::{
        self, Annotations, INJECT, SKIP_INBOUND_PORTS, SKIP_OUTBOUND_PORTS, SKIP_SUBNETS,
    },
    workload::{PodUid, Workload},
};
use culvert_manifests::Objects;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use self::exclusions::{BadItem, Exclusions};

/// The pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pods: BTreeMap<PodUid, Wanted>,
    /// What users wrote and can't have.
    pub problems: BTreeSet<Problem>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who it is.
    pub workload: Workload,
    /// Whether it is opted in, and with what left alone.
    pub mesh: Option<Exclusions>,
}

/// Something that a user wrote and that can't be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Namespace and name.
    pub pod: String,
    /// What.
    pub fault: Fault,
}

/// What can't be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    /// The pod has no network of its own.
    #[error(
        "the pod is opted in, but it shares its host's network (hostNetwork) and can't be meshed"
    )]
    HostNetwork,
    /// Neither `enabled` nor `disabled`.
    #[error("the annotation {} is {got:?}, expected \"enabled\" or \"disabled\": the pod is not meshed", INJECT[0])]
    Inject {
        /// As written.
        got: String,
    },
    /// An exclusion list can't be read.
    #[error("the annotation {annotation} can't be read, so that nothing is excluded by it: {bad}")]
    Exclusion {
        /// Its name.
        annotation: &'static str,
        /// The item.
        bad: BadItem,
    },
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

// === impl Desired ===

impl Desired {
    /// Works out what the pods of `node` should be.
    pub fn new(objects: &Objects, node: &str) -> Self {
        let mut desired = Self::default();
        for ((namespace, name), pod) in &objects.pods {
            let spec = pod.spec.as_ref();
            if spec.and_then(|spec| spec.node_name.as_deref()) != Some(node) {
                continue;
            }
            let of_namespace = objects.namespaces.get(namespace).map(|ns| &ns.metadata);
            let named = (namespace.as_str(), name.as_str());
            desired.insert(named, pod, annotations_of(of_namespace));
        }
        desired
    }

    /// The pod of this uid.
    pub fn pod(&self, uid: &PodUid) -> Option<&Wanted> {
        self.pods.get(uid)
    }

    /// The pod that a runtime names.
    pub fn find(&self, pod: &PodRef) -> Option<&Wanted> {
        let named = |wanted: &&Wanted| {
            let workload = &wanted.workload;
            workload.namespace == pod.namespace && workload.name == pod.name
        };
        match &pod.uid {
            Some(uid) => self.pods.get(uid).filter(named),
            None => self.pods.values().find(named),
        }
    }

    /// The uids of the pods that are not opted in.
    pub fn unmeshed(&self) -> Vec<String> {
        let unmeshed = self.pods.iter().filter(|(_, wanted)| wanted.mesh.is_none());
        unmeshed.map(|(uid, _)| uid.0.clone()).collect()
    }

    fn insert(&mut self, (namespace, name): (&str, &str), pod: &Pod, of_namespace: Annotations) {
        let Some(uid) = pod.metadata.uid.clone().filter(|uid| !uid.is_empty()) else {
            // Not admitted by an API server or a sandbox yet.
            return;
        };
        let mut faults = Vec::new();
        let annotations = Effective {
            pod: annotations_of(Some(&pod.metadata)),
            namespace: of_namespace,
        };
        let wanted = Wanted {
            workload: workload(PodUid(uid.clone()), (namespace, name), pod),
            mesh: mesh(pod, &annotations, &mut faults),
        };
        self.pods.insert(PodUid(uid), wanted);
        let problem = |fault| Problem {
            pod: format!("{namespace}/{name}"),
            fault,
        };
        self.problems.extend(faults.into_iter().map(problem));
    }
}

// === impl Fault ===

impl Fault {
    /// The name that metrics know it by.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network",
            Self::Inject { .. } => "inject",
            Self::Exclusion { .. } => "exclusion",
        }
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

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

fn mesh(pod: &Pod, annotations: &Effective, faults: &mut Vec<Fault>) -> Option<Exclusions> {
    match annotations.value(INJECT) {
        Some("enabled") => {}
        Some("disabled") | None => return None,
        Some(other) => {
            let got = other.to_owned();
            faults.push(Fault::Inject { got });
            return None;
        }
    }
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        faults.push(Fault::HostNetwork);
        return None;
    }
    Some(exclusions(annotations, faults))
}

/// A list that can't be read excludes nothing: what should not be steered is noticed, what should
/// be and is not would not be.
fn exclusions(annotations: &Effective, faults: &mut Vec<Fault>) -> Exclusions {
    Exclusions {
        outbound_ports: list(annotations, SKIP_OUTBOUND_PORTS, exclusions::ports, faults),
        inbound_ports: list(annotations, SKIP_INBOUND_PORTS, exclusions::ports, faults),
        subnets: list(annotations, SKIP_SUBNETS, exclusions::subnets, faults),
    }
}

fn list<T>(
    annotations: &Effective,
    names: [&'static str; 2],
    parse: fn(&str) -> Result<Vec<T>, BadItem>,
    faults: &mut Vec<Fault>,
) -> Vec<T> {
    let Some(value) = annotations.value(names) else {
        return Vec::new();
    };
    parse(value).unwrap_or_else(|bad| {
        let annotation = names[0];
        faults.push(Fault::Exclusion { annotation, bad });
        Vec::new()
    })
}

fn workload(uid: PodUid, (namespace, name): (&str, &str), pod: &Pod) -> Workload {
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone());
    let (owner_kind, owner_name) = owner(&pod.metadata, name);
    Workload {
        uid,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        service_account: account
            .filter(|account| !account.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
        owner_kind,
        owner_name,
    }
}

/// A ReplicaSet of a Deployment is named after it and the hash of the pod template.
fn owner(metadata: &ObjectMeta, name: &str) -> (String, String) {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let controller = owners.iter().find(|owner| owner.controller == Some(true));
    let Some(owner) = controller.or_else(|| owners.first()) else {
        return ("pod".to_owned(), name.to_owned());
    };
    let labels = metadata.labels.as_ref();
    let hash = labels.and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
    match deployment {
        Some(deployment) => ("deployment".to_owned(), deployment.to_owned()),
        None => (owner.kind.to_lowercase(), owner.name.clone()),
    }
}

#[cfg(test)]
mod tests;
