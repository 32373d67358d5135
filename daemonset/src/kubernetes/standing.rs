// SPDX-License-Identifier: Apache-2.0
//! How the node stands: what /ready waits for, what the node's annotation says, and the taint
//! that keeps pods away until then.

use std::{convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use culvert_api::kubernetes::{CniStatus, NODE_STATUS_ANNOTATION, NOT_READY_TAINT, NodeStatus};
use culvert_kubernetes::Status;
use culvert_manifests::Objects;
use culvert_runtime::readiness::Readiness;
use http::Request;
use k8s_openapi::api::core::v1;
use kube::Client;
use nix::sys::utsname::uname;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::Cluster;
use crate::pods::{Pace, Pods};

/// What /ready waits for on a cluster, beside the programs and the sockets.
pub const PODS: &str = "pods";
const CNI: &str = "cni";
const PROXY: &str = "proxy";

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

/// How often the annotation is written at most, and the taint taken away.
const PACE: Duration = Duration::from_secs(5);

/// How often is said in the log that this fails.
const COMPLAIN: Duration = Duration::from_secs(60);

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the node stands.
pub struct Standing {
    node: Node,
    readiness: Readiness,
    pods: Pods,
    cni: Option<watch::Receiver<CniStatus>>,
    cgroup: PathBuf,
    /// What was wrong at the start, and stays so.
    problems: Vec<String>,
    /// What is wrong with the kubelet's cgroup.
    kubelet: watch::Receiver<Option<String>>,
    objects: watch::Receiver<Arc<Objects>>,
    watches: watch::Receiver<Status>,
    written: Pace,
    untainted: Pace,
    complained: Pace,
}

/// This node on the API server. Clones share the connection.
#[derive(Clone)]
pub struct Node {
    client: Client,
    name: String,
}

/// The node on the API server can't be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server's.
    #[error("could not change the node {node}: {source}")]
    Api {
        /// Which.
        node: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// The API server's, or the network's.
    #[error("could not change the node {node}: no answer within {} seconds", PATIENCE.as_secs())]
    Slow {
        /// Which.
        node: String,
    },
}

// === impl Node ===

impl Node {
    /// This node.
    pub fn new(cluster: &Cluster, name: &str) -> Self {
        Self {
            client: cluster.client(),
            name: name.to_owned(),
        }
    }

    /// Takes away the taint, and whatever becomes of that what the agent wrote: nothing of
    /// Culvert's is on the node then.
    pub async fn clear(&self, objects: &Objects) -> Result<(), Error> {
        let untainted = self.untaint(objects).await;
        self.annotate(None).await?;
        untainted
    }

    async fn annotate(&self, status: Option<&str>) -> Result<(), Error> {
        let annotations = json!({ NODE_STATUS_ANNOTATION: status });
        let patch = json!({"metadata": {"annotations": annotations}});
        self.patch("application/merge-patch+json", &patch).await
    }

    /// Each by its place, if it is still there: others' taints are never touched.
    async fn untaint(&self, objects: &Objects) -> Result<(), Error> {
        let node = objects.nodes.get(&self.name);
        // From behind, so that the places of the others stay.
        for place in node
            .map(|node| taints(node))
            .unwrap_or_default()
            .iter()
            .rev()
        {
            let path = format!("/spec/taints/{place}");
            let patch = json!([
                {"op": "test", "path": format!("{path}/key"), "value": NOT_READY_TAINT},
                {"op": "remove", "path": path},
            ]);
            self.patch("application/json-patch+json", &patch).await?;
            tracing::info!(taint = NOT_READY_TAINT, "Took the taint from this node");
        }
        Ok(())
    }

    async fn patch(&self, content_type: &str, patch: &Value) -> Result<(), Error> {
        let request = Request::patch(format!("/api/v1/nodes/{}", self.name))
            .header("content-type", content_type)
            .body(patch.to_string().into_bytes());
        let patched = async {
            let request = request.map_err(kube::Error::HttpError)?;
            self.client.request::<IgnoredAny>(request).await
        };
        match timeout(PATIENCE, patched).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(Error::Api {
                node: self.name.clone(),
                source: Box::new(source),
            }),
            Err(_) => Err(Error::Slow {
                node: self.name.clone(),
            }),
        }
    }
}

/// The places of our taint.
fn taints(node: &v1::Node) -> Vec<usize> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let taints = taints.unwrap_or_default().iter().enumerate();
    let ours = taints.filter(|(_, taint)| taint.key == NOT_READY_TAINT);
    ours.map(|(place, _)| place).collect()
}

// === impl Standing ===

impl Standing {
    /// Begins to wait.
    pub fn new(
        (node, cluster): (Node, &Cluster),
        readiness: Readiness,
        pods: Pods,
        cni: Option<watch::Receiver<CniStatus>>,
        (cgroup, problems, kubelet): (PathBuf, Vec<String>, watch::Receiver<Option<String>>),
    ) -> Self {
        readiness.pending(PROXY);
        if cni.is_some() {
            readiness.pending(CNI);
        }
        Self {
            node,
            readiness,
            pods,
            cni,
            cgroup,
            problems,
            kubelet,
            objects: cluster.objects(),
            watches: cluster.status(),
            written: Pace::default(),
            untainted: Pace::default(),
            complained: Pace::default(),
        }
    }

    /// Looks and says so, for ever.
    pub async fn follow(mut self) -> Infallible {
        loop {
            let status = self.look();
            if let Err(error) = self.say(&status).await
                && self.complained.allows(COMPLAIN)
            {
                tracing::warn!(%error, "Could not say how this node is");
            }
            sleep(LOOK).await;
        }
    }

    fn look(&self) -> NodeStatus {
        let proxies = self.pods.shared().hub.connected();
        let cni = self.cni.as_ref().map(|cni| cni.borrow().clone());
        self.readiness.set(PROXY, proxies > 0);
        if let Some(cni) = &cni {
            self.readiness.set(CNI, cni.chained);
        }
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            waiting_for: self.waiting_for(),
            kernel: kernel(),
            cgroup: self.cgroup.display().to_string(),
            proxies: u32::try_from(proxies).unwrap_or(u32::MAX),
            cni: cni.unwrap_or_default(),
            problems: self.problems(),
        }
    }

    fn waiting_for(&self) -> Vec<String> {
        let waiting = self.readiness.waiting_for();
        waiting.into_iter().map(str::to_owned).collect()
    }

    fn problems(&self) -> Vec<String> {
        let watches = self.watches.borrow();
        let failing = watches.kinds.iter().filter_map(|(kind, watch)| {
            let error = watch.error.as_ref()?;
            watch.failing_since?;
            Some(format!("the watch of {kind} objects fails: {error}"))
        });
        let kubelet = self.kubelet.borrow().clone();
        let standing = self.problems.iter().cloned().chain(kubelet);
        standing.chain(failing).collect()
    }

    /// What the API server has already is not said again. A taint that can't be taken away keeps
    /// nobody from hearing why.
    async fn say(&mut self, status: &NodeStatus) -> Result<(), Error> {
        let objects = Arc::clone(&self.objects.borrow_and_update());
        let Some(node) = objects.nodes.get(&self.node.name) else {
            return Ok(());
        };
        let annotated = self.annotate(node, status).await;
        let is_ready = status.waiting_for.is_empty();
        if is_ready && !taints(node).is_empty() && self.untainted.allows(PACE) {
            self.node.untaint(&objects).await?;
        }
        annotated
    }

    async fn annotate(&mut self, node: &v1::Node, status: &NodeStatus) -> Result<(), Error> {
        let annotations = node.metadata.annotations.as_ref();
        let there = annotations.and_then(|all| all.get(NODE_STATUS_ANNOTATION));
        let text = serde_json::to_string(status).unwrap_or_default();
        if there == Some(&text) || !self.written.allows(PACE) {
            return Ok(());
        }
        self.node.annotate(Some(&text)).await
    }
}

fn kernel() -> String {
    let release = uname().map(|uname| uname.release().to_string_lossy().into_owned());
    release.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_taint_is_ours() {
        let node = json!({"spec": {"taints": [
            {"key": NOT_READY_TAINT, "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
            {"key": NOT_READY_TAINT, "effect": "NoExecute"},
        ]}});
        let node = serde_json::from_value(node).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(taints(&node), [0, 2]);
        assert_eq!(taints(&v1::Node::default()), Vec::<usize>::new());
    }
}
