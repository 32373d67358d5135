// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What Culvert's eBPF programs and their loader agree on: map names, keys, values and numbers.
//!
//! Maps outlive the agent that made them, so any change here that an older program or loader would
//! misread needs a new [`ABI_VERSION`]. Every type is `repr(C)`, of fixed size, with its padding
//! written out and without `bool` or `enum`, because the other side may write any bits.
#![no_std]

pub mod address;
pub mod exclusions;
pub mod pod;
pub mod probe;

pub use address::Address;

/// The version of all this; a part of the path of every pin.
pub const ABI_VERSION: u32 = 1;

/// The bits of a socket's mark that are Culvert's. Away from 0x80000 (Tailscale), 0xca6c
/// (`WireGuard`), 0xffff (Istio, Cilium, kube-proxy use the lower half).
pub const MARK_MASK: u32 = 0x0f00_0000;
/// The mark of an application's connection that is to go to the proxy.
pub const MARK_OUT: u32 = 0x0200_0000;
/// The mark of the proxy's dial to the application.
pub const MARK_IN: u32 = 0x0100_0000;

/// The routing table in the pod that takes [`MARK_IN`] to `lo`.
pub const TABLE_IN: u32 = 17100;
/// The routing table in the pod that takes [`MARK_OUT`] to `lo`.
pub const TABLE_OUT: u32 = 17101;

/// The interface index of `lo`, the same in every network namespace
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/net/flow.h>).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// The names of the maps, as the programs' object files say them.
pub mod map {
    /// Hash: netns cookie to [`crate::pod::State`].
    pub const PODS: &str = "PODS";
    /// Hash: netns cookie to [`crate::pod::ConnectCounters`].
    pub const CONNECTS: &str = "CONNECTS";
    /// LPM trie of [`crate::exclusions::Subnet`]: destinations that every pod excludes.
    pub const OUT_SUBNETS: &str = "OUT_SUBNETS";
    /// LPM trie of [`crate::exclusions::Port`]: destination ports that every pod excludes.
    pub const OUT_PORTS: &str = "OUT_PORTS";
    /// LPM trie of [`crate::exclusions::Subnet`]: sources that one pod excludes.
    pub const IN_SUBNETS: &str = "IN_SUBNETS";
    /// LPM trie of [`crate::exclusions::Port`]: local ports that one pod excludes.
    pub const IN_PORTS: &str = "IN_PORTS";
    /// Socket storage: the sockets that the connect hooks leave alone. The same in every version.
    pub const EXEMPT: &str = "EXEMPT";
    /// LRU hash of [`crate::probe::Tuple`]: the connections that the kubelet opened.
    pub const PROBES: &str = "PROBES";
    /// `SOCKMAP`: the pod's listeners, by [`crate::pod::slot`].
    pub const LISTENERS: &str = "LISTENERS";
    /// Hash of [`crate::Address`]: the pod's own addresses.
    pub const OWN: &str = "OWN";
    /// Array of one [`crate::pod::LookupCounters`].
    pub const LOOKUPS: &str = "LOOKUPS";
    /// The ring buffer of aya-log.
    pub const LOGS: &str = "AYA_LOGS";
}

/// The names of the programs; not those of their sections, which bpf-linker takes for a clash.
pub mod program {
    /// `cgroup/connect4`.
    pub const CONNECT4: &str = "on_connect4";
    /// `cgroup/connect6`.
    pub const CONNECT6: &str = "on_connect6";
    /// `sockops`.
    pub const PROBE_NOTES: &str = "note_probes";
    /// `sk_lookup`.
    pub const LOOKUP: &str = "on_lookup";
}

/// How many pods one node may steer.
pub const MAX_PODS: usize = 4096;
/// How many subnets, and how many prefixes of ports, one pod may exclude in each direction.
pub const MAX_EXCLUSIONS: usize = 1024;
/// How many addresses one pod may have.
pub const MAX_OWN: usize = 256;
/// How many connections of the kubelet are remembered.
pub const MAX_PROBES: usize = 8192;

/// Promises aya that the types may cross as bytes.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($type:ty),+) => {
        $(
            // SAFETY: repr(C), Copy, 'static, no padding (the sizes are asserted to be the sums of
            // the fields), and any bits are a value.
            unsafe impl aya::Pod for $type {}
        )+
    };
}
#[cfg(feature = "user")]
pod!(
    address::Address,
    exclusions::Subnet,
    exclusions::Port,
    pod::State,
    pod::ConnectCounters,
    pod::LookupCounters,
    probe::Tuple
);
