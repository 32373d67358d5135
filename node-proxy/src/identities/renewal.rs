// SPDX-License-Identifier: Apache-2.0
//! The task of one identity: asks for a certificate, and for the next one in time.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::{
    Anchors, Entry, Identities,
    material::{BadMaterial, Fingerprint, Material, Request},
    stored::{self, BadKey},
};
use crate::{backoff::Backoff, control_link::CertifyError};

/// A certificate is renewed after so much of its life.
const RENEW_AFTER: f64 = 0.7;

/// How much earlier, at random: the certificates of a node are not all renewed at once.
const JITTER: f64 = 0.05;

/// Over how much time the certificates of another issuer are renewed: those of all nodes are.
const SPREAD: Duration = Duration::from_secs(5);

const SOONEST: Duration = Duration::from_secs(10);
const LATEST: Duration = Duration::from_secs(24 * 3600);

/// How often the clock is looked at: it may be set, and goes on while the machine sleeps, which the
/// timers don't.
const LOOK: Duration = Duration::from_secs(30);

/// An attempt to get a certificate failed. The one before is served with until it ends.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("there are no trust anchors yet")]
    NoAnchors,
    #[error("no pod of the identity is left")]
    NoUser,
    #[error("could not make a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Control(#[from] CertifyError),
    #[error("control's answer can't be used: {0}")]
    Answer(#[from] BadMaterial),
    #[error("can't use the key: {0}")]
    Unusable(#[from] BadKey),
    #[error("could not seal the key: {0}")]
    Seal(#[from] io::Error),
}

/// When the next certificate is asked for.
#[derive(Clone, Copy, Debug)]
enum When {
    In(Duration),
    At(SystemTime),
}

enum Event {
    Due,
    Anchors,
    Issuer,
}

/// Runs until it is aborted with the last pod of the identity.
pub(super) async fn run(identities: Identities, entry: Arc<Entry>) {
    let mut anchors = identities.inner.anchors.clone();
    let mut issuer = identities.inner.issuer.subscribe();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    check_stored(&identities, &entry);
    let mut when = when(&identities, &entry);
    loop {
        match next(when, &mut anchors, &mut issuer).await {
            Event::Anchors => {
                check_stored(&identities, &entry);
                when = rebuild(&identities, &entry);
            }
            Event::Issuer => when = self::when(&identities, &entry),
            Event::Due => {
                when = match renew(&identities, &entry).await {
                    Ok(()) => {
                        backoff.reset();
                        scheduled(&entry)
                    }
                    Err(error) => {
                        let left = left(&entry).as_secs();
                        let identity = &entry.identity;
                        tracing::warn!(%error, %identity, left, "Could not get a certificate");
                        When::In(backoff.wait())
                    }
                }
            }
        }
    }
}

async fn next(
    when: When,
    anchors: &mut watch::Receiver<Option<Arc<Anchors>>>,
    issuer: &mut watch::Receiver<Option<Fingerprint>>,
) -> Event {
    tokio::select! {
        () = changed(anchors) => Event::Anchors,
        () = changed(issuer) => Event::Issuer,
        () = when.come(SystemTime::now) => Event::Due,
    }
}

async fn changed<T>(of: &mut watch::Receiver<T>) {
    if of.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn renew(identities: &Identities, entry: &Entry) -> Result<(), Failed> {
    let renewed = certify(identities, entry).await;
    let result = if renewed.is_ok() {
        "success"
    } else {
        "failure"
    };
    identities.inner.metrics.attempt(&entry.identity, result);
    renewed
}

async fn certify(identities: &Identities, entry: &Entry) -> Result<(), Failed> {
    let inner = &identities.inner;
    let uid = entry.user().ok_or(Failed::NoUser)?;
    let Request { key, csr } = Request::new(&inner.domain.server_name(&entry.identity))?;
    let chain = inner.control.certify(&uid, csr).await?;
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    let anchors = identities.anchors().ok_or(Failed::NoAnchors)?;
    let material = Material::new(key, chain)?;
    material.check(&entry.identity, &anchors)?;
    let sealed = stored::seal(&material)?;
    let held = identities.held(material, &anchors, sealed)?;
    identities.keep(&entry.identity, &held);
    let (identity, valid) = (&entry.identity, valid(&held.material));
    tracing::info!(%identity, valid_s = valid.as_secs(), "Got a certificate");
    identities.publish(entry, held);
    Ok(())
}

/// Other anchors: the certificate stays, what was made of it and all sessions do not. Says when the
/// next one is due: now, if the anchors do not vouch for this one.
fn rebuild(identities: &Identities, entry: &Entry) -> When {
    let held = entry.held.borrow().clone();
    let (Some(held), Some(anchors)) = (held, identities.anchors()) else {
        return When::In(Duration::ZERO);
    };
    let rebuilt = held
        .material
        .credentials(&identities.inner.domain, &anchors);
    let rebuilt = rebuilt.map_err(BadKey::from).and_then(|credentials| {
        let material = stored::open(&held.sealed)?;
        let sealed = held.sealed.try_clone()?;
        Ok(super::Held {
            credentials: Arc::new(credentials),
            material,
            sealed,
        })
    });
    let vouched = held.material.check(&entry.identity, &anchors);
    match rebuilt {
        Ok(held) => identities.publish(entry, held),
        Err(error) => {
            let identity = &entry.identity;
            tracing::warn!(%error, %identity, "Could not use the new trust anchors");
            return When::In(Duration::ZERO);
        }
    }
    match vouched {
        Ok(()) => when(identities, entry),
        Err(_) => When::In(Duration::ZERO),
    }
}

fn check_stored(identities: &Identities, entry: &Entry) {
    let Some(anchors) = identities.anchors() else {
        return;
    };
    let Some(sealed) = entry.lock_unchecked().take() else {
        return;
    };
    if let Err(error) = identities.adopt(entry, &anchors, sealed) {
        identities.refused_stored(&entry.identity, &error);
    }
}

/// When the next certificate is asked for: soon, if control signs with another issuer meanwhile.
fn when(identities: &Identities, entry: &Entry) -> When {
    let signs = *identities.inner.issuer.borrow();
    let held = entry.held.borrow();
    let signed = held.as_ref().and_then(|held| held.material.issuer);
    match (signs, signed) {
        (Some(signs), Some(signed)) if signs != signed.fingerprint => {
            When::In(SPREAD.mul_f64(rand::random_range(0.0..1.0)))
        }
        _ => {
            drop(held);
            scheduled(entry)
        }
    }
}

/// When the next certificate is asked for in time.
fn scheduled(entry: &Entry) -> When {
    let held = entry.held.borrow();
    let Some(held) = held.as_ref() else {
        return When::In(Duration::ZERO);
    };
    let life = valid(&held.material);
    let part = RENEW_AFTER - rand::random_range(0.0..JITTER);
    When::At(held.material.not_before + life.mul_f64(part))
}

fn valid(material: &Material) -> Duration {
    material
        .not_after
        .duration_since(material.not_before)
        .unwrap_or_default()
}

/// How long the certificate is still valid.
pub(super) fn left(entry: &Entry) -> Duration {
    let held = entry.held.borrow();
    let left = held
        .as_ref()
        .map(|held| held.material.not_after.duration_since(SystemTime::now()));
    left.and_then(Result::ok).unwrap_or_default()
}

// === impl When ===

impl When {
    /// Waits; for a time of day at least ten seconds, and at most a day.
    async fn come(self, clock: impl Fn() -> SystemTime) {
        match self {
            Self::In(wait) => tokio::time::sleep(wait).await,
            Self::At(due) => {
                let come = async {
                    tokio::time::sleep(SOONEST).await;
                    reach(due, clock).await;
                };
                // The clock may be wrong.
                let _ = tokio::time::timeout(LATEST, come).await;
            }
        }
    }
}

/// Waits until the clock says `due`, however it gets there.
async fn reach(due: SystemTime, clock: impl Fn() -> SystemTime) {
    while let Ok(left) = due.duration_since(clock())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// How long is waited until ten hours from now, if the clock is set after a minute.
    async fn waited(set: impl Fn(SystemTime) -> SystemTime) -> Duration {
        let (start, now) = (Instant::now(), SystemTime::now());
        let clock = || match start.elapsed() {
            at if at < Duration::from_secs(60) => now + at,
            at => set(now + at),
        };
        When::At(now + 10 * HOUR).come(clock).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_is_followed() {
        let right = waited(|clock| clock).await;
        assert_eq!(right.as_secs() / 60, 600, "{right:?}");
        let forward = waited(|clock| clock + 12 * HOUR).await;
        assert!(forward < Duration::from_secs(120), "{forward:?}");
        let back = waited(|clock| clock - HOUR).await;
        assert_eq!(back.as_secs() / 60, 660, "{back:?}");
        let lost = waited(|clock| clock - 1000 * HOUR).await;
        assert_eq!(lost.as_secs(), LATEST.as_secs());
    }
}
