// SPDX-License-Identifier: Apache-2.0
//! What users wrote and can't have.

use std::fmt;

use culvert_api::{
    annotations::{INJECT, Standing},
    kubernetes::UNSUPPORTED,
};

use super::exclusions::BadItem;

/// Something that a user wrote and that can't be done, or not as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Whose.
    pub subject: Subject,
    /// What.
    pub fault: Fault,
}

/// The object that a problem is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// What it is.
    pub kind: Kind,
    /// A namespace's own name, or that of the pod's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty where nobody gave it one.
    pub uid: String,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A namespace.
    Namespace,
    /// A pod.
    Pod,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

/// What can't be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    /// The pod has no network of its own.
    #[error(
        "the pod is opted in, but it shares its host's network (hostNetwork) and can't be meshed"
    )]
    HostNetwork,
    /// Its packets never meet this node's kernel as a pod's.
    #[error(
        "the pod is opted in, but it runs in {by}, which has a network stack of its own: it can't \
         be steered and is not meshed"
    )]
    OwnKernel {
        /// The runtime's name.
        by: String,
    },
    /// Another kernel altogether.
    #[error("the pod is opted in, but it is one of Windows, and can't be meshed")]
    Windows,
    /// The API server's uid for it is not the one that the kubelet has.
    #[error(
        "the pod is opted in, but it is a static pod of the kubelet's own, and can't be meshed: \
         make it a DaemonSet"
    )]
    Static,
    /// Another mesh's proxy in the pod.
    #[error(
        "the pod is opted in, but it has the sidecar {container} of another mesh, and is not \
         meshed twice: make it without that sidecar"
    )]
    Sidecar {
        /// The container's name.
        container: String,
    },
    /// Culvert's own namespace, or one that the operator left out.
    #[error("the pod is opted in, but pods of the namespace {namespace} are never meshed")]
    NeverMeshed {
        /// Which.
        namespace: String,
    },
    /// Neither `enabled` nor `disabled`.
    #[error("the annotation {} is {got:?}, expected \"enabled\" or \"disabled\": the pod is not meshed", INJECT[0])]
    Inject {
        /// As written.
        got: String,
    },
    /// The mode that went by a header.
    #[error(
        "the annotation {} is \"ingress\": the pod is meshed as with \"enabled\", and its \
         connections go where it opens them, whatever l5d-dst-override says", INJECT[1]
    )]
    Ingress,
    /// An exclusion list can't be read.
    #[error("the annotation {annotation} can't be read, so that nothing is excluded by it: {bad}")]
    Exclusion {
        /// Its name.
        annotation: &'static str,
        /// The item.
        bad: BadItem,
    },
    /// Not one of the values that there are.
    #[error("the annotation {annotation} is {got:?}, expected {expected}")]
    Value {
        /// Its name.
        annotation: &'static str,
        /// As written.
        got: String,
        /// The values, and what holds.
        expected: &'static str,
    },
    /// Not one of the annotations that are followed.
    #[error("{}", annotation_is(annotation, *standing))]
    Annotation {
        /// Its name.
        annotation: String,
        /// What becomes of it.
        standing: Standing,
    },
    /// The kernel's or the pod's.
    #[error("the pod runs and could not be steered, and is tried again: {error}")]
    NotSteered {
        /// Why.
        error: String,
    },
    /// The container runtime's.
    #[error(
        "the pod runs since before Culvert came, and the container runtime does not say where its \
         network namespace is: delete the pod, and its successor is meshed"
    )]
    NoNetns,
}

// === impl Subject ===

impl Subject {
    /// A pod.
    pub fn pod(namespace: &str, name: &str, uid: Option<&str>) -> Self {
        Self {
            kind: Kind::Pod,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.unwrap_or_default().to_owned(),
        }
    }

    /// A namespace.
    pub fn namespace(name: &str, uid: Option<&str>) -> Self {
        Self {
            kind: Kind::Namespace,
            namespace: name.to_owned(),
            name: name.to_owned(),
            uid: uid.unwrap_or_default().to_owned(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Namespace => write!(f, "namespace {}", self.name),
            Kind::Pod => write!(f, "{}/{}", self.namespace, self.name),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.fault)
    }
}

// === impl Fault ===

impl Fault {
    /// The names that metrics know faults by.
    pub const LABELS: [&str; 12] = [
        "host_network",
        "own_kernel",
        "windows",
        "static",
        "sidecar",
        "never_meshed",
        "inject",
        "ingress",
        "exclusion",
        "value",
        "annotation",
        "not_steered",
    ];

    /// The name that metrics know it by.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network",
            Self::OwnKernel { .. } => "own_kernel",
            Self::Windows => "windows",
            Self::Static => "static",
            Self::Sidecar { .. } => "sidecar",
            Self::NeverMeshed { .. } => "never_meshed",
            Self::Inject { .. } => "inject",
            Self::Ingress => "ingress",
            Self::Exclusion { .. } => "exclusion",
            Self::Value { .. } => "value",
            Self::Annotation { .. } => "annotation",
            Self::NotSteered { .. } | Self::NoNetns => "not_steered",
        }
    }

    /// The reason of its event.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::HostNetwork
            | Self::OwnKernel { .. }
            | Self::Windows
            | Self::Static
            | Self::Sidecar { .. }
            | Self::NeverMeshed { .. } => UNSUPPORTED,
            Self::Inject { .. } | Self::Exclusion { .. } | Self::Value { .. } => {
                "InvalidAnnotation"
            }
            Self::Ingress => "IngressMode",
            Self::Annotation { standing, .. } => match standing {
                Standing::Unsupported => "UnsupportedAnnotation",
                Standing::Unknown => "UnknownAnnotation",
                Standing::Followed | Standing::Meaningless => "MeaninglessAnnotation",
            },
            Self::NotSteered { .. } | Self::NoNetns => "NotSteered",
        }
    }

    /// How bad it is.
    pub const fn severity(&self) -> Severity {
        match self {
            Self::Ingress
            | Self::Annotation {
                standing: Standing::Meaningless,
                ..
            } => Severity::Normal,
            _ => Severity::Warning,
        }
    }
}

fn annotation_is(annotation: &str, standing: Standing) -> String {
    let said = match standing {
        Standing::Followed | Standing::Meaningless => {
            "configures nothing that a mesh without sidecars has, and is passed over"
        }
        Standing::Unsupported => "asks for something that Culvert does not do, and is passed over",
        Standing::Unknown => "is not one that Culvert knows, and is passed over",
    };
    format!("the annotation {annotation} {said}")
}
