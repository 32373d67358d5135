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
use tokio::sync::watch;

use crate::ca::{Authority, CertificateMetrics, Error, Leaf};

/// The ServiceAccount of control, by whose identity nodes know it.
pub const SERVICE_ACCOUNT: &str = "culvert-control";

/// After which part of its life a certificate is renewed, as in Linkerd.
const RENEW_AT: f64 = 0.7;

/// How often to look at the clock: it may jump, and a machine may sleep.
const LOOK: Duration = Duration::from_secs(30);

/// Control's certificate.
#[derive(Debug)]
pub struct Serving {
    authority: watch::Receiver<Arc<Authority>>,
    identity: Identity,
    current: RwLock<Current>,
}

#[derive(Clone, Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    renew_at: OffsetDateTime,
    not_after: OffsetDateTime,
}

// === impl Serving ===

impl Serving {
    /// Makes the first certificate.
    pub fn new(mut authority: watch::Receiver<Arc<Authority>>) -> Result<Self, Error> {
        let now = Arc::clone(&authority.borrow_and_update());
        let domain = now.domain();
        let identity = domain.identity(&domain.control_namespace, SERVICE_ACCOUNT);
        let current = RwLock::new(issue(&now, &identity)?);
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

    /// Renews the certificate in time, and when the issuer changes, for as long as the process runs.
    pub async fn renew(self: Arc<Self>, lifetime: Duration, metrics: CertificateMetrics) {
        let look = LOOK.min(lifetime / 10);
        let mut authority = self.authority.clone();
        loop {
            if self.is_due() {
                self.renew_now();
            }
            let left = self.current().not_after - OffsetDateTime::now_utc();
            metrics.serving.set(left.whole_seconds());
            // While the files are not followed any more, control is stopping.
            let _ = tokio::time::timeout(look, authority.changed()).await;
        }
    }

    fn is_due(&self) -> bool {
        let current = self.current();
        let of_issuer = current.key.cert.get(1) == self.authority.borrow().issuer();
        !of_issuer || current.renew_at <= OffsetDateTime::now_utc()
    }

    fn renew_now(&self) {
        let authority = Arc::clone(&self.authority.borrow());
        match issue(&authority, &self.identity) {
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
    let (renew_at, not_after) = (renew_at(&leaf), leaf.not_after);
    let key = Arc::new(CertifiedKey::new(leaf.chain, signing));
    Ok(Current {
        key,
        renew_at,
        not_after,
    })
}

fn renew_at(leaf: &Leaf) -> OffsetDateTime {
    let begins = OffsetDateTime::now_utc();
    begins + (leaf.not_after - begins) * RENEW_AT
}
