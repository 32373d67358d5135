// SPDX-License-Identifier: Apache-2.0
//! A netlink connection that was opened in a pod's namespace and is used from outside of it.

use culvert_ebpf_abi::LOOPBACK_IFINDEX;
use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, IpVersion, LinkUnspec, MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage, address::AddressMessage, route::RouteMessage, rule::RuleMessage,
    },
};
use tokio::{sync::watch, task::JoinHandle};

use crate::netns::{self, Netns};

/// A connection. Dropping it closes the socket.
#[derive(Debug)]
pub struct Rtnl {
    handle: Handle,
    tasks: [JoinHandle<()>; 2],
    changes: watch::Receiver<()>,
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
    /// Opens a connection that also hears of changes of the namespace's addresses.
    pub async fn open(netns: &Netns) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        let open = move || {
            let _entered = runtime.enter();
            rtnetlink::new_multicast_connection(&[
                MulticastGroup::Ipv4Ifaddr,
                MulticastGroup::Ipv6Ifaddr,
            ])
        };
        let (connection, handle, messages) = netns.run(open).await?.map_err(Error::Open)?;
        let (sender, changes) = watch::channel(());
        let forward = messages.for_each(move |(message, _)| {
            if is_address(&message.payload) {
                sender.send_replace(());
            }
            std::future::ready(())
        });
        Ok(Self {
            handle,
            tasks: [tokio::spawn(connection), tokio::spawn(forward)],
            changes,
        })
    }

    /// Waits until an address may have appeared or gone. `None`: the connection ended.
    pub async fn changed(&mut self) -> Option<()> {
        self.changes.changed().await.ok()
    }

    /// All addresses of the namespace.
    pub async fn addresses(&self) -> Result<Vec<AddressMessage>, Error> {
        let dump = self.handle.address().get().execute();
        all(dump, "list the addresses").await
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
        self.tasks.iter().for_each(JoinHandle::abort);
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

/// An overrun counts: what was lost may have been an address.
const fn is_address(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    matches!(
        payload,
        NetlinkPayload::Overrun(_)
            | NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_)
            )
    )
}
