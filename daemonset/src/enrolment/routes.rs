// SPDX-License-Identifier: Apache-2.0
//! The policy rules and routes of a steered pod, per family:
//!
//! ```text
//! 0:   fwmark IN/mask  lookup 17100      table 17100: local default dev lo
//! 1:   lookup local (instead of pref 0)
//! 100: fwmark OUT/mask lookup 17101      table 17101: local default dev lo src <the pod's address>
//! ```
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

/// Sets the rules and routes of the families that have an address, removes those of the others.
/// Once is as good as twice.
pub async fn apply(rtnl: &Rtnl, own: &Own) -> Result<(), Error> {
    for family in FAMILIES {
        match own.source(family) {
            Some(source) => add(rtnl, family, source).await?,
            None => remove(rtnl, family).await?,
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
        if let Some(source) = own.source(family) {
            differences.extend(missing_rules(rtnl, family).await?);
            differences.extend(missing_routes(rtnl, family, source).await?);
        }
    }
    Ok(differences)
}

/// Routes before rules, and our rule for local addresses before the kernel's goes: at no moment
/// a packet has no place to go.
async fn add(rtnl: &Rtnl, family: Family, source: IpAddr) -> Result<(), Error> {
    let rules = found(rtnl, family).await?;
    refuse_conflicts(&rules)?;
    rtnl.replace_route(route(family, TABLE_IN, None)).await?;
    rtnl.replace_route(route(family, TABLE_OUT, Some(source)))
        .await?;
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
    rtnl.delete_route(route(family, TABLE_OUT, None)).await?;
    rtnl.delete_route(route(family, TABLE_IN, None)).await?;
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

async fn missing_rules(rtnl: &Rtnl, family: Family) -> Result<Vec<String>, Error> {
    let rules = found(rtnl, family).await?;
    let missing = [IN, LOCAL, OUT]
        .into_iter()
        .filter(|rule| !rules.contains(&Found::Plain(*rule)))
        .map(|rule| format!("the {family:?} policy rule \"{rule}\" is missing"));
    let early = rules.contains(&Found::Plain(KERNEL_LOCAL));
    let early = early.then(|| format!("the {family:?} policy rule \"{KERNEL_LOCAL}\" is back"));
    Ok(missing.chain(early).collect())
}

async fn missing_routes(rtnl: &Rtnl, family: Family, source: IpAddr) -> Result<Vec<String>, Error> {
    let mut filter = RouteMessage::default();
    filter.header.address_family = address_family(family);
    let routes = rtnl.routes(filter).await?;
    let there = |table, source| routes.iter().any(|route| is(route, table, source));
    let tables = [(TABLE_IN, None), (TABLE_OUT, Some(source))];
    let missing = tables
        .into_iter()
        .filter(|(table, source)| !there(*table, *source));
    Ok(missing
        .map(|(table, _)| format!("the {family:?} route of table {table} is missing or another"))
        .collect())
}

fn is(route: &RouteMessage, table: u32, source: Option<IpAddr>) -> bool {
    let has = |attribute| route.attributes.contains(&attribute);
    let source = source.map(address).map(RouteAttribute::PrefSource);
    has(RouteAttribute::Table(table))
        && has(RouteAttribute::Oif(LOOPBACK_IFINDEX))
        && route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 0
        && source.is_none_or(has)
}

/// `local default dev lo [src SOURCE] table TABLE`.
fn route(family: Family, table: u32, source: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.kind = RouteType::Local;
    message.header.scope = RouteScope::Host;
    message.header.protocol = RouteProtocol::Static;
    message.attributes.push(RouteAttribute::Table(table));
    message
        .attributes
        .push(RouteAttribute::Oif(LOOPBACK_IFINDEX));
    let source = source.map(address).map(RouteAttribute::PrefSource);
    message.attributes.extend(source);
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
