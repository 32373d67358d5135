// SPDX-License-Identifier: Apache-2.0
//! The certificate authority: a trust anchor, an issuer below it, and leaves for identities.

mod csr;
mod state;

use std::{path::PathBuf, time::Duration};

use aws_lc_rs::rand;
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

pub use self::{
    csr::{BadRequest, public_key},
    state::{GivenFiles, create, given, open},
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
    issuer_ends: OffsetDateTime,
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
    #[error("the issuer's certificate ended at {0}; renew it")]
    Expired(OffsetDateTime),
    /// No randomness, a bug of the machine.
    #[error("the system gave no random bytes")]
    Random,
}

// === impl Authority ===

impl Authority {
    /// The domain whose identities it certifies.
    pub fn domain(&self) -> &IdentityDomain {
        &self.domain
    }

    /// The trust anchors.
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// When the issuer's certificate ends.
    pub fn issuer_ends(&self) -> OffsetDateTime {
        self.issuer_ends
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
        let not_after = (now + self.lifetime).min(self.issuer_ends);
        if not_after <= now {
            return Err(Error::Expired(self.issuer_ends));
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

    /// Makes sure that who trusts the anchors trusts the leaves: tries one, as a client would.
    fn verified(self) -> Result<Self, Error> {
        let identity = self
            .domain
            .identity(&self.domain.control_namespace, "culvert-control");
        let leaf = self.certify(&KeyPair::generate()?, &identity)?;
        let mut roots = RootCertStore::empty();
        for anchor in &self.anchors {
            roots.add(anchor.clone()).map_err(Error::Chain)?;
        }
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.into());
        let verifier = verifier.build().map_err(|error| Error::Issuer {
            reason: error.to_string(),
        })?;
        let name = self.domain.server_name(&identity);
        let name = ServerName::try_from(name).map_err(|error| Error::Issuer {
            reason: format!("the trust domain makes no DNS names: {error}"),
        })?;
        let [end, intermediates @ ..] = leaf.chain.as_slice() else {
            return Ok(self);
        };
        let now = UnixTime::now();
        verifier
            .verify_server_cert(end, intermediates, &name, &[], now)
            .map_err(Error::Chain)?;
        Ok(self)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ends = &self.issuer_ends;
        f.debug_struct("Authority")
            .field("issuer_ends", ends)
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
