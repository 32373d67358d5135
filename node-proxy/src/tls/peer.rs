// SPDX-License-Identifier: Apache-2.0
//! Whom a certificate of the mesh names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_api::identity::{Identity, IdentityDomain, NotAnIdentity};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Session;

/// What is read from a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) identity: Identity,
    pub(crate) not_after: SystemTime,
}

/// A peer's certificate names nobody of this mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is none.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// It can't be read.
    #[error("the certificate is not X.509: {reason}")]
    Malformed {
        /// What the parser says.
        reason: String,
    },
    /// SPIFFE wants exactly one URI
    /// (<https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#2-spiffe-id>).
    #[error("the certificate has {got} URI SANs, expected exactly one")]
    Uris {
        /// How many.
        got: usize,
    },
    /// The URI is no ServiceAccount's.
    #[error("the certificate's URI SAN is no identity: {0}")]
    Uri(#[from] NotAnIdentity),
    /// The identity lives elsewhere.
    #[error("{got} is of another trust domain, expected {expected}")]
    TrustDomain {
        /// Whom it names.
        got: Box<Identity>,
        /// This mesh's domain.
        expected: String,
    },
    /// It is over, or not yet begun: a resumed session does not ask the verifier again.
    #[error("the certificate of {identity} is not valid now")]
    NotNow {
        /// Whom it names.
        identity: Box<Identity>,
    },
    /// The DNS SAN that travels as SNI is missing.
    #[error("the certificate of {identity} lacks the DNS SAN {expected}")]
    ServerName {
        /// Whom it names.
        identity: Box<Identity>,
        /// What it should have.
        expected: String,
    },
    /// A server is somebody else than who was dialled.
    #[error("the peer is {got}, expected {expected}")]
    Other {
        /// Who it is.
        got: Box<Identity>,
        /// Who it should be.
        expected: Box<Identity>,
    },
}

/// The identity that the peer of `session` proved, in this handshake or in the one that it resumes.
pub(crate) fn peer(session: &Session, domain: &IdentityDomain) -> Result<Identity, PeerError> {
    let chain = session.peer_certificates().unwrap_or_default();
    let certificate = chain.first().ok_or(PeerError::NoCertificate)?;
    leaf(certificate, domain).map(|leaf| leaf.identity)
}

/// What `certificate` says, if it names an identity of `domain` and holds now.
pub(crate) fn leaf(
    certificate: &CertificateDer<'_>,
    domain: &IdentityDomain,
) -> Result<Leaf, PeerError> {
    let certificate = parse(certificate)?;
    let identity = identity(&certificate, domain)?;
    let validity = certificate.validity();
    if !validity.is_valid() {
        let identity = Box::new(identity);
        return Err(PeerError::NotNow { identity });
    }
    let expected = domain.server_name(&identity);
    if !names(&certificate, &expected)? {
        let identity = Box::new(identity);
        return Err(PeerError::ServerName { identity, expected });
    }
    let not_after = u64::try_from(validity.not_after.timestamp()).unwrap_or_default();
    Ok(Leaf {
        identity,
        not_after: UNIX_EPOCH + Duration::from_secs(not_after),
    })
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerError> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, parsed)| parsed).map_err(malformed)
}

fn identity(
    certificate: &X509Certificate<'_>,
    domain: &IdentityDomain,
) -> Result<Identity, PeerError> {
    let uris: Vec<_> = alternatives(certificate)?
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else {
        return Err(PeerError::Uris { got: uris.len() });
    };
    let got: Identity = uri.parse()?;
    if got.trust_domain != domain.trust_domain {
        let expected = domain.trust_domain.clone();
        let got = Box::new(got);
        return Err(PeerError::TrustDomain { got, expected });
    }
    Ok(got)
}

fn names(certificate: &X509Certificate<'_>, server_name: &str) -> Result<bool, PeerError> {
    Ok(alternatives(certificate)?.iter().any(
        |name| matches!(name, GeneralName::DNSName(name) if name.eq_ignore_ascii_case(server_name)),
    ))
}

fn alternatives<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Result<&'a [GeneralName<'a>], PeerError> {
    let extension = certificate.subject_alternative_name();
    Ok(extension
        .map_err(malformed)?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default())
}

fn malformed(error: impl std::fmt::Display) -> PeerError {
    PeerError::Malformed {
        reason: error.to_string(),
    }
}
