// SPDX-License-Identifier: Apache-2.0
//! What a directory and a Kubernetes differ in: where the objects are from, who vouches for nodes,
//! and where is kept what they report.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use anyhow::Context;
use culvert_api::identity::IdentityDomain;
use culvert_runtime::readiness::Readiness;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::{
    sync::{mpsc::UnboundedReceiver, watch},
    task::{JoinSet, spawn_blocking},
};

use crate::{
    config::{self, Cluster, Config},
    discovery::{Acknowledged, Discovery, Kept},
    index::{Index, Reports, View},
    keep, kubernetes,
    metrics::Metrics,
    notices::{Notice, Notices},
    objects,
    tokens::{Authenticator, Expected, TokenFile},
};

/// Whom the tokens of proxies are for.
const AUDIENCE: &str = "culvert.io/control";

/// The ServiceAccount of the proxies.
const PROXY: &str = "culvert-proxy";

/// Where control stands.
#[derive(Debug)]
pub(crate) enum Ground {
    /// On files.
    Directory(Files),
    /// On a Kubernetes.
    Kubernetes(OnKubernetes),
}

/// Files.
#[derive(Debug)]
pub(crate) struct Files {
    manifests: PathBuf,
    state_dir: PathBuf,
    reports: Reports,
    tokens: TokenFile,
}

/// A Kubernetes, and which replica of control this is there.
pub(crate) struct OnKubernetes {
    client: Client,
    namespace: String,
    replica: String,
}

/// What is the same on both.
pub(crate) struct Begun {
    pub(crate) index: Arc<Mutex<Index>>,
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) authenticator: Authenticator,
    pub(crate) kept: Kept,
    /// Becomes true when all objects are in the index.
    pub(crate) ready: watch::Receiver<bool>,
    /// This replica among others.
    pub(crate) replica: Option<Replica>,
}

/// This replica of control on Kubernetes.
#[derive(Debug)]
pub(crate) struct Replica {
    own: kubernetes::Own,
    others: kubernetes::Others,
    index: Arc<Mutex<Index>>,
}

/// This replica, which tells the others of its nodes.
#[derive(Debug)]
pub(crate) struct Telling {
    own: kubernetes::Own,
    acknowledged: Acknowledged,
}

// === impl Ground ===

impl Ground {
    pub(crate) async fn open(config: &Config, readiness: &Readiness) -> anyhow::Result<Self> {
        match config.cluster.clone() {
            Cluster::Directory(directory) => {
                readiness.pending(objects::PENDING);
                let files = spawn_blocking(|| Files::open(directory)).await??;
                Ok(Self::Directory(files))
            }
            Cluster::Kubernetes(kubernetes) => {
                readiness.pending(kubernetes::PENDING);
                let opened = OnKubernetes::open(kubernetes, &config.domain).await?;
                Ok(Self::Kubernetes(opened))
            }
        }
    }

    pub(crate) fn begin(
        self,
        readiness: Readiness,
        notices: (Notices, UnboundedReceiver<Notice>),
        metrics: &Metrics,
        tasks: &mut JoinSet<()>,
    ) -> Begun {
        match self {
            // What they say is in the log, too.
            Self::Directory(files) => files.begin(readiness, metrics, tasks),
            Self::Kubernetes(kubernetes) => kubernetes.begin(readiness, notices, metrics, tasks),
        }
    }
}

// === impl Files ===

impl Files {
    fn open(directory: config::Directory) -> anyhow::Result<Self> {
        let dir = directory.state_dir;
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("could not make {}", dir.display()))?;
        Ok(Self {
            manifests: directory.manifests,
            reports: keep::load(&dir)?,
            state_dir: dir,
            tokens: TokenFile::open(directory.join_tokens),
        })
    }

    fn begin(self, readiness: Readiness, metrics: &Metrics, tasks: &mut JoinSet<()>) -> Begun {
        let (loaded, ready) = watch::channel(false);
        let (keeping, kept) = watch::channel(0);
        let index = Index::new(self.reports);
        let views = index.view();
        let index = Arc::new(Mutex::new(index));
        let authenticator = self.tokens.authenticator();
        let follower = objects::Follower {
            dir: self.manifests,
            index: Arc::clone(&index),
            readiness,
            loaded,
            metrics: metrics.clone(),
        };
        tasks.spawn(self.tokens.follow());
        let keeper = keep::keep(self.state_dir, Arc::clone(&index), keeping, metrics.clone());
        tasks.spawn(keeper);
        tasks.spawn(follower.run());
        Begun {
            index,
            views,
            authenticator,
            kept: Kept::File(kept),
            ready,
            replica: None,
        }
    }
}

// === impl OnKubernetes ===

impl fmt::Debug for OnKubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("OnKubernetes");
        text.field("replica", &self.replica).finish_non_exhaustive()
    }
}

impl OnKubernetes {
    async fn open(config: config::Kubernetes, domain: &IdentityDomain) -> anyhow::Result<Self> {
        let client = culvert_kubernetes::client(config.kubeconfig.as_deref()).await?;
        Ok(Self {
            client,
            namespace: domain.control_namespace.clone(),
            replica: config.replica,
        })
    }

    fn begin(
        self,
        readiness: Readiness,
        (notices, heard): (Notices, UnboundedReceiver<Notice>),
        metrics: &Metrics,
        tasks: &mut JoinSet<()>,
    ) -> Begun {
        let (loaded, ready) = watch::channel(false);
        let index = Index::of_conditions();
        let (unwritten, views) = (index.unwritten(), index.view());
        let index = Arc::new(Mutex::new(index));
        let follower = kubernetes::Follower {
            client: self.client.clone(),
            index: Arc::clone(&index),
            readiness,
            loaded,
            metrics: metrics.clone(),
        };
        let own = self.own(metrics);
        let others = self.elect(Arc::clone(&index), heard, metrics, tasks);
        let (announcing, looking) = (own.clone(), others.clone());
        tasks.spawn(async move {
            announcing.announce(&looking).await;
            follower.run().await;
        });
        let client = self.client.clone();
        let writer = kubernetes::write(client, Arc::clone(&index), metrics.clone(), notices);
        tasks.spawn(writer);
        let expected = Expected {
            audience: AUDIENCE.to_owned(),
            namespace: self.namespace,
            service_account: PROXY.to_owned(),
        };
        let authenticator =
            Authenticator::reviewed(self.client, &Index::lock(&index), expected, metrics.clone());
        Begun {
            views,
            authenticator,
            kept: Kept::Conditions {
                unwritten,
                others: others.clone(),
            },
            ready,
            replica: Some(Replica {
                own,
                others,
                index: Arc::clone(&index),
            }),
            index,
        }
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn own(&self, metrics: &Metrics) -> kubernetes::Own {
        kubernetes::Own {
            leases: self.leases(),
            namespace: self.namespace.clone(),
            replica: self.replica.clone(),
            metrics: metrics.clone(),
        }
    }

    /// Follows the other replicas, and stands for the leader, who writes the notices.
    fn elect(
        &self,
        index: Arc<Mutex<Index>>,
        notices: UnboundedReceiver<Notice>,
        metrics: &Metrics,
        tasks: &mut JoinSet<()>,
    ) -> kubernetes::Others {
        let name = kubernetes::Own::name(&self.replica);
        let (replicas, others) = kubernetes::Replicas::new(name, metrics.clone());
        tasks.spawn(replicas.follow(self.leases()));
        let replica = self.replica.clone();
        let (candidate, leading) = kubernetes::Candidate::new(self.leases(), replica.clone());
        tasks.spawn(candidate.run());
        let events = kubernetes::Events {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            replica,
            index,
            leading,
        };
        tasks.spawn(events.write(notices));
        others
    }
}

// === impl Replica ===

impl Replica {
    /// Tells the others which nodes are at this replica and what they know, from the moment on that
    /// it serves.
    pub(crate) fn tell(self, discovery: &Discovery, tasks: &mut JoinSet<()>) -> Telling {
        let (own, acknowledged) = (self.own.clone(), discovery.acknowledged());
        tasks.spawn(own.keep(self.index, acknowledged.clone(), self.others));
        Telling {
            own: self.own,
            acknowledged,
        }
    }
}

// === impl Telling ===

impl Telling {
    /// No node is at this replica any more.
    pub(crate) async fn leave(&self) {
        self.own.leave(self.acknowledged.nodes(0)).await;
    }
}
