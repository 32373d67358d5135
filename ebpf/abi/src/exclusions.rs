// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Keys of the LPM tries that say what is left alone. The node's tries hold every pod's; a pod's
//! own hold only its own and have the scope 0. The prefix covers the scope in full.

use crate::Address;

/// A key of the trie of subnets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Subnet {
    /// The netns cookie, or 0.
    pub scope: u64,
    /// [`Address::family`], so that `::/0` is not all of IPv4 too.
    pub family: u32,
    /// The address.
    pub address: Address,
    /// Zero; never a part of the prefix.
    pub pad: u32,
}

const _: () = assert!(size_of::<Subnet>() == 8 + 4 + 16 + 4);

/// How many bits of a [`Subnet`] come before its address.
pub const SUBNET_HEAD_BITS: u32 = 96;

impl Subnet {
    /// The key of one address.
    #[inline(always)]
    #[must_use]
    pub const fn of(scope: u64, address: &Address) -> Self {
        Self {
            scope,
            family: address.family(),
            address: *address,
            pad: 0,
        }
    }
}

/// A key of the trie of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Port {
    /// The netns cookie, or 0.
    pub scope: u64,
    /// The port in network byte order, so that a prefix is a range.
    pub port: u16,
    /// Zero; never a part of the prefix.
    pub pad: [u16; 3],
}

const _: () = assert!(size_of::<Port>() == 8 + 2 + 6);

/// How many bits of a [`Port`] come before its port.
pub const PORT_HEAD_BITS: u32 = 64;

impl Port {
    /// The key of one port in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn of(scope: u64, port: u16) -> Self {
        Self {
            scope,
            port: port.to_be(),
            pad: [0; 3],
        }
    }
}
