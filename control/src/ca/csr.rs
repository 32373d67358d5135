// SPDX-License-Identifier: Apache-2.0
//! Requests for certificates. Only the key counts, and the proof that the caller has it.

use rcgen::{
    CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateSigningRequestDer;
use x509_parser::{
    certification_request::X509CertificationRequest, oid_registry::OID_EC_P256, prelude::FromDer,
};

/// The longest request that is read, in bytes.
const MAX_REQUEST: usize = 8 << 10;

/// The caller's request is wrong.
#[derive(Debug, thiserror::Error)]
pub enum BadRequest {
    /// Far from a request of ours.
    #[error("got {got} bytes, expected at most {MAX_REQUEST}")]
    TooLong {
        /// How long it was.
        got: usize,
    },
    /// Not a request, or its signature does not fit its key.
    #[error("not a signed PKCS #10 request in DER: {0}")]
    Malformed(String),
    /// A key of another kind.
    #[error("the key is not an ECDSA key on P-256")]
    Key,
    /// Names that the caller must not ask for.
    #[error("the request has the name {got}, expected {expected} or none")]
    Name {
        /// A name of the request.
        got: String,
        /// Those of the pod's identity.
        expected: String,
    },
}

/// The key of a request that asks for no other names than `expected`.
pub fn public_key(
    der: &[u8],
    expected: &[SanType],
) -> Result<impl PublicKeyData + use<>, BadRequest> {
    if der.len() > MAX_REQUEST {
        return Err(BadRequest::TooLong { got: der.len() });
    }
    // Verifies the signature.
    let request =
        CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|error| BadRequest::Malformed(error.to_string()))?;
    check_names(&request.params.subject_alt_names, expected)?;
    p256_key(der)
}

fn check_names(names: &[SanType], expected: &[SanType]) -> Result<(), BadRequest> {
    match names.iter().find(|name| !expected.contains(name)) {
        None => Ok(()),
        Some(name) => Err(BadRequest::Name {
            got: format!("{name:?}"),
            expected: format!("{expected:?}"),
        }),
    }
}

fn p256_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, BadRequest> {
    let (rest, request) = X509CertificationRequest::from_der(der)
        .map_err(|error| BadRequest::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(BadRequest::Malformed("bytes after its end".to_owned()));
    }
    let key = &request.certification_request_info.subject_pki;
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|curve| curve.as_oid().ok());
    if curve != Some(OID_EC_P256) {
        return Err(BadRequest::Key);
    }
    let key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| BadRequest::Key)?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(BadRequest::Key);
    }
    Ok(key)
}
