// SPDX-License-Identifier: Apache-2.0
//! The families of series.
//!
//! Those of pods are exposed by a collector of our own ([`super::exposition`]): their labels differ
//! from series to series (`deployment` of one pod, `statefulset` of another, as Linkerd has them),
//! and a series is gone when what counts in it is.

use prometheus::{
    IntCounter, IntGauge, Registry,
    core::{Collector, Desc},
    proto::MetricType,
};

/// A family that has series per pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    TcpOpenTotal,
    TcpOpen,
    TcpRead,
    TcpWrite,
    TcpClose,
    InboundTcpErrors,
    OutboundTcpErrors,
    TcpAllow,
    TcpDeny,
    TcpTerminate,
    Requests,
    Responses,
    Latency,
    InboundHttpErrors,
    OutboundHttpErrors,
    HttpAllow,
    HttpDeny,
    InboundDetectDuration,
    InboundDetectResults,
    OutboundDetectDuration,
    OutboundDetectResults,
    OutboundProtocols,
    Series,
    SeriesLimit,
    Overflow,
}

/// The metrics that are not per pod.
#[derive(Clone, Debug)]
pub(super) struct Globals {
    pub(super) panics: IntCounter,
    pub(super) connections: IntGauge,
    pub(super) handshakes: IntGauge,
}

// === impl Family ===

impl Family {
    /// Every one, in the order of the variants.
    pub(super) const ALL: [Self; 25] = [
        Self::TcpOpenTotal,
        Self::TcpOpen,
        Self::TcpRead,
        Self::TcpWrite,
        Self::TcpClose,
        Self::InboundTcpErrors,
        Self::OutboundTcpErrors,
        Self::TcpAllow,
        Self::TcpDeny,
        Self::TcpTerminate,
        Self::Requests,
        Self::Responses,
        Self::Latency,
        Self::InboundHttpErrors,
        Self::OutboundHttpErrors,
        Self::HttpAllow,
        Self::HttpDeny,
        Self::InboundDetectDuration,
        Self::InboundDetectResults,
        Self::OutboundDetectDuration,
        Self::OutboundDetectResults,
        Self::OutboundProtocols,
        Self::Series,
        Self::SeriesLimit,
        Self::Overflow,
    ];

    pub(super) fn kind(self) -> MetricType {
        match self {
            Self::TcpOpen | Self::Series | Self::SeriesLimit => MetricType::GAUGE,
            Self::Latency | Self::InboundDetectDuration | Self::OutboundDetectDuration => {
                MetricType::HISTOGRAM
            }
            _ => MetricType::COUNTER,
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.described().0
    }

    pub(super) fn help(self) -> &'static str {
        self.described().1
    }

    pub(super) fn desc(self) -> Result<Desc, prometheus::Error> {
        let (name, help) = self.described();
        Desc::new(name.into(), help.into(), Vec::new(), Default::default())
    }

    fn described(self) -> (&'static str, &'static str) {
        match self {
            Self::TcpOpenTotal => ("tcp_open_total", "Connections opened"),
            Self::TcpOpen => ("tcp_open_connections", "Connections that are open now"),
            Self::TcpRead => (
                "tcp_read_bytes_total",
                "Application bytes read from the peer",
            ),
            Self::TcpWrite => (
                "tcp_write_bytes_total",
                "Application bytes written to the peer",
            ),
            Self::TcpClose => (
                "tcp_close_total",
                "Connections closed; errno is empty for a clean end",
            ),
            Self::InboundTcpErrors => (
                "inbound_tcp_errors_total",
                "Inbound connections refused or broken off",
            ),
            Self::OutboundTcpErrors => (
                "outbound_tcp_errors_total",
                "Outbound connections refused or broken off",
            ),
            Self::TcpAllow => (
                "inbound_tcp_authz_allow_total",
                "Inbound connections that the policy let in",
            ),
            Self::TcpDeny => (
                "inbound_tcp_authz_deny_total",
                "Inbound connections that the policy refused",
            ),
            Self::TcpTerminate => (
                "inbound_tcp_authz_terminate_total",
                "Open inbound connections that a changed policy ended",
            ),
            _ => self.described_http(),
        }
    }

    fn described_http(self) -> (&'static str, &'static str) {
        match self {
            Self::Requests => ("request_total", "HTTP requests"),
            Self::Responses => (
                "response_total",
                "HTTP responses, at the end of their stream",
            ),
            Self::Latency => (
                "response_latency_ms",
                "Times from a request's head to the first of its response's body, or its end",
            ),
            Self::InboundHttpErrors => (
                "inbound_http_errors_total",
                "Inbound requests that the proxy itself answered or broke off",
            ),
            Self::OutboundHttpErrors => (
                "outbound_http_errors_total",
                "Outbound requests that the proxy itself answered or broke off",
            ),
            Self::HttpAllow => (
                "inbound_http_authz_allow_total",
                "Inbound requests that the policy let in",
            ),
            Self::HttpDeny => (
                "inbound_http_authz_deny_total",
                "Inbound requests that the policy refused",
            ),
            _ => self.described_rest(),
        }
    }

    fn described_rest(self) -> (&'static str, &'static str) {
        const DURATION: &str = "Times until it was clear what a connection speaks";
        const RESULTS: &str = "What connections were found to speak";
        match self {
            Self::InboundDetectDuration => ("inbound_tcp_detect_http_duration_seconds", DURATION),
            Self::OutboundDetectDuration => ("outbound_tcp_detect_http_duration_seconds", DURATION),
            Self::InboundDetectResults => ("inbound_tcp_detect_http_results_total", RESULTS),
            Self::OutboundDetectResults => ("outbound_tcp_detect_http_results_total", RESULTS),
            Self::OutboundProtocols => (
                "outbound_tcp_protocol_connections_total",
                "Outbound connections by what they are served as",
            ),
            Self::Series => (
                "proxy_metrics_series",
                "Series of workloads that are exposed now; a histogram is as many as its lines",
            ),
            Self::SeriesLimit => (
                "proxy_metrics_series_limit",
                "The most series of workloads; what is beyond is counted under overflow=\"true\"",
            ),
            _ => (
                "proxy_metrics_overflow_total",
                "Times that something new was counted under overflow=\"true\" for want of room",
            ),
        }
    }
}

// === impl Globals ===

impl Globals {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let panics = IntCounter::new(
            "proxy_panics_total",
            "Tasks that panicked; each cost its connection only",
        )?;
        let connections = IntGauge::new(
            "proxy_open_connections",
            "Connections that are served now, of all pods",
        )?;
        let handshakes = IntGauge::new(
            "proxy_inbound_handshakes",
            "Inbound connections whose client is not known yet, of all pods",
        )?;
        Ok(Self {
            panics: registered(registry, panics)?,
            connections: registered(registry, connections)?,
            handshakes: registered(registry, handshakes)?,
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
