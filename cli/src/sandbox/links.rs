// SPDX-License-Identifier: Apache-2.0
//! Links, addresses and routes of one network namespace, over netlink from inside it.

use std::{fs, future::Future, io, net::IpAddr, pin::Pin};

use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, packet_route::link::LinkMessage,
};

use super::{
    error::{Error, Result},
    netns::Netns,
};

/// What is to be done inside, given a netlink handle.
pub type Task = Box<dyn FnOnce(Links) -> Pin<Box<dyn Future<Output = Result<()>>>> + Send>;

/// A netlink handle of the namespace that the thread is in.
#[derive(Clone, Debug)]
pub struct Links {
    handle: Handle,
}

/// Runs `task` inside a namespace, on a thread of its own with a runtime of its own. Blocks.
pub fn inside(netns: &Netns, task: Task) -> Result<()> {
    let name = netns.name.clone();
    let entered = netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        Ok(runtime.block_on(async {
            let links = Links::connect().map_err(|source| Error::System {
                doing: "open a netlink socket".into(),
                source,
            })?;
            task(links).await
        }))
    });
    entered.map_err(|source| Error::System {
        doing: format!("enter the network namespace {name}"),
        source,
    })?
}

/// Makes a task of an async closure.
pub fn task<F>(f: impl FnOnce(Links) -> F + Send + 'static) -> Task
where
    F: Future<Output = Result<()>> + 'static,
{
    Box::new(|links| Box::pin(f(links)))
}

// === impl Links ===

impl Links {
    fn connect() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Brings a link up.
    pub async fn up(&self, link: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(index(link)?).up().build();
        self.change(message, format!("bring up {link}")).await
    }

    /// Sets the link address of an Ethernet link.
    pub async fn set_mac(&self, link: &str, mac: [u8; 6]) -> Result<()> {
        let message = LinkUnspec::new_with_index(index(link)?).address(mac.to_vec());
        let doing = format!("set the link address of {link}");
        self.change(message.build(), doing).await
    }

    /// Makes a bridge that is up.
    pub async fn add_bridge(&self, name: &str) -> Result<()> {
        let message = LinkBridge::new(name).up().build();
        let added = self.handle.link().add(message).execute().await;
        added.map_err(failed(format!("make the bridge {name}")))
    }

    /// Makes a pair of linked interfaces. A pair that an earlier call left half-way is replaced.
    pub async fn add_veth(&self, name: &str, peer: &str) -> Result<()> {
        self.delete(name).await?;
        let message = LinkVeth::new(name, peer).build();
        let added = self.handle.link().add(message).execute().await;
        added.map_err(failed(format!("make the link {name}")))
    }

    /// Deletes a link. What is gone is fine.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let Ok(index) = index(name) else {
            return Ok(());
        };
        let deleted = self.handle.link().del(index).execute().await;
        deleted.map_err(failed(format!("delete the link {name}")))
    }

    /// Makes a link a port of a bridge, and brings it up.
    pub async fn add_port(&self, bridge: &str, link: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(index(link)?);
        let message = message.controller(index(bridge)?).up().build();
        self.change(message, format!("make {link} a port of {bridge}"))
            .await
    }

    /// Moves a link into another namespace.
    pub async fn move_to(&self, link: &str, netns: i32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index(link)?)
            .setns_by_fd(netns)
            .build();
        self.change(message, format!("move {link} to its namespace"))
            .await
    }

    /// Gives a link an address.
    pub async fn add_address(&self, link: &str, addr: IpAddr, prefix_len: u8) -> Result<()> {
        let request = self.handle.address().add(index(link)?, addr, prefix_len);
        let added = request.replace().execute().await;
        added.map_err(failed(format!(
            "give {link} the address {addr}/{prefix_len}"
        )))
    }

    /// Routes a network by a gateway.
    pub async fn add_route(&self, network: IpAddr, prefix_len: u8, gateway: IpAddr) -> Result<()> {
        let doing = format!("route {network}/{prefix_len} by {gateway}");
        let route = RouteMessageBuilder::<IpAddr>::new();
        let route = route.destination_prefix(network, prefix_len);
        let route = route
            .and_then(|route| route.gateway(gateway))
            .map_err(|error| Error::System {
                doing: doing.clone(),
                source: io::Error::new(io::ErrorKind::InvalidInput, error),
            })?;
        let added = self
            .handle
            .route()
            .add(route.build())
            .replace()
            .execute()
            .await;
        added.map_err(failed(doing))
    }

    async fn change(&self, message: LinkMessage, doing: String) -> Result<()> {
        let changed = self.handle.link().change(message).execute().await;
        changed.map_err(failed(doing))
    }
}

/// Writes settings of the namespace that the thread is in, as `net/…`. Those of a family that the
/// kernel does not have are passed over.
pub fn sysctl(settings: &[(&str, &str)]) -> io::Result<()> {
    for (name, value) in settings {
        match fs::write(format!("/proc/sys/{name}"), value) {
            Err(error) if name.contains("ipv6") && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{name}: {error}"))),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn index(link: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(link).map_err(|errno| Error::System {
        doing: format!("find the link {link}"),
        source: errno.into(),
    })
}

fn failed(doing: String) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |source| Error::Netlink { doing, source }
}
