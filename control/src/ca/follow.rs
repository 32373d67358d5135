// SPDX-License-Identifier: Apache-2.0
//! A certificate authority whose files are read again and again: a new issuer signs the next
//! certificate, and files that are bad, or half written, change nothing.

use std::{sync::Arc, time::Duration};

use culvert_api::identity::IdentityDomain;
use tokio::{sync::watch, task::spawn_blocking};

use super::{
    Authority, CertificateMetrics, Error,
    files::{Fingerprint, GivenFiles},
};
use crate::notices::{Notice, Notices};

/// How often the files are looked at. A mounted Secret changes by a renamed directory, of which a
/// file's watch says nothing.
const LOOK: Duration = Duration::from_secs(1);

/// Files that are a certificate authority, and are followed.
#[derive(Debug)]
pub struct Followed {
    files: GivenFiles,
    domain: IdentityDomain,
    lifetime: Duration,
    current: watch::Sender<Arc<Authority>>,
    issuer: watch::Sender<Vec<u8>>,
    /// What was taken last, and what was looked at last.
    taken: Fingerprint,
    last: Result<Fingerprint, String>,
    /// What was refused last, so that it is said once.
    refused: Option<String>,
}

/// What the files are now.
struct Looked {
    fingerprint: Fingerprint,
    authority: Result<Authority, Error>,
}

// === impl Followed ===

impl Followed {
    /// Reads the files for the first time. Blocks on the file system.
    pub fn open(
        files: GivenFiles,
        domain: IdentityDomain,
        lifetime: Duration,
    ) -> Result<Self, Error> {
        files.warn_of_mode();
        let Looked {
            fingerprint,
            authority,
        } = look(&files, &domain, lifetime)?;
        let authority = authority?;
        Ok(Self {
            files,
            domain,
            lifetime,
            issuer: watch::Sender::new(authority.issuer_fingerprint()),
            current: watch::Sender::new(Arc::new(authority)),
            last: Ok(fingerprint.clone()),
            taken: fingerprint,
            refused: None,
        })
    }

    /// The authority as it is now.
    pub fn authority(&self) -> watch::Receiver<Arc<Authority>> {
        self.current.subscribe()
    }

    /// SHA-256 of the certificate of the issuer as it is now; changes only with it.
    pub fn issuer(&self) -> watch::Receiver<Vec<u8>> {
        self.issuer.subscribe()
    }

    /// Follows the files for as long as the process runs.
    pub async fn follow(mut self, metrics: CertificateMetrics, notices: Notices) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(&metrics, &notices).await;
        }
    }

    async fn look(&mut self, metrics: &CertificateMetrics, notices: &Notices) {
        let (files, domain, lifetime) = (self.files.clone(), self.domain.clone(), self.lifetime);
        let looked = spawn_blocking(move || look(&files, &domain, lifetime)).await;
        let Ok(looked) = looked else {
            return;
        };
        let now = match &looked {
            Ok(looked) => Ok(looked.fingerprint.clone()),
            Err(error) => Err(error.to_string()),
        };
        // What is just being written, or replaced file by file, is another one the next time.
        let settled = std::mem::replace(&mut self.last, now.clone()) == now;
        if now.as_ref() == Ok(&self.taken) {
            self.refused = None;
        } else if settled {
            self.take(looked, metrics, notices);
        }
    }

    fn take(
        &mut self,
        looked: Result<Looked, Error>,
        metrics: &CertificateMetrics,
        notices: &Notices,
    ) {
        let taken = looked.and_then(|looked| Ok((looked.fingerprint, looked.authority?)));
        match taken {
            Ok((fingerprint, authority)) => {
                self.taken = fingerprint;
                self.refused = None;
                self.replace(authority, metrics, notices);
            }
            Err(error) => self.refuse(&error.to_string(), metrics, notices),
        }
    }

    fn replace(&self, authority: Authority, metrics: &CertificateMetrics, notices: &Notices) {
        metrics.read("updated");
        let before = self.current.send_replace(Arc::new(authority));
        let now = Arc::clone(&self.current.borrow());
        let (ends, anchors) = (now.ends(), now.anchors().len());
        if before.issuer() == now.issuer() {
            tracing::info!(anchors, "Took new trust anchors");
        } else {
            self.issuer.send_replace(now.issuer_fingerprint());
            let issuer = now.issuer_fingerprint_text();
            tracing::info!(issuer, %ends, anchors, "Took a new issuer");
            let message = format!("A new issuer signs certificates until {ends}");
            notices.say(Notice::normal("IssuerUpdated", message));
        }
    }

    fn refuse(&mut self, error: &str, metrics: &CertificateMetrics, notices: &Notices) {
        if self.refused.as_deref() == Some(error) {
            return;
        }
        metrics.read("refused");
        tracing::error!(
            error,
            "Could not use the issuer or the trust anchors; the last good ones hold"
        );
        let message = format!("{error}; the last good issuer and trust anchors hold");
        notices.say(Notice::warning("IssuerValidationFailed", message));
        self.refused = Some(error.to_owned());
    }
}

fn look(files: &GivenFiles, domain: &IdentityDomain, lifetime: Duration) -> Result<Looked, Error> {
    let content = files.read()?;
    let authority = content
        .parse()
        .and_then(|parsed| Authority::new(parsed, domain.clone(), lifetime));
    Ok(Looked {
        fingerprint: content.fingerprint(),
        authority,
    })
}

#[cfg(test)]
mod tests;
