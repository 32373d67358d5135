// SPDX-License-Identifier: Apache-2.0
//! What is counted of certificates.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use super::Expiring;

/// What is counted of certificates. Clones share it.
#[derive(Clone, Debug)]
pub struct CertificateMetrics {
    issuer: IntGauge,
    anchor: IntGauge,
    /// Seconds until control's own certificate ends.
    pub serving: IntGauge,
    reads: IntCounterVec,
}

// === impl CertificateMetrics ===

impl CertificateMetrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name, help| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let reads = Opts::new(
            "culvert_control_authority_reads_total",
            "Changes of the files of the issuer and the trust anchors",
        );
        let reads = IntCounterVec::new(reads, &["result"])?;
        registry.register(Box::new(reads.clone()))?;
        Ok(Self {
            issuer: gauge(
                "issuer_cert_ttl_seconds",
                "Seconds until the issuer's certificate ends",
            )?,
            anchor: gauge(
                "culvert_control_trust_anchor_ttl_seconds",
                "Seconds until the trust anchor that vouches for the issuer ends",
            )?,
            serving: gauge(
                "culvert_control_serving_cert_ttl_seconds",
                "Seconds until control's own certificate ends",
            )?,
            reads,
        })
    }

    pub(super) fn expires_in(&self, what: Expiring, seconds: i64) {
        match what {
            Expiring::Anchor => self.anchor.set(seconds),
            Expiring::Issuer => self.issuer.set(seconds),
        }
    }

    /// The files changed, and were `updated` or `refused`.
    pub(super) fn read(&self, result: &'static str) {
        self.reads.with_label_values(&[result]).inc();
    }
}
