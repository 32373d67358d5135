// SPDX-License-Identifier: Apache-2.0
//! What one stream asked for, what it was last told, and the messages between that and a new view.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use culvert_api::{
    grpc::v1::{self, watch_response::Kind},
    policy::InboundPolicy,
    workload::PodUid,
};

use crate::index::{Destination, Peer, Pod, Service, View};

/// What one stream asked for and was last told.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    destinations: HashMap<SocketAddr, Destination>,
    policies: HashMap<PodUid, Option<InboundPolicy>>,
}

// === impl Subscriptions ===

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.destinations.len() + self.policies.len()
    }

    /// Answers with a snapshot, also where it was asked for before.
    pub(super) fn subscribe(&mut self, address: SocketAddr, node: &str, view: &View) -> Kind {
        let destination = view.resolve_for(node, address);
        let message = snapshot(address, &destination);
        self.destinations.insert(address, destination);
        message
    }

    pub(super) fn unsubscribe(&mut self, address: SocketAddr) {
        self.destinations.remove(&address);
    }

    /// Answers once the pod is known to be the caller's.
    pub(super) fn subscribe_policy(
        &mut self,
        uid: PodUid,
        node: &str,
        view: &View,
    ) -> Option<Kind> {
        let (message, told) = match own(view, &uid, node) {
            Some(pod) => (Some(policy(&uid, &pod.policy)), Some(pod.policy.clone())),
            None => (None, None),
        };
        self.policies.insert(uid, told);
        message
    }

    pub(super) fn unsubscribe_policy(&mut self, uid: &PodUid) {
        self.policies.remove(uid);
    }

    /// The messages after which the node knows what `view` knows of what it asked for.
    pub(super) fn catch_up(&mut self, node: &str, view: &View) -> Vec<Kind> {
        let mut messages = Vec::new();
        for (address, told) in &mut self.destinations {
            let now = view.resolve_for(node, *address);
            messages.extend(difference(*address, told, &now));
            *told = now;
        }
        for (uid, told) in &mut self.policies {
            let pod = own(view, uid, node).filter(|pod| told.as_ref() != Some(&pod.policy));
            if let Some(pod) = pod {
                messages.push(policy(uid, &pod.policy));
                *told = Some(pod.policy.clone());
            }
        }
        messages
    }
}

fn own<'a>(view: &'a View, uid: &PodUid, node: &str) -> Option<&'a Pod> {
    view.pod(uid)
        .map(Arc::as_ref)
        .filter(|pod| pod.peer.node == node)
}

fn policy(uid: &PodUid, policy: &InboundPolicy) -> Kind {
    Kind::Policy(v1::Policy {
        pod_uid: uid.0.clone(),
        rules: policy.into(),
        ports: Some((&policy.ports).into()),
        access_log: v1::AccessLog::from(policy.access_log).into(),
    })
}

fn difference(address: SocketAddr, told: &Destination, now: &Destination) -> Option<Kind> {
    match (told, now) {
        (Destination::Service(old), Destination::Service(new)) if Arc::ptr_eq(old, new) => None,
        (Destination::Pod(old), Destination::Pod(new)) if Arc::ptr_eq(old, new) => None,
        _ if told == now => None,
        (Destination::Service(old), Destination::Service(new)) if is_same_port(old, new) => {
            Some(delta(address, old, new))
        }
        _ => Some(snapshot(address, now)),
    }
}

fn is_same_port(old: &Service, new: &Service) -> bool {
    (&old.namespace, &old.name, &old.port_name) == (&new.namespace, &new.name, &new.port_name)
}

fn snapshot(address: SocketAddr, destination: &Destination) -> Kind {
    use v1::destination::Kind as Of;
    let kind = match destination {
        Destination::Service(service) => Of::Service(v1::Service {
            snapshot: true,
            set: service.endpoints.iter().map(endpoint).collect(),
            ..message(service)
        }),
        Destination::Pod(peer) => Of::Pod(v1::Pod {
            endpoint: Some(endpoint((&address, peer))),
        }),
        Destination::Undeclared => Of::Unknown(v1::Unknown { undeclared: true }),
        Destination::Unknown => Of::Unknown(v1::Unknown::default()),
    };
    destination_of(address, kind)
}

fn delta(address: SocketAddr, old: &Service, new: &Service) -> Kind {
    let is_new = |(at, peer): &(&SocketAddr, &Arc<Peer>)| old.endpoints.get(at) != Some(peer);
    let gone = old
        .endpoints
        .keys()
        .filter(|at| !new.endpoints.contains_key(at));
    let service = v1::Service {
        set: new.endpoints.iter().filter(is_new).map(endpoint).collect(),
        removed: gone.map(|at| v1::Address::from(*at)).collect(),
        ..message(new)
    };
    destination_of(address, v1::destination::Kind::Service(service))
}

fn destination_of(address: SocketAddr, kind: v1::destination::Kind) -> Kind {
    Kind::Destination(v1::Destination {
        destination: Some(address.into()),
        kind: Some(kind),
    })
}

fn message(service: &Service) -> v1::Service {
    v1::Service {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        port_name: service.port_name.clone(),
        protocol: v1::Protocol::from(service.protocol).into(),
        ..v1::Service::default()
    }
}

fn endpoint((address, peer): (&SocketAddr, &Arc<Peer>)) -> v1::Endpoint {
    let workload = &peer.workload;
    v1::Endpoint {
        address: Some((*address).into()),
        pod_uid: workload.uid.0.clone(),
        namespace: workload.namespace.clone(),
        pod: workload.name.clone(),
        service_account: workload.service_account.clone(),
        owner_kind: workload.owner_kind.clone(),
        owner_name: workload.owner_name.clone(),
        node: peer.node.clone(),
        meshed: peer.meshed,
        protocol: v1::Protocol::from(peer.ports.of(address.port())).into(),
    }
}

#[cfg(test)]
mod tests;
