// SPDX-License-Identifier: Apache-2.0
//! What the agent counts.

use std::collections::BTreeMap;

use culvert_api::agent::SocketKind;
use culvert_ebpf_loader::Counters;
use prometheus::{
    Error, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::{
    desired::{Desired, Fault},
    ebpf::Ebpf,
    proxy_link::hub::Hub,
};

/// From a millisecond to what an ADD may take at most, in seconds.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// Handles of all metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// By state.
    pub pods: IntGaugeVec,
    /// By command and result.
    pub cni_requests: IntCounterVec,
    /// How long ADD took, in seconds.
    pub cni_add_seconds: Histogram,
    /// By kind.
    pub sockets_made: IntCounterVec,
    /// Sockets that a proxy wanted beyond the rate of one pod.
    pub sockets_throttled: IntCounter,
    /// Requests for sockets that failed, by reason.
    pub sockets_failed: IntCounterVec,
    /// Proxies that are connected.
    pub proxies: IntGauge,
    /// Proxies that were refused, by reason.
    pub proxies_refused: IntCounterVec,
    /// Messages that a proxy could not carry out.
    pub nacks: IntCounter,
    /// Messages of a proxy that can't be read.
    pub unreadable: IntCounter,
    /// Messages that a proxy did not acknowledge in time.
    pub unacknowledged: IntCounter,
    /// Key memfds that were refused, by reason.
    pub keys_refused: IntCounterVec,
    /// Times that a pod was cut off because it could not be steered.
    pub cut_off: IntCounter,
    /// Times that a steered pod was not as it was left and was put right.
    pub repairs: IntCounter,
    /// What users wrote and can't have, by reason.
    pub refused_annotations: IntGaugeVec,
    /// Pods that ran already and were taken in, by who told of them.
    pub adopted: IntCounterVec,
    /// Questions to the container runtime that failed.
    pub cri_failures: IntCounter,
    /// Events of Kubernetes, by what became of them.
    pub events: IntCounterVec,
}

// === impl Metrics ===

impl Metrics {
    /// Registers all metrics.
    pub fn register(registry: &Registry) -> Result<Self, Error> {
        let registered = Registered(registry);
        let metrics = Self {
            pods: registered.gauges("pods", "Pods that are attached, by state.", "state")?,
            cni_requests: registered.counters(
                "cni_requests_total",
                "Requests of the CNI plugin, by command and result.",
                &["command", "result"],
            )?,
            cni_add_seconds: registered.histogram("cni_add_seconds", "How long CNI ADD took.")?,
            sockets_made: registered.counters(
                "sockets_made_total",
                "Sockets made for the proxy in pods' namespaces.",
                &["kind"],
            )?,
            sockets_throttled: registered.counter(
                "sockets_throttled_total",
                "Times that a proxy wanted sockets beyond the rate of one pod.",
            )?,
            sockets_failed: registered.counters(
                "sockets_failed_total",
                "Requests for sockets that came to nothing, by reason.",
                &["reason"],
            )?,
            proxies: registered.gauge("proxy_connections", "Proxies that are connected.")?,
            proxies_refused: registered.counters(
                "proxy_connections_refused_total",
                "Connections to the proxies' socket that were refused, by reason.",
                &["reason"],
            )?,
            nacks: registered.counter(
                "proxy_nacks_total",
                "Messages that a proxy could not carry out.",
            )?,
            unreadable: registered.counter(
                "proxy_messages_unreadable_total",
                "Messages of a proxy that could not be read. What is no JSON ends the connection, the rest is ignored.",
            )?,
            unacknowledged: registered.counter(
                "proxy_unacknowledged_total",
                "Messages that a proxy did not acknowledge within 10 seconds.",
            )?,
            keys_refused: registered.counters(
                "keys_refused_total",
                "Key memfds that the agent refused to keep, by reason.",
                &["reason"],
            )?,
            cut_off: registered.counter(
                "cut_off_total",
                "Times that a steered pod was cut off because its steering could not be set.",
            )?,
            repairs: registered.counter(
                "repairs_total",
                "Times that somebody changed what steers a pod and it was set again.",
            )?,
            refused_annotations: registered.gauges(
                "pods_refused",
                "What pods ask for by their annotations and can't have, by reason.",
                "reason",
            )?,
            adopted: registered.counters(
                "pods_adopted_total",
                "Pods that ran already when they were taken in, by who told of them.",
                &["by"],
            )?,
            cri_failures: registered.counter(
                "cri_failures_total",
                "Questions to the container runtime that it did not answer.",
            )?,
            events: registered.counters(
                "events_total",
                "Events about pods and namespaces, by what became of them.",
                &["result"],
            )?,
        };
        registered.build_info()?;
        for state in ["enrolled", "unmeshed", "failed"] {
            metrics.pods.with_label_values(&[state]).set(0);
        }
        Ok(metrics)
    }

    /// Counts what users wrote and can't have.
    pub fn count_problems(&self, desired: &Desired) {
        let mut counts = BTreeMap::from(Fault::LABELS.map(|label| (label, 0)));
        for problem in &desired.problems {
            *counts.entry(problem.fault.label()).or_default() += 1;
        }
        for (reason, count) in counts {
            self.refused_annotations
                .with_label_values(&[reason])
                .set(count);
        }
    }

    /// Counts sockets made.
    pub fn count_sockets(&self, kind: SocketKind, count: usize) {
        let label = match kind {
            SocketKind::OutboundLeg => "outbound_leg",
            SocketKind::InboundDial => "inbound_dial",
        };
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.sockets_made.with_label_values(&[label]).inc_by(count);
    }
}

/// A registry that knows the prefix of the agent's metrics.
struct Registered<'a>(&'a Registry);

impl Registered<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.add(IntCounter::with_opts(opts(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.add(IntCounterVec::new(opts(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.add(IntGauge::with_opts(opts(name, help))?)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> Result<IntGaugeVec, Error> {
        self.add(IntGaugeVec::new(opts(name, help), &[label])?)
    }

    fn histogram(&self, name: &str, help: &str) -> Result<Histogram, Error> {
        let opts = HistogramOpts::from(opts(name, help)).buckets(BUCKETS.to_vec());
        self.add(Histogram::with_opts(opts)?)
    }

    fn build_info(&self) -> Result<(), Error> {
        let info = self.gauges("build_info", "The version of the agent.", "version")?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(())
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("culvert_agent_{name}"), help)
}

/// What the eBPF programs decided, read from their maps when somebody asks. A pod's series go
/// with the pod.
pub struct Steering {
    ebpf: Ebpf,
    hub: Hub,
    empty: IntCounterVec,
}

// === impl Steering ===

impl Steering {
    /// Reads the counters of the pods that `hub` knows.
    pub fn new(ebpf: Ebpf, hub: Hub) -> Result<Self, Error> {
        let empty = Self::family()?;
        Ok(Self { ebpf, hub, empty })
    }

    fn family() -> Result<IntCounterVec, Error> {
        let help = "Connections of pods that the eBPF programs decided on, by decision.";
        let opts = Opts::new("culvert_steering_total", help);
        IntCounterVec::new(opts, &["namespace", "pod", "decision"])
    }

    fn read(&self) -> Result<IntCounterVec, Error> {
        let family = Self::family()?;
        let pods = self.hub.workloads();
        let node = self.ebpf.lock();
        for (cookie, workload) in pods {
            // A pod that is just leaving.
            let Ok(counters) = node.counters(cookie.0) else {
                continue;
            };
            for (decision, count) in decisions(&counters) {
                let labels = [&*workload.namespace, &*workload.name, decision];
                family.with_label_values(&labels).inc_by(count);
            }
        }
        Ok(family)
    }
}

impl Collector for Steering {
    fn desc(&self) -> Vec<&Desc> {
        self.empty.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read()
            .map(|family| family.collect())
            .unwrap_or_default()
    }
}

/// Without `..`, so that a new counter must be noticed.
const fn decisions(counters: &Counters) -> [(&'static str, u64); 10] {
    let Counters {
        steered_out,
        refused_down,
        refused_bound_device,
        excluded_out,
        exempt,
        steered_in,
        delivered_out,
        dropped,
        excluded_in,
        passed_probe,
    } = *counters;
    [
        ("steered_out", steered_out),
        ("refused_down", refused_down),
        ("refused_bound_device", refused_bound_device),
        ("excluded_out", excluded_out),
        ("exempt", exempt),
        ("steered_in", steered_in),
        ("delivered_out", delivered_out),
        ("dropped", dropped),
        ("excluded_in", excluded_in),
        ("passed_probe", passed_probe),
    ]
}
