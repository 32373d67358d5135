// SPDX-License-Identifier: Apache-2.0
//! What tells series apart: the local pod, the peer, and how they are connected.

use std::{net::SocketAddr, sync::Arc};

use culvert_api::{agent::Direction, workload::Workload};
use prometheus::proto::LabelPair;

/// Labels that are no owner's kind, whatever a custom resource is called.
const RESERVED: [&str; 16] = [
    "authority",
    "classification",
    "component",
    "direction",
    "errno",
    "error",
    "instance",
    "le",
    "namespace",
    "overflow",
    "peer",
    "pod",
    "result",
    "service",
    "serviceaccount",
    "tls",
];

/// How a leg is secured, as in Linkerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Tls {
    /// The mesh's mutual TLS.
    Mutual,
    /// The application's own TLS, passed through.
    Opaque,
    /// Plaintext from or to somebody outside the mesh.
    NoIdentity,
    /// A leg that does not leave the pod.
    Loopback,
}

/// What tells the legs of a pod's connections apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leg {
    pub(crate) direction: Direction,
    pub(crate) tls: Tls,
    /// The client's SPIFFE id, inbound.
    pub(crate) client_id: Arc<str>,
    /// The server's SPIFFE id, outbound.
    pub(crate) server_id: Arc<str>,
    pub(crate) dst_namespace: Arc<str>,
    pub(crate) dst_service: Arc<str>,
    pub(crate) dst_pod: Arc<str>,
    pub(crate) dst_service_account: Arc<str>,
    /// The kind of what owns the destination's pod, in lower case.
    pub(crate) dst_owner_kind: Arc<str>,
    pub(crate) dst_owner: Arc<str>,
    /// The pod and port that is reached, where it is known to be one.
    pub(crate) target: Option<SocketAddr>,
}

/// Which end of a leg the other side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// Who dialled.
    Source,
    /// Who is dialled.
    Destination,
}

/// The values of the local pod's labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PodLabels {
    namespace: String,
    pod: String,
    owner_kind: String,
    owner: String,
    service_account: String,
}

/// Labels and their values.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels(Vec<LabelPair>);

// === impl Tls ===

impl Tls {
    /// The label value.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Mutual => "true",
            Self::Opaque => "opaque",
            Self::NoIdentity => "no_identity",
            Self::Loopback => "loopback",
        }
    }
}

// === impl Peer ===

impl Peer {
    /// The label value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "src",
            Self::Destination => "dst",
        }
    }
}

// === impl Leg ===

impl Leg {
    /// A leg of which nothing is known beside how it is secured.
    pub(crate) fn new(direction: Direction, tls: Tls) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            direction,
            tls,
            client_id: empty.clone(),
            server_id: empty.clone(),
            dst_namespace: empty.clone(),
            dst_service: empty.clone(),
            dst_pod: empty.clone(),
            dst_service_account: empty.clone(),
            dst_owner_kind: empty.clone(),
            dst_owner: empty,
            target: None,
        }
    }

    /// It goes to this pod, at this address.
    pub(crate) fn reaching(self, workload: &Workload, target: SocketAddr) -> Self {
        Self {
            dst_namespace: workload.namespace.as_str().into(),
            dst_pod: workload.name.as_str().into(),
            dst_service_account: workload.service_account.as_str().into(),
            dst_owner_kind: workload.owner_kind.as_str().into(),
            dst_owner: workload.owner_name.as_str().into(),
            target: Some(target),
            ..self
        }
    }

    /// The side towards the application is plaintext and stays in the pod, whatever the wire is.
    pub(super) fn tls_of(&self, peer: Peer) -> Tls {
        match (self.direction, peer) {
            (Direction::Inbound, Peer::Source) | (Direction::Outbound, Peer::Destination) => {
                self.tls
            }
            (Direction::Inbound, Peer::Destination) | (Direction::Outbound, Peer::Source) => {
                Tls::Loopback
            }
        }
    }

    /// Who is at the ends, and where.
    pub(super) fn add_to(&self, labels: Labels) -> Labels {
        let labels = labels
            .always("client_id", &self.client_id)
            .always("server_id", &self.server_id)
            .always("dst_namespace", &self.dst_namespace)
            .always("dst_service", &self.dst_service)
            .always("dst_pod", &self.dst_pod)
            .with("dst_serviceaccount", &self.dst_service_account)
            .owner("dst_", &self.dst_owner_kind, &self.dst_owner);
        match self.target {
            Some(target) => labels.target(target),
            None => labels,
        }
    }
}

// === impl PodLabels ===

impl From<&Workload> for PodLabels {
    fn from(workload: &Workload) -> Self {
        Self {
            namespace: workload.namespace.clone(),
            pod: workload.name.clone(),
            owner_kind: workload.owner_kind.clone(),
            owner: workload.owner_name.clone(),
            service_account: workload.service_account.clone(),
        }
    }
}

impl PodLabels {
    /// The pod's own, and its owner under the name that Linkerd's queries group by.
    pub(super) fn labels(&self) -> Labels {
        Labels::default()
            .always("namespace", &self.namespace)
            .always("pod", &self.pod)
            .always("workload_kind", &self.owner_kind)
            .always("workload_name", &self.owner)
            .always("service_account", &self.service_account)
            .owner("", &self.owner_kind, &self.owner)
    }
}

// === impl Labels ===

impl Labels {
    /// With one more. An empty value is as good as no label and left out.
    pub(super) fn with(self, name: &str, value: &str) -> Self {
        match value.is_empty() {
            true => self,
            false => self.always(name, value),
        }
    }

    /// With one more, even if its value is empty.
    pub(super) fn always(mut self, name: &str, value: &str) -> Self {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        self.0.push(pair);
        self
    }

    pub(super) fn direction(self, direction: Direction) -> Self {
        let value = match direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        self.always("direction", value)
    }

    /// What is counted here is beyond the limit.
    pub(super) fn overflow(self) -> Self {
        self.always("overflow", "true")
    }

    pub(super) fn pairs(self) -> Vec<LabelPair> {
        self.0
    }

    /// `deployment="cart"`, as Linkerd has it: the name of a job is in `k8s_job`, because `job` is
    /// Prometheus' own, and a pod that nobody owns is in `pod` alone.
    fn owner(self, prefix: &str, kind: &str, name: &str) -> Self {
        let mut letters = kind.chars();
        let fits = letters.next().is_some_and(|c| c.is_ascii_lowercase())
            && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        match kind {
            "job" => self.with(&format!("{prefix}k8s_job"), name),
            _ if !fits || RESERVED.contains(&kind) => self,
            _ => self.with(&format!("{prefix}{kind}"), name),
        }
    }

    fn target(self, target: SocketAddr) -> Self {
        self.always("target_addr", &target.to_string())
            .always("target_ip", &target.ip().to_string())
            .always("target_port", &target.port().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(kind: &str) -> Vec<String> {
        let pairs = Labels::default().owner("dst_", kind, "x").pairs();
        pairs.iter().map(|pair| pair.name().to_owned()).collect()
    }

    #[test]
    fn owners_have_linkerds_labels() {
        assert_eq!(owner("deployment"), ["dst_deployment"]);
        assert_eq!(owner("job"), ["dst_k8s_job"]);
        assert_eq!(owner("rollout"), ["dst_rollout"]);
        for none in [
            "",
            "pod",
            "service",
            "namespace",
            "a-b",
            "9a",
            "A",
            "a\"} 1\nb",
        ] {
            assert_eq!(owner(none), [""; 0], "{none}");
        }
    }
}
