// SPDX-License-Identifier: Apache-2.0
//! The certificate authority: a trust anchor, an issuer below it, and leaves for identities.

mod csr;
mod expiry;
mod files;
mod follow;
mod metrics;
mod state;

use std::{path::PathBuf, time::Duration};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand,
};
use culvert_api::identity::{Identity, IdentityDomain};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use self::files::Parsed;
pub use self::{
    csr::{BadRequest, public_key},
    expiry::{Expiring, warn},
    files::{GivenFiles, IssuerFiles},
    follow::Followed,
    metrics::CertificateMetrics,
    state::kept,
};

/// How far the clocks of nodes may be behind, as Linkerd's `clockSkewAllowance`.
const CLOCK_SKEW: Duration = Duration::from_secs(20);

/// A certificate authority.
pub struct Authority {
    domain: IdentityDomain,
    lifetime: Duration,
    issuer: Issuer<'static, KeyPair>,
    /// The issuer's certificate, and those between it and the anchors.
    intermediates: Vec<CertificateDer<'static>>,
    anchors: Vec<CertificateDer<'static>>,
    issuer_valid: Validity,
    /// Of the anchor that vouches for the issuer; of the last one to end, if several do.
    anchor_valid: Validity,
    /// When the first of all ends that leaves need.
    ends: OffsetDateTime,
}

/// From when to when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When it begins.
    pub not_before: OffsetDateTime,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

/// A certificate of an identity.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate, then the intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// When it begins.
    pub not_before: OffsetDateTime,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

/// The certificate authority is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read or written.
    #[error("could not use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has not what it should have.
    #[error("{} is no {expected}: {reason}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Some files of the state directory are missing.
    #[error(
        "{} has a trust anchor but no {missing}: restore it, or remove trust-anchors.pem to begin \
         anew, after which every workload needs the new anchor", dir.display()
    )]
    Incomplete {
        /// The state directory.
        dir: PathBuf,
        /// The file that is missing.
        missing: &'static str,
    },
    /// The directory is no Secret's with an issuer.
    #[error(
        "{} has neither tls.crt and tls.key (type kubernetes.io/tls) nor crt.pem and key.pem \
         (linkerd.io/tls)", dir.display()
    )]
    Layout {
        /// The directory.
        dir: PathBuf,
    },
    /// The issuer is not one.
    #[error("the issuer's certificate is of no use: {reason}")]
    Issuer {
        /// Why.
        reason: String,
    },
    /// A leaf of the issuer would not be accepted by who trusts the anchors.
    #[error("the issuer does not lead to any of the trust anchors: {0}")]
    Chain(rustls::Error),
    /// A certificate could not be made.
    #[error("could not make a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// The issuer's certificate ended.
    #[error("the issuer's certificate, or one above it, ended at {0}; renew it")]
    Expired(OffsetDateTime),
    /// No randomness, a bug of the machine.
    #[error("the system gave no random bytes")]
    Random,
}

// === impl Authority ===

impl Authority {
    /// Takes an authority, and makes sure that it is one.
    fn new(parsed: Parsed, domain: IdentityDomain, lifetime: Duration) -> Result<Self, Error> {
        let Parsed {
            anchors,
            issuer: intermediates,
            key,
        } = parsed;
        let issuer = intermediates
            .first()
            .ok_or_else(|| unusable("there is none"))?;
        let issuer_valid = check_issuer(issuer, &key)?;
        let ends = intermediates
            .iter()
            .map(validity)
            .collect::<Result<Vec<_>, _>>()?;
        let ends = ends.iter().map(|valid| valid.not_after).min();
        let authority = Self {
            domain,
            lifetime,
            issuer: Issuer::from_ca_cert_der(issuer, key)?,
            intermediates,
            anchors,
            issuer_valid,
            anchor_valid: issuer_valid,
            ends: ends.unwrap_or(issuer_valid.not_after),
        };
        authority.verified()
    }

    /// The domain whose identities it certifies.
    pub fn domain(&self) -> &IdentityDomain {
        &self.domain
    }

    /// The trust anchors.
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// When the issuer's certificate, or one above it, ends.
    pub fn ends(&self) -> OffsetDateTime {
        self.ends
    }

    /// What is to be renewed one day.
    pub fn expiring(&self) -> [(Expiring, Validity); 2] {
        [
            (Expiring::Anchor, self.anchor_valid),
            (Expiring::Issuer, self.issuer_valid),
        ]
    }

    /// The issuer's certificate.
    pub fn issuer(&self) -> Option<&CertificateDer<'static>> {
        self.intermediates.first()
    }

    /// SHA-256 of the issuer's certificate.
    pub fn issuer_fingerprint(&self) -> Vec<u8> {
        let issuer = self.issuer().map(AsRef::as_ref);
        digest(&SHA256, issuer.unwrap_or_default())
            .as_ref()
            .to_vec()
    }

    /// The same as `openssl x509 -fingerprint -sha256` has it.
    pub fn issuer_fingerprint_text(&self) -> String {
        let bytes = self.issuer_fingerprint();
        let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        bytes.join(":")
    }

    /// The names that a certificate of an identity has.
    pub fn names(&self, identity: &Identity) -> Result<[SanType; 2], Error> {
        Ok([
            SanType::URI(identity.to_string().try_into()?),
            SanType::DnsName(self.domain.server_name(identity).try_into()?),
        ])
    }

    /// Certifies that a key is an identity's. Whether it is, the caller has made sure.
    pub fn certify(&self, key: &impl PublicKeyData, identity: &Identity) -> Result<Leaf, Error> {
        let now = OffsetDateTime::now_utc();
        let not_after = (now + self.lifetime).min(self.ends);
        if not_after <= now {
            return Err(Error::Expired(self.ends));
        }
        let mut params = CertificateParams::default();
        params.not_before = now - CLOCK_SKEW;
        params.not_after = not_after;
        params.serial_number = Some(serial()?);
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = self.names(identity)?.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(Leaf {
            chain,
            not_before: params.not_before,
            not_after,
        })
    }

    /// Makes sure that who trusts the anchors trusts the leaves: tries one, as a client would, with
    /// each anchor alone. An anchor vouches until it ends, though rustls does not look.
    fn verified(mut self) -> Result<Self, Error> {
        let identity = self
            .domain
            .identity(&self.domain.control_namespace, "culvert-control");
        let leaf = self.certify(&KeyPair::generate()?, &identity)?;
        let name = self.domain.server_name(&identity);
        let name = ServerName::try_from(name)
            .map_err(|error| unusable(&format!("the trust domain makes no DNS names: {error}")))?;
        let mut vouching = Vec::new();
        let mut refused = None;
        for anchor in &self.anchors {
            match vouches(anchor, &leaf, &name)? {
                Ok(()) => vouching.push(validity(anchor)?),
                Err(error) => refused = Some(error),
            }
        }
        let last = vouching.into_iter().max_by_key(|valid| valid.not_after);
        let no_anchor = || Error::Chain(refused.unwrap_or(rustls::Error::NoCertificatesPresented));
        self.anchor_valid = last.ok_or_else(no_anchor)?;
        self.ends = self.ends.min(self.anchor_valid.not_after);
        if self.ends <= OffsetDateTime::now_utc() {
            return Err(Error::Expired(self.ends));
        }
        Ok(self)
    }
}

/// Whether who trusts this anchor alone trusts a leaf. The outer error: it is no anchor.
fn vouches(
    anchor: &CertificateDer<'static>,
    leaf: &Leaf,
    name: &ServerName<'_>,
) -> Result<Result<(), rustls::Error>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(anchor.clone()).map_err(Error::Chain)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.into());
    let verifier = verifier
        .build()
        .map_err(|error| unusable(&error.to_string()))?;
    let [end, intermediates @ ..] = leaf.chain.as_slice() else {
        return Ok(Ok(()));
    };
    let verified = verifier.verify_server_cert(end, intermediates, name, &[], UnixTime::now());
    Ok(verified.map(drop))
}

fn check_issuer(der: &CertificateDer<'_>, key: &KeyPair) -> Result<Validity, Error> {
    let issuer = parse(der)?;
    if !issuer.is_ca() {
        return Err(unusable("it is not a CA's (basicConstraints CA:true)"));
    }
    let usage = issuer.key_usage().ok().flatten();
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(unusable(
            "it may not sign certificates (keyUsage keyCertSign)",
        ));
    }
    if issuer.public_key().raw != key.subject_public_key_info() {
        return Err(unusable("the issuer's key is another certificate's"));
    }
    validity(der)
}

fn validity(der: &CertificateDer<'_>) -> Result<Validity, Error> {
    let certificate = parse(der)?;
    let validity = certificate.validity();
    Ok(Validity {
        not_before: validity.not_before.to_datetime(),
        not_after: validity.not_after.to_datetime(),
    })
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    let parsed = X509Certificate::from_der(der);
    parsed
        .map(|(_, parsed)| parsed)
        .map_err(|error| unusable(&error.to_string()))
}

fn unusable(reason: &str) -> Error {
    Error::Issuer {
        reason: reason.to_owned(),
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// RFC 5280 section 4.1.2.2: positive, at most 20 octets, never twice.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests;
