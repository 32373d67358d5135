// SPDX-License-Identifier: Apache-2.0
//! Which endpoints of a service a node uses, as kube-proxy decides it: all, those of the node
//! (`internalTrafficPolicy: Local`), or those of the node's zone, where that is asked for by
//! `trafficDistribution` or the annotation `service.kubernetes.io/topology-mode`.
//!
//! The hints of EndpointSlices are not read; each endpoint is for its own zone, as Kubernetes'
//! controller hints for `PreferClose`. What it does for `Auto` beyond that, which is to shift
//! endpoints of a zone to another by the nodes' CPUs, is not done.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use culvert_api::annotations::{Annotations, TOPOLOGY_MODE, own};
use k8s_openapi::api::core::v1::ServiceSpec;

use super::view::Peer;

/// Which of a service's endpoints a node uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Traffic {
    /// All.
    #[default]
    Cluster,
    /// Those of the node. None if it has none.
    Local,
    /// Those of the node's zone. All if it has none, or any endpoint's zone is not known.
    Zone,
}

/// Where a client is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its node.
    pub node: &'a str,
    /// Its node's zone.
    pub zone: Option<&'a str>,
}

type Endpoints = BTreeMap<SocketAddr, Arc<Peer>>;

// === impl Traffic ===

impl Traffic {
    /// What a service asks for, and what of that is not known, as a field and its value.
    pub(super) fn of<'a>(
        annotations: Option<&'a Annotations>,
        spec: &'a ServiceSpec,
    ) -> (Self, Option<(&'static str, &'a str)>) {
        match spec.internal_traffic_policy.as_deref() {
            None | Some("Cluster") => distribution(annotations, spec),
            Some("Local") => (Self::Local, None),
            Some(other) => (Self::Cluster, Some(("internalTrafficPolicy", other))),
        }
    }

    /// The endpoints that are used from `place`; none said if it is all of them.
    pub(super) fn chosen(self, all: &Endpoints, place: Place<'_>) -> Option<Endpoints> {
        match self {
            Self::Cluster => None,
            Self::Local => Some(filtered(all, |peer| peer.node == place.node)),
            Self::Zone => in_zone(all, place.zone?),
        }
    }
}

/// The annotation counts before the field, as in Kubernetes.
fn distribution<'a>(
    annotations: Option<&'a Annotations>,
    spec: &'a ServiceSpec,
) -> (Traffic, Option<(&'static str, &'a str)>) {
    let mode = annotations.and_then(|annotations| own(TOPOLOGY_MODE, annotations));
    match (mode, spec.traffic_distribution.as_deref()) {
        (Some("Auto" | "auto"), _) | (None, Some("PreferClose" | "PreferSameZone")) => {
            (Traffic::Zone, None)
        }
        (Some("Disabled" | "disabled" | ""), None) | (None, None) => (Traffic::Cluster, None),
        (Some("Disabled" | "disabled" | ""), Some(_)) => distribution(None, spec),
        (Some(other), _) => (Traffic::Cluster, Some((TOPOLOGY_MODE[0], other))),
        (None, Some(other)) => (Traffic::Cluster, Some(("trafficDistribution", other))),
    }
}

fn in_zone(all: &Endpoints, zone: &str) -> Option<Endpoints> {
    let hinted = all.values().all(|peer| peer.zone.is_some());
    let near = |peer: &Peer| peer.zone.as_deref() == Some(zone);
    (hinted && all.values().any(|peer| near(peer))).then(|| filtered(all, near))
}

fn filtered(all: &Endpoints, keep: impl Fn(&Peer) -> bool) -> Endpoints {
    let kept = all.iter().filter(|(_, peer)| keep(peer));
    kept.map(|(at, peer)| (*at, Arc::clone(peer))).collect()
}
