// SPDX-License-Identifier: Apache-2.0
//! The gRPC messages and stubs between the node proxy and control (`proto/control.proto`), and
//! their conversions from and to the types of this crate.

use std::net::{IpAddr, SocketAddr};

use crate::{
    policy::{self, InboundPolicy},
    version::Versions,
};

/// What prost and tonic generate.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    reason = "generated; its comments are in control.proto"
)]
pub mod v1 {
    tonic::include_proto!("culvert.control.v1");
}

/// The versions that this release speaks.
pub const VERSIONS: Versions = Versions {
    newest: 1,
    oldest: 1,
};

/// The metadata key that the node's bearer token travels under.
pub const TOKEN_METADATA: &str = "authorization";

/// An address of a message has another length than 4 or 16 bytes, or a port beyond 65535.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("got an address of {ip_bytes} bytes with port {port}, expected 4 or 16 bytes and 0–65535")]
pub struct BadAddress {
    /// How long it was.
    pub ip_bytes: usize,
    /// The port given.
    pub port: u32,
}

impl From<SocketAddr> for v1::Address {
    fn from(addr: SocketAddr) -> Self {
        let ip = match addr.ip().to_canonical() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        Self {
            ip,
            port: addr.port().into(),
        }
    }
}

impl TryFrom<&v1::Address> for SocketAddr {
    type Error = BadAddress;

    fn try_from(addr: &v1::Address) -> Result<Self, BadAddress> {
        let bad = || BadAddress {
            ip_bytes: addr.ip.len(),
            port: addr.port,
        };
        let port = u16::try_from(addr.port).map_err(|_| bad())?;
        let v4 = <[u8; 4]>::try_from(addr.ip.as_slice()).map(IpAddr::from);
        let v6 = <[u8; 16]>::try_from(addr.ip.as_slice()).map(IpAddr::from);
        let ip = v4.or(v6).map_err(|_| bad())?;
        Ok(Self::new(ip, port))
    }
}

impl From<Versions> for v1::Hello {
    fn from(versions: Versions) -> Self {
        Self {
            newest_version: versions.newest,
            oldest_version: versions.oldest,
            node: String::new(),
        }
    }
}

impl From<&v1::Hello> for Versions {
    fn from(hello: &v1::Hello) -> Self {
        Self {
            newest: hello.newest_version,
            oldest: hello.oldest_version,
        }
    }
}

impl From<&InboundPolicy> for Vec<v1::Rule> {
    fn from(policy: &InboundPolicy) -> Self {
        policy.rules.iter().map(v1::Rule::from).collect()
    }
}

impl From<&policy::Rule> for v1::Rule {
    fn from(rule: &policy::Rule) -> Self {
        let clients = match rule.clients {
            policy::Clients::Unauthenticated => v1::Clients::Unauthenticated,
            policy::Clients::Authenticated => v1::Clients::Authenticated,
        };
        Self {
            name: rule.name.clone(),
            clients: clients.into(),
        }
    }
}

/// A rule of a later release, which this one can't read, lets nobody in and is left out.
impl From<&v1::Policy> for InboundPolicy {
    fn from(policy: &v1::Policy) -> Self {
        Self {
            rules: policy.rules.iter().filter_map(rule).collect(),
        }
    }
}

fn rule(rule: &v1::Rule) -> Option<policy::Rule> {
    let clients = match rule.clients() {
        v1::Clients::Unauthenticated => policy::Clients::Unauthenticated,
        v1::Clients::Authenticated => policy::Clients::Authenticated,
        v1::Clients::Unspecified => return None,
    };
    Some(policy::Rule {
        name: rule.name.clone(),
        clients,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_mapped_ones_become_v4() {
        for text in ["10.0.0.1:80", "[fd00::1]:443"] {
            let addr: SocketAddr = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(SocketAddr::try_from(&v1::Address::from(addr)), Ok(addr));
        }
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80"
            .parse()
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(v1::Address::from(mapped).ip, [10, 0, 0, 1]);
        let bad = v1::Address {
            ip: vec![1, 2, 3],
            port: 80,
        };
        assert!(SocketAddr::try_from(&bad).is_err());
    }

    #[test]
    fn an_unreadable_rule_lets_nobody_in() {
        let later = v1::Policy {
            pod_uid: String::new(),
            rules: vec![v1::Rule {
                name: "x".into(),
                clients: 99,
            }],
        };
        assert!(InboundPolicy::from(&later).requires_identity());
    }
}
