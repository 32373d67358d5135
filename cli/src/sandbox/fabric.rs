// SPDX-License-Identifier: Apache-2.0
//! The network between the nodes: a bridge in a namespace of its own, to which each node and
//! control are linked. Nothing is set up in the machine's own network.

use std::{
    fs::{self, File},
    net::IpAddr,
};

use super::{
    error::{Doing, Result},
    families::IpFamilies,
    layout::{Layout, NodeId, control_addr},
    links::{Links, inside, sysctl, task},
    netns::{self, Netns},
};

/// The bridge's name.
pub const BRIDGE: &str = "fabric";
/// The name of a node's interface.
pub const NODE_LINK: &str = "eth0";
/// The port of the bridge that control is at.
const CONTROL_PORT: &str = "control";

/// No namespace waits for duplicate address detection: its addresses are given out once.
const SETTINGS: [(&str, &str); 4] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

const FORWARDING: [(&str, &str); 2] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// The fabric and control's place at it.
#[derive(Debug)]
pub struct Fabric {
    netns: Netns,
    /// Control's namespace.
    pub control: Netns,
    families: IpFamilies,
}

// === impl Fabric ===

impl Fabric {
    /// Makes the bridge and links control to it.
    pub fn up(layout: &Layout, families: IpFamilies) -> Result<Self> {
        let netns = create(layout, &layout.name.fabric_netns())?;
        inside(&netns, task(async |links| links.add_bridge(BRIDGE).await))?;
        let control = create(layout, &layout.name.control_netns())?;
        let addrs = families.iter().map(control_addr).collect();
        let fabric = Self {
            netns,
            control,
            families,
        };
        fabric.link(CONTROL_PORT, &fabric.control, None, addrs)?;
        Ok(fabric)
    }

    /// Makes a node's namespace and links it to the fabric.
    pub fn add_node(&self, layout: &Layout, node: NodeId) -> Result<Netns> {
        let netns = create(layout, &layout.name.node_netns(node))?;
        let name = netns.name.clone();
        let set = netns.run(|| sysctl(&FORWARDING));
        set.doing(|| format!("let {name} forward packets"))?;
        let addrs = self.families.iter().map(|family| node.addr(family));
        self.link(&node.to_string(), &netns, Some(mac(node)), addrs.collect())?;
        route(&self.control, self.families, &[node])?;
        Ok(netns)
    }

    /// Takes a node off the fabric and removes its namespace.
    pub fn remove_node(&self, layout: &Layout, node: NodeId) -> Result<()> {
        let port = node.to_string();
        inside(
            &self.netns,
            task(async move |links| links.delete(&port).await),
        )?;
        remove(layout, &layout.name.node_netns(node))
    }

    fn link(
        &self,
        port: &str,
        to: &Netns,
        mac: Option<[u8; 6]>,
        addrs: Vec<(IpAddr, u8)>,
    ) -> Result<()> {
        let (port, target) = (port.to_owned(), to.raw());
        let pair = task(async move |links| {
            links.add_veth(&port, NODE_LINK).await?;
            links.add_port(BRIDGE, &port).await?;
            links.move_to(NODE_LINK, target).await
        });
        inside(&self.netns, pair)?;
        inside(
            to,
            task(async move |links| configure(&links, mac, addrs).await),
        )
    }
}

/// A node's link address. It is the same after a reboot, as a machine's is: the others would send to
/// the old one for up to a minute.
const fn mac(NodeId(node): NodeId) -> [u8; 6] {
    const LOCAL: u8 = 0x02;
    [LOCAL, 0, 0, 0, 0, node]
}

/// Routes the pods of `others` by their nodes.
pub fn route(netns: &Netns, families: IpFamilies, others: &[NodeId]) -> Result<()> {
    let ways = families.iter().flat_map(|family| {
        let way = move |other: &NodeId| (other.pod_network(family), other.addr(family).0);
        others.iter().map(way)
    });
    let ways: Vec<_> = ways.collect();
    let routes = task(async move |links| {
        for ((network, length), gateway) in ways {
            links.add_route(network, length, gateway).await?;
        }
        Ok(())
    });
    inside(netns, routes)
}

/// Makes a namespace of the sandbox with its loopback up, and a record of it first.
pub fn create(layout: &Layout, name: &str) -> Result<Netns> {
    let record = layout.netns_records().join(name);
    // Two pods may come to the same name: `a-b` in `c`, `b` in `c-a`.
    let recorded = File::options().write(true).create_new(true).open(&record);
    recorded.doing(|| format!("be the first to record {}", record.display()))?;
    let netns = Netns::create(name).inspect_err(|_| drop(fs::remove_file(&record)));
    let netns = netns.doing(|| format!("make the network namespace {name}"))?;
    if let Err(error) = begin(&netns) {
        remove(layout, name)?;
        return Err(error);
    }
    Ok(netns)
}

fn begin(netns: &Netns) -> Result<()> {
    netns
        .run(|| sysctl(&SETTINGS))
        .doing(|| format!("configure {}", netns.name))?;
    inside(netns, task(async |links| links.up("lo").await))
}

/// Removes a namespace of the sandbox and its record.
pub fn remove(layout: &Layout, name: &str) -> Result<()> {
    netns::remove(name).doing(|| format!("remove the network namespace {name}"))?;
    // Without the namespace the record says nothing.
    let _ = fs::remove_file(layout.netns_records().join(name));
    Ok(())
}

async fn configure(links: &Links, mac: Option<[u8; 6]>, addrs: Vec<(IpAddr, u8)>) -> Result<()> {
    if let Some(mac) = mac {
        links.set_mac(NODE_LINK, mac).await?;
    }
    links.up(NODE_LINK).await?;
    for (addr, prefix_len) in addrs {
        links.add_address(NODE_LINK, addr, prefix_len).await?;
    }
    Ok(())
}
