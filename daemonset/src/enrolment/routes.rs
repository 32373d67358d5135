// SPDX-License-Identifier: Apache-2.0
//! The policy rules and routes of a steered pod, in every family that its namespace has:
//!
//! ```text
//! 0:   fwmark IN/mask  lookup 17100      table 17100: local default dev lo, and dev each other link
//! 1:   lookup local (instead of pref 0)
//! 100: fwmark OUT/mask lookup 17101      table 17101: the main table, with lo in place of all links
//! 101: fwmark IN/mask  unreachable
//! 101: fwmark OUT/mask unreachable
//! ```
//!
//! The connect hooks mark both families, so the rules of both stay as long as the pod is steered:
//! without its rule a marked packet would leave in plaintext. The local routes are there while the
//! pod has a global address of the family. Behind them both tables always hold `unreachable
//! default`, so that without an address connect() fails at once; and because even that is flushed
//! with IPv6's routes when `lo` goes down, so do the last two rules.
//!
//! The marks only ever make a packet loop inside the pod: who forges one reaches our listeners. A
//! socket that is bound to a link passes by `dev lo`, and when nothing else is found IPv4 takes every
//! destination for a neighbour on that link
//! (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/route.c#L2775>): a proxy that was taken over
//! would send from any address. So a local route of each link catches it.

mod mirror;
mod table;

use std::collections::BTreeSet;

use culvert_api::agent::Family;
use culvert_ebpf_abi::{LOOPBACK_IFINDEX, MARK_IN, MARK_MASK, MARK_OUT, TABLE_IN, TABLE_OUT};
use rtnetlink::{
    IpVersion,
    packet_route::{AddressFamily, route::RouteMessage},
};

use self::table::{Route, TABLES, is_of_our_tables};
use super::{
    addresses::{FAMILIES, Own},
    rtnl::{self, Rtnl},
    rule::{Action, Found, Rule},
};

/// The kernel's own rules.
const KERNEL_LOCAL: Rule = Rule::local(0);
const KERNEL: [Rule; 3] = [
    KERNEL_LOCAL,
    Rule::lookup(32766, rtnl::MAIN),
    Rule::lookup(32767, 253),
];
const LOCAL: Rule = Rule::local(1);
const IN: Rule = Rule {
    priority: 0,
    mark: Some((MARK_IN, MARK_MASK)),
    action: Action::Lookup(TABLE_IN),
};
const OUT: Rule = Rule {
    priority: 100,
    mark: Some((MARK_OUT, MARK_MASK)),
    action: Action::Lookup(TABLE_OUT),
};
const NO_IN: Rule = refused(MARK_IN);
const NO_OUT: Rule = refused(MARK_OUT);
/// How often the routes are set at once.
const ATTEMPTS: u32 = 3;
/// A pod with more links has bound sockets caught on these only.
const MOST_LINKS: usize = 512;
/// What takes marked packets to `lo`.
const STEERING: [Rule; 3] = [IN, LOCAL, OUT];
const OURS: [Rule; 5] = [IN, LOCAL, OUT, NO_IN, NO_OUT];

const fn refused(mark: u32) -> Rule {
    Rule {
        priority: 101,
        mark: Some((mark, MARK_MASK)),
        action: Action::Unreachable,
    }
}

/// The routes of both tables, of each family that the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    families: Vec<(Family, BTreeSet<Route>)>,
}

/// What our tables of a family hold.
#[derive(Debug, Default)]
struct Listed {
    /// Of what is wanted.
    right: BTreeSet<Route>,
    /// Of anything else.
    surplus: Vec<RouteMessage>,
}

/// The routes or rules of a pod could not be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's fault or ours.
    #[error(transparent)]
    Netlink(#[from] rtnl::Error),
    /// The pod's, or that of another plugin of the chain.
    #[error(
        "the pod's namespace has a policy rule of somebody else at preference {priority}, which \
         steering needs: remove the rule or leave this pod out of the mesh"
    )]
    Conflict {
        /// The place that is taken.
        priority: u32,
    },
    /// The pod's.
    #[error(
        "somebody adds routes to table {table}, which is steering's, as fast as they are deleted: \
         find who does, or leave this pod out of the mesh"
    )]
    Surplus {
        /// The table.
        table: u32,
    },
}

/// What the tables are to hold, by the pod's addresses and its own routes and rules.
pub async fn look(rtnl: &Rtnl, own: &Own) -> Result<Tables, Error> {
    let mut tables = Tables::default();
    let links = rtnl.links().await?;
    for family in FAMILIES {
        let rules = found(rtnl, family).await?;
        if has_family(family, &rules) {
            let routes = routes(rtnl, family).await?;
            let mut wanted = wanted(family, own, &routes, has_others(&rules));
            wanted.extend(bound(family, &links));
            tables.families.push((family, wanted));
        }
    }
    Ok(tables)
}

/// Sets the rules and routes of both families. Once is as good as twice.
pub async fn apply(rtnl: &Rtnl, tables: &Tables) -> Result<(), Error> {
    for (family, wanted) in &tables.families {
        let rules = found(rtnl, *family).await?;
        add(rtnl, *family, &rules, wanted).await?;
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
pub async fn differences(rtnl: &Rtnl, tables: &Tables) -> Result<Vec<String>, Error> {
    let mut differences = Vec::new();
    for (family, wanted) in &tables.families {
        let rules = found(rtnl, *family).await?;
        differences.extend(wrong_rules(*family, &rules));
        differences.extend(wrong_tables(rtnl, *family, wanted).await?);
    }
    Ok(differences)
}

/// A kernel without IPv6 lists no rule of it.
fn has_family(family: Family, rules: &[Found]) -> bool {
    family == Family::V4 || !rules.is_empty()
}

/// Policy rules of somebody else may lead where the main table does not.
fn has_others(rules: &[Found]) -> bool {
    let known = |found: &Found| match found {
        Found::Plain(rule) => KERNEL.contains(rule) || OURS.contains(rule),
        Found::Foreign { .. } => false,
    };
    !rules.iter().all(known)
}

fn wanted(of: Family, own: &Own, routes: &[RouteMessage], elsewhere: bool) -> BTreeSet<Route> {
    let mut wanted = BTreeSet::from(TABLES.map(|table| Route::unreachable(of, table)));
    if own.usable(of).next().is_some() {
        wanted.insert(Route::all(of, TABLE_IN, None));
        wanted.extend(mirror::outbound(of, own, routes, elsewhere));
    }
    wanted
}

/// IPv6 refuses what it has no route for.
fn bound(of: Family, links: &[u32]) -> impl Iterator<Item = Route> {
    let links = links.iter().filter(move |_| of == Family::V4);
    let others = links.filter(|index| **index != LOOPBACK_IFINDEX);
    others
        .take(MOST_LINKS)
        .map(move |index| Route::bound(of, TABLE_IN, *index))
}

/// Routes before rules, and our rule for local addresses before the kernel's goes: at no moment
/// a packet has no place to go.
async fn add(
    rtnl: &Rtnl,
    family: Family,
    rules: &[Found],
    wanted: &BTreeSet<Route>,
) -> Result<(), Error> {
    refuse_conflicts(rules)?;
    set_routes(rtnl, family, wanted).await?;
    let address_family = address_family(family);
    for rule in [NO_IN, NO_OUT, LOCAL, IN] {
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

/// Once may not be enough: to set a route replaces another one that looks like it.
async fn set_routes(rtnl: &Rtnl, family: Family, wanted: &BTreeSet<Route>) -> Result<(), Error> {
    for _ in 0..ATTEMPTS {
        let there = Listed::of(rtnl, family, wanted).await?;
        for route in wanted.difference(&there.right) {
            rtnl.replace_route(route.message()).await?;
        }
        if there.is(wanted) {
            return Ok(());
        }
        for surplus in Listed::of(rtnl, family, wanted).await?.surplus {
            rtnl.delete_route(table::deletion(&surplus)).await?;
        }
    }
    let there = Listed::of(rtnl, family, wanted).await?;
    match there.surplus.first() {
        Some(route) => Err(Error::Surplus {
            table: rtnl::table_of(route),
        }),
        None => Ok(()),
    }
}

// === impl Listed ===

impl Listed {
    async fn of(rtnl: &Rtnl, family: Family, wanted: &BTreeSet<Route>) -> Result<Self, Error> {
        let mut listed = Self::default();
        let routes = routes(rtnl, family).await?;
        for message in routes.into_iter().filter(is_of_our_tables) {
            match Route::of(&message).filter(|route| wanted.contains(route)) {
                Some(route) => drop(listed.right.insert(route)),
                None => listed.surplus.push(message),
            }
        }
        Ok(listed)
    }

    fn is(&self, wanted: &BTreeSet<Route>) -> bool {
        self.surplus.is_empty() && self.right == *wanted
    }
}

async fn routes(rtnl: &Rtnl, family: Family) -> Result<Vec<RouteMessage>, Error> {
    let mut filter = RouteMessage::default();
    filter.header.address_family = address_family(family);
    Ok(rtnl.routes(filter).await?)
}

/// The kernel's rule comes back before ours go.
async fn remove(rtnl: &Rtnl, family: Family) -> Result<(), Error> {
    let rules = found(rtnl, family).await?;
    let there: Vec<_> = [OUT, IN, LOCAL, NO_OUT, NO_IN]
        .into_iter()
        .filter(|rule| rules.contains(&Found::Plain(*rule)))
        .collect();
    let address_family = address_family(family);
    if !there.is_empty() && !rules.contains(&Found::Plain(KERNEL_LOCAL)) {
        rtnl.add_rule(KERNEL_LOCAL.message(address_family)).await?;
    }
    for rule in there {
        rtnl.delete_rule(rule.message(address_family)).await?;
    }
    for route in Listed::of(rtnl, family, &BTreeSet::new()).await?.surplus {
        rtnl.delete_route(table::deletion(&route)).await?;
    }
    Ok(())
}

/// The first of somebody else's rules that stands before the last of ours, of those that `matter`.
fn first_before(rules: &[Found], matter: impl Fn(&Found) -> bool) -> Option<u32> {
    let ours = OURS.map(Found::Plain);
    let ours = |found: &&Found| ours.contains(found) || **found == Found::Plain(KERNEL_LOCAL);
    let foreign = rules.iter().filter(|found| !ours(found) && matter(found));
    let mut before = foreign
        .map(|found| found.priority())
        .filter(|p| *p <= NO_OUT.priority);
    before.next()
}

/// What the rule would take leaves in plaintext, or from an address that is not the pod's.
const fn takes_marked(found: &Found) -> bool {
    found.may_take(MARK_OUT) || found.may_take(MARK_IN)
}

/// A rule that came after ours may stand if it takes nothing that is marked.
fn refuse_conflicts(rules: &[Found]) -> Result<(), Error> {
    let there = |rule| rules.contains(&Found::Plain(rule));
    let is_steered = STEERING.into_iter().all(there);
    match first_before(rules, |found| !is_steered || takes_marked(found)) {
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

fn wrong_rules(family: Family, rules: &[Found]) -> impl Iterator<Item = String> {
    let missing = OURS
        .into_iter()
        .filter(|rule| !rules.contains(&Found::Plain(*rule)))
        .map(move |rule| format!("the {family:?} policy rule \"{rule}\" is missing"));
    let early = rules.contains(&Found::Plain(KERNEL_LOCAL));
    let early = early.then(|| format!("the {family:?} policy rule \"{KERNEL_LOCAL}\" is back"));
    let before = first_before(rules, takes_marked).map(|priority| {
        format!("a {family:?} policy rule at preference {priority} stands before steering's")
    });
    missing.chain(early).chain(before)
}

async fn wrong_tables(
    rtnl: &Rtnl,
    family: Family,
    wanted: &BTreeSet<Route>,
) -> Result<Vec<String>, Error> {
    let there = Listed::of(rtnl, family, wanted).await?;
    let missing = wanted.difference(&there.right).map(|route| route.table);
    let surplus = there.surplus.iter().map(rtnl::table_of);
    let wrong: BTreeSet<_> = missing.chain(surplus).collect();
    let text = |table| format!("a {family:?} route of table {table} is missing or another");
    Ok(wrong.into_iter().map(text).collect())
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
