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
    /// Those that connections may begin from, in the kernel's order.
    pub usable: Vec<Usable>,
}

/// An address that connections may begin from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usable {
    /// The address.
    pub ip: IpAddr,
    /// The length of its prefix.
    pub length: u8,
    /// The index of its interface.
    pub index: u32,
    /// Only for what knows nothing better.
    pub deprecated: bool,
    /// Another IPv4 address of the same network came first, or it is a temporary IPv6 address.
    pub secondary: bool,
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
        let global = messages.iter().filter_map(Global::new);
        let all: BTreeSet<_> = global.clone().map(|global| global.address.ip).collect();
        let usable = global.filter(Global::is_usable);
        Self {
            all: all.into_iter().collect(),
            usable: usable.map(|global| global.address).collect(),
        }
    }

    /// The addresses of a family that connections may begin from.
    pub fn usable(&self, of: Family) -> impl Iterator<Item = &Usable> + Clone {
        self.usable
            .iter()
            .filter(move |address| family(address.ip) == of)
    }
}

// === impl Usable ===

impl Usable {
    /// Whether it is `lo`'s.
    pub const fn is_of_loopback(&self) -> bool {
        self.index == LOOPBACK_IFINDEX
    }
}

struct Global {
    address: Usable,
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
        let address = Usable {
            ip,
            length: message.header.prefix_len,
            index: message.header.index,
            deprecated: flags.contains(AddressFlags::Deprecated),
            secondary: flags.contains(AddressFlags::Secondary),
        };
        Some(Self { address, flags })
    }

    /// The kernel refuses a tentative address as a route's source.
    const fn is_usable(&self) -> bool {
        !self.flags.contains(AddressFlags::Tentative)
    }
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
        let usable: Vec<_> = own.usable(Family::V4).map(|one| one.ip).collect();
        assert_eq!(usable, [ip("10.0.0.9"), ip("10.0.0.3"), ip("10.0.0.2")]);
        assert_eq!(own.usable(Family::V6).count(), 0);
    }

    #[test]
    fn a_tentative_address_is_own_but_no_source_yet() {
        let tentative = AddressFlags::Tentative;
        let own = Own::pick(&[address("fd00::1", 2, AddressScope::Universe, tentative)]);
        assert_eq!(own.all, [ip("fd00::1")]);
        assert_eq!(own.usable(Family::V6).count(), 0);
    }
}
