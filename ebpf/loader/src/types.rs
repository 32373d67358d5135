// SPDX-License-Identifier: Apache-2.0
//! What the agent says and reads.

use std::{net::IpAddr, ops::RangeInclusive, os::fd::BorrowedFd, path::PathBuf};

/// Where a node's programs are attached and pinned.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// This node's own directory in a bpffs; it is made when missing. A bpffs refuses names with
    /// a dot.
    pub dir: PathBuf,
    /// The cgroup (v2) of the pods: the connect hooks see every socket below it.
    pub cgroup: PathBuf,
    /// The kubelet's cgroup (v2): the connections that it opens are noted and let through.
    pub kubelet_cgroup: Option<PathBuf>,
    /// Whether the programs say what they decide, through the `log` crate.
    pub debug: bool,
}

/// One pod to steer.
#[derive(Clone, Copy, Debug)]
pub struct PodOptions<'a> {
    /// The cookie of the pod's network namespace (`SO_NETNS_COOKIE`).
    pub cookie: u64,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// The pod's listeners, in the order of `culvert_api::agent::Listener::ALL`: outbound IPv4,
    /// inbound IPv4, outbound IPv6, inbound IPv6. Connections for a missing one are refused.
    pub listeners: [Option<BorrowedFd<'a>>; 4],
    /// The pod's own addresses.
    pub own: &'a [IpAddr],
    /// What is left alone.
    pub exclusions: &'a Exclusions,
}

/// What the pod asked to be left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Destination ports of outbound connections.
    pub outbound_ports: Vec<RangeInclusive<u16>>,
    /// Local ports of inbound connections.
    pub inbound_ports: Vec<RangeInclusive<u16>>,
    /// Destinations of outbound and sources of inbound connections.
    pub subnets: Vec<Subnet>,
}

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subnet {
    /// An address in the block; the bits behind the prefix do not count.
    pub addr: IpAddr,
    /// The length of the prefix, in bits: 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub prefix_len: u8,
}

/// What the programs did for one pod since they were first attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// connect() calls that were marked to go to the proxy.
    pub steered_out: u64,
    /// connect() calls that were refused because the pod is not up.
    pub refused_down: u64,
    /// connect() calls that were refused because the socket is bound to a device other than `lo`.
    pub refused_bound_device: u64,
    /// connect() calls that were left alone by an exclusion.
    pub excluded_out: u64,
    /// connect() calls on exempt sockets, which the agent made for the proxy.
    pub exempt: u64,
    /// Connections from the wire that were given to the inbound listener.
    pub steered_in: u64,
    /// Marked connections that were given to the outbound listener.
    pub delivered_out: u64,
    /// Connections that were refused because their listener is missing.
    pub dropped: u64,
    /// Connections from the wire that were left alone by an exclusion.
    pub excluded_in: u64,
    /// Connections of the kubelet that were let through.
    pub passed_probe: u64,
}
