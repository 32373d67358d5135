// SPDX-License-Identifier: Apache-2.0
//! This replica's own Lease: that it lives, which nodes it has, and what these know.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use tokio::{sync::watch, time::timeout};

use super::{
    leader,
    nodes::Nodes,
    replicas::{LOOK, Others},
    retry::Backoff,
};
use crate::{
    discovery::Acknowledged,
    index::{Index, Seen},
    metrics::Metrics,
};

/// The label of replicas' own Leases, and what it says of one that lives and one that left.
pub(super) const LABEL: &str = "culvert.io/lease";
const LIVE: &str = "control-replica";
pub(super) const LEFT: &str = "control-replica-left";

/// Which Leases are replicas' own, and which of these live.
pub(super) const ALL: &str = LABEL;
const SELECTOR: &str = "culvert.io/lease=control-replica";

/// The annotation with the newest version of a pod that all nodes of the replica know.
pub(super) const KNOWN: &str = "culvert.io/known";

/// How long a replica counts as alive after it renewed its Lease.
pub(super) const LIFETIME: Duration = Duration::from_secs(30);

/// How often it does.
const RENEW: Duration = Duration::from_secs(8);

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for more that the nodes know before it is written.
const GATHER: Duration = Duration::from_millis(20);

/// How often it is written when no condition changed: pods change and nodes move all the time.
const SOON: Duration = Duration::from_secs(1);

/// Who writes, in the Leases' `managedFields`.
const MANAGER: &str = "culvert-control";

/// The Lease of this replica.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) leases: Api<Lease>,
    pub(crate) namespace: String,
    pub(crate) replica: String,
    pub(crate) metrics: Metrics,
}

/// What a Lease is to say.
#[derive(Clone, Debug, Default)]
struct Statement {
    known: u64,
    nodes: Nodes,
    left: bool,
}

// === impl Own ===

impl Own {
    /// The name of a replica's Lease.
    pub(crate) fn name(replica: &str) -> String {
        format!("culvert-control-{replica}")
    }

    /// Writes the Lease for the first time. To be done before any node is served: whoever does
    /// not know of this replica does not wait for its nodes. What an earlier run said in it is read
    /// before.
    pub(crate) async fn announce(&self, others: &Others) {
        others.looked().await;
        let mut backoff = Backoff::default();
        loop {
            let announced = async {
                self.write(&Statement::default(), None).await?;
                self.has_others().await
            };
            match announced.await {
                Ok(false) => return,
                // Until they have looked.
                Ok(true) => return tokio::time::sleep(LOOK + LOOK / 2).await,
                Err(error) => self.failed(&error),
            }
            backoff.wait().await;
        }
    }

    async fn has_others(&self) -> Result<bool, String> {
        let params = ListParams::default().labels(SELECTOR);
        let leases = answered(self.leases.list(&params)).await?;
        let own = Self::name(&self.replica);
        let mut names = leases.iter().map(|lease| lease.metadata.name.as_ref());
        Ok(names.any(|name| name != Some(&own)))
    }

    /// Renews the Lease for as long as the process runs, and says what the nodes know.
    pub(crate) async fn keep(
        self,
        index: Arc<Mutex<Index>>,
        acknowledged: Acknowledged,
        others: Others,
    ) {
        let Some(seen) = Index::lock(&index).seen() else {
            return;
        };
        let (knowing, known) = watch::channel(Seen::default());
        let renewing = self.renew(&index, &acknowledged, known, others);
        tokio::join!(learn(seen, &acknowledged, knowing), renewing);
    }

    async fn renew(
        &self,
        index: &Mutex<Index>,
        acknowledged: &Acknowledged,
        known: watch::Receiver<Seen>,
        mut others: Others,
    ) {
        others.looked().await;
        let mut backoff = Backoff::default();
        loop {
            let now = *known.borrow();
            let said = Statement {
                known: now.newest,
                nodes: acknowledged.nodes(now.view),
                left: false,
            };
            match self.write(&said, self.owner(index)).await {
                Ok(()) => backoff = Backoff::default(),
                Err(error) => {
                    self.failed(&error);
                    backoff.wait().await;
                    continue;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RENEW) => {}
                () = news(&known, now), if others.any() => {}
                () = moved(acknowledged, now, &said.nodes), if others.any() => {}
                () = others.changed(), if !others.any() => {}
            }
        }
    }

    /// Says that this replica is gone and which nodes it had, and gives up the leader's Lease if it
    /// is held. Who remains takes the Lease away when nobody waits for these nodes any more.
    pub(crate) async fn leave(&self, nodes: Nodes) {
        let said = Statement {
            known: 0,
            nodes: nodes.left(),
            left: true,
        };
        let (said, resigned) = tokio::join!(
            self.write(&said, None),
            answered(leader::resign(&self.leases, &self.replica))
        );
        if let Err(error) = said.and(resigned) {
            tracing::warn!(error, "Could not give up this replica's Leases");
        }
    }

    fn failed(&self, error: &str) {
        self.metrics.lease_errors.inc();
        tracing::warn!(error, "Could not renew this replica's Lease");
    }

    /// The pod, so that Kubernetes deletes the Lease with it.
    fn owner(&self, index: &Mutex<Index>) -> Option<OwnerReference> {
        let view = Arc::clone(&Index::lock(index).view().borrow());
        let uid = view.uid_of(&self.namespace, &self.replica)?;
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: self.replica.clone(),
            uid: uid.0.clone(),
            ..OwnerReference::default()
        })
    }

    async fn write(&self, said: &Statement, owner: Option<OwnerReference>) -> Result<(), String> {
        let lease = self.lease(said, owner);
        answered(async {
            match self.patch(&lease).await {
                Err(kube::Error::Api(status)) if status.code == 404 => self.create(&lease).await,
                patched => patched,
            }
        })
        .await
    }

    async fn create(&self, lease: &Lease) -> kube::Result<()> {
        match self.leases.create(&PostParams::default(), lease).await {
            // It is there since a moment ago, and is renewed soon.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            created => created.map(drop),
        }
    }

    async fn patch(&self, lease: &Lease) -> kube::Result<()> {
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let name = Self::name(&self.replica);
        let patched = self
            .leases
            .patch(&name, &params, &Patch::Merge(lease))
            .await;
        patched.map(drop)
    }

    fn lease(&self, said: &Statement, owner: Option<OwnerReference>) -> Lease {
        let known = (KNOWN.to_owned(), said.known.to_string());
        let annotations = said.nodes.annotations().into_iter().chain([known]);
        let label = if said.left { LEFT } else { LIVE };
        let owners = owner.map(|owner| vec![owner]);
        Lease {
            metadata: ObjectMeta {
                name: Some(Self::name(&self.replica)),
                namespace: Some(self.namespace.clone()),
                labels: Some([(LABEL.to_owned(), label.to_owned())].into()),
                annotations: Some(annotations.collect()),
                // One that left is to outlive its pod.
                owner_references: owners.or_else(|| said.left.then(Vec::new)),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.replica.clone()),
                lease_duration_seconds: i32::try_from(LIFETIME.as_secs()).ok(),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// Follows what all nodes here know.
async fn learn(
    mut seen: watch::Receiver<Seen>,
    acknowledged: &Acknowledged,
    knowing: watch::Sender<Seen>,
) {
    loop {
        let now = *seen.borrow_and_update();
        acknowledged.known(now.view).await;
        knowing.send_replace(now);
        if seen.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until nodes came or went, but not only a moment.
async fn moved(acknowledged: &Acknowledged, now: Seen, said: &Nodes) {
    loop {
        tokio::time::sleep(SOON).await;
        if acknowledged.nodes(now.view) != *said {
            return;
        }
    }
}

/// Waits until the others are to hear more than `said`: at once of a condition, for which one of
/// them may wait, and soon of what else there is.
async fn news(known: &watch::Receiver<Seen>, said: Seen) {
    let (mut conditions, mut all) = (known.clone(), known.clone());
    let at_once = async {
        let turned = conditions.wait_for(|known| known.turns != said.turns);
        if turned.await.map(drop).is_ok() {
            tokio::time::sleep(GATHER).await;
        }
    };
    let soon = async {
        tokio::time::sleep(SOON).await;
        // An error says that control is stopping.
        let _ = all.wait_for(|known| known.newest != said.newest).await;
    };
    tokio::select! {
        () = at_once => {}
        () = soon => {}
    }
}

async fn answered<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    timeout(PATIENCE, request)
        .await
        .map_err(|_| format!("no answer of the API server in {PATIENCE:?}"))?
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn conditions_are_said_at_once_and_the_rest_once_a_second() {
        let said = Seen::default();
        let (knowing, known) = watch::channel(said);
        let begin = Instant::now();
        knowing.send_replace(Seen { newest: 1, ..said });
        news(&known, said).await;
        assert_eq!(begin.elapsed(), SOON);
        let begin = Instant::now();
        knowing.send_replace(Seen { turns: 1, ..said });
        news(&known, said).await;
        assert!(begin.elapsed() <= 2 * GATHER);
    }
}
