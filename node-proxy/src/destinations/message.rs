// SPDX-License-Identifier: Apache-2.0
//! Control's messages about destinations, read.

use std::net::SocketAddr;

use culvert_api::{
    grpc::{BadAddress, hint, v1},
    identity::IdentityDomain,
    protocol::Hint,
    workload::{PodUid, Workload},
};

use super::Endpoint;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) destination: SocketAddr,
    pub(super) change: Change,
}

/// What it says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Unknown,
    /// A service's address and none of its ports.
    Undeclared,
    Pod(Endpoint),
    Service {
        service: Described,
        snapshot: bool,
        set: Vec<Endpoint>,
        removed: Vec<SocketAddr>,
    },
}

/// A service's port, apart from its endpoints.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) port: u16,
    /// None: control did not say.
    pub(super) protocol: Option<Hint>,
}

/// A message of control can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("it names no {what}")]
    Missing { what: &'static str },
    #[error(transparent)]
    Address(#[from] BadAddress),
}

pub(super) fn read(
    message: &v1::Destination,
    domain: &IdentityDomain,
) -> Result<Update, Unreadable> {
    use v1::destination::Kind;
    let destination = address(message.destination.as_ref())?;
    let change = match message.kind.as_ref() {
        None => {
            return Err(Unreadable::Missing {
                what: "kind of destination",
            });
        }
        Some(Kind::Unknown(v1::Unknown { undeclared: true })) => Change::Undeclared,
        Some(Kind::Unknown(_)) => Change::Unknown,
        Some(Kind::Pod(pod)) => pod_change(pod, domain)?,
        Some(Kind::Service(service)) => service_change(service, destination.port(), domain)?,
    };
    Ok(Update {
        destination,
        change,
    })
}

fn pod_change(pod: &v1::Pod, domain: &IdentityDomain) -> Result<Change, Unreadable> {
    let missing = Unreadable::Missing { what: "endpoint" };
    let pod = pod.endpoint.as_ref().ok_or(missing)?;
    Ok(Change::Pod(endpoint(pod, domain)?))
}

fn service_change(
    service: &v1::Service,
    port: u16,
    domain: &IdentityDomain,
) -> Result<Change, Unreadable> {
    let set = service.set.iter().map(|set| endpoint(set, domain));
    let removed = service.removed.iter().map(|removed| address(Some(removed)));
    Ok(Change::Service {
        service: Described {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            port,
            protocol: hint(service.protocol),
        },
        snapshot: service.snapshot,
        set: set.collect::<Result<_, _>>()?,
        removed: removed.collect::<Result<_, _>>()?,
    })
}

fn endpoint(endpoint: &v1::Endpoint, domain: &IdentityDomain) -> Result<Endpoint, Unreadable> {
    Ok(Endpoint {
        addr: address(endpoint.address.as_ref())?,
        workload: Workload {
            uid: PodUid(endpoint.pod_uid.clone()),
            namespace: endpoint.namespace.clone(),
            name: endpoint.pod.clone(),
            service_account: endpoint.service_account.clone(),
            owner_kind: endpoint.owner_kind.clone(),
            owner_name: endpoint.owner_name.clone(),
        },
        node: endpoint.node.clone(),
        identity: domain.identity(&endpoint.namespace, &endpoint.service_account),
        meshed: endpoint.meshed,
        protocol: hint(endpoint.protocol),
    })
}

fn address(address: Option<&v1::Address>) -> Result<SocketAddr, Unreadable> {
    let address = address.ok_or(Unreadable::Missing { what: "address" })?;
    Ok(SocketAddr::try_from(address)?)
}
