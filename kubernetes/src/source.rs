// SPDX-License-Identifier: Apache-2.0
//! The objects of a cluster, watched.

use std::sync::Arc;

use culvert_manifests::Objects;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::Client;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    collected::Collected,
    kinds::Watched,
    reflector::{Reflector, Selection, Timing},
    status::Status,
};

/// Whose objects are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that control reads.
    Cluster,
    /// What the agent of this node reads: the node's pods, the node, and all namespaces.
    Node(String),
}

/// The objects of a cluster, watched. Dropping it ends the watches; the receivers keep the last
/// state.
#[derive(Debug)]
pub struct Source {
    objects: watch::Receiver<Arc<Objects>>,
    synced: watch::Receiver<bool>,
    status: watch::Receiver<Status>,
    /// Aborted by the drop.
    _tasks: JoinSet<()>,
}

struct Watches {
    client: Client,
    scope: Scope,
    timing: Timing,
    collected: Arc<Collected>,
    tasks: JoinSet<()>,
}

// === impl Source ===

impl Source {
    /// Watches on tasks of its own until dropped.
    ///
    /// What goes wrong is in [`Source::status`], and what is known stays meanwhile. It is not
    /// logged here: log what changes.
    pub fn watch(client: Client, scope: Scope) -> Self {
        Self::watch_with(client, &scope, Timing::of(&scope))
    }

    pub(crate) fn watch_with(client: Client, scope: &Scope, timing: Timing) -> Self {
        let collected = Arc::new(Collected::new(scope.kinds()));
        let (objects, objects_rx) = watch::channel(Arc::new(scope.nothing()));
        let (synced, synced_rx) = watch::channel(false);
        let status = collected.status();
        let mut watches = Watches {
            client,
            scope: scope.clone(),
            timing,
            collected: Arc::clone(&collected),
            tasks: JoinSet::new(),
        };
        match scope {
            Scope::Cluster => watches.cluster(),
            Scope::Node(name) => watches.node(name),
        }
        let told = async move { collected.tell(objects, synced).await };
        watches.tasks.spawn(told);
        Self {
            objects: objects_rx,
            synced: synced_rx,
            status,
            _tasks: watches.tasks,
        }
    }

    /// The objects: nothing before each kind was listed once, then what changed within 50 ms at
    /// a time.
    pub fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        self.objects.clone()
    }

    /// Waits until each kind was listed once, when [`Source::objects`] has them.
    pub async fn synced(&self) {
        let mut synced = self.synced.clone();
        if synced.wait_for(|synced| *synced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// How the watches are, for metrics and logs.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

// === impl Scope ===

impl Scope {
    fn kinds(&self) -> &'static [&'static str] {
        match self {
            Self::Cluster => &[
                Namespace::KIND,
                Node::KIND,
                Pod::KIND,
                Service::KIND,
                ServiceAccount::KIND,
                EndpointSlice::KIND,
            ],
            Self::Node(_) => &[Namespace::KIND, Node::KIND, Pod::KIND],
        }
    }

    fn nothing(&self) -> Objects {
        let slices = (*self == Self::Cluster).then(Default::default);
        Objects {
            endpoint_slices: slices,
            ..Objects::default()
        }
    }
}

// === impl Watches ===

impl Watches {
    fn cluster(&mut self) {
        self.add::<Namespace>(None);
        self.add::<Node>(None);
        self.add::<Pod>(None);
        self.add::<Service>(None);
        self.add::<ServiceAccount>(None);
        self.add::<EndpointSlice>(None);
    }

    fn node(&mut self, name: &str) {
        self.add::<Namespace>(None);
        self.add::<Node>(Some(format!("metadata.name={name}")));
        self.add::<Pod>(Some(format!("spec.nodeName={name}")));
    }

    fn add<K: Watched>(&mut self, fields: Option<String>) {
        let selection = Selection {
            scope: self.scope.clone(),
            fields,
        };
        let (client, timing) = (self.client.clone(), self.timing.clone());
        let reflector = Reflector::new(client, timing, selection, Arc::clone(&self.collected));
        self.tasks.spawn(reflector.run::<K>());
    }
}
