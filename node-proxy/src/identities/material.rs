// SPDX-License-Identifier: Apache-2.0
//! A private key with its certificate chain.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use culvert_api::identity::{Identity, IdentityDomain};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::anchors::Anchors;
use crate::tls::{CredentialError, Credentials};

/// SHA-256 of a certificate.
pub(super) type Fingerprint = [u8; SHA256_OUTPUT_LEN];

/// A private key with the certificates that control signed for it. Never printed.
pub(super) struct Material {
    /// PKCS #8.
    pub(super) key: Zeroizing<Vec<u8>>,
    /// The leaf, then the intermediates.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Who signed the leaf; none where the chain does not say.
    pub(super) issuer: Option<Issuer>,
}

/// Who signed a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Issuer {
    pub(super) fingerprint: Fingerprint,
    pub(super) not_after: SystemTime,
}

/// A new key and the request to sign it.
pub(super) struct Request {
    pub(super) key: Zeroizing<Vec<u8>>,
    /// PKCS #10 in DER.
    pub(super) csr: Vec<u8>,
}

/// A key with these certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMaterial {
    #[error("there is no certificate")]
    Empty,
    #[error("the certificate can't be read: {0}")]
    Unreadable(String),
    #[error("it is of {got}, expected {expected}")]
    Other {
        got: Box<Identity>,
        expected: Box<Identity>,
    },
    #[error("it expired")]
    Expired,
    #[error("the trust anchors do not vouch for it: {0}")]
    Untrusted(#[source] rustls::Error),
    #[error(transparent)]
    Credentials(Box<CredentialError>),
}

// === impl Request ===

impl Request {
    /// Makes a P-256 key. The request names the identity for people to read; control decides.
    pub(super) fn new(server_name: &str) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = CertificateParams::new([server_name.to_owned()])?;
        let csr = params.serialize_request(&key)?.der().to_vec();
        Ok(Self {
            key: Zeroizing::new(key.serialize_der()),
            csr,
        })
    }
}

// === impl Material ===

impl Material {
    /// Reads how long the leaf is valid.
    pub(super) fn new(
        key: Zeroizing<Vec<u8>>,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Self, BadMaterial> {
        let leaf = chain.first().ok_or(BadMaterial::Empty)?;
        let (not_before, not_after) = validity(leaf)?;
        let issuer = chain.get(1).map(|issuer| {
            Ok::<_, BadMaterial>(Issuer {
                fingerprint: fingerprint(issuer),
                not_after: validity(issuer)?.1,
            })
        });
        Ok(Self {
            not_before,
            not_after,
            issuer: issuer.transpose()?,
            key,
            chain,
        })
    }

    /// Whether it can be served with: it is the identity's, not over, and vouched for.
    pub(super) fn check(&self, identity: &Identity, anchors: &Anchors) -> Result<(), BadMaterial> {
        if self.not_after <= SystemTime::now() {
            return Err(BadMaterial::Expired);
        }
        let (leaf, intermediates) = self.chain.split_first().ok_or(BadMaterial::Empty)?;
        let got = spiffe_id(leaf)?;
        if got != *identity {
            let (got, expected) = (Box::new(got), Box::new(identity.clone()));
            return Err(BadMaterial::Other { got, expected });
        }
        let leaf = rustls::server::ParsedCertificate::try_from(leaf);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        leaf.and_then(|leaf| {
            verify_server_cert_signed_by_trust_anchor(
                &leaf,
                &anchors.store,
                intermediates,
                UnixTime::now(),
                provider.signature_verification_algorithms.all,
            )
        })
        .map_err(BadMaterial::Untrusted)
    }

    /// What TLS is spoken with.
    pub(super) fn credentials(
        &self,
        domain: &IdentityDomain,
        anchors: &Anchors,
    ) -> Result<Credentials, BadMaterial> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.to_vec()));
        Credentials::new(domain, self.chain.clone(), key, anchors.store.clone())
            .map_err(|error| BadMaterial::Credentials(Box::new(error)))
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    let digest = digest(&SHA256, certificate);
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(digest.as_ref());
    fingerprint
}

/// From when to when a certificate holds.
pub(super) fn validity(
    certificate: &CertificateDer<'_>,
) -> Result<(SystemTime, SystemTime), BadMaterial> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| BadMaterial::Unreadable(error.to_string()))?;
    let validity = certificate.validity();
    let (not_before, not_after) = (validity.not_before, validity.not_after);
    Ok((time(not_before.timestamp()), time(not_after.timestamp())))
}

fn time(timestamp: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}

fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<Identity, BadMaterial> {
    use x509_parser::extensions::GeneralName;
    let unreadable = |error: String| BadMaterial::Unreadable(error);
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| unreadable(e.to_string()))?;
    let names = leaf
        .subject_alternative_name()
        .map_err(|e| unreadable(e.to_string()))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let mut uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris
        .next()
        .ok_or_else(|| unreadable("it has no URI SAN".to_owned()))?;
    uri.parse().map_err(|error| unreadable(format!("{error}")))
}
