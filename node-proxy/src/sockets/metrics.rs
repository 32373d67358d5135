// SPDX-License-Identifier: Apache-2.0
//! What the pools of all pods count together.

use culvert_api::agent::{Family, SocketKind, SocketPool};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The families of metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct SocketMetrics {
    sockets: IntGaugeVec,
    received: IntCounterVec,
    made: IntCounterVec,
    recycled: IntCounterVec,
    closed: IntCounterVec,
    starved: IntCounterVec,
    chosen_ports: IntCounterVec,
}

/// The handles of one kind of pool.
#[derive(Clone, Debug)]
pub(super) struct PoolMetrics {
    /// Sockets that wait to be used.
    pub(super) idle: IntGauge,
    /// Sockets with a connection.
    pub(super) live: IntGauge,
    /// Sockets whose connection still ends.
    pub(super) lingering: IntGauge,
    /// Sockets that the agent gave.
    pub(super) received: IntCounter,
    /// Sockets that were made without the agent.
    pub(super) made: IntCounter,
    /// Sockets that were made as good as new.
    pub(super) recycled: IntCounter,
    /// Sockets that could not be used again.
    pub(super) closed: IntCounter,
    /// Connections that failed because no socket was there in time.
    pub(super) starved: IntCounter,
    /// Dials from a port beyond the clients' usual range.
    pub(super) high_ports: IntCounter,
    /// Dials from a port in the clients' usual range.
    pub(super) low_ports: IntCounter,
}

// === impl SocketMetrics ===

impl SocketMetrics {
    /// Registers the families.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["kind", "family"])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Self {
            sockets: sockets(registry)?,
            received: counter(
                "culvert_proxy_sockets_received_total",
                "Sockets of pods' network namespaces that the agent gave.",
            )?,
            made: counter(
                "culvert_proxy_sockets_made_total",
                "Sockets of pods' network namespaces that were made without the agent.",
            )?,
            recycled: counter(
                "culvert_proxy_sockets_recycled_total",
                "Spent sockets that were made as good as new.",
            )?,
            closed: counter(
                "culvert_proxy_sockets_closed_total",
                "Spent sockets that could not be used again.",
            )?,
            starved: counter(
                "culvert_proxy_sockets_starved_total",
                "Connections that failed because the pod's pool was empty for too long.",
            )?,
            chosen_ports: chosen_ports(registry)?,
        })
    }

    pub(super) fn pool(&self, pool: SocketPool) -> PoolMetrics {
        let (kind, family) = (kind(pool.kind), family(pool.family));
        let labels = [kind, family];
        let state = |state| self.sockets.with_label_values(&[kind, family, state]);
        let ports = |range| self.chosen_ports.with_label_values(&[family, range]);
        PoolMetrics {
            idle: state("idle"),
            live: state("live"),
            lingering: state("lingering"),
            received: self.received.with_label_values(&labels),
            made: self.made.with_label_values(&labels),
            recycled: self.recycled.with_label_values(&labels),
            closed: self.closed.with_label_values(&labels),
            starved: self.starved.with_label_values(&labels),
            high_ports: ports("high"),
            low_ports: ports("low"),
        }
    }
}

fn sockets(registry: &Registry) -> Result<IntGaugeVec, prometheus::Error> {
    let help = "Sockets of pods' network namespaces that this proxy holds.";
    let opts = Opts::new("culvert_proxy_sockets", help);
    let sockets = IntGaugeVec::new(opts, &["kind", "family", "state"])?;
    registry.register(Box::new(sockets.clone()))?;
    Ok(sockets)
}

fn chosen_ports(registry: &Registry) -> Result<IntCounterVec, prometheus::Error> {
    let help = "Dials to applications by the range of their source port: low ones may clash with a \
                client's.";
    let opts = Opts::new("culvert_proxy_dial_ports_total", help);
    let ports = IntCounterVec::new(opts, &["family", "range"])?;
    registry.register(Box::new(ports.clone()))?;
    Ok(ports)
}

fn kind(kind: SocketKind) -> &'static str {
    match kind {
        SocketKind::OutboundLeg => "outbound_leg",
        SocketKind::InboundDial => "inbound_dial",
    }
}

fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}
