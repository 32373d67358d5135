// SPDX-License-Identifier: Apache-2.0
//! Where the certificate authority comes from: given files, an earlier run, or nothing.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use culvert_api::identity::IdentityDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{Authority, CLOCK_SKEW, Error, serial};
use crate::file;

/// How long a new anchor and a new issuer last, as Linkerd's CLI makes them.
const LIFETIME: Duration = Duration::from_hours(365 * 24);

const ANCHORS: &str = "trust-anchors.pem";
const ANCHOR_KEY: &str = "anchor.key";
const ISSUER: &str = "issuer.crt";
const ISSUER_KEY: &str = "issuer.key";

/// A certificate authority of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenFiles {
    /// Certificates in PEM.
    pub anchors: PathBuf,
    /// The issuer's certificate in PEM, then those between it and an anchor.
    pub issuer: PathBuf,
    /// The issuer's key in PEM.
    pub key: PathBuf,
}

/// Takes the authority of an earlier run, or makes one: `trust-anchors.pem` is written last.
pub fn open(dir: &Path, domain: IdentityDomain, lifetime: Duration) -> Result<Authority, Error> {
    if !dir.join(ANCHORS).exists() {
        create(dir, &domain)?;
        tracing::info!(state.dir = %dir.display(), "Made a trust anchor and an issuer");
    }
    let mut needed = [ANCHOR_KEY, ISSUER, ISSUER_KEY].into_iter();
    if let Some(missing) = needed.find(|name| !dir.join(name).exists()) {
        let dir = dir.to_owned();
        return Err(Error::Incomplete { dir, missing });
    }
    let files = GivenFiles {
        anchors: dir.join(ANCHORS),
        issuer: dir.join(ISSUER),
        key: dir.join(ISSUER_KEY),
    };
    given(&files, domain, lifetime)
}

/// Takes an authority from files, and makes sure that it is one.
pub fn given(
    files: &GivenFiles,
    domain: IdentityDomain,
    lifetime: Duration,
) -> Result<Authority, Error> {
    let anchors = certificates(&files.anchors)?;
    let intermediates = certificates(&files.issuer)?;
    let key = key(&files.key)?;
    let [issuer, ..] = intermediates.as_slice() else {
        return Err(content(&files.issuer, "certificate in PEM", "it has none"));
    };
    let issuer_ends = check_issuer(issuer, &key)?;
    Authority {
        domain,
        lifetime,
        issuer: Issuer::from_ca_cert_der(issuer, key)?,
        intermediates,
        anchors,
        issuer_ends,
    }
    .verified()
}

/// Makes a trust anchor and an issuer below it.
pub fn create(dir: &Path, domain: &IdentityDomain) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|source| at(dir, source))?;
    let (anchor_key, issuer_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let anchor = params(domain, "root", IsCa::Ca(BasicConstraints::Unconstrained))?;
    let issuer = params(
        domain,
        "identity",
        IsCa::Ca(BasicConstraints::Constrained(0)),
    )?;
    let anchor_pem = anchor.self_signed(&anchor_key)?.pem();
    let signer = Issuer::from_params(&anchor, &anchor_key);
    let issuer_pem = issuer.signed_by(&issuer_key, &signer)?.pem();
    let write = |name, content: &str, mode| {
        let path = dir.join(name);
        file::replace(&path, content.as_bytes(), mode).map_err(|source| at(&path, source))
    };
    write(ANCHOR_KEY, &anchor_key.serialize_pem(), 0o600)?;
    write(ISSUER_KEY, &issuer_key.serialize_pem(), 0o600)?;
    write(ISSUER, &issuer_pem, 0o644)?;
    write(ANCHORS, &anchor_pem, 0o644)
}

fn params(domain: &IdentityDomain, role: &str, is_ca: IsCa) -> Result<CertificateParams, Error> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + LIFETIME;
    params.serial_number = Some(serial()?);
    params.distinguished_name.remove(DnType::CommonName);
    let name = format!(
        "{role}.{}.{}",
        domain.control_namespace, domain.trust_domain
    );
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = fs::read(path).map_err(|source| at(path, source))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let expected = "file of certificates in PEM";
    let found = found.map_err(|error| content(path, expected, &error.to_string()))?;
    if found.is_empty() {
        return Err(content(path, expected, "it has none"));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<KeyPair, Error> {
    let pem = fs::read_to_string(path).map_err(|source| at(path, source))?;
    let mode = fs::metadata(path).map(|file| file.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o077 != 0) {
        tracing::warn!(file.path = %path.display(), "Others than its owner may use the issuer's key");
    }
    KeyPair::from_pem(&pem).map_err(|error| content(path, "private key in PEM", &error.to_string()))
}

fn check_issuer(der: &CertificateDer<'_>, key: &KeyPair) -> Result<OffsetDateTime, Error> {
    let bad = |reason: &str| Error::Issuer {
        reason: reason.to_owned(),
    };
    let (_, issuer) = X509Certificate::from_der(der).map_err(|error| bad(&error.to_string()))?;
    if !issuer.is_ca() {
        return Err(bad("it is not a CA's (basicConstraints CA:true)"));
    }
    let usage = issuer.key_usage().ok().flatten();
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(bad("it may not sign certificates (keyUsage keyCertSign)"));
    }
    if issuer.public_key().raw != key.subject_public_key_info() {
        return Err(bad("the issuer's key is another certificate's"));
    }
    Ok(issuer.validity().not_after.to_datetime())
}

fn at(path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    Error::File { path, source }
}

fn content(path: &Path, expected: &'static str, reason: &str) -> Error {
    Error::Content {
        path: path.to_owned(),
        expected,
        reason: reason.to_owned(),
    }
}
