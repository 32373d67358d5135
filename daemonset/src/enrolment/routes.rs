// SPDX-License-Identifier: Apache-2.0
//! The policy rules and routes of a steered pod, in every family that its namespace has:
//!
//! ```text
//! 0:   fwmark IN/mask  lookup 17100      table 17100: local default dev lo
//! 1:   lookup local (instead of pref 0)
//! 100: fwmark OUT/mask lookup 17101      table 17101: local default dev lo src <the pod's address>
//! ```
//!
//! The connect hooks mark both families, so the rules of both stay as long as the pod is steered:
//! without its rule a marked packet would leave in plaintext. The local routes are there while the
//! pod has a global address of the family. Behind them both tables always hold `unreachable
//! default`, so that without an address connect() fails at once.
//!
//! The marks only ever make a packet loop inside the pod: who forges one reaches our listeners.

use std::net::IpAddr;

use culvert_api::agent::Family;
use culvert_ebpf_abi::{LOOPBACK_IFINDEX, MARK_IN, MARK_MASK, MARK_OUT, TABLE_IN, TABLE_OUT};
use rtnetlink::{
    IpVersion,
    packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

use super::{
    addresses::{FAMILIES, Own},
    rtnl::{self, Rtnl},
    rule::{Found, Rule},
};

/// The kernel's own rule.
const KERNEL_LOCAL: Rule = Rule::local(0);
const LOCAL: Rule = Rule::local(1);
const IN: Rule = Rule {
    priority: 0,
    mark: Some((MARK_IN, MARK_MASK)),
    table: TABLE_IN,
};
const OUT: Rule = Rule {
    priority: 100,
    mark: Some((MARK_OUT, MARK_MASK)),
    table: TABLE_OUT,
};

const TABLES: [u32; 2] = [TABLE_IN, TABLE_OUT];

/// The metric of IPv6 routes that were added without one
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/ipv6_route.h>).
const IP6_RT_PRIO_USER: u32 = 1024;
/// The last metric.
const LAST: u32 = u32::MAX;

/// The routes or rules of a pod could not be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's fault or ours.
    #[error(transparent)]
    Netlink(#[from] rtnl::Error),
    /// The pod's, or that of another plugin of the chain.
    #[error(
        "the pod's namespace already has a policy rule at preference {priority}, which steering \
         needs: remove the rule or leave this pod out of the mesh"
    )]
    Conflict {
        /// The place that is taken.
        priority: u32,
    },
}

/// Sets the rules and routes of both families. Once is as good as twice.
pub async fn apply(rtnl: &Rtnl, own: &Own) -> Result<(), Error> {
    for family in FAMILIES {
        let rules = found(rtnl, family).await?;
        if has_family(family, &rules) {
            add(rtnl, family, &rules, own.source(family)).await?;
        }
    }
    Ok(())
}

/// Removes the rules and routes of both families.
pub async fn remove_all(rtnl: &Rtnl) -> Result<(), Error> {
    for family in FAMILIES {
        remove(rtnl, family).await?;
    }
    Ok(())
}

/// What is not as [`apply`] left it, in words.
pub async fn differences(rtnl: &Rtnl, own: &Own) -> Result<Vec<String>, Error> {
    let mut differences = Vec::new();
    for family in FAMILIES {
        let rules = found(rtnl, family).await?;
        if has_family(family, &rules) {
            differences.extend(missing_rules(family, &rules));
            differences.extend(wrong_routes(rtnl, family, own.source(family)).await?);
        }
    }
    Ok(differences)
}

/// A kernel without IPv6 lists no rule of it.
fn has_family(family: Family, rules: &[Found]) -> bool {
    family == Family::V4 || !rules.is_empty()
}

/// Routes before rules, and our rule for local addresses before the kernel's goes: at no moment
/// a packet has no place to go.
async fn add(
    rtnl: &Rtnl,
    family: Family,
    rules: &[Found],
    source: Option<IpAddr>,
) -> Result<(), Error> {
    refuse_conflicts(rules)?;
    set_routes(rtnl, family, source).await?;
    let address_family = address_family(family);
    for rule in [LOCAL, IN] {
        if !rules.contains(&Found::Plain(rule)) {
            rtnl.add_rule(rule.message(address_family)).await?;
        }
    }
    if rules.contains(&Found::Plain(KERNEL_LOCAL)) {
        rtnl.delete_rule(KERNEL_LOCAL.message(address_family))
            .await?;
    }
    if !rules.contains(&Found::Plain(OUT)) {
        rtnl.add_rule(OUT.message(address_family)).await?;
    }
    Ok(())
}

/// Without a source connect() fails at once.
async fn set_routes(rtnl: &Rtnl, family: Family, source: Option<IpAddr>) -> Result<(), Error> {
    for table in TABLES {
        rtnl.replace_route(unreachable(family, table)).await?;
    }
    if source.is_none() {
        return remove_local(rtnl, family).await;
    }
    rtnl.replace_route(local(family, TABLE_IN, None)).await?;
    rtnl.replace_route(local(family, TABLE_OUT, source)).await?;
    Ok(())
}

async fn remove_local(rtnl: &Rtnl, family: Family) -> Result<(), Error> {
    for table in TABLES {
        rtnl.delete_route(local(family, table, None)).await?;
    }
    Ok(())
}

/// The kernel's rule comes back before ours go.
async fn remove(rtnl: &Rtnl, family: Family) -> Result<(), Error> {
    let rules = found(rtnl, family).await?;
    let there: Vec<_> = [OUT, IN, LOCAL]
        .into_iter()
        .filter(|rule| rules.contains(&Found::Plain(*rule)))
        .collect();
    if there.is_empty() {
        return Ok(());
    }
    let address_family = address_family(family);
    if !rules.contains(&Found::Plain(KERNEL_LOCAL)) {
        rtnl.add_rule(KERNEL_LOCAL.message(address_family)).await?;
    }
    for rule in there {
        rtnl.delete_rule(rule.message(address_family)).await?;
    }
    remove_local(rtnl, family).await?;
    for table in TABLES {
        rtnl.delete_route(unreachable(family, table)).await?;
    }
    Ok(())
}

/// A rule that came after ours takes nobody out of the mesh.
fn refuse_conflicts(rules: &[Found]) -> Result<(), Error> {
    let there = |rule| rules.contains(&Found::Plain(rule));
    if [IN, LOCAL, OUT].into_iter().all(there) {
        return Ok(());
    }
    let ours = [KERNEL_LOCAL, LOCAL, IN, OUT].map(Found::Plain);
    let foreign = rules.iter().filter(|found| !ours.contains(found));
    let mut before = foreign
        .map(|found| found.priority())
        .filter(|p| *p <= OUT.priority);
    match before.next() {
        Some(priority) => Err(Error::Conflict { priority }),
        None => Ok(()),
    }
}

async fn found(rtnl: &Rtnl, family: Family) -> Result<Vec<Found>, Error> {
    let rules = rtnl.rules(version(family)).await?;
    // A family that the kernel does not have is dumped as all families.
    let wanted = address_family(family);
    let rules = rules.iter().filter(|rule| rule.header.family == wanted);
    Ok(rules.map(Found::from).collect())
}

fn missing_rules(family: Family, rules: &[Found]) -> impl Iterator<Item = String> {
    let missing = [IN, LOCAL, OUT]
        .into_iter()
        .filter(|rule| !rules.contains(&Found::Plain(*rule)))
        .map(move |rule| format!("the {family:?} policy rule \"{rule}\" is missing"));
    let early = rules.contains(&Found::Plain(KERNEL_LOCAL));
    let early = early.then(|| format!("the {family:?} policy rule \"{KERNEL_LOCAL}\" is back"));
    missing.chain(early)
}

async fn wrong_routes(
    rtnl: &Rtnl,
    family: Family,
    source: Option<IpAddr>,
) -> Result<Vec<String>, Error> {
    let mut filter = RouteMessage::default();
    filter.header.address_family = address_family(family);
    let routes = rtnl.routes(filter).await?;
    let has_address = source.is_some();
    let there = |wanted: &RouteMessage| routes.iter().any(|route| is(route, wanted));
    let is_wrong = |table: &u32| {
        let source = source.filter(|_| *table == TABLE_OUT);
        !there(&unreachable(family, *table)) || there(&local(family, *table, source)) != has_address
    };
    let wrong = TABLES.into_iter().filter(is_wrong);
    let text = |table| format!("a {family:?} route of table {table} is missing or another");
    Ok(wrong.map(text).collect())
}

/// Whether it has all that is wanted of it; the kernel adds attributes of its own.
fn is(route: &RouteMessage, wanted: &RouteMessage) -> bool {
    let has = |attribute| route.attributes.contains(attribute);
    route.header.kind == wanted.header.kind
        && route.header.destination_prefix_length == 0
        && wanted.attributes.iter().all(has)
}

/// `local default dev lo [src SOURCE] table TABLE`.
fn local(family: Family, table: u32, source: Option<IpAddr>) -> RouteMessage {
    let mut message = default_route(family, table, RouteType::Local);
    message.header.scope = RouteScope::Host;
    message
        .attributes
        .push(RouteAttribute::Oif(LOOPBACK_IFINDEX));
    // What the kernel would choose; deleting takes any without it.
    if family == Family::V6 {
        message
            .attributes
            .push(RouteAttribute::Priority(IP6_RT_PRIO_USER));
    }
    let source = source.map(address).map(RouteAttribute::PrefSource);
    message.attributes.extend(source);
    message
}

/// `unreachable default table TABLE`, behind all others.
fn unreachable(family: Family, table: u32) -> RouteMessage {
    let mut message = default_route(family, table, RouteType::Unreachable);
    message.attributes.push(RouteAttribute::Priority(LAST));
    message
}

fn default_route(family: Family, table: u32, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.kind = kind;
    message.header.protocol = RouteProtocol::Static;
    message.attributes.push(RouteAttribute::Table(table));
    message
}

const fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

const fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

#[cfg(test)]
mod tests;
