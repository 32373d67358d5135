// SPDX-License-Identifier: Apache-2.0
//! The files that a certificate authority is read from, in both layouts of Secrets that Linkerd
//! knows, and as files of their own.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use zeroize::Zeroizing;

use super::Error;

/// Where a certificate authority is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenFiles {
    /// Trust anchors in PEM; none: `ca.crt` beside the issuer.
    pub anchors: Option<PathBuf>,
    /// The issuer.
    pub issuer: IssuerFiles,
}

/// Where an issuer is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssuerFiles {
    /// Two files in PEM.
    Pair {
        /// The issuer's certificate, then those between it and an anchor.
        certificate: PathBuf,
        /// The issuer's key.
        key: PathBuf,
    },
    /// A Secret's directory: of the type `kubernetes.io/tls` (`tls.crt`, `tls.key`, `ca.crt`), as
    /// cert-manager writes it, or `linkerd.io/tls` (`crt.pem`, `key.pem`).
    Dir(PathBuf),
}

/// What the files said at one moment.
pub(super) struct Content {
    anchors: (PathBuf, Vec<u8>),
    issuer: (PathBuf, Vec<u8>),
    key: (PathBuf, Zeroizing<Vec<u8>>),
}

/// What the files mean.
pub(super) struct Parsed {
    pub(super) anchors: Vec<CertificateDer<'static>>,
    /// The issuer, then those between it and an anchor.
    pub(super) issuer: Vec<CertificateDer<'static>>,
    pub(super) key: KeyPair,
}

/// Tells one content from another, and holds no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(Vec<u8>);

struct Paths {
    anchors: PathBuf,
    issuer: PathBuf,
    key: PathBuf,
}

// === impl GivenFiles ===

impl GivenFiles {
    /// Reads the files. What is in them is not looked at.
    pub(super) fn read(&self) -> Result<Content, Error> {
        let Paths {
            anchors,
            issuer,
            key,
        } = self.paths()?;
        let read = |path: &Path| fs::read(path).map_err(|source| at(path, source));
        Ok(Content {
            anchors: (anchors.clone(), read(&anchors)?),
            issuer: (issuer.clone(), read(&issuer)?),
            key: (key.clone(), Zeroizing::new(read(&key)?)),
        })
    }

    /// Logs that others than its owner can read the issuer's key, if so.
    pub(super) fn warn_of_mode(&self) {
        let Ok(Paths { key, .. }) = self.paths() else {
            return;
        };
        let mode = fs::metadata(&key).map(|file| file.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o007 != 0) {
            tracing::warn!(file.path = %key.display(), "Everybody on this machine may read the issuer's key");
        }
    }

    fn paths(&self) -> Result<Paths, Error> {
        let (issuer, key, beside) = match &self.issuer {
            IssuerFiles::Pair { certificate, key } => (certificate.clone(), key.clone(), None),
            IssuerFiles::Dir(dir) => {
                let (issuer, key) = layout(dir)?;
                (issuer, key, Some(dir.join("ca.crt")))
            }
        };
        let anchors = self.anchors.clone().or(beside);
        let anchors = anchors.ok_or_else(|| Error::Issuer {
            reason: "no file of trust anchors is given with it".to_owned(),
        })?;
        Ok(Paths {
            anchors,
            issuer,
            key,
        })
    }
}

/// The certificate and the key of a Secret's directory.
fn layout(dir: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let mut layouts = [("tls.crt", "tls.key"), ("crt.pem", "key.pem")].into_iter();
    let there = layouts.find(|(certificate, _)| dir.join(certificate).exists());
    there
        .map(|(certificate, key)| (dir.join(certificate), dir.join(key)))
        .ok_or_else(|| Error::Layout {
            dir: dir.to_owned(),
        })
}

// === impl Content ===

impl Content {
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let all = [&self.anchors.1[..], &self.issuer.1, &self.key.1];
        let digests = all.map(|bytes| digest(&SHA256, bytes));
        Fingerprint(digests.iter().flat_map(AsRef::as_ref).copied().collect())
    }

    pub(super) fn parse(&self) -> Result<Parsed, Error> {
        let (path, pem) = &self.key;
        let bad = |reason: String| content(path, "private key in PEM", &reason);
        let pem = std::str::from_utf8(pem).map_err(|error| bad(error.to_string()))?;
        Ok(Parsed {
            anchors: certificates(&self.anchors)?,
            issuer: certificates(&self.issuer)?,
            key: KeyPair::from_pem(pem).map_err(|error| bad(error.to_string()))?,
        })
    }
}

fn certificates((path, pem): &(PathBuf, Vec<u8>)) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let expected = "file of certificates in PEM";
    let found = found.map_err(|error| content(path, expected, &error.to_string()))?;
    if found.is_empty() {
        return Err(content(path, expected, "it has none"));
    }
    Ok(found)
}

pub(super) fn at(path: &Path, source: io::Error) -> Error {
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
