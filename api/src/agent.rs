// SPDX-License-Identifier: Apache-2.0
//! What the agent and the proxy say to each other over a Unix SEQPACKET socket.
//!
//! Both begin with `Hello`. The agent then sends every stored key and every enrolled pod, ends the
//! snapshot, and goes on with changes; each message with a sequence number is acknowledged. One
//! datagram is one JSON message; file descriptors travel beside it by SCM_RIGHTS, in the order
//! that the message names. Unknown fields are ignored, so that a later release can add some.

use serde::{Deserialize, Serialize};

use crate::{
    identity::Identity,
    version::Versions,
    workload::{Addresses, Workload, WorkloadKey},
};

/// The versions that this release speaks.
pub const VERSIONS: Versions = Versions {
    newest: 1,
    oldest: 1,
};

/// The longest datagram, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The most file descriptors beside one datagram; the kernel's limit is `SCM_MAX_FD`, 253
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/net/scm.h#L18>).
pub const MAX_FDS: usize = 64;

/// An address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Into the pod.
    Inbound,
    /// Out of the pod.
    Outbound,
}

/// One of the pod's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listener {
    /// What it accepts.
    pub direction: Direction,
    /// Its family.
    pub family: Family,
}

/// What an unconnected socket of the pod's namespace is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketKind {
    /// To dial upstream from the pod: not transparent, not marked, exempt from steering.
    OutboundLeg,
    /// To dial the application from its client's address: IP_TRANSPARENT, marked IN.
    InboundDial,
}

/// A pool of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SocketPool {
    /// What its sockets are for.
    pub kind: SocketKind,
    /// Their family.
    pub family: Family,
}

/// From the agent to the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    /// The first message.
    Hello {
        /// What the agent speaks.
        versions: Versions,
        /// The name of the node.
        node: String,
    },
    /// A sealed memfd that an earlier proxy gave to keep. One descriptor.
    Key {
        /// Whose key and certificates it holds.
        identity: Identity,
    },
    /// A pod is enrolled, or its listeners were replaced. As many descriptors as `listeners`.
    Pod {
        /// To be acknowledged.
        seq: u64,
        /// The enrolment.
        key: WorkloadKey,
        /// Who the pod is.
        workload: Workload,
        /// The pod's own addresses.
        addresses: Addresses,
        /// Whether the pod ran before it was enrolled, so that its peers still dial it in plaintext.
        live: bool,
        /// What the descriptors are.
        listeners: Vec<Listener>,
    },
    /// The pod's addresses changed.
    Addresses {
        /// To be acknowledged.
        seq: u64,
        /// The enrolment.
        key: WorkloadKey,
        /// The pod's own addresses.
        addresses: Addresses,
    },
    /// The pod will be un-enrolled: tell control, wait until the peers know, answer `Withdrawn`.
    Withdraw {
        /// To be acknowledged.
        seq: u64,
        /// The enrolment.
        key: WorkloadKey,
    },
    /// The pod is gone or un-enrolled: close its listeners and sockets; open connections go on.
    Remove {
        /// To be acknowledged.
        seq: u64,
        /// The enrolment.
        key: WorkloadKey,
    },
    /// Every pod was named: what was not is gone.
    SnapshotEnd {
        /// To be acknowledged.
        seq: u64,
    },
    /// Unconnected sockets of the pod's namespace, as many as descriptors.
    Sockets {
        /// The enrolment.
        key: WorkloadKey,
        /// What they are.
        pool: SocketPool,
    },
}

/// From the proxy to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromProxy {
    /// The first message.
    Hello {
        /// What the proxy speaks.
        versions: Versions,
    },
    /// A message was carried out.
    Ack {
        /// Its number.
        seq: u64,
    },
    /// A message could not be carried out.
    Nack {
        /// Its number.
        seq: u64,
        /// Why.
        reason: String,
    },
    /// A pool is below its low-water mark.
    Want {
        /// The enrolment.
        key: WorkloadKey,
        /// The pool.
        pool: SocketPool,
        /// How many, at most [`MAX_FDS`].
        count: usize,
    },
    /// Keep this sealed memfd for the next proxy, until no pod of the identity is left. One descriptor.
    Keep {
        /// Whose key and certificates it holds.
        identity: Identity,
    },
    /// The peers know that the pod leaves the mesh.
    Withdrawn {
        /// The enrolment.
        key: WorkloadKey,
    },
}

impl Listener {
    /// The listeners of a pod, in the order of their slots in the SOCKMAP.
    pub const ALL: [Self; 4] = [
        Self::new(Direction::Outbound, Family::V4),
        Self::new(Direction::Inbound, Family::V4),
        Self::new(Direction::Outbound, Family::V6),
        Self::new(Direction::Inbound, Family::V6),
    ];

    const fn new(direction: Direction, family: Family) -> Self {
        Self { direction, family }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_release_may_add_fields() {
        let later = r#"{"type":"ack","seq":7,"took_us":12}"#;
        let got: FromProxy = serde_json::from_str(later).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(got, FromProxy::Ack { seq: 7 });
    }
}
