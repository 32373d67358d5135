// SPDX-License-Identifier: Apache-2.0
//! One key and certificate per identity of this node: made here, signed by control, renewed in
//! time, kept by the agent for the next proxy, dropped with the last pod of the identity.

mod anchors;
mod expiry;
mod material;
mod metrics;
mod renewal;
mod stored;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use culvert_api::{
    agent::FromProxy,
    identity::{Identity, IdentityDomain},
    workload::{PodUid, WorkloadKey},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc::UnboundedSender, watch},
    task::AbortHandle,
};

pub(crate) use self::{
    anchors::{Anchors, watch_anchors},
    expiry::AnchorMetrics,
    metrics::IdentityMetrics,
};
use self::{
    material::{Fingerprint, Material},
    stored::BadKey,
};
use crate::{agent_link::ToAgent, control_link::Control, tls::Credentials};

/// What [`culvert_runtime::readiness::Readiness`] calls the first certificate, where there are pods.
pub(crate) const READINESS: &str = "certificate";

/// How long a connection waits for an identity's first certificate.
const WAIT: Duration = Duration::from_secs(5);

/// The certificates of this node's workloads. Clones share them.
#[derive(Clone, Debug)]
pub struct Identities {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    entries: RwLock<HashMap<Identity, Arc<Entry>>>,
    domain: IdentityDomain,
    control: Control,
    anchors: watch::Receiver<Option<Arc<Anchors>>>,
    agent: UnboundedSender<ToAgent>,
    certified: UnboundedSender<Identity>,
    metrics: IdentityMetrics,
    /// Who signs now, by the SHA-256 of its certificate; none before control said so.
    issuer: watch::Sender<Option<Fingerprint>>,
    /// Where renewals run.
    runtime: Handle,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    held: watch::Sender<Option<Arc<Held>>>,
    users: Mutex<BTreeSet<WorkloadKey>>,
    /// A key of an earlier proxy that can't be checked before there are anchors.
    unchecked: Mutex<Option<OwnedFd>>,
    renewal: Mutex<Option<AbortHandle>>,
}

/// A key, its certificates, and what was made of them.
#[derive(Debug)]
struct Held {
    credentials: Arc<Credentials>,
    material: Material,
    /// The memfd that the agent keeps a descriptor of.
    sealed: OwnedFd,
}

/// There is no valid certificate for an identity: its connections fail closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no valid certificate for {identity}: {reason}")]
pub struct NoCertificate {
    /// Whose.
    pub identity: Identity,
    /// Why.
    pub reason: &'static str,
}

/// What the identities need of the rest of the proxy.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) domain: IdentityDomain,
    pub(crate) control: Control,
    pub(crate) anchors: watch::Receiver<Option<Arc<Anchors>>>,
    pub(crate) agent: UnboundedSender<ToAgent>,
    /// Hears of each identity that gets a certificate.
    pub(crate) certified: UnboundedSender<Identity>,
    pub(crate) metrics: IdentityMetrics,
    /// Where renewals run.
    pub(crate) runtime: Handle,
}

// === impl Identities ===

impl Identities {
    /// None yet.
    pub(crate) fn new(around: Surroundings) -> Self {
        let Surroundings {
            domain,
            control,
            anchors,
            agent,
            certified,
            metrics,
            runtime,
        } = around;
        let inner = Inner {
            entries: RwLock::default(),
            domain,
            control,
            anchors,
            agent,
            certified,
            metrics,
            issuer: watch::Sender::new(None),
            runtime,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The identity's credentials. Waits at most five seconds for the first certificate.
    pub async fn credentials(
        &self,
        identity: &Identity,
    ) -> Result<Arc<Credentials>, NoCertificate> {
        let none = |reason| NoCertificate {
            identity: identity.clone(),
            reason,
        };
        let entry = self
            .find(identity)
            .ok_or_else(|| none("no pod of this node has it"))?;
        let mut held = entry.held.subscribe();
        let known = held.borrow_and_update().clone();
        let known = match known {
            Some(known) => known,
            None => first(&mut held)
                .await
                .ok_or_else(|| none("control has signed none yet"))?,
        };
        if known.material.not_after <= SystemTime::now() {
            return Err(none("the last one has expired"));
        }
        Ok(known.credentials.clone())
    }

    /// A pod of the identity is here: there will be a certificate from now on.
    pub(crate) fn hold(&self, identity: &Identity, user: &WorkloadKey) {
        let entry = self.entry(identity);
        entry.lock_users().insert(user.clone());
        let mut renewal = entry.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        if renewal.is_none() {
            let task = renewal::run(self.clone(), entry.clone());
            *renewal = Some(self.inner.runtime.spawn(task).abort_handle());
        }
    }

    /// A pod of the identity left. With the last one key and certificate are dropped.
    pub(crate) fn release(&self, identity: &Identity, user: &WorkloadKey) {
        let mut entries = self
            .inner
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = entries.get(identity) else {
            return;
        };
        let mut users = entry.lock_users();
        users.remove(user);
        let last = users.is_empty();
        drop(users);
        if last && let Some(entry) = entries.remove(identity) {
            entry.end();
            self.inner.metrics.forget(identity);
        }
    }

    /// Control signs with this issuer from now on: what another signed is renewed.
    pub(crate) fn signed_by(&self, fingerprint: &[u8]) {
        let fingerprint = Fingerprint::try_from(fingerprint).ok();
        self.inner.issuer.send_if_modified(|known| {
            let other = fingerprint.is_some() && *known != fingerprint;
            if other {
                *known = fingerprint;
            }
            other
        });
    }

    /// Whether a certificate is there, which may have expired since.
    pub(crate) fn is_certified(&self, identity: &Identity) -> bool {
        self.find(identity)
            .is_some_and(|entry| entry.held.borrow().is_some())
    }

    /// A key that an earlier proxy gave the agent to keep.
    pub(crate) fn load(&self, identity: &Identity, sealed: OwnedFd) {
        let entry = self.entry(identity);
        let Some(anchors) = self.anchors() else {
            *entry.lock_unchecked() = Some(sealed);
            return;
        };
        if let Err(error) = self.adopt(&entry, &anchors, sealed) {
            self.refused_stored(identity, &error);
        }
    }

    /// Drops the keys of identities that no pod of this node has.
    pub(crate) fn forget_unused(&self) {
        let mut entries = self
            .inner
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| !entry.lock_users().is_empty());
    }

    /// Gives every key to the agent: it is another one than before, or was restarted.
    pub(crate) fn keep_all(&self) {
        let entries = self
            .inner
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for entry in entries.values() {
            if let Some(held) = entry.held.borrow().as_ref() {
                self.keep(&entry.identity, held);
            }
        }
    }

    /// Checks a key of an earlier proxy, and serves with it unless there is a later one.
    fn adopt(&self, entry: &Entry, anchors: &Anchors, sealed: OwnedFd) -> Result<(), BadKey> {
        let material = stored::open(&sealed)?;
        material.check(&entry.identity, anchors)?;
        let known = entry.held.borrow().clone();
        if known.is_some_and(|known| known.material.not_after >= material.not_after) {
            return Ok(());
        }
        let held = self.held(material, anchors, sealed)?;
        tracing::info!(identity = %entry.identity, "Took over the key of an earlier proxy");
        self.publish(entry, held);
        Ok(())
    }

    fn refused_stored(&self, identity: &Identity, error: &BadKey) {
        tracing::warn!(%error, %identity, "Could not use the key of an earlier proxy");
        self.inner.metrics.refused_stored(identity);
    }

    fn held(&self, material: Material, anchors: &Anchors, sealed: OwnedFd) -> Result<Held, BadKey> {
        let credentials = material.credentials(&self.inner.domain, anchors)?;
        Ok(Held {
            credentials: Arc::new(credentials),
            material,
            sealed,
        })
    }

    fn publish(&self, entry: &Entry, held: Held) {
        self.inner.metrics.holds(&entry.identity, &held.material);
        entry.held.send_replace(Some(Arc::new(held)));
        // The receiver outlives the renewals; if it is gone, the process ends.
        let _ = self.inner.certified.send(entry.identity.clone());
    }

    fn keep(&self, identity: &Identity, held: &Held) {
        match held.sealed.try_clone() {
            Ok(fd) => {
                let message = FromProxy::Keep {
                    identity: identity.clone(),
                };
                // As above.
                let _ = self.inner.agent.send(ToAgent {
                    message,
                    fd: Some(fd),
                });
            }
            Err(error) => {
                tracing::warn!(%error, %identity, "Could not give a key to the agent to keep");
            }
        }
    }

    fn anchors(&self) -> Option<Arc<Anchors>> {
        self.inner.anchors.borrow().clone()
    }

    fn find(&self, identity: &Identity) -> Option<Arc<Entry>> {
        let entries = self
            .inner
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        entries.get(identity).cloned()
    }

    fn entry(&self, identity: &Identity) -> Arc<Entry> {
        let mut entries = self
            .inner
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = entries.entry(identity.clone());
        entry
            .or_insert_with_key(|identity| Arc::new(Entry::new(identity)))
            .clone()
    }
}

// === impl Entry ===

impl Entry {
    fn new(identity: &Identity) -> Self {
        Self {
            identity: identity.clone(),
            held: watch::Sender::new(None),
            users: Mutex::default(),
            unchecked: Mutex::default(),
            renewal: Mutex::default(),
        }
    }

    /// The pod for whose sake control signs.
    fn user(&self) -> Option<PodUid> {
        self.lock_users().first().map(|key| key.uid.clone())
    }

    fn end(&self) {
        let renewal = self
            .renewal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(renewal) = renewal {
            renewal.abort();
        }
    }

    fn lock_users(&self) -> std::sync::MutexGuard<'_, BTreeSet<WorkloadKey>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_unchecked(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.unchecked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn first(held: &mut watch::Receiver<Option<Arc<Held>>>) -> Option<Arc<Held>> {
    let first = tokio::time::timeout(WAIT, held.wait_for(Option::is_some)).await;
    first.ok()?.ok()?.clone()
}
