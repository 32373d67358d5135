// SPDX-License-Identifier: Apache-2.0
//! Counters with few labels of their own: errors, answers of the policy, detected protocols.

use std::time::Duration;

use culvert_api::agent::Direction;

use super::{
    bounds::Charge,
    exposition::Page,
    families::Family,
    labels::Labels,
    sets::Idle,
    value::{Buckets, Count, Histogram, Used},
};
use crate::detect::Protocol;

/// Linkerd's, of detection (linkerd2-proxy, linkerd/http/detect/src/metrics.rs): 1 ms and 100 ms.
static DETECTION: Buckets<2> = Buckets {
    bounds: [1_000, 100_000],
    unit: 1_000_000,
};

/// A family of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Counter {
    InboundErrors,
    OutboundErrors,
    Allow,
    Deny,
    Terminate,
    InboundHttpErrors,
    OutboundHttpErrors,
    HttpAllow,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "who is refused is refused as a connection")
    )]
    HttpDeny,
    InboundDetected,
    OutboundDetected,
    OutboundProtocol,
}

/// A counter, to be kept by whoever counts often.
#[derive(Debug)]
pub(crate) struct Tally {
    count: Count,
    used: Used,
    _charge: Charge,
}

/// How long it took to detect what connections of one direction speak.
#[derive(Debug)]
pub(super) struct Detection {
    took: Histogram<2>,
    _charge: Charge,
}

/// The label `result`, as linkerd2-proxy has it.
pub(super) fn detected(protocol: Option<Protocol>) -> &'static str {
    match protocol {
        Some(Protocol::Http1) => "http/1",
        Some(Protocol::Http2) => "h2",
        Some(Protocol::Tls | Protocol::Opaque) => "not_http",
        None => "read_timeout",
    }
}

/// The label `protocol`, as linkerd2-proxy has it.
pub(super) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "http/1",
        Protocol::Http2 => "http/2",
        Protocol::Tls => "tls",
        Protocol::Opaque => "opaq",
    }
}

// === impl Counter ===

impl Counter {
    fn family(self) -> Family {
        match self {
            Self::InboundErrors => Family::InboundTcpErrors,
            Self::OutboundErrors => Family::OutboundTcpErrors,
            Self::Allow => Family::TcpAllow,
            Self::Deny => Family::TcpDeny,
            Self::Terminate => Family::TcpTerminate,
            Self::InboundHttpErrors => Family::InboundHttpErrors,
            Self::OutboundHttpErrors => Family::OutboundHttpErrors,
            Self::HttpAllow => Family::HttpAllow,
            Self::HttpDeny => Family::HttpDeny,
            Self::InboundDetected => Family::InboundDetectResults,
            Self::OutboundDetected => Family::OutboundDetectResults,
            Self::OutboundProtocol => Family::OutboundProtocols,
        }
    }

    fn labels(self) -> &'static [&'static str] {
        match self {
            Self::InboundErrors
            | Self::OutboundErrors
            | Self::InboundHttpErrors
            | Self::OutboundHttpErrors => &["error"],
            Self::Allow | Self::Deny | Self::Terminate | Self::HttpAllow | Self::HttpDeny => {
                &["authz_name", "tls", "client_id"]
            }
            Self::InboundDetected | Self::OutboundDetected => &["result"],
            Self::OutboundProtocol => &["protocol"],
        }
    }

    /// Whether peers have a say in the labels' values.
    pub(super) fn is_open(self) -> bool {
        self.labels().contains(&"client_id")
    }
}

// === impl Tally ===

impl Tally {
    pub(super) fn new(charge: Charge) -> Self {
        Self {
            count: Count::default(),
            used: Used::now(),
            _charge: charge,
        }
    }

    pub(crate) fn inc(&self) {
        self.used.touch();
        self.count.inc();
    }

    pub(super) fn expose(&self, page: &mut Page, counter: Counter, of: Labels, values: &[String]) {
        let own = counter.labels().iter().zip(values);
        let labels = own.fold(of, |labels, (name, value)| labels.always(name, value));
        page.count(counter.family(), labels, self.count.get());
    }
}

impl Idle for Tally {
    fn idle(&self) -> Duration {
        self.used.idle()
    }
}

// === impl Detection ===

impl Detection {
    /// How many series this is: two buckets, `+Inf`, sum and count.
    pub(super) const SERIES: usize = 5;

    pub(super) fn new(charge: Charge) -> Self {
        Self {
            took: Histogram::new(&DETECTION),
            _charge: charge,
        }
    }

    pub(super) fn took(&self, took: Duration) {
        self.took.observe(took);
    }

    pub(super) fn expose(&self, page: &mut Page, direction: Direction, labels: Labels) {
        let family = match direction {
            Direction::Inbound => Family::InboundDetectDuration,
            Direction::Outbound => Family::OutboundDetectDuration,
        };
        page.histogram(family, labels, &self.took);
    }
}
