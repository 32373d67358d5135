// SPDX-License-Identifier: Apache-2.0
//! What is counted of certificates, under Linkerd's names.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use culvert_api::identity::Identity;
use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};

use super::material::{Fingerprint, Issuer, Material};

/// The families of metrics. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct IdentityMetrics {
    expiration: GaugeVec,
    refresh: GaugeVec,
    issuer: GaugeVec,
    /// The label `issuer` that each identity has.
    issuers: Arc<Mutex<HashMap<String, String>>>,
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
            issuer: issuer(registry)?,
            issuers: Arc::default(),
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
        self.signed_by(&identity, material.issuer.as_ref());
        let expiration = self.expiration.with_label_values(&[&identity]);
        expiration.set(seconds(material.not_after));
        self.refresh
            .with_label_values(&[&identity])
            .set(seconds(SystemTime::now()));
    }

    fn signed_by(&self, identity: &str, issuer: Option<&Issuer>) {
        let mut issuers = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        let label = issuer.map(|issuer| short(&issuer.fingerprint));
        if let Some((issuer, label)) = issuer.zip(label.as_ref()) {
            let ends = self.issuer.with_label_values(&[identity, label]);
            ends.set(seconds(issuer.not_after));
        }
        let before = match label.clone() {
            Some(label) => issuers.insert(identity.to_owned(), label),
            None => issuers.remove(identity),
        };
        if let Some(before) = before.filter(|before| Some(before) != label.as_ref()) {
            // Forgetting what was never counted is no error.
            let _ = self.issuer.remove_label_values(&[identity, &before]);
        }
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
        self.signed_by(&identity, None);
        let _ = self.bad_stored.remove_label_values(&[&identity]);
        for result in ["success", "failure"] {
            let _ = self.refreshes.remove_label_values(&[&identity, result]);
        }
    }
}

fn issuer(registry: &Registry) -> Result<GaugeVec, prometheus::Error> {
    let issuer = Opts::new(
        "control_identity_cert_issuer_expiration_timestamp_seconds",
        "When the certificate of the issuer of a local identity's certificate ends.",
    );
    let issuer = GaugeVec::new(issuer, &["identity", "issuer"])?;
    registry.register(Box::new(issuer.clone()))?;
    Ok(issuer)
}

/// The first bytes of a fingerprint, enough to tell certificates apart.
pub(super) fn short(fingerprint: &Fingerprint) -> String {
    fingerprint[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(super) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
