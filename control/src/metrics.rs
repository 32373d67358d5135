// SPDX-License-Identifier: Apache-2.0
//! What control counts.

use culvert_api::grpc::v1::watch_response::Kind;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::{
    ca::CertificateMetrics,
    index::{Applied, Refused},
};

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
    /// Reports that could not be kept, on disk or in their pods.
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
    token_reviews: IntCounterVec,
    callers_refused: IntCounterVec,
    /// What is counted of keys and certificates.
    pub certificates: CertificateMetrics,
    watches: Watches,
    /// Failures to renew this replica's Lease.
    pub lease_errors: IntCounter,
    /// Nodes and replicas that did not acknowledge a report in time.
    pub laggards: IntCounter,
    replicas: IntGauge,
    unwritten_reports: IntGauge,
}

/// How the watches of Kubernetes are, by kind.
#[derive(Clone, Debug)]
struct Watches {
    failing: IntGaugeVec,
    lists: IntGaugeVec,
    failures: IntGaugeVec,
    unreadable: IntGaugeVec,
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
            certificates: CertificateMetrics::register(registry)?,
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
                "Failures to keep the nodes' reports, on disk or in their pods",
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
            token_reviews: family(
                "culvert_control_token_reviews_total",
                "Tokens of nodes that the API server was asked of",
                "result",
            )?,
            callers_refused: family(
                "culvert_control_callers_refused_total",
                "Calls whose token does not say which node calls",
                "reason",
            )?,
            handshakes: family(
                "culvert_control_handshakes_total",
                "TLS handshakes",
                "result",
            )?,
            watches: Watches::register(registry)?,
            lease_errors: counter(
                "culvert_control_lease_errors_total",
                "Failures to renew the Lease of this replica",
            )?,
            laggards: counter(
                "culvert_control_laggards_total",
                "Nodes and replicas that did not acknowledge a report in time",
            )?,
            replicas: gauge(
                "culvert_control_replicas",
                "Replicas of control that live, as this one knows them",
            )?,
            unwritten_reports: gauge(
                "culvert_control_unwritten_reports",
                "Reports of nodes that the conditions of their pods don't say yet",
            )?,
        })
    }

    /// How the watch of a kind of Kubernetes' objects is: since the start it listed and failed so
    /// often.
    pub fn watch(&self, kind: &str, failing: bool, lists: u64, failures: u64) {
        let whole = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let watches = &self.watches;
        watches
            .failing
            .with_label_values(&[kind])
            .set(failing.into());
        watches.lists.with_label_values(&[kind]).set(whole(lists));
        watches
            .failures
            .with_label_values(&[kind])
            .set(whole(failures));
    }

    /// So many replicas live.
    pub fn set_replicas(&self, replicas: usize) {
        self.replicas
            .set(i64::try_from(replicas).unwrap_or(i64::MAX));
    }

    /// So many reports are not in the conditions of their pods.
    pub fn set_unwritten_reports(&self, reports: usize) {
        self.unwritten_reports
            .set(i64::try_from(reports).unwrap_or(i64::MAX));
    }

    /// So many objects of a kind can't be read.
    pub fn unreadable(&self, kind: &str, objects: usize) {
        let objects = i64::try_from(objects).unwrap_or(i64::MAX);
        self.watches
            .unreadable
            .with_label_values(&[kind])
            .set(objects);
    }

    /// A message goes to a node.
    pub fn sent(&self, kind: &Kind) {
        let label = match kind {
            Kind::Hello(_) => "hello",
            Kind::Destination(_) => "destination",
            Kind::Policy(_) => "policy",
            Kind::Reported(_) => "reported",
            Kind::Issuer(_) => "issuer",
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

    /// The API server was asked of a token: `authenticated`, `denied` or `failed`.
    pub fn token_reviewed(&self, result: &'static str) {
        self.token_reviews.with_label_values(&[result]).inc();
    }

    /// A call was refused for its token.
    pub fn caller_refused(&self, reason: &'static str) {
        self.callers_refused.with_label_values(&[reason]).inc();
    }

    /// A TLS handshake ended: `ok`, `failed`, `timeout` or `refused`.
    pub fn handshake(&self, result: &'static str) {
        self.handshakes.with_label_values(&[result]).inc();
    }
}

// === impl Watches ===

impl Watches {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let family = |name: &str, help: &str| {
            let family = IntGaugeVec::new(Opts::new(name, help), &["kind"])?;
            registered(registry, family)
        };
        Ok(Self {
            failing: family(
                "culvert_control_watch_failing",
                "1 while the watch of a kind of Kubernetes' objects does not go on",
            )?,
            lists: family(
                "culvert_control_watch_lists",
                "How often all objects of a kind were listed since the start",
            )?,
            failures: family(
                "culvert_control_watch_failures",
                "How often the watch of a kind failed since the start",
            )?,
            unreadable: family(
                "culvert_control_unreadable_objects",
                "Objects of a kind that this release can't read",
            )?,
        })
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
