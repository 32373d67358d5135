// SPDX-License-Identifier: Apache-2.0
//! What control counts.

use culvert_api::grpc::v1::watch_response::Kind;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::index::{Applied, Refused};

/// What control counts. Clones share it.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Nodes' streams that are open.
    pub streams: IntGauge,
    /// Destinations and policies that are followed.
    pub subscriptions: IntGauge,
    /// Subscriptions beyond a node's limit.
    pub subscriptions_refused: IntCounter,
    /// Broken manifests.
    pub manifest_problems: IntGauge,
    /// What the objects ask for and this release refuses.
    pub refusals: IntGauge,
    /// Seconds until the issuer's certificate ends.
    pub issuer_cert_ttl: IntGauge,
    /// Reports that could not be kept on disk.
    pub keep_errors: IntCounter,
    /// Streams of nodes that share no version with control.
    pub version_mismatches: IntCounter,
    /// Streams of nodes that claimed to be others.
    pub impostors: IntCounter,
    /// TLS connections that are open.
    pub connections: IntGauge,
    updates: IntCounterVec,
    reports: IntCounterVec,
    certify: IntCounterVec,
    handshakes: IntCounterVec,
}

/// What one stream adds to a gauge. Dropping it takes that away again.
#[derive(Debug)]
pub struct Share {
    gauge: IntGauge,
    value: i64,
}

// === impl Metrics ===

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name, help| registered(registry, IntGauge::new(name, help)?);
        let counter = |name, help| registered(registry, IntCounter::new(name, help)?);
        let family = |name: &str, help: &str, label| {
            registered(
                registry,
                IntCounterVec::new(Opts::new(name, help), &[label])?,
            )
        };
        Ok(Self {
            streams: gauge("culvert_control_streams", "Open streams of nodes")?,
            subscriptions: gauge(
                "culvert_control_subscriptions",
                "Followed destinations and policies",
            )?,
            subscriptions_refused: counter(
                "culvert_control_subscriptions_refused_total",
                "Subscriptions beyond a node's limit",
            )?,
            manifest_problems: gauge(
                "culvert_control_manifest_problems",
                "Manifests that are refused",
            )?,
            refusals: gauge(
                "culvert_control_refusals",
                "Things that objects ask for and this release refuses",
            )?,
            issuer_cert_ttl: gauge(
                "issuer_cert_ttl_seconds",
                "Seconds until the issuer's certificate ends",
            )?,
            version_mismatches: counter(
                "culvert_control_version_mismatches_total",
                "Streams that were refused because node and control share no version",
            )?,
            impostors: counter(
                "culvert_control_impostors_total",
                "Streams that were refused because the node's token is another's",
            )?,
            keep_errors: counter(
                "culvert_control_keep_errors_total",
                "Failures to keep the nodes' reports on disk",
            )?,
            connections: gauge("culvert_control_connections", "Open TLS connections")?,
            updates: family(
                "culvert_control_updates_total",
                "Messages sent to nodes",
                "kind",
            )?,
            reports: family(
                "culvert_control_reports_total",
                "Reports of nodes",
                "result",
            )?,
            certify: family(
                "culvert_control_certify_total",
                "Requests for certificates",
                "result",
            )?,
            handshakes: family(
                "culvert_control_handshakes_total",
                "TLS handshakes",
                "result",
            )?,
        })
    }

    /// A message goes to a node.
    pub fn sent(&self, kind: &Kind) {
        let label = match kind {
            Kind::Hello(_) => "hello",
            Kind::Destination(_) => "destination",
            Kind::Policy(_) => "policy",
            Kind::Reported(_) => "reported",
        };
        self.updates.with_label_values(&[label]).inc();
    }

    /// A report came.
    pub fn reported(&self, result: &Result<Applied, Refused>) {
        let label = match result {
            Ok(_) => "applied",
            Err(Refused::UnknownPod { .. }) => "early",
            Err(Refused::OtherNode { .. }) => "denied",
            Err(Refused::Stale(_)) => "stale",
        };
        self.reports.with_label_values(&[label]).inc();
    }

    /// A certificate was asked for.
    pub fn certified(&self, result: Result<(), tonic::Code>) {
        let label = match result {
            Ok(()) => "ok",
            Err(tonic::Code::Unauthenticated) => "unauthenticated",
            Err(tonic::Code::PermissionDenied) => "denied",
            Err(tonic::Code::InvalidArgument) => "invalid",
            Err(_) => "failed",
        };
        self.certify.with_label_values(&[label]).inc();
    }

    /// A TLS handshake ended: `ok`, `failed`, `timeout` or `refused`.
    pub fn handshake(&self, result: &'static str) {
        self.handshakes.with_label_values(&[result]).inc();
    }
}

fn registered<C>(registry: &Registry, collector: C) -> prometheus::Result<C>
where
    C: prometheus::core::Collector + Clone + 'static,
{
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

// === impl Share ===

impl Share {
    /// Nothing yet.
    pub fn of(gauge: &IntGauge) -> Self {
        Self {
            gauge: gauge.clone(),
            value: 0,
        }
    }

    /// Adds this much instead of what was added before.
    pub fn set(&mut self, value: usize) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.gauge.add(value - self.value);
        self.value = value;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gauge.sub(self.value);
    }
}
