// SPDX-License-Identifier: Apache-2.0
//! The cluster that this node is of: what the agent follows there, and the little that it writes.

mod events;
mod standing;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use culvert_kubernetes::{Error, Scope, Source, Status};
use culvert_manifests::{Objects, Problem as Unreadable};
use kube::Client;
use tokio::sync::{mpsc, watch};

use self::events::Events;
pub use self::standing::{Error as NodeError, Node, PODS, Standing};
use crate::{
    desired::{Desired, OwnKernels, Problem},
    follow::{Follower, Inputs},
    metrics::Metrics,
};

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    source: Arc<Source>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

// === impl Cluster ===

impl Cluster {
    /// Watches what a node's agent needs. That no API server answers is no error.
    pub async fn watch(kubeconfig: Option<&Path>, node: &str) -> Result<Self, Error> {
        let client = culvert_kubernetes::client(kubeconfig).await?;
        let source = Source::watch(client.clone(), Scope::Node(node.to_owned()));
        Ok(Self {
            client,
            source: Arc::new(source),
        })
    }

    /// For who asks the API server himself.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The objects, as far as they are known.
    pub fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        self.source.objects()
    }

    /// How the watches are.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.source.status()
    }

    /// What the pods of the node should be: unknown until `listed` is called.
    pub fn follow(
        &self,
        follower: Follower,
        own_kernels: watch::Receiver<Arc<OwnKernels>>,
        listed: impl FnOnce() + Send + 'static,
    ) -> watch::Receiver<Arc<Desired>> {
        let inputs = Inputs {
            objects: self.source.objects(),
            broken: unreadable(self.source.status()),
            own_kernels,
        };
        let source = Arc::clone(&self.source);
        let synced = async move {
            source.synced().await;
            tracing::info!("The pods of this node are known");
            listed();
        };
        follower.follow_when(synced, inputs)
    }

    /// Makes events of what users can't have, and of trouble with pods.
    pub fn tell(
        &self,
        node: &str,
        desired: watch::Receiver<Arc<Desired>>,
        trouble: mpsc::Receiver<Problem>,
        metrics: Metrics,
    ) {
        let events = Events::new(self.client.clone(), node, metrics);
        tokio::spawn(events.follow(desired, trouble));
    }
}

/// Objects that can't be read, told as manifests are.
fn unreadable(mut status: watch::Receiver<Status>) -> watch::Receiver<Arc<Vec<Unreadable>>> {
    let (sender, receiver) = watch::channel(Arc::new(Vec::new()));
    tokio::spawn(async move {
        while status.changed().await.is_ok() {
            let now = all_unreadable(&status.borrow_and_update());
            sender.send_if_modified(|told| {
                let modified = **told != now;
                *told = Arc::new(now);
                modified
            });
        }
    });
    receiver
}

fn all_unreadable(status: &Status) -> Vec<Unreadable> {
    let of_kinds = status.kinds.iter().flat_map(|(kind, of_kind)| {
        let of_kind = of_kind.unreadable.iter();
        of_kind.map(move |(name, reason)| Unreadable {
            file: PathBuf::from(format!("{kind} {name}")),
            line: None,
            reason: reason.clone(),
        })
    });
    of_kinds.collect()
}
