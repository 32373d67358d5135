// SPDX-License-Identifier: Apache-2.0
//! What a port speaks, as far as it is known beforehand.

use serde::{Deserialize, Serialize};

/// Ports whose protocols are not looked at unless an annotation says otherwise: SMTP, submission,
/// MySQL, Galera, PostgreSQL, Redis, Elasticsearch and memcached. Linkerd's `proxy.opaquePorts`.
pub const OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// What is known of a port's protocol before a connection's first byte.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// Nothing: the first bytes tell.
    #[default]
    Detect,
    /// Bytes are passed on and not looked at.
    Opaque,
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge, gRPC too.
    Http2,
}

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortHint {
    /// The first port.
    pub first: u16,
    /// The last port, which is one of them.
    pub last: u16,
    /// What they speak.
    pub hint: Hint,
}

/// What the ports of a workload speak. A port that is not in it is detected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PortHints(Vec<PortHint>);

// === impl Hint ===

impl Hint {
    /// What holds for a port of which nothing was said.
    pub fn of_port(port: u16) -> Self {
        if OPAQUE_PORTS.contains(&port) {
            return Self::Opaque;
        }
        Self::Detect
    }
}

// === impl PortHint ===

impl PortHint {
    /// A single port.
    pub const fn one(port: u16, hint: Hint) -> Self {
        Self {
            first: port,
            last: port,
            hint,
        }
    }
}

// === impl PortHints ===

impl PortHints {
    /// The first range that has a port says what it speaks.
    pub fn new(hints: Vec<PortHint>) -> Self {
        Self(hints)
    }

    /// What a port speaks.
    pub fn of(&self, port: u16) -> Hint {
        let has = |range: &&PortHint| (range.first..=range.last).contains(&port);
        self.0.iter().find(has).map_or(Hint::Detect, |of| of.hint)
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[PortHint] {
        &self.0
    }
}

/// What holds for a workload of which nothing was said: [`OPAQUE_PORTS`].
impl Default for PortHints {
    fn default() -> Self {
        let opaque = OPAQUE_PORTS.map(|port| PortHint::one(port, Hint::Opaque));
        Self(opaque.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_said_is_the_default_list() {
        for port in [25, 3306, 11211] {
            assert_eq!(Hint::of_port(port), Hint::Opaque);
            assert_eq!(PortHints::default().of(port), Hint::Opaque);
        }
        assert_eq!(Hint::of_port(80), Hint::Detect);
        assert_eq!(PortHints::default().of(80), Hint::Detect);
    }

    #[test]
    fn the_first_range_that_has_a_port_counts() {
        let wide = PortHint {
            first: 8000,
            last: 9000,
            hint: Hint::Opaque,
        };
        let hints = PortHints::new(vec![PortHint::one(8080, Hint::Http1), wide]);
        let of = [7999, 8000, 8080, 9000, 9001].map(|port| hints.of(port));
        use Hint::{Detect, Http1, Opaque};
        assert_eq!(of, [Detect, Opaque, Http1, Opaque, Detect]);
        assert_eq!(
            PortHints::new(vec![]).of(25),
            Detect,
            "an empty list is one"
        );
    }
}
