// SPDX-License-Identifier: Apache-2.0
//! Writes the nodes' reports into the conditions of their pods. Without them a restarted control,
//! and every other replica, would call meshed pods unmeshed, and peers would dial them in plaintext.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use culvert_api::{
    kubernetes::{CONTROL_EVENTS, MESHED_CONDITION},
    workload::PodUid,
};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

use super::retry::Backoff;
use crate::{
    index::{Index, Write},
    metrics::Metrics,
};

/// How many requests go on at once.
const MAX_REQUESTS: usize = 16;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who writes, in the pods' `managedFields`.
const MANAGER: &str = CONTROL_EVENTS;

#[derive(Clone)]
struct Writer {
    client: Client,
    index: Arc<Mutex<Index>>,
    requests: Arc<Semaphore>,
    metrics: Metrics,
}

/// Writes for as long as the index lives; a pod whose report can't be written delays no other.
pub(crate) async fn write(client: Client, index: Arc<Mutex<Index>>, metrics: Metrics) {
    let mut unwritten = Index::lock(&index).unwritten();
    let writer = Writer {
        client,
        index,
        requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        metrics,
    };
    let (mut busy, mut tasks) = (BTreeSet::new(), JoinSet::new());
    unwritten.mark_changed();
    loop {
        tokio::select! {
            changed = unwritten.changed() => if changed.is_err() { return },
            Some(done) = tasks.join_next() => match done {
                Ok(uid) => drop(busy.remove(&uid)),
                Err(error) => tracing::error!(%error, "A task that writes conditions failed"),
            },
        }
        let all = Arc::clone(&unwritten.borrow_and_update());
        let open = all.pods.iter().filter(|(_, write)| write.written.is_none());
        for (uid, _) in open {
            if busy.insert(uid.clone()) {
                tasks.spawn(writer.clone().write(uid.clone()));
            }
        }
    }
}

// === impl Writer ===

impl Writer {
    /// Tries until it is done, superseded, or the pod is gone.
    async fn write(self, uid: PodUid) -> PodUid {
        let mut backoff = Backoff::default();
        while let Some(write) = self.open(&uid) {
            match self.patch(&uid, &write).await {
                Ok(version) => {
                    Index::lock(&self.index).condition_written(&uid, &write.known, version)
                }
                Err(error) => {
                    self.metrics.keep_errors.inc();
                    let (namespace, name) = &write.pod;
                    tracing::warn!(
                        pod.namespace = namespace, pod.name = name, pod.uid = %uid, error,
                        "Could not write what a node reported into its pod; it is tried again, and peers are told then"
                    );
                    backoff.wait().await;
                }
            }
        }
        uid
    }

    fn open(&self, uid: &PodUid) -> Option<Write> {
        let unwritten = Index::lock(&self.index).unwritten();
        let write = unwritten.borrow().pods.get(uid).cloned();
        write.filter(|write| write.written.is_none())
    }

    /// The version of the pod that has it.
    async fn patch(&self, uid: &PodUid, write: &Write) -> Result<u64, String> {
        // It fails only when the semaphore is closed, which nobody does.
        let _permit = self.requests.acquire().await;
        let (namespace, name) = &write.pod;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Strategic(status(uid, write, Timestamp::now()));
        let patched = pods.patch_status(name, &params, &patch);
        let pod = tokio::time::timeout(PATIENCE, patched)
            .await
            .map_err(|_| format!("no answer of the API server in {PATIENCE:?}"))?
            .map_err(|error| error.to_string())?;
        let version = pod.metadata.resource_version.unwrap_or_default();
        version
            .parse()
            .map_err(|_| format!("got the resourceVersion {version:?}, expected a number"))
    }
}

/// The uid makes the API server refuse it for another pod of that name.
fn status(uid: &PodUid, write: &Write, now: Timestamp) -> Value {
    let said = write.known.condition();
    let mut condition = json!({
        "type": MESHED_CONDITION,
        "status": said.status,
        "reason": said.reason,
        "message": said.message,
    });
    if write.turns {
        condition["lastTransitionTime"] = json!(Time(now));
    }
    json!({"metadata": {"uid": uid.0}, "status": {"conditions": [condition]}})
}
