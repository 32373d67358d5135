// SPDX-License-Identifier: Apache-2.0
//! A netlink connection that was opened in a pod's namespace and is used from outside of it.

mod events;

use culvert_ebpf_abi::{LOOPBACK_IFINDEX, TABLE_IN, TABLE_OUT};
use futures_util::{Stream, TryStreamExt};
use rtnetlink::{
    Handle, IpVersion, LinkUnspec,
    packet_route::{
        address::AddressMessage,
        route::{RouteAttribute, RouteMessage},
        rule::RuleMessage,
    },
};
use tokio::task::JoinHandle;

use self::events::Events;
use crate::netns::{self, Netns};

/// `RT_TABLE_MAIN`.
pub const MAIN: u32 = 254;

/// The tables whose routes matter.
const TABLES: [u32; 3] = [MAIN, TABLE_IN, TABLE_OUT];

/// A connection. Dropping it closes its sockets.
#[derive(Debug)]
pub struct Rtnl {
    handle: Handle,
    requests: JoinHandle<()>,
    events: Events,
}

/// The kernel refused a netlink request, or the namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The socket.
    #[error("could not open a netlink socket in the pod's namespace: {0}")]
    Open(#[source] std::io::Error),
    /// The request.
    #[error("the kernel refused to {what}: {source}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
}

// === impl Rtnl ===

impl Rtnl {
    /// Opens a connection that also hears of changes of the namespace's links, addresses, rules and
    /// routes.
    pub async fn open(netns: &Netns) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        let open = move || {
            let _entered = runtime.enter();
            Ok((rtnetlink::new_connection()?, Events::open()?))
        };
        let ((connection, handle, _), events) = netns.run(open).await?.map_err(Error::Open)?;
        Ok(Self {
            handle,
            requests: tokio::spawn(connection),
            events,
        })
    }

    /// Waits until an address, link, rule or route may have appeared or gone, and 100 ms from one
    /// answer to the next. `None`: the connection ended.
    pub async fn changed(&mut self) -> Option<()> {
        if self.requests.is_finished() {
            return None;
        }
        tokio::select! {
            heard = self.events.changed() => heard.ok(),
            _ = &mut self.requests => None,
        }
    }

    /// All addresses of the namespace.
    pub async fn addresses(&self) -> Result<Vec<AddressMessage>, Error> {
        let dump = self.handle.address().get().execute();
        all(dump, "list the addresses").await
    }

    /// The indices of all links of the namespace.
    pub async fn links(&self) -> Result<Vec<u32>, Error> {
        let dump = self.handle.link().get().execute();
        let links = all(dump, "list the links").await?;
        Ok(links.iter().map(|link| link.header.index).collect())
    }

    /// All policy rules of a family; none where the family does not exist.
    pub async fn rules(&self, family: IpVersion) -> Result<Vec<RuleMessage>, Error> {
        let dump = self.handle.rule().get(family).execute();
        all(dump, "list the policy rules").await
    }

    /// All routes like `filter`'s family, of all tables.
    pub async fn routes(&self, filter: RouteMessage) -> Result<Vec<RouteMessage>, Error> {
        let dump = self.handle.route().get(filter).execute();
        all(dump, "list the routes").await
    }

    /// Adds a rule; one that is there already is fine.
    pub async fn add_rule(&self, rule: RuleMessage) -> Result<(), Error> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule;
        unless(
            request.execute().await,
            nix::libc::EEXIST,
            "add a policy rule",
        )
    }

    /// Deletes a rule; one that is gone already is fine.
    pub async fn delete_rule(&self, rule: RuleMessage) -> Result<(), Error> {
        let deleted = self.handle.rule().del(rule).execute().await;
        unless(deleted, nix::libc::ENOENT, "delete a policy rule")
    }

    /// Adds a route or replaces the one to the same destination.
    pub async fn replace_route(&self, route: RouteMessage) -> Result<(), Error> {
        let replaced = self.handle.route().add(route).replace().execute().await;
        replaced.map_err(|source| Error::Refused {
            what: "set a route",
            source,
        })
    }

    /// Deletes a route; one that is gone already is fine.
    pub async fn delete_route(&self, route: RouteMessage) -> Result<(), Error> {
        let deleted = self.handle.route().del(route).execute().await;
        unless(deleted, nix::libc::ESRCH, "delete a route")
    }

    /// Sets `lo` up, which the runtime's loopback plugin usually did.
    pub async fn loopback_up(&self) -> Result<(), Error> {
        let up = LinkUnspec::new_with_index(LOOPBACK_IFINDEX).up().build();
        let set = self.handle.link().set(up).execute().await;
        set.map_err(|source| Error::Refused {
            what: "set lo up",
            source,
        })
    }
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        self.requests.abort();
    }
}

async fn all<T>(
    dump: impl Stream<Item = Result<T, rtnetlink::Error>>,
    what: &'static str,
) -> Result<Vec<T>, Error> {
    let collected = dump.try_collect().await;
    collected.map_err(|source| Error::Refused { what, source })
}

fn unless(
    result: Result<(), rtnetlink::Error>,
    fine: i32,
    what: &'static str,
) -> Result<(), Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -fine => Ok(()),
        other => other.map_err(|source| Error::Refused { what, source }),
    }
}

/// The table of a route.
pub fn table_of(route: &RouteMessage) -> u32 {
    let mut tables = route
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    tables.next().unwrap_or(route.header.table.into())
}

#[cfg(test)]
mod tests;
