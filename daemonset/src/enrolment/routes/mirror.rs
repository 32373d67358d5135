// SPDX-License-Identifier: Apache-2.0
//! What the table of outbound connections holds: each destination that the pod's main table knows, by
//! `lo`, with the source address that the main table would give it. So a steered pod with several
//! addresses or interfaces begins its connections from the addresses that it always began them from,
//! and what it had no route to stays unreachable.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use culvert_api::agent::Family;
use culvert_ebpf_abi::TABLE_OUT;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType,
};

use super::table::{Network, Route, Target, preferred_source};
use crate::enrolment::{
    addresses::{Own, Usable},
    rtnl::{MAIN, table_of},
};

/// A pod with more routes than this gets one for all of them.
const MOST: usize = 512;

/// Where a route of the main table leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hop {
    index: Option<u32>,
    gateway: Option<Ipv4Addr>,
}

/// The routes of the outbound table of a family of which the pod has an address. `elsewhere`: the pod
/// has policy rules of its own, which may know destinations that the main table does not.
pub fn outbound(of: Family, own: &Own, routes: &[RouteMessage], elsewhere: bool) -> Vec<Route> {
    let mut best: BTreeMap<Network, (u32, Target)> = BTreeMap::new();
    for route in routes.iter().filter(|route| is_candidate(route)) {
        let Some(network) = Network::of(route).filter(|network| !network.is_left_alone()) else {
            continue;
        };
        let metric = metric(route);
        if best.get(&network).is_none_or(|(least, _)| metric < *least) {
            best.insert(network, (metric, target(of, own, route, network)));
        }
    }
    let all = Network::all(of);
    if elsewhere || best.len() > MOST {
        let general = Target::Lo {
            source: general(of, own),
        };
        best.entry(all).or_insert((0, general));
    }
    if best.len() > MOST {
        best.retain(|network, _| *network == all);
    }
    let targets = best.into_iter().map(|(network, (_, target))| Route {
        table: TABLE_OUT,
        network,
        target,
    });
    targets.collect()
}

/// One of the main table that takes packets of any type of service, or refuses them. A dump lists
/// what was learned of the path to single destinations too, marked as cloned.
fn is_candidate(route: &RouteMessage) -> bool {
    let flags = route.header.flags;
    let dead = flags.bits() & u32::from(RouteNextHopFlags::Dead.bits()) != 0;
    let lasts = !dead && !flags.contains(RouteFlags::Cloned);
    table_of(route) == MAIN && route.header.tos == 0 && lasts && is_of_a_kind(route.header.kind)
}

const fn is_of_a_kind(kind: RouteType) -> bool {
    matches!(
        kind,
        RouteType::Unicast | RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
    )
}

fn metric(route: &RouteMessage) -> u32 {
    let mut metrics = route
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
    metrics.next().unwrap_or(0)
}

fn target(of: Family, own: &Own, route: &RouteMessage, network: Network) -> Target {
    if route.header.kind != RouteType::Unicast {
        return Target::Unreachable;
    }
    let named = preferred_source(route).filter(|ip| own.usable(of).any(|own| own.ip == *ip));
    let source = named.or_else(|| match of {
        Family::V4 => v4_source(own, Hop::of(route)),
        Family::V6 => v6_source(own, Hop::of(route), network),
    });
    Target::Lo { source }
}

/// As `inet_select_addr()` has it: the interface's first address, of the gateway's network if there is
/// one (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/devinet.c>).
fn v4_source(own: &Own, hop: Hop) -> Option<IpAddr> {
    let primary = own.usable(Family::V4).filter(|own| !own.secondary);
    let there = primary.clone().filter(|own| Some(own.index) == hop.index);
    let mut near = there.clone().filter(|own| hop.is_near(own));
    let found = near.next().or_else(|| there.clone().next());
    found.map(|own| own.ip).or_else(|| general(Family::V4, own))
}

/// The kernel's own choice knows more than a route can say (RFC 6724, temporary addresses, what the
/// application asked for), but not which interface it is for: that is said where it makes a
/// difference.
fn v6_source(own: &Own, hop: Hop, network: Network) -> Option<IpAddr> {
    let all = own.usable(Family::V6);
    let there = all.clone().filter(|own| Some(own.index) == hop.index);
    if there.clone().count() == all.count() {
        return None;
    }
    there.min_by_key(|own| rank(own, network)).map(|own| own.ip)
}

/// Preferred before deprecated, then of the destination's kind, then public before temporary, then the
/// nearest.
fn rank(own: &Usable, network: Network) -> (bool, bool, bool, Reverse<u32>) {
    let (IpAddr::V6(ip), IpAddr::V6(to)) = (own.ip, network.ip) else {
        return (own.deprecated, false, own.secondary, Reverse(0));
    };
    let common = (ip.to_bits() ^ to.to_bits()).leading_zeros();
    (
        own.deprecated,
        ip.is_unique_local() != to.is_unique_local(),
        own.secondary,
        Reverse(common.min(network.length.into())),
    )
}

/// What connections begin from when no route knows better.
fn general(of: Family, own: &Own) -> Option<IpAddr> {
    if of == Family::V6 {
        return None;
    }
    let all = own.usable(of);
    let best = all.min_by_key(|own| (own.is_of_loopback(), own.secondary));
    best.map(|own| own.ip)
}

// === impl Hop ===

impl Hop {
    /// The first of a route that has several.
    fn of(route: &RouteMessage) -> Self {
        let mut hop = Self::default();
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::MultiPath(hops) => {
                    let first = hops.first();
                    hop.index = first.map(|hop| hop.interface_index);
                    let attributes = first.iter().flat_map(|hop| &hop.attributes);
                    attributes.for_each(|attribute| hop.read(attribute));
                }
                one => hop.read(one),
            }
        }
        hop
    }

    const fn read(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(index) => self.index = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => self.gateway = Some(*ip),
            _ => {}
        }
    }

    /// Whether the gateway is in the network of an address.
    fn is_near(self, own: &Usable) -> bool {
        let (IpAddr::V4(ip), Some(gateway)) = (own.ip, self.gateway) else {
            return false;
        };
        let common = (ip.to_bits() ^ gateway.to_bits()).leading_zeros();
        common >= own.length.into()
    }
}

// === impl Network ===

impl Network {
    /// Loopback, link-local and multicast destinations are never marked.
    fn is_left_alone(self) -> bool {
        match self.ip {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_multicast(),
            IpAddr::V6(ip) => is_local_v6(ip, self.length),
        }
    }
}

fn is_local_v6(ip: Ipv6Addr, length: u8) -> bool {
    ip.is_unicast_link_local() || ip.is_multicast() || (ip.is_loopback() && length > 0)
}

#[cfg(test)]
mod tests;
