// SPDX-License-Identifier: Apache-2.0
//! The families and their labels.

use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, MetricVec, MetricVecBuilder},
};

/// The local pod's labels.
pub(super) const POD: [&str; 5] = [
    "namespace",
    "pod",
    "workload_kind",
    "workload_name",
    "service_account",
];

const TRANSPORT: [&str; 13] = [
    "direction",
    "peer",
    POD[0],
    POD[1],
    POD[2],
    POD[3],
    POD[4],
    "tls",
    "client_id",
    "server_id",
    "dst_namespace",
    "dst_service",
    "dst_pod",
];

#[derive(Clone, Debug)]
pub(super) struct Families {
    pub(super) open_total: IntCounterVec,
    pub(super) open: IntGaugeVec,
    pub(super) read: IntCounterVec,
    pub(super) write: IntCounterVec,
    pub(super) close: IntCounterVec,
    pub(super) inbound_errors: IntCounterVec,
    pub(super) outbound_errors: IntCounterVec,
    pub(super) allow: IntCounterVec,
    pub(super) deny: IntCounterVec,
    pub(super) terminate: IntCounterVec,
    pub(super) panics: IntCounter,
    pub(super) connections: IntGauge,
    pub(super) handshakes: IntGauge,
}

impl Families {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let closed = [&TRANSPORT[..], &["errno"]].concat();
        let error = [&POD[..], &["error"]].concat();
        let client = [&POD[..], &["authz_name", "tls", "client_id"]].concat();
        let open = Opts::new("tcp_open_connections", "Connections that are open now");
        Ok(Self {
            open_total: counter("tcp_open_total", "Connections opened", &TRANSPORT)?,
            open: registered(registry, IntGaugeVec::new(open, &TRANSPORT)?)?,
            read: counter(
                "tcp_read_bytes_total",
                "Application bytes read from the peer",
                &TRANSPORT,
            )?,
            write: counter(
                "tcp_write_bytes_total",
                "Application bytes written to the peer",
                &TRANSPORT,
            )?,
            close: counter(
                "tcp_close_total",
                "Connections closed; errno is empty for a clean end",
                &closed,
            )?,
            inbound_errors: counter(
                "inbound_tcp_errors_total",
                "Inbound connections refused or broken off",
                &error,
            )?,
            outbound_errors: counter(
                "outbound_tcp_errors_total",
                "Outbound connections refused or broken off",
                &error,
            )?,
            allow: counter(
                "inbound_tcp_authz_allow_total",
                "Inbound connections that the policy let in",
                &client,
            )?,
            deny: counter(
                "inbound_tcp_authz_deny_total",
                "Inbound connections that the policy refused",
                &client,
            )?,
            terminate: counter(
                "inbound_tcp_authz_terminate_total",
                "Open inbound connections that a changed policy ended",
                &client,
            )?,
            panics: registered(
                registry,
                IntCounter::new(
                    "proxy_panics_total",
                    "Tasks that panicked; each cost its connection only",
                )?,
            )?,
            connections: registered(
                registry,
                IntGauge::new(
                    "proxy_open_connections",
                    "Connections that are served now, of all pods",
                )?,
            )?,
            handshakes: registered(
                registry,
                IntGauge::new(
                    "proxy_inbound_handshakes",
                    "Inbound connections whose client is not known yet, of all pods",
                )?,
            )?,
        })
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// Removes a series. One that was never made is as good as removed.
pub(super) fn remove<B: MetricVecBuilder>(family: &MetricVec<B>, labels: &[&str]) {
    let _ = family.remove_label_values(labels);
}
