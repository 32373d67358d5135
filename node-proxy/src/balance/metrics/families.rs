// SPDX-License-Identifier: Apache-2.0
//! The families and their labels: those of linkerd2-proxy's `proxy/balance`, `pool/p2c` and
//! `proxy/balance/queue`.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
    core::{Collector, MetricVec, MetricVecBuilder},
};

use super::ServicePort;

/// For a plain service the parent is the backend.
const SERVICE: [&str; 12] = [
    "parent_group",
    "parent_kind",
    "parent_namespace",
    "parent_name",
    "parent_port",
    "parent_section_name",
    "backend_group",
    "backend_kind",
    "backend_namespace",
    "backend_name",
    "backend_port",
    "backend_section_name",
];
const STATES: [&str; 2] = ["ready", "pending"];
const OPS: [&str; 3] = ["Reset", "Add", "Remove"];
/// In seconds.
const LATENCY: [f64; 6] = [0.0005, 0.005, 0.05, 0.5, 1.0, 3.0];

#[derive(Debug)]
pub(super) struct Families {
    states: IntGaugeVec,
    endpoints: IntGaugeVec,
    updates: IntCounterVec,
    length: IntGaugeVec,
    requests: IntCounterVec,
    latency: HistogramVec,
    gate_open: IntCounterVec,
    gate_shut: IntCounterVec,
    gate_open_time: GaugeVec,
    gate_shut_time: GaugeVec,
    gate_timeout: GaugeVec,
}

/// The series of one service.
#[derive(Debug)]
pub(in crate::balance) struct Handles {
    pub(super) ready: IntGauge,
    pub(super) pending: IntGauge,
    pub(super) endpoints: IntGauge,
    pub(super) updates_reset: IntCounter,
    pub(super) updates_add: IntCounter,
    pub(super) updates_remove: IntCounter,
    pub(in crate::balance) length: IntGauge,
    pub(in crate::balance) requests: IntCounter,
    pub(in crate::balance) latency: Histogram,
    pub(super) gate_open: IntCounter,
    pub(super) gate_shut: IntCounter,
    pub(super) gate_open_time: Gauge,
    pub(super) gate_shut_time: Gauge,
    pub(super) gate_timeout: Gauge,
}

/// Makes and registers the families of one prefix.
struct Registering<'a> {
    registry: &'a Registry,
    prefix: &'a str,
}

// === impl Families ===

impl Families {
    pub(super) fn register(registry: &Registry, prefix: &str) -> Result<Self, prometheus::Error> {
        let to = Registering { registry, prefix };
        let (by_state, by_op) = (with("endpoint_state"), with("op"));
        Ok(Self {
            states: to.int_gauge("endpoints", "Endpoints in the balancer", &by_state)?,
            endpoints: to.int_gauge("p2c_endpoints", "Endpoints in the balancer", &SERVICE)?,
            updates: to.counter("p2c_updates_total", "Updates by service discovery", &by_op)?,
            length: to.int_gauge("queue_length", "Waiting for an endpoint now", &SERVICE)?,
            requests: to.counter("queue_requests_total", "Queued for an endpoint", &SERVICE)?,
            latency: to.latency("queue_latency_seconds", "Time spent in the queue")?,
            gate_open: to.counter("queue_gate_open_total", "Times the gate opened", &SERVICE)?,
            gate_shut: to.counter("queue_gate_shut_total", "Times the gate shut", &SERVICE)?,
            gate_open_time: to.gauge(
                "queue_gate_open_time_seconds",
                "When the gate opened; 0: it is shut",
            )?,
            gate_shut_time: to.gauge(
                "queue_gate_shut_time_seconds",
                "When the gate shut; 0: it is open",
            )?,
            gate_timeout: to.gauge(
                "queue_gate_timeout_seconds",
                "How long no endpoint may be ready before the gate shuts",
            )?,
        })
    }

    pub(super) fn handles(&self, service: &ServicePort) -> Handles {
        let port = service.port.to_string();
        let labels = labels(service, &port);
        let [ready, pending] =
            STATES.map(|state| self.states.with_label_values(&and(&labels, state)));
        let [updates_reset, updates_add, updates_remove] =
            OPS.map(|op| self.updates.with_label_values(&and(&labels, op)));
        Handles {
            ready,
            pending,
            endpoints: self.endpoints.with_label_values(&labels),
            updates_reset,
            updates_add,
            updates_remove,
            length: self.length.with_label_values(&labels),
            requests: self.requests.with_label_values(&labels),
            latency: self.latency.with_label_values(&labels),
            gate_open: self.gate_open.with_label_values(&labels),
            gate_shut: self.gate_shut.with_label_values(&labels),
            gate_open_time: self.gate_open_time.with_label_values(&labels),
            gate_shut_time: self.gate_shut_time.with_label_values(&labels),
            gate_timeout: self.gate_timeout.with_label_values(&labels),
        }
    }

    pub(super) fn remove(&self, service: &ServicePort) {
        let port = service.port.to_string();
        let labels = labels(service, &port);
        for state in STATES {
            remove(&self.states, &and(&labels, state));
        }
        for op in OPS {
            remove(&self.updates, &and(&labels, op));
        }
        for gauges in [&self.endpoints, &self.length] {
            remove(gauges, &labels);
        }
        for counters in [&self.requests, &self.gate_open, &self.gate_shut] {
            remove(counters, &labels);
        }
        for gauges in [
            &self.gate_open_time,
            &self.gate_shut_time,
            &self.gate_timeout,
        ] {
            remove(gauges, &labels);
        }
        remove(&self.latency, &labels);
    }
}

/// The labels of a service, one more before them.
fn with(label: &'static str) -> [&'static str; 13] {
    and(&SERVICE, label)
}

fn labels<'a>(service: &'a ServicePort, port: &'a str) -> [&'a str; 12] {
    let ServicePort {
        namespace, name, ..
    } = service;
    let whose = ["core", "Service", namespace, name, port, ""];
    std::array::from_fn(|at| whose[at % whose.len()])
}

fn and<'a>(labels: &[&'a str; 12], first: &'a str) -> [&'a str; 13] {
    std::array::from_fn(|at| at.checked_sub(1).map_or(first, |at| labels[at]))
}

/// One that was never made is as good as removed.
fn remove<B: MetricVecBuilder>(family: &MetricVec<B>, labels: &[&str]) {
    let _ = family.remove_label_values(labels);
}

// === impl Registering ===

impl Registering<'_> {
    fn counter(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.registered(IntCounterVec::new(self.opts(name, help), labels)?)
    }

    fn int_gauge(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.registered(IntGaugeVec::new(self.opts(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<GaugeVec, prometheus::Error> {
        self.registered(GaugeVec::new(self.opts(name, help), &SERVICE)?)
    }

    fn latency(&self, name: &str, help: &str) -> Result<HistogramVec, prometheus::Error> {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(LATENCY.to_vec());
        self.registered(HistogramVec::new(opts, &SERVICE)?)
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{}_{name}", self.prefix), help)
    }

    fn registered<C: Collector + Clone + 'static>(
        &self,
        family: C,
    ) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }
}
