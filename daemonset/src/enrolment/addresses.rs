// SPDX-License-Identifier: Apache-2.0
//! The pod's own addresses: what the mesh answers for.

use std::{collections::BTreeSet, net::IpAddr};

use culvert_api::agent::Family;
use culvert_ebpf_abi::LOOPBACK_IFINDEX;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};

/// The pod's own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// All global addresses, in order.
    pub all: Vec<IpAddr>,
    /// What unbound IPv4 connections begin from.
    v4_source: Option<IpAddr>,
    /// What unbound IPv6 connections begin from.
    v6_source: Option<IpAddr>,
}

/// Both families, in the order that they are set up in.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The family of an address.
pub const fn family(ip: IpAddr) -> Family {
    match ip {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

// === impl Own ===

impl Own {
    /// Picks the global addresses from all that a namespace has.
    pub fn pick(messages: &[AddressMessage]) -> Self {
        let global: Vec<_> = messages.iter().filter_map(Global::new).collect();
        let all: BTreeSet<_> = global.iter().map(|address| address.ip).collect();
        Self {
            all: all.into_iter().collect(),
            v4_source: source(&global, Family::V4),
            v6_source: source(&global, Family::V6),
        }
    }

    /// The address that connections of a family begin from; none: the family is not steered.
    pub const fn source(&self, of: Family) -> Option<IpAddr> {
        match of {
            Family::V4 => self.v4_source,
            Family::V6 => self.v6_source,
        }
    }
}

struct Global {
    ip: IpAddr,
    index: u32,
    flags: AddressFlags,
}

impl Global {
    fn new(message: &AddressMessage) -> Option<Self> {
        let ip = ip(message)?;
        let flags = flags(message);
        let elsewhere = message.header.scope != AddressScope::Universe || ip.is_loopback();
        if elsewhere || flags.contains(AddressFlags::Dadfailed) {
            return None;
        }
        let index = message.header.index;
        Some(Self { ip, index, flags })
    }

    /// The kernel refuses a tentative address as a route's source.
    const fn is_usable(&self) -> bool {
        !self.flags.contains(AddressFlags::Tentative)
    }

    /// Interfaces before `lo`, preferred before deprecated, primary before secondary.
    fn rank(&self) -> (bool, bool, bool, u32) {
        let has = |flag| self.flags.contains(flag);
        (
            self.index == LOOPBACK_IFINDEX,
            has(AddressFlags::Deprecated),
            has(AddressFlags::Secondary),
            self.index,
        )
    }
}

fn source(global: &[Global], of: Family) -> Option<IpAddr> {
    let usable = global
        .iter()
        .filter(|a| family(a.ip) == of && a.is_usable());
    usable.min_by_key(|a| a.rank()).map(|a| a.ip)
}

/// Of a point-to-point interface `IFA_ADDRESS` is the peer's.
fn ip(message: &AddressMessage) -> Option<IpAddr> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
    let plain = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
    local.or(plain)
}

fn flags(message: &AddressMessage) -> AddressFlags {
    let long = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
    long.unwrap_or_else(|| AddressFlags::from_bits_retain(message.header.flags.bits().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str, index: u32, scope: AddressScope, flags: AddressFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.scope = scope;
        let ip = ip.parse().unwrap_or_else(|e| panic!("{e}"));
        message.attributes = vec![
            AddressAttribute::Address(ip),
            AddressAttribute::Flags(flags),
        ];
        message
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn global_addresses_count_and_others_do_not() {
        let none = AddressFlags::empty();
        let own = Own::pick(&[
            address("127.0.0.1", 1, AddressScope::Host, none),
            address("10.0.0.9", 1, AddressScope::Universe, none),
            address(
                "10.0.0.3",
                2,
                AddressScope::Universe,
                AddressFlags::Secondary,
            ),
            address("10.0.0.2", 2, AddressScope::Universe, none),
            address("fe80::1", 2, AddressScope::Link, none),
            address(
                "fd00::1",
                2,
                AddressScope::Universe,
                AddressFlags::Dadfailed,
            ),
        ]);
        assert_eq!(own.all, [ip("10.0.0.2"), ip("10.0.0.3"), ip("10.0.0.9")]);
        assert_eq!(own.source(Family::V4), Some(ip("10.0.0.2")));
        assert_eq!(own.source(Family::V6), None);
    }

    #[test]
    fn a_tentative_address_is_own_but_no_source_yet() {
        let tentative = AddressFlags::Tentative;
        let own = Own::pick(&[address("fd00::1", 2, AddressScope::Universe, tentative)]);
        assert_eq!(own.all, [ip("fd00::1")]);
        assert_eq!(own.source(Family::V6), None);
    }
}
