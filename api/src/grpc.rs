// SPDX-License-Identifier: Apache-2.0
//! The gRPC messages and stubs between the node proxy and control (`proto/control.proto`), and
//! their conversions from and to the types of this crate.

use std::net::{IpAddr, SocketAddr};

use crate::{
    policy::{self, AccessLogFormat, InboundPolicy},
    protocol::{Hint, PortHint, PortHints},
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
            ports: policy
                .ports
                .as_ref()
                .map(PortHints::from)
                .unwrap_or_default(),
            access_log: access_log(policy.access_log()),
        }
    }
}

fn access_log(format: v1::AccessLog) -> Option<AccessLogFormat> {
    match format {
        v1::AccessLog::Unspecified => None,
        v1::AccessLog::Apache => Some(AccessLogFormat::Apache),
        v1::AccessLog::Json => Some(AccessLogFormat::Json),
    }
}

impl From<Option<AccessLogFormat>> for v1::AccessLog {
    fn from(format: Option<AccessLogFormat>) -> Self {
        match format {
            None => Self::Unspecified,
            Some(AccessLogFormat::Apache) => Self::Apache,
            Some(AccessLogFormat::Json) => Self::Json,
        }
    }
}

impl From<Hint> for v1::Protocol {
    fn from(hint: Hint) -> Self {
        match hint {
            Hint::Detect => Self::Detect,
            Hint::Opaque => Self::Opaque,
            Hint::Http1 => Self::Http1,
            Hint::Http2 => Self::Http2,
        }
    }
}

/// What the other end said of a protocol; none if it said nothing. One of a later release is
/// detected.
pub fn hint(protocol: i32) -> Option<Hint> {
    match v1::Protocol::try_from(protocol) {
        Ok(v1::Protocol::Unspecified) => None,
        Ok(v1::Protocol::Detect) | Err(_) => Some(Hint::Detect),
        Ok(v1::Protocol::Opaque) => Some(Hint::Opaque),
        Ok(v1::Protocol::Http1) => Some(Hint::Http1),
        Ok(v1::Protocol::Http2) => Some(Hint::Http2),
    }
}

impl From<&PortHints> for v1::Ports {
    fn from(ports: &PortHints) -> Self {
        let ranges = ports.ranges().iter().map(|range| v1::PortRange {
            first: range.first.into(),
            last: range.last.into(),
            protocol: v1::Protocol::from(range.hint).into(),
        });
        Self {
            ranges: ranges.collect(),
        }
    }
}

/// A range that has no port is left out.
impl From<&v1::Ports> for PortHints {
    fn from(ports: &v1::Ports) -> Self {
        Self::new(ports.ranges.iter().filter_map(port_hint).collect())
    }
}

fn port_hint(range: &v1::PortRange) -> Option<PortHint> {
    Some(PortHint {
        first: u16::try_from(range.first).ok()?,
        last: u16::try_from(range.last.min(u16::MAX.into())).ok()?,
        hint: hint(range.protocol).unwrap_or_default(),
    })
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
            ..v1::Policy::default()
        };
        assert!(InboundPolicy::from(&later).requires_identity());
    }

    #[test]
    fn ports_and_logs_round_trip() {
        let wide = PortHint {
            first: 1,
            last: u16::MAX,
            hint: Hint::Opaque,
        };
        let hints = [Hint::Http1, Hint::Http2, Hint::Detect].map(|hint| PortHint::one(80, hint));
        let ports = PortHints::new(hints.into_iter().chain([wide]).collect());
        assert_eq!(PortHints::from(&v1::Ports::from(&ports)), ports);
        for format in [
            None,
            Some(AccessLogFormat::Apache),
            Some(AccessLogFormat::Json),
        ] {
            assert_eq!(access_log(format.into()), format);
        }
    }

    #[test]
    fn what_neighbouring_releases_say_of_ports() {
        let earlier = InboundPolicy::from(&v1::Policy::default());
        assert_eq!(earlier.ports, PortHints::default(), "it says nothing");
        let range = |first, last, protocol| v1::PortRange {
            first,
            last,
            protocol,
        };
        let ranges = vec![
            range(80, 80, 99),
            range(70_000, 80_000, 2),
            range(1, 99_999, 2),
        ];
        let later = v1::Policy {
            ports: Some(v1::Ports { ranges }),
            access_log: 99,
            ..v1::Policy::default()
        };
        let later = InboundPolicy::from(&later);
        assert_eq!(later.protocol(80), Hint::Detect, "an unknown protocol");
        assert_eq!((later.protocol(81), later.access_log), (Hint::Opaque, None));
        let none = v1::Policy {
            ports: Some(v1::Ports::default()),
            ..v1::Policy::default()
        };
        assert_eq!(InboundPolicy::from(&none).protocol(25), Hint::Detect);
        assert_eq!((hint(0), hint(99)), (None, Some(Hint::Detect)));
    }
}
