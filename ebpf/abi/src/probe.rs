// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The connections that the kubelet opens.

use crate::Address;

/// A connection as the pod that it goes to will see it, in `sk_lookup`'s words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Tuple {
    /// The kubelet's address.
    pub remote: Address,
    /// The pod's address.
    pub local: Address,
    /// The kubelet's port, in host byte order.
    pub remote_port: u32,
    /// The pod's port, in host byte order.
    pub local_port: u32,
}

const _: () = assert!(size_of::<Tuple>() == 16 + 16 + 4 + 4);
