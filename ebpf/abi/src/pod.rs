// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is known of one pod.

/// The slots of a pod's listeners, in the order of `culvert_api::agent::Listener::ALL`.
pub mod slot {
    /// Outbound, IPv4.
    pub const OUT4: u32 = 0;
    /// Inbound, IPv4.
    pub const IN4: u32 = 1;
    /// Outbound, IPv6.
    pub const OUT6: u32 = 2;
    /// Inbound, IPv6.
    pub const IN6: u32 = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// [`State::flags`]: connect() is marked. Without it the pod was withdrawn and only what it
/// marked is known.
pub const ENROLLED: u32 = 1 << 0;
/// [`State::flags`]: the proxy can be reached; without it connect() fails.
pub const UP: u32 = 1 << 1;

/// What the connect hooks know of a pod. Only the loader writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// [`ENROLLED`] and [`UP`].
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<State>() == 4 + 4);

/// What the connect hooks did. Only the programs write it, by atomic additions: these are counts
/// of connections, not of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectCounters {
    /// Marked.
    pub steered: u64,
    /// Left alone: exempt.
    pub exempt: u64,
    /// Left alone: excluded.
    pub excluded: u64,
    /// Refused: not up.
    pub refused_down: u64,
    /// Refused: bound to a device.
    pub refused_bound_device: u64,
}

const _: () = assert!(size_of::<ConnectCounters>() == 5 * 8);

/// What the pod's `sk_lookup` program did. Only the program writes it, by atomic additions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LookupCounters {
    /// Given to the outbound listener.
    pub outbound: u64,
    /// Given to the inbound listener.
    pub inbound: u64,
    /// Left alone: excluded.
    pub excluded: u64,
    /// Left alone: a connection of the kubelet.
    pub probe: u64,
    /// Refused: the listener is missing.
    pub dropped: u64,
}

const _: () = assert!(size_of::<LookupCounters>() == 5 * 8);
