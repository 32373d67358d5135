// SPDX-License-Identifier: Apache-2.0
//! The trust anchors, from a file that is read again when it changes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::sync::watch;

use super::material::{BadMaterial, Fingerprint, fingerprint, validity};

/// How often the file is looked at. A mounted ConfigMap changes by a renamed directory, of which a
/// file's watch says nothing.
const LOOK: Duration = Duration::from_secs(2);

/// The certificates that every chain ends in.
#[derive(Debug)]
pub(crate) struct Anchors {
    /// As the file has them.
    pub(crate) pem: Vec<u8>,
    /// As rustls has them.
    pub(crate) store: Arc<RootCertStore>,
    /// Each of them.
    pub(super) each: Vec<Anchor>,
}

/// One anchor. rustls lets it vouch for ever; control signs nothing that outlives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) fingerprint: Fingerprint,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// The file has no usable anchor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnchors {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not PEM: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    #[error("a certificate can't be an anchor: {0}")]
    Certificate(#[from] rustls::Error),
    #[error("a certificate can't be read: {0}")]
    Unreadable(#[from] BadMaterial),
    #[error("it holds no certificate")]
    Empty,
}

// === impl Anchors ===

impl Anchors {
    /// Reads PEM.
    pub(crate) fn parse(pem: Vec<u8>) -> Result<Self, NoAnchors> {
        let (mut store, mut each) = (RootCertStore::empty(), Vec::new());
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate?;
            let (not_before, not_after) = validity(&certificate)?;
            let fingerprint = fingerprint(&certificate);
            each.push(Anchor {
                fingerprint,
                not_before,
                not_after,
            });
            store.add(certificate)?;
        }
        if store.is_empty() {
            return Err(NoAnchors::Empty);
        }
        Ok(Self {
            pem,
            store: Arc::new(store),
            each,
        })
    }

    fn read(path: &Path) -> Result<Self, NoAnchors> {
        Self::parse(std::fs::read(path)?)
    }
}

/// The anchors of `path`, now and whenever they change. What can't be read changes nothing.
/// Nothing is sent before the task runs.
pub(crate) fn watch_anchors(
    path: PathBuf,
) -> (
    watch::Receiver<Option<Arc<Anchors>>>,
    impl Future<Output = ()>,
) {
    let (sender, receiver) = watch::channel(Anchors::read(&path).ok().map(Arc::new));
    (receiver, follow(path, sender))
}

async fn follow(path: PathBuf, sender: watch::Sender<Option<Arc<Anchors>>>) {
    let mut refused = None;
    while !sender.is_closed() {
        match Anchors::read(&path) {
            Ok(anchors) => {
                refused = None;
                replace(&sender, anchors);
            }
            Err(error) => {
                let reason = error.to_string();
                if refused.as_ref() != Some(&reason) {
                    let path = path.display().to_string();
                    tracing::warn!(%error, path, "Could not read the trust anchors");
                }
                refused = Some(reason);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn replace(sender: &watch::Sender<Option<Arc<Anchors>>>, anchors: Anchors) {
    sender.send_if_modified(|current| {
        let same = current
            .as_ref()
            .is_some_and(|current| current.pem == anchors.pem);
        if !same {
            let count = anchors.store.len();
            tracing::info!(count, "Read the trust anchors");
            *current = Some(Arc::new(anchors));
        }
        !same
    });
}
