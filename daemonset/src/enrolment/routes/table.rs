// SPDX-License-Identifier: Apache-2.0
//! A route of our tables, as far as steering has to understand one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_api::agent::Family;
use culvert_ebpf_abi::{LOOPBACK_IFINDEX, TABLE_IN, TABLE_OUT};
use rtnetlink::packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RoutePreference, RouteProtocol,
        RouteScope, RouteType,
    },
};

use crate::enrolment::rtnl::table_of;

/// Both tables.
pub const TABLES: [u32; 2] = [TABLE_IN, TABLE_OUT];

/// The metric of IPv6 routes that were added without one
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/ipv6_route.h>).
const IP6_RT_PRIO_USER: u32 = 1024;
/// The last metric.
const LAST: u32 = u32::MAX;

/// A route of one of our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table.
    pub table: u32,
    /// To which network.
    pub network: Network,
    /// What becomes of its packets.
    pub target: Target,
}

/// A destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// Its first address.
    pub ip: IpAddr,
    /// The length of its prefix.
    pub length: u8,
}

/// What becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Refused, unless another route to the same network takes them.
    Unreachable,
    /// `lo`.
    Lo {
        /// What connections begin from that are not bound; the kernel's choice if none.
        source: Option<IpAddr>,
    },
    /// `lo` too, when the socket is bound to a link.
    Bound {
        /// The index of the link.
        index: u32,
    },
}

// === impl Network ===

impl Network {
    /// All of a family.
    pub const fn all(family: Family) -> Self {
        let ip = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { ip, length: 0 }
    }

    /// The destination of a route.
    pub fn of(route: &RouteMessage) -> Option<Self> {
        let length = route.header.destination_prefix_length;
        let mut ips = route
            .attributes
            .iter()
            .filter_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                _ => None,
            });
        match (ips.next(), route.header.address_family) {
            (Some(ip), _) => Some(Self { ip, length }),
            (None, AddressFamily::Inet) => Some(Self::all(Family::V4)),
            (None, AddressFamily::Inet6) => Some(Self::all(Family::V6)),
            (None, _) => None,
        }
    }
}

// === impl Route ===

impl Route {
    /// `unreachable default table TABLE`, behind all others.
    pub const fn unreachable(family: Family, table: u32) -> Self {
        Self {
            table,
            network: Network::all(family),
            target: Target::Unreachable,
        }
    }

    /// `local default dev lo [src SOURCE] table TABLE`.
    pub const fn all(family: Family, table: u32, source: Option<IpAddr>) -> Self {
        Self {
            table,
            network: Network::all(family),
            target: Target::Lo { source },
        }
    }

    /// `local default dev LINK metric INDEX table TABLE`.
    pub const fn bound(family: Family, table: u32, index: u32) -> Self {
        Self {
            table,
            network: Network::all(family),
            target: Target::Bound { index },
        }
    }

    /// The request for it.
    pub fn message(self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = match self.network.ip {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.destination_prefix_length = self.network.length;
        message.header.protocol = RouteProtocol::Static;
        message.attributes.push(RouteAttribute::Table(self.table));
        if self.network.length > 0 {
            let to = self.network.ip.into();
            message.attributes.push(RouteAttribute::Destination(to));
        }
        self.target.write(&mut message, self.network.ip.is_ipv6());
        message
    }

    /// One of our tables that is as we would set it; none if it is another in anything.
    pub fn of(message: &RouteMessage) -> Option<Self> {
        let route = Self {
            table: table_of(message),
            network: Network::of(message)?,
            target: Target::of(message)?,
        };
        let header = &message.header;
        let all = header.tos == 0 && header.source_prefix_length == 0;
        let ours = route.message().attributes;
        let mut attributes = message.attributes.iter();
        let plain = attributes.all(|one| says_nothing(route.target, one) || ours.contains(one));
        (is_of_our_tables(message) && all && plain).then_some(route)
    }
}

/// Whether it is in one of our tables. What was learned of the path to single destinations is not.
pub fn is_of_our_tables(message: &RouteMessage) -> bool {
    let cloned = message.header.flags.contains(RouteFlags::Cloned);
    TABLES.contains(&table_of(message)) && !cloned
}

/// The kernel adds these, and the link of an IPv6 route that refuses.
fn says_nothing(target: Target, attribute: &RouteAttribute) -> bool {
    match attribute {
        RouteAttribute::Table(_) | RouteAttribute::CacheInfo(_) => true,
        RouteAttribute::Preference(preference) => *preference == RoutePreference::Medium,
        RouteAttribute::Oif(index) => target == Target::Unreachable && *index == LOOPBACK_IFINDEX,
        _ => false,
    }
}

/// The request to delete the route that was listed and no other, whatever it is. A route by a next
/// hop object is listed with what that says, which can't be said beside it.
pub fn deletion(listed: &RouteMessage) -> RouteMessage {
    let is_object = |one: &RouteAttribute| matches!(one, RouteAttribute::NhId(_));
    let by_object = listed.attributes.iter().any(is_object);
    let mut request = RouteMessage::default();
    request.header = listed.header.clone();
    request.header.scope = RouteScope::NoWhere;
    request.header.protocol = RouteProtocol::Unspec;
    request.header.flags = RouteFlags::empty();
    if by_object {
        request.header.kind = RouteType::Unspec;
    }
    let names = listed.attributes.iter().filter(|one| match one {
        RouteAttribute::Oif(_)
        | RouteAttribute::Gateway(_)
        | RouteAttribute::Via(_)
        | RouteAttribute::MultiPath(_) => !by_object,
        RouteAttribute::NhId(_)
        | RouteAttribute::Table(_)
        | RouteAttribute::Destination(_)
        | RouteAttribute::Source(_)
        | RouteAttribute::PrefSource(_)
        | RouteAttribute::Priority(_) => true,
        _ => false,
    });
    request.attributes = names.cloned().collect();
    request
}

// === impl Target ===

impl Target {
    fn write(self, message: &mut RouteMessage, v6: bool) {
        match self {
            Self::Unreachable => {
                message.header.kind = RouteType::Unreachable;
                message.attributes.push(RouteAttribute::Priority(LAST));
            }
            Self::Lo { source } => {
                message.header.kind = RouteType::Local;
                message.header.scope = RouteScope::Host;
                let lo = RouteAttribute::Oif(LOOPBACK_IFINDEX);
                // What the kernel would choose.
                let metric = v6.then_some(RouteAttribute::Priority(IP6_RT_PRIO_USER));
                let source = source.map(|ip| RouteAttribute::PrefSource(ip.into()));
                message.attributes.push(lo);
                message.attributes.extend(metric.into_iter().chain(source));
            }
            Self::Bound { index } => {
                message.header.kind = RouteType::Local;
                message.header.scope = RouteScope::Host;
                // Its metric is its own: a route with another's would replace that one.
                let its = [RouteAttribute::Oif(index), RouteAttribute::Priority(index)];
                message.attributes.extend(its);
            }
        }
    }

    fn of(message: &RouteMessage) -> Option<Self> {
        let has = |attribute| message.attributes.contains(&attribute);
        match message.header.kind {
            RouteType::Unreachable if has(RouteAttribute::Priority(LAST)) => {
                Some(Self::Unreachable)
            }
            RouteType::Local if has(RouteAttribute::Oif(LOOPBACK_IFINDEX)) => Some(Self::Lo {
                source: preferred_source(message),
            }),
            RouteType::Local => oif(message)
                .filter(|index| has(RouteAttribute::Priority(*index)))
                .map(|index| Self::Bound { index }),
            _ => None,
        }
    }
}

fn oif(route: &RouteMessage) -> Option<u32> {
    let mut links = route
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    links.next()
}

/// The source that a route names.
pub fn preferred_source(route: &RouteMessage) -> Option<IpAddr> {
    let mut sources = route
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        });
    sources.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_survives_the_way_through_netlink() {
        for (ip, length) in [("0.0.0.0", 0), ("10.1.0.0", 16), ("::", 0), ("fd01::", 64)] {
            let ip: IpAddr = ip.parse().unwrap_or_else(|e| panic!("{e}"));
            let network = Network { ip, length };
            let (none, some) = (None, Some(ip));
            for target in [
                Target::Unreachable,
                Target::Lo { source: none },
                Target::Lo { source: some },
                Target::Bound { index: 7 },
            ] {
                let table = TABLE_OUT;
                let route = Route {
                    table,
                    network,
                    target,
                };
                assert_eq!(Route::of(&route.message()), Some(route));
            }
        }
        let elsewhere = Route::unreachable(Family::V4, 254);
        assert_eq!(Route::of(&elsewhere.message()), None);
    }
}
