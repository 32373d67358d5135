// SPDX-License-Identifier: Apache-2.0
//! What is counted of certificates, under Linkerd's names.

use std::time::{SystemTime, UNIX_EPOCH};

use culvert_api::identity::Identity;
use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};

use super::material::Material;

/// The families of metrics. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct IdentityMetrics {
    expiration: GaugeVec,
    refresh: GaugeVec,
    refreshes: IntCounterVec,
    bad_stored: IntCounterVec,
}

impl IdentityMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let gauge = GaugeVec::new(Opts::new(name, help), &["identity"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Self {
            expiration: gauge(
                "control_identity_cert_expiration_timestamp_seconds",
                "When the certificate of a local identity ends.",
            )?,
            refresh: gauge(
                "control_identity_cert_refresh_timestamp_seconds",
                "When the certificate of a local identity was last renewed.",
            )?,
            refreshes: counter(
                "control_identity_cert_refreshes_total",
                "Attempts to get a certificate of a local identity signed.",
                &["identity", "result"],
            )?,
            bad_stored: counter(
                "culvert_proxy_stored_keys_refused_total",
                "Keys of an earlier proxy that could not be used.",
                &["identity"],
            )?,
        })
    }

    pub(super) fn holds(&self, identity: &Identity, material: &Material) {
        let identity = identity.to_string();
        let expiration = self.expiration.with_label_values(&[&identity]);
        expiration.set(seconds(material.not_after));
        self.refresh
            .with_label_values(&[&identity])
            .set(seconds(SystemTime::now()));
    }

    pub(super) fn attempt(&self, identity: &Identity, result: &str) {
        self.refreshes
            .with_label_values(&[identity.to_string().as_str(), result])
            .inc();
    }

    pub(super) fn refused_stored(&self, identity: &Identity) {
        self.bad_stored
            .with_label_values(&[identity.to_string()])
            .inc();
    }

    /// Forgetting what was never counted is no error.
    pub(super) fn forget(&self, identity: &Identity) {
        let identity = identity.to_string();
        let _ = self.expiration.remove_label_values(&[&identity]);
        let _ = self.refresh.remove_label_values(&[&identity]);
        let _ = self.bad_stored.remove_label_values(&[&identity]);
        for result in ["success", "failure"] {
            let _ = self.refreshes.remove_label_values(&[&identity, result]);
        }
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
