// SPDX-License-Identifier: Apache-2.0
//! Which ports the dials to an application may take.
//!
//! A dial from a client's address and the client's own connections stand in one table of the pod,
//! and connect() sees no clash between the two: a port that both use makes a SYN time out.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

/// Beyond the range that Linux clients take ports from unless told otherwise: tried first.
pub(super) const HIGH: RangeInclusive<u16> = 61000..=65535;

/// Linux's own range, from which clients choose their ports: dials take some of it when all others are
/// in use.
pub(super) const LOW: RangeInclusive<u16> = 32768..=60999;

/// Where legs begin: the last part of what they share with the application, so that it keeps most of
/// its ports to a destination that both connect to.
pub(super) const LEGS: RangeInclusive<u16> = 52808..=60999;

/// Where they go on when those are used up.
pub(super) const LEGS_BELOW: RangeInclusive<u16> = 20480..=32767;

/// For the dials of a client that has more connections than there are ports above: apart from the legs
/// of its own proxy, because a leg that takes the port of a live dial is not answered.
pub(super) const BELOW: RangeInclusive<u16> = 1024..=20479;

/// The clients' ports of one pod's live wire connections, and of its dials that are bound to one for
/// good. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Wires {
    ports: Arc<Mutex<HashMap<IpAddr, BTreeMap<u16, usize>>>>,
}

/// A live connection: no dial takes its client's port while this is held.
#[derive(Debug)]
#[must_use]
pub struct WireGuard {
    wires: Wires,
    client: SocketAddr,
}

// === impl Wires ===

impl Wires {
    pub(super) fn register(&self, client: SocketAddr) -> WireGuard {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = ports.entry(client.ip()).or_default();
        *of_client.entry(client.port()).or_default() += 1;
        WireGuard {
            wires: self.clone(),
            client,
        }
    }

    fn forget(&self, client: SocketAddr) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_client) = ports.get_mut(&client.ip()) else {
            return;
        };
        if let Some(count) = of_client.get_mut(&client.port()) {
            *count -= 1;
            if *count == 0 {
                of_client.remove(&client.port());
            }
        }
        if of_client.is_empty() {
            ports.remove(&client.ip());
        }
    }

    /// The stretches of `range` without a port of a live connection of `client`, in order.
    pub(super) fn gaps(&self, client: IpAddr, range: &RangeInclusive<u16>) -> Vec<(u16, u16)> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let live = ports.get(&client).into_iter();
        let live = live.flat_map(|ports| ports.range(range.clone()).map(|(port, _)| *port));
        gaps(live, range)
    }
}

// === impl WireGuard ===

impl Drop for WireGuard {
    fn drop(&mut self) {
        self.wires.forget(self.client);
    }
}

fn gaps(live: impl Iterator<Item = u16>, range: &RangeInclusive<u16>) -> Vec<(u16, u16)> {
    let mut gaps = Vec::new();
    let (mut from, last) = (u32::from(*range.start()), u32::from(*range.end()));
    for port in live.map(u32::from).chain([last + 1]) {
        if from < port {
            gaps.push((from as u16, (port - 1) as u16));
        }
        from = port + 1;
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn gaps_leave_out_what_is_live() {
        let gaps = |live: &[u16]| gaps(live.iter().copied(), &(61000..=65535));
        assert_eq!(gaps(&[]), [(61000, 65535)]);
        assert_eq!(gaps(&[61000, 65535]), [(61001, 65534)]);
        assert_eq!(gaps(&[61001]), [(61000, 61000), (61002, 65535)]);
        let all: Vec<u16> = (61000..=65535).collect();
        assert_eq!(gaps(&all), []);
    }

    #[test]
    fn a_port_is_free_when_its_last_connection_ended() {
        let (wires, client) = (Wires::default(), addr("10.0.0.1:61001"));
        let one = wires.register(client);
        let mapped = wires.register(addr("[::ffff:10.0.0.1]:61001"));
        assert_eq!(wires.gaps(client.ip(), &HIGH).len(), 2);
        assert_eq!(wires.gaps(addr("10.0.0.2:1").ip(), &HIGH).len(), 1);
        drop(one);
        assert_eq!(wires.gaps(client.ip(), &HIGH).len(), 2);
        drop(mapped);
        assert_eq!(wires.gaps(client.ip(), &HIGH), [(61000, 65535)]);
        assert!(wires.ports.lock().is_ok_and(|ports| ports.is_empty()));
    }
}
