// SPDX-License-Identifier: Apache-2.0
//! The certificate authority of a state directory: of an earlier run, or made.

use std::{fs, path::Path, time::Duration};

use culvert_api::identity::IdentityDomain;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::OffsetDateTime;

use super::{
    CLOCK_SKEW, Error,
    files::{GivenFiles, IssuerFiles, at},
    serial,
};
use crate::file;

/// How long a new anchor and a new issuer last, as Linkerd's CLI makes them.
const LIFETIME: Duration = Duration::from_hours(365 * 24);

const ANCHORS: &str = "trust-anchors.pem";
const ANCHOR_KEY: &str = "anchor.key";
const ISSUER: &str = "issuer.crt";
const ISSUER_KEY: &str = "issuer.key";

/// The files of an earlier run, or new ones: `trust-anchors.pem` is written last.
pub fn kept(dir: &Path, domain: &IdentityDomain) -> Result<GivenFiles, Error> {
    if !dir.join(ANCHORS).exists() {
        create(dir, domain)?;
        tracing::info!(state.dir = %dir.display(), "Made a trust anchor and an issuer");
    }
    let mut needed = [ISSUER, ISSUER_KEY].into_iter();
    if let Some(missing) = needed.find(|name| !dir.join(name).exists()) {
        let dir = dir.to_owned();
        return Err(Error::Incomplete { dir, missing });
    }
    Ok(GivenFiles {
        anchors: Some(dir.join(ANCHORS)),
        issuer: IssuerFiles::Pair {
            certificate: dir.join(ISSUER),
            key: dir.join(ISSUER_KEY),
        },
    })
}

/// Makes a trust anchor and an issuer below it.
fn create(dir: &Path, domain: &IdentityDomain) -> Result<(), Error> {
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
