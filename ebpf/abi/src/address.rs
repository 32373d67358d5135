// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! IP addresses as map keys.

#[cfg(test)]
mod tests;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 address, or an IPv4 one as `::ffff:a.b.c.d`: what a connection is does not depend on
/// the family of the socket that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Address {
    /// The 16 bytes on the wire, in four words as the kernel's contexts give them.
    pub words: [u32; 4],
}

const _: () = assert!(size_of::<Address>() == 16);

/// [`Address::family`] of IPv4.
pub const V4: u32 = 4;
/// [`Address::family`] of IPv6.
pub const V6: u32 = 6;

const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// An IPv4 address in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// An IPv6 address in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The 16 bytes on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn octets(&self) -> [u8; 16] {
        let [w, x, y, z] = self.words;
        let [[a, b, c, d], [e, f, g, h]] = [w.to_ne_bytes(), x.to_ne_bytes()];
        let [[i, j, k, l], [m, n, o, p]] = [y.to_ne_bytes(), z.to_ne_bytes()];
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// [`V4`] or [`V6`].
    #[inline(always)]
    #[must_use]
    pub const fn family(&self) -> u32 {
        let [a, b, c, _] = self.words;
        if a == 0 && b == 0 && c == MAPPED {
            V4
        } else {
            V6
        }
    }

    /// Whether the mesh has no business with it: loopback (127/8, ::1), link-local (169.254/16,
    /// `fe80::/10`), or unspecified, which connect() takes for loopback.
    #[inline(always)]
    #[must_use]
    pub const fn is_local(&self) -> bool {
        let [a, b, c, d] = self.words;
        let last = u32::from_be(d);
        if self.family() == V4 {
            return last >> 24 == 127 || last >> 16 == 0xa9fe || last == 0;
        }
        let in_first_two = a == 0 && b == 0 && c == 0 && last <= 1;
        in_first_two || u32::from_be(a) >> 22 == 0xfe80 >> 6
    }
}

impl From<Ipv4Addr> for Address {
    fn from(addr: Ipv4Addr) -> Self {
        Self::v4(u32::from_ne_bytes(addr.octets()))
    }
}

impl From<Ipv6Addr> for Address {
    fn from(addr: Ipv6Addr) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = addr.octets();
        Self::v6([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }
}

impl From<IpAddr> for Address {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => addr.into(),
            IpAddr::V6(addr) => addr.into(),
        }
    }
}
