// SPDX-License-Identifier: Apache-2.0
//! Control's own certificate, of its own authority, renewed without a restart.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use culvert_api::identity::Identity;
use rcgen::KeyPair;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::{default_provider, sign::any_supported_type},
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use time::OffsetDateTime;

use crate::{
    ca::{Authority, Error, Leaf},
    metrics::Metrics,
};

/// The ServiceAccount of control, by whose identity nodes know it.
pub const SERVICE_ACCOUNT: &str = "culvert-control";

/// After which part of its life a certificate is renewed, as in Linkerd.
const RENEW_AT: f64 = 0.7;

/// How often to look at the clock: it may jump, and a machine may sleep.
const LOOK: Duration = Duration::from_secs(30);

/// Control's certificate.
#[derive(Debug)]
pub struct Serving {
    authority: Arc<Authority>,
    identity: Identity,
    current: RwLock<Current>,
}

#[derive(Clone, Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    renew_at: OffsetDateTime,
}

// === impl Serving ===

impl Serving {
    /// Makes the first certificate.
    pub fn new(authority: Arc<Authority>) -> Result<Self, Error> {
        let domain = authority.domain();
        let identity = domain.identity(&domain.control_namespace, SERVICE_ACCOUNT);
        let current = RwLock::new(issue(&authority, &identity)?);
        Ok(Self {
            authority,
            identity,
            current,
        })
    }

    /// TLS 1.3 for gRPC with this certificate.
    pub fn tls(self: &Arc<Self>) -> Result<ServerConfig, rustls::Error> {
        let resolver: Arc<Self> = Arc::clone(self);
        let mut tls = ServerConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(tls)
    }

    /// Renews the certificate in time, for as long as the process runs.
    pub async fn renew(self: Arc<Self>, lifetime: Duration, metrics: Metrics) {
        let look = LOOK.min(lifetime / 10);
        loop {
            let left = self.authority.issuer_ends() - OffsetDateTime::now_utc();
            metrics.issuer_cert_ttl.set(left.whole_seconds());
            if self.current().renew_at <= OffsetDateTime::now_utc() {
                self.renew_now();
            }
            tokio::time::sleep(look).await;
        }
    }

    fn renew_now(&self) {
        match issue(&self.authority, &self.identity) {
            Ok(renewed) => {
                tracing::info!(renew.at = %renewed.renew_at, "Renewed control's certificate");
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = renewed;
            }
            Err(error) => tracing::error!(%error, "Could not renew control's certificate"),
        }
    }

    fn current(&self) -> Current {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().key)
    }
}

fn issue(authority: &Authority, identity: &Identity) -> Result<Current, Error> {
    let key = KeyPair::generate()?;
    let leaf = authority.certify(&key, identity)?;
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = any_supported_type(&der).map_err(Error::Chain)?;
    let renew_at = renew_at(&leaf);
    let key = Arc::new(CertifiedKey::new(leaf.chain, signing));
    Ok(Current { key, renew_at })
}

fn renew_at(leaf: &Leaf) -> OffsetDateTime {
    let begins = OffsetDateTime::now_utc();
    begins + (leaf.not_after - begins) * RENEW_AT
}
