// SPDX-License-Identifier: Apache-2.0
//! Writes the nodes' reports into the conditions of their pods. Without them a restarted control,
//! and every other replica, would call meshed pods unmeshed, and peers would dial them in plaintext.

mod failures;
#[cfg(test)]
mod tests;

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
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use self::failures::Failures;
use super::retry::Backoff;
use crate::{
    index::{Index, Write},
    metrics::Metrics,
    notices::Notices,
};

/// How many requests go on at once.
const MAX_REQUESTS: usize = 16;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a write is tried at once, of a pod that others change meanwhile.
const MAX_CONFLICTS: usize = 3;

/// Who writes, in the pods' `managedFields`.
const MANAGER: &str = CONTROL_EVENTS;

#[derive(Clone)]
struct Writer {
    client: Client,
    index: Arc<Mutex<Index>>,
    requests: Arc<Semaphore>,
    failures: Failures,
}

/// Writes for as long as the index lives; a pod whose report can't be written delays no other.
pub(crate) async fn write(
    client: Client,
    index: Arc<Mutex<Index>>,
    metrics: Metrics,
    notices: Notices,
) {
    let mut unwritten = Index::lock(&index).unwritten();
    let writer = Writer {
        client,
        index,
        requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        failures: Failures::new(metrics.clone(), notices),
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
        metrics.set_unwritten_reports(all.pods.len());
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
        while let Some((write, seen)) = self.open(&uid) {
            match self.put(&uid, &write, seen).await {
                Ok(version) => {
                    Index::lock(&self.index).condition_written(&uid, &write.known, version);
                }
                Err(error) => {
                    self.failures.failed(&uid, &write.pod, &error);
                    backoff.wait().await;
                }
            }
        }
        self.failures.ended(&uid);
        uid
    }

    fn open(&self, uid: &PodUid) -> Option<(Write, u64)> {
        Index::lock(&self.index).unwritten_of(uid)
    }

    /// The version of the pod that has it, or a later word. `seen` is the one that is known of,
    /// and may be an old one: nothing is written over what was not looked at.
    async fn put(&self, uid: &PodUid, write: &Write, mut seen: u64) -> Result<u64, String> {
        // It fails only when the semaphore is closed, which nobody does.
        let _permit = self.requests.acquire().await;
        let (namespace, name) = &write.pod;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        for _ in 0..MAX_CONFLICTS {
            if let Some(pod) = patch(&pods, name, status(uid, write, seen)).await? {
                return version(&pod);
            }
            let pod = read(&pods, name).await?;
            if pod.metadata.uid.as_ref() != Some(&uid.0) {
                return Err("another pod has its name now".to_owned());
            }
            seen = version(&pod)?;
            if write.is_settled_in(&pod) {
                return Ok(seen);
            }
        }
        Err("others change the pod all the time".to_owned())
    }
}

/// The pod with what was written, or none: it is not the one that was looked at.
async fn patch(pods: &Api<Pod>, name: &str, status: Value) -> Result<Option<Pod>, String> {
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Strategic(status);
    match timeout(PATIENCE, pods.patch_status(name, &params, &patch)).await {
        Ok(Ok(pod)) => Ok(Some(pod)),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(late()),
    }
}

/// A pod as it is now. Control may list pods, and needs no more: by its name a list is one of one.
async fn read(pods: &Api<Pod>, name: &str) -> Result<Pod, String> {
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    let listed = timeout(PATIENCE, pods.list(&params)).await;
    let listed = listed
        .map_err(|_| late())?
        .map_err(|error| error.to_string())?;
    let mut pods = listed.items.into_iter();
    let pod = pods.find(|pod| pod.metadata.name.as_deref() == Some(name));
    pod.ok_or_else(|| "the pod is gone".to_owned())
}

fn late() -> String {
    format!("no answer of the API server in {PATIENCE:?}")
}

fn version(pod: &Pod) -> Result<u64, String> {
    let version = pod.metadata.resource_version.as_deref().unwrap_or_default();
    version
        .parse()
        .map_err(|_| format!("got the resourceVersion {version:?}, expected a number"))
}

/// The uid and the version make the API server refuse it for another pod of that name, and for
/// one that says something else by now.
fn status(uid: &PodUid, write: &Write, seen: u64) -> Value {
    let said = write.known.condition();
    let mut condition = json!({
        "type": MESHED_CONDITION,
        "status": said.status,
        "reason": said.reason,
        "message": said.message,
    });
    if write.turns {
        condition["lastTransitionTime"] = json!(Time(Timestamp::now()));
    }
    json!({
        "metadata": {"uid": uid.0, "resourceVersion": seen.to_string()},
        "status": {"conditions": [condition]},
    })
}
