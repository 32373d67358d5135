// SPDX-License-Identifier: Apache-2.0
//! Why a request of the CNI plugin fails, and what the runtime is told.

use culvert_api::cni::{Response, code};

use crate::{enrolment, netns, store};

/// Why a request of the CNI plugin fails.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The runtime's.
    #[error("CNI_ARGS has no {name}, which names the pod")]
    NotKubernetes {
        /// The missing argument.
        name: &'static str,
    },
    /// The runtime's.
    #[error("the pod's uid {uid:?} is not one")]
    BadUid {
        /// As given.
        uid: String,
    },
    /// The runtime's.
    #[error("CNI_NETNS is missing")]
    NoNetns,
    /// The runtime's: it would cut off the node.
    #[error("CNI_NETNS is the agent's own network namespace")]
    HostNetns,
    /// Nobody's: the pod is new.
    #[error("the pod {pod} is not known on this node yet")]
    UnknownPod {
        /// Namespace and name.
        pod: String,
    },
    /// Nobody's.
    #[error("the container {container_id} was not added")]
    Unknown {
        /// As given.
        container_id: String,
    },
    /// The runtime's.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The kernel's, the pod's or ours.
    #[error("could not steer the pod: {0}")]
    Steering(#[from] enrolment::Error),
    /// The disk's.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Somebody's in the pod.
    #[error("the pod is not steered as it was added: {}", differences.join("; "))]
    NotAsAdded {
        /// In words.
        differences: Vec<String>,
    },
    /// Ours.
    #[error("the task of this pod panicked, which is a bug of culvert-agent")]
    Panicked,
}

// === impl Fault ===

impl Fault {
    fn code(&self) -> u32 {
        match self {
            Self::NotKubernetes { .. } | Self::BadUid { .. } | Self::NoNetns | Self::HostNetns => {
                code::INVALID_ENVIRONMENT
            }
            Self::Netns(error) if error.is_gone() => code::INVALID_ENVIRONMENT,
            Self::UnknownPod { .. } => code::TRY_AGAIN,
            Self::Unknown { .. } => code::UNKNOWN_CONTAINER,
            Self::Netns(_) | Self::Steering(_) | Self::Panicked => code::STEERING_FAILED,
            Self::Store(_) => code::IO_FAILURE,
            Self::NotAsAdded { .. } => code::NOT_AS_ADDED,
        }
    }

    const fn advice(&self) -> &'static str {
        match self {
            Self::NotKubernetes { .. } => {
                "culvert-cni is for runtimes that serve Kubernetes: take it out of this network's \
                 configuration"
            }
            Self::BadUid { .. } | Self::NoNetns | Self::HostNetns => {
                "a fault of the container runtime"
            }
            Self::UnknownPod { .. } => {
                "the runtime tries again; when it lasts, the agent's source of pods is away, has the \
                 pod on another node, or does not tell of the pod's namespace"
            }
            Self::Unknown { .. } => "the runtime should add it first",
            Self::Netns(_) | Self::Steering(_) => {
                "nothing was left behind; the pod starts unmeshed when it is annotated with \
                 culvert.io/inject: disabled"
            }
            Self::Store(_) => "look at the disk below the agent's --state-dir",
            Self::NotAsAdded { .. } => "somebody changed the pod's network: delete the pod",
            Self::Panicked => "the agent's log says more",
        }
    }
}

impl From<Fault> for Response {
    fn from(fault: Fault) -> Self {
        Self::Failed {
            code: fault.code(),
            message: fault.to_string(),
            details: fault.advice().to_owned(),
        }
    }
}
