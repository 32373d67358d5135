// SPDX-License-Identifier: Apache-2.0
//! The other replicas of control, by their Leases: who lives, which nodes are there, and how much
//! of Kubernetes' news these have acknowledged.
//!
//! A report is told to all nodes when each replica says that its nodes know the version of the pod
//! whose condition has it, and no node is on its way from one replica to another. A replica that
//! says nothing is not waited for longer than a node is.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Preconditions},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    elsewhere::{Elsewhere, RECENT, Replicas as Saying, Said, Stage},
    lease::{ALL, KNOWN, LABEL, LEFT, LIFETIME},
    nodes::Nodes,
};
use crate::metrics::Metrics;

/// How often to look at the Leases, while nobody waits and while somebody does. They are a few
/// objects of some kilobytes; a watch would be heard no sooner, and could be behind.
pub(super) const LOOK: Duration = Duration::from_secs(1);
const LOOK_SOON: Duration = Duration::from_millis(50);

/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(5);

/// What the other replicas say.
#[derive(Clone, Debug)]
pub struct Others {
    elsewhere: watch::Receiver<Arc<Elsewhere>>,
    asked: Arc<Asked>,
}

/// Who waits for the others.
#[derive(Debug, Default)]
struct Asked {
    waiting: AtomicUsize,
    begun: Notify,
}

/// While it is held, the Leases are looked at often.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Asked);

/// Follows the Leases of the replicas.
#[derive(Debug)]
pub(crate) struct Replicas {
    own: String,
    seen: BTreeMap<String, Seen>,
    /// When they were last listed, if nothing failed since.
    listed: Option<Instant>,
    saying: Saying,
    elsewhere: watch::Sender<Arc<Elsewhere>>,
    asked: Arc<Asked>,
    metrics: Metrics,
}

/// A Lease.
#[derive(Clone, Debug)]
struct Seen {
    spec: Option<LeaseSpec>,
    /// How long it was not renewed, as far as it could be seen. Nobody's clock is compared with
    /// another's.
    silent: Duration,
    left: bool,
    known: u64,
    nodes: Option<Nodes>,
    version: Option<String>,
}

// === impl Others ===

impl Others {
    /// What they say, from now on often.
    pub(crate) fn wait(&self) -> (Waiting<'_>, watch::Receiver<Arc<Elsewhere>>) {
        (self.asked.wait(), self.elsewhere.clone())
    }

    /// Waits until the Leases were read.
    pub(super) async fn looked(&self) {
        let mut elsewhere = self.elsewhere.clone();
        // An error says that control is stopping.
        let _ = elsewhere.wait_for(|elsewhere| elsewhere.looked).await;
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.elsewhere.borrow().known.is_empty()
    }

    /// Waits until one came, went, or said something.
    pub(super) async fn changed(&mut self) {
        if self.elsewhere.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

// === impl Asked ===

impl Asked {
    fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.begun.notify_one();
        Waiting(self)
    }

    /// Waits until it is time to look again.
    async fn next(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            return sleep(LOOK_SOON).await;
        }
        // At once when somebody begins to wait.
        let _ = timeout(LOOK, self.begun.notified()).await;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Replicas ===

impl Replicas {
    pub(crate) fn new(own: String, metrics: Metrics) -> (Self, Others) {
        let (sender, elsewhere) = watch::channel(Arc::default());
        let asked: Arc<Asked> = Arc::default();
        let itself = Self {
            own,
            seen: BTreeMap::new(),
            listed: None,
            saying: Saying::new(),
            elsewhere: sender,
            asked: Arc::clone(&asked),
            metrics,
        };
        (itself, Others { elsewhere, asked })
    }

    /// For as long as the process runs. While the API server is away, what is known stays: nobody
    /// could say anything.
    pub(crate) async fn follow(mut self, leases: Api<Lease>) {
        let params = ListParams::default().labels(ALL);
        loop {
            match timeout(REQUEST, leases.list(&params)).await {
                Ok(Ok(list)) => {
                    self.take(list.items, Instant::now());
                    self.sweep(&leases).await;
                }
                Ok(Err(error)) => self.missed(&error.to_string()),
                Err(_) => self.missed("no answer of the API server"),
            }
            self.asked.next().await;
        }
    }

    fn missed(&mut self, error: &str) {
        tracing::debug!(error, "Could not list the replicas' Leases");
        self.listed = None;
    }

    fn take(&mut self, leases: Vec<Lease>, now: Instant) {
        let last = self.listed.replace(now);
        let passed = last.map_or(Duration::ZERO, |last| now - last);
        let mut old = std::mem::take(&mut self.seen);
        let leases = leases.into_iter().map(|lease| {
            let name = lease.metadata.name.clone().unwrap_or_default();
            let seen = Seen::after(old.remove(&name), lease, passed);
            (name, seen)
        });
        self.seen = leases.collect();
        self.publish(now);
    }

    fn publish(&mut self, now: Instant) {
        let before = Arc::clone(&self.elsewhere.borrow());
        let all = self.seen.iter();
        let said = all.filter_map(|(name, seen)| {
            let own = *name == self.own;
            // It says what this run does from then on.
            let stage = if own { Stage::Former } else { seen.stage() };
            (!own || !before.looked).then(|| (name.clone(), seen.said(stage)))
        });
        let said = said.collect();
        let old = std::mem::replace(&mut self.saying, said);
        let next = Elsewhere::after(&before, &old, &self.saying, now);
        self.metrics.set_replicas(next.known.len() + 1);
        self.elsewhere.send_if_modified(|held| {
            let modified = **held != next;
            if modified {
                *held = Arc::new(next);
            }
            modified
        });
    }

    /// Takes away what a replica left behind when all have seen it.
    async fn sweep(&self, leases: &Api<Lease>) {
        for (name, seen) in self.seen.iter().filter(|(_, seen)| seen.is_over()) {
            let preconditions = Preconditions {
                resource_version: seen.version.clone(),
                uid: None,
            };
            let params = DeleteParams {
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            // Another may be quicker, or it was renewed; else the next look tries again.
            match timeout(REQUEST, leases.delete(name, &params)).await {
                Ok(Ok(_)) => tracing::debug!(name, "Deleted the Lease of a replica that left"),
                Ok(Err(error)) => tracing::debug!(name, %error, "Could not delete a Lease"),
                Err(_) => return,
            }
        }
    }
}

// === impl Seen ===

impl Seen {
    fn after(old: Option<Self>, lease: Lease, passed: Duration) -> Self {
        let same = old.filter(|old| old.spec == lease.spec);
        let labels = lease.metadata.labels.as_ref();
        let label = labels.and_then(|labels| labels.get(LABEL));
        Self {
            silent: same.map_or(Duration::ZERO, |old| old.silent + passed),
            left: label.is_some_and(|label| label == LEFT),
            known: acknowledged(&lease),
            nodes: Nodes::of(&lease),
            version: lease.metadata.resource_version,
            spec: lease.spec,
        }
    }

    fn stage(&self) -> Stage {
        match self.left {
            true => Stage::Left,
            false if self.silent > LIFETIME => Stage::Silent,
            false => Stage::Lives,
        }
    }

    fn said(&self, stage: Stage) -> Said {
        Said {
            stage,
            known: self.known,
            nodes: self.nodes.clone(),
        }
    }

    /// Nobody waits for the nodes that it had any more.
    fn is_over(&self) -> bool {
        self.left && self.silent > RECENT
    }
}

/// 0: nothing is said yet.
fn acknowledged(lease: &Lease) -> u64 {
    let annotations = lease.metadata.annotations.as_ref();
    let known = annotations.and_then(|annotations| annotations.get(KNOWN));
    known
        .and_then(|known| known.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
