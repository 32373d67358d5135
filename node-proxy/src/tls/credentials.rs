// SPDX-License-Identifier: Apache-2.0
//! What one identity of this node speaks TLS with.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use culvert_api::identity::{Identity, IdentityDomain};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, GetRandomFailed, aws_lc_rs},
    server::{NoServerSessionStorage, ProducesTickets},
    ticketer::TicketRotator,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{
    Alpn,
    peer::{self, PeerError},
    verify::{ClientVerifier, ServerVerifier},
};

/// A ticket is accepted for at most twice its key's time: an hour.
const TICKET_KEY_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// How many servers the session cache remembers, times the eight tickets that rustls keeps of each.
const CACHED_SESSIONS: usize = 512;

/// TLS client and server configuration of one identity, with ticket keys and a session cache that
/// nobody else uses. A renewed certificate or other anchors make new credentials, so that no
/// session outlives them; open connections keep what they began with.
pub struct Credentials {
    /// Whose.
    pub identity: Identity,
    /// When the leaf ends.
    pub not_after: SystemTime,
    /// To accept mesh connections.
    pub(crate) server: Arc<ServerConfig>,
    /// To open mesh connections.
    pub(crate) client: Arc<ClientConfig>,
}

/// A chain and key are no credentials of the mesh.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Control signed for somebody else, or sent something else.
    #[error("control sent a certificate that can't be used: {0}")]
    Certificate(#[from] PeerError),
    /// Key and certificate do not belong together, or the anchors are none.
    #[error("TLS refuses the certificate, its key or the trust anchors: {0}")]
    Tls(#[from] rustls::Error),
    /// There is no usable anchor.
    #[error("no trust anchor verifies anybody: {0}")]
    Anchors(#[from] rustls::server::VerifierBuilderError),
    /// The chain has no certificate.
    #[error("control sent a chain without certificates, expected the leaf first")]
    Empty,
}

// === impl Credentials ===

impl Credentials {
    /// From a chain (leaf first), its key and the trust anchors.
    pub fn new(
        domain: &IdentityDomain,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        anchors: Arc<RootCertStore>,
    ) -> Result<Self, CredentialError> {
        let leaf = chain.first().ok_or(CredentialError::Empty)?;
        let leaf = peer::leaf(leaf, domain)?;
        let lifetime = ticket_key_lifetime(leaf.not_after);
        let provider = Arc::new(provider());
        let keyed = (chain, key);
        Ok(Self {
            server: server(
                &provider,
                domain,
                keyed.0.clone(),
                keyed.1.clone_key(),
                &anchors,
                lifetime,
            )?,
            client: client(&provider, domain, keyed.0, keyed.1, anchors)?,
            identity: leaf.identity,
            not_after: leaf.not_after,
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn server(
    provider: &Arc<CryptoProvider>,
    domain: &IdentityDomain,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    anchors: &Arc<RootCertStore>,
    ticket_key_lifetime: u32,
) -> Result<Arc<ServerConfig>, CredentialError> {
    let verifier = ClientVerifier::new(domain.clone(), anchors.clone(), provider.clone())?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = Alpn::ALL.map(|alpn| alpn.name().to_vec()).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Arc::new(TicketRotator::new(ticket_key_lifetime, ticket_key)?);
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn client(
    provider: &Arc<CryptoProvider>,
    domain: &IdentityDomain,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    anchors: Arc<RootCertStore>,
) -> Result<Arc<ClientConfig>, CredentialError> {
    let verifier = ServerVerifier::new(domain.clone(), anchors, provider.clone())?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)?;
    // Each connection offers what it is for.
    config.alpn_protocols = Vec::new();
    config.resumption = Resumption::in_memory_sessions(CACHED_SESSIONS);
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// Never the process's default: what the wire speaks is decided here.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

fn ticket_key_lifetime(not_after: SystemTime) -> u32 {
    let left = not_after
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    let lifetime = TICKET_KEY_LIFETIME
        .min(left / 2)
        .max(Duration::from_secs(1));
    u32::try_from(lifetime.as_secs()).unwrap_or(1)
}

fn ticket_key() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
    let key = aws_lc_rs::Ticketer::new().map_err(|_| GetRandomFailed)?;
    Ok(Box::new(TicketKey(key)))
}

/// rustls hands its ticket keys out shared, and its rotator wants them boxed.
#[derive(Debug)]
struct TicketKey(Arc<dyn ProducesTickets>);

impl ProducesTickets for TicketKey {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}
