// SPDX-License-Identifier: Apache-2.0
//! Puts the parts together.

use std::{
    convert::Infallible,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use culvert_manifests::Source;
use culvert_runtime::{admin::Admin, readiness::Readiness};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus::{Registry, process_collector::ProcessCollector};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, spawn_blocking},
};

use crate::{
    cni_install::Kept,
    cni_server::CniServer,
    config::{Config, Origin},
    cri::Cri,
    desired::{Desired, OwnKernels, Problem, Rules},
    ebpf::Ebpf,
    follow::{Follower, Inputs},
    kubelet,
    kubernetes::{self, Cluster, Standing},
    metrics::{Metrics, Steering},
    pods::Pods,
    proxy_link::{ProxyLink, hub::Hub},
    reports::Reports,
    running::Running,
    store::Store,
    uninstall::{Own, Started},
};

pub use crate::uninstall::{Departure, Uninstall};

/// What /ready waits for.
const EBPF: &str = "ebpf";
const SOCKETS: &str = "sockets";

/// An agent that steers its pods.
#[derive(Debug)]
pub struct Agent {
    admin: SocketAddr,
    proxies: ProxyLink,
    cni: CniServer,
    readiness: Readiness,
    _objects: Objects,
}

/// What can steer pods, and takes none in yet.
pub struct Ready {
    config: Config,
    admin: SocketAddr,
    proxies: ProxyLink,
    cni: CniServer,
    readiness: Readiness,
    registry: Registry,
    metrics: Metrics,
    following: Following,
    pods: Pods,
}

/// Where the objects come from, for as long as they are wanted.
#[derive(Debug)]
enum Objects {
    Manifests { _source: Source },
    Kubernetes(Cluster),
}

/// What is followed, and who tells of it.
struct Following {
    objects: Objects,
    desired: watch::Receiver<Arc<Desired>>,
    own_kernels: watch::Sender<Arc<OwnKernels>>,
    reports: Reports,
    trouble: mpsc::Receiver<Problem>,
}

/// The cluster that the agent is of; none when a directory is.
pub async fn cluster(config: &Config) -> anyhow::Result<Option<Cluster>> {
    let Origin::Kubernetes { kubeconfig } = &config.origin else {
        return Ok(None);
    };
    let cluster = Cluster::watch(kubeconfig.as_deref(), &config.node).await?;
    Ok(Some(cluster))
}

/// How all that an agent does on its node is taken from it.
pub fn uninstall(config: &Config, cluster: &Cluster) -> Uninstall {
    let mut leftovers: Vec<_> = proxy_dir(config).into_iter().collect();
    leftovers.push(config.state_dir.clone());
    leftovers.extend(["proxy.sock", "cni.sock"].map(|name| config.run_dir.join(name)));
    let daemonset = (&*config.namespace, &*config.daemonset);
    Uninstall {
        own: Own::watch(&cluster.client(), daemonset, &config.node),
        cni: config.cni.clone(),
        node: (config.node.clone(), cluster.clone()),
        leftovers,
        grace: config.grace,
    }
}

/// Loads the programs, takes over the pods of an earlier agent, and binds the sockets.
pub async fn build(config: Config, cluster: Option<Cluster>) -> anyhow::Result<Ready> {
    tracing::info!(?config, "The agent starts");
    raise_open_files();
    let readiness = Readiness::default();
    readiness.pending(EBPF);
    readiness.pending(SOCKETS);
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self()))?;
    let metrics = Metrics::register(&registry)?;
    let admin = serve_admin(config.admin, &registry, &readiness).await?;
    make_directories(&config)?;
    let store = Store::open(&config.state_dir)?;
    let following = follow(&config, cluster, &store, &metrics, &readiness).await?;
    let ebpf = Ebpf::load(config.ebpf.clone()).await?;
    readiness.done(EBPF);
    let hub = Hub::new(config.node.clone(), ebpf.clone(), metrics.clone());
    registry.register(Box::new(Steering::new(ebpf.clone(), hub.clone())?))?;
    let (desired, reports) = (following.desired.clone(), following.reports.clone());
    let pods = Pods::new(ebpf, hub.clone(), store, desired, metrics.clone(), reports);
    pods.restore().await?;
    let bind = |name: &str| config.run_dir.join(name);
    let (uid, path) = (config.proxy_uid, bind("proxy.sock"));
    let proxies =
        ProxyLink::bind(&path, uid, hub, metrics.clone()).with_context(|| cannot_bind(&path))?;
    let path = bind("cni.sock");
    let cni = CniServer::bind(&path, pods.clone(), metrics.clone());
    let cni = cni.with_context(|| cannot_bind(&path))?;
    Ok(Ready {
        config,
        admin,
        proxies,
        cni,
        readiness,
        registry,
        metrics,
        following,
        pods,
    })
}

// === impl Ready ===

impl Ready {
    /// Takes pods in from now on, and chains the plugin that brings them.
    pub fn go_on(self) -> anyhow::Result<(Agent, Started)> {
        // After the socket is bound: from here on the plugin leaves no note without asking again.
        tokio::spawn(self.pods.clone().adopt_passed());
        let install = self.config.cni.clone();
        // From here on pods wait for the agent: never before somebody would answer them.
        let kept = install.map(|install| install.keep(&self.registry));
        let kept = kept.transpose()?;
        let (objects, standing) = go_on(
            &self.config,
            self.following,
            self.pods.clone(),
            (self.metrics, self.readiness.clone()),
            kept.as_ref(),
        )?;
        let agent = Agent {
            admin: self.admin,
            proxies: self.proxies,
            cni: self.cni,
            readiness: self.readiness,
            _objects: objects,
        };
        let started = Started {
            kept,
            pods: self.pods,
            standing,
        };
        Ok((agent, started))
    }

    /// Only serves, so that pods can leave the mesh.
    pub fn leave(self) -> (Agent, Started) {
        let agent = Agent {
            admin: self.admin,
            proxies: self.proxies,
            cni: self.cni,
            readiness: self.readiness,
            _objects: self.following.objects,
        };
        let started = Started {
            kept: None,
            pods: self.pods,
            standing: None,
        };
        (agent, started)
    }
}

// === impl Agent ===

impl Agent {
    /// Where metrics and readiness are served.
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Serves until the future is dropped. The pods stay steered.
    pub async fn wait(self) -> Infallible {
        tracing::info!(admin = %self.admin, "The agent is ready");
        self.readiness.done(SOCKETS);
        tokio::select! {
            never = self.proxies.serve() => never,
            never = self.cni.serve() => never,
        }
    }
}

/// Before anything else, so that /live answers while the programs load.
async fn serve_admin(
    addr: SocketAddr,
    registry: &Registry,
    readiness: &Readiness,
) -> anyhow::Result<SocketAddr> {
    let admin = Admin::bind(addr, registry.clone(), readiness.clone()).await;
    let admin = admin.with_context(|| format!("could not listen on {addr}"))?;
    let addr = admin.local_addr()?;
    tokio::spawn(admin.serve());
    Ok(addr)
}

/// The proxy may write in a directory of its own only, and can't make it.
fn make_directories(config: &Config) -> anyhow::Result<()> {
    let make = |dir: &Path| {
        std::fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))
    };
    make(&config.run_dir)?;
    if let Some(dir) = proxy_dir(config) {
        make(&dir)?;
        let given = give(&dir, config.proxy_uid);
        given.with_context(|| format!("could not give {} to culvert-proxy", dir.display()))?;
    }
    Ok(())
}

/// Beside the agent's.
fn proxy_dir(config: &Config) -> Option<PathBuf> {
    match config.origin {
        Origin::Manifests(_) => None,
        Origin::Kubernetes { .. } => Some(config.state_dir.parent()?.join("proxy")),
    }
}

/// Without CAP_FOWNER the mode is changed while it is ours. What another user's proxy left in it is
/// given, too: else it could be neither read nor replaced.
fn give(dir: &Path, uid: u32) -> std::io::Result<()> {
    if dir.metadata()?.uid() == uid {
        return Ok(());
    }
    chown(dir, Some(0), Some(0))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    for entry in dir.read_dir()? {
        lchown(entry?.path(), Some(uid), Some(uid))?;
    }
    chown(dir, Some(uid), Some(uid))
}

async fn follow(
    config: &Config,
    cluster: Option<Cluster>,
    store: &Store,
    metrics: &Metrics,
    readiness: &Readiness,
) -> anyhow::Result<Following> {
    let (own_kernels, can_not) = watch::channel(Arc::default());
    let (reports, trouble) = Reports::channel();
    let rules = rules(config, store)?;
    let follower = Follower::new(rules, store.clone(), metrics.clone());
    let (objects, desired) = match (&config.origin, cluster) {
        (Origin::Manifests(dir), _) => follow_manifests(dir, follower, can_not).await?,
        (Origin::Kubernetes { .. }, None) => anyhow::bail!("expected a cluster"),
        (Origin::Kubernetes { .. }, Some(cluster)) => {
            readiness.pending(kubernetes::PODS);
            let listed = readiness.clone();
            let listed = move || listed.done(kubernetes::PODS);
            let desired = cluster.follow(follower, can_not, listed);
            (Objects::Kubernetes(cluster), desired)
        }
    };
    Ok(Following {
        objects,
        desired,
        own_kernels,
        reports,
        trouble,
    })
}

async fn follow_manifests(
    dir: &Path,
    follower: Follower,
    own_kernels: watch::Receiver<Arc<OwnKernels>>,
) -> anyhow::Result<(Objects, watch::Receiver<Arc<Desired>>)> {
    let watched = dir.to_owned();
    let source = spawn_blocking(move || Source::watch(watched)).await?;
    let source = source.with_context(|| format!("could not watch {}", dir.display()))?;
    let inputs = Inputs {
        objects: source.objects(),
        broken: source.problems(),
        own_kernels,
    };
    let desired = follower.follow(inputs).await;
    Ok((Objects::Manifests { _source: source }, desired))
}

/// Of a directory all is known at once, and what was before is nobody's business.
fn rules(config: &Config, store: &Store) -> anyhow::Result<Rules> {
    let unmeshed = match config.origin {
        Origin::Manifests(_) => Vec::new(),
        Origin::Kubernetes { .. } => store.opt_in()?.unmeshed_pods,
    };
    Ok(Rules {
        node: config.node.clone(),
        never_mesh: config.never_mesh.clone(),
        unmeshed: unmeshed.into_iter().collect(),
        namespaces_may_lag: matches!(config.origin, Origin::Kubernetes { .. }),
    })
}

/// What is done beside answering proxies and the CNI plugin.
fn go_on(
    config: &Config,
    following: Following,
    pods: Pods,
    (metrics, readiness): (Metrics, Readiness),
    kept: Option<&Kept>,
) -> anyhow::Result<(Objects, Option<AbortHandle>)> {
    let Following {
        objects,
        desired,
        own_kernels,
        reports: _,
        trouble,
    } = following;
    if let Some(socket) = &config.cri_socket {
        let cri = Cri::new(socket)?;
        let running = Running::new(cri, pods.clone(), own_kernels, metrics.clone());
        tokio::spawn(running.follow());
    }
    let found = config.ebpf.kubelet_cgroup.clone();
    let kubelet = kubelet::follow(config.kubelet.clone(), found, pods.shared().ebpf.clone());
    let Objects::Kubernetes(cluster) = &objects else {
        return Ok((objects, None));
    };
    cluster.tell(&config.node, desired, trouble, metrics);
    let node = kubernetes::Node::new(cluster, &config.node);
    let of_node = (config.ebpf.cgroup.clone(), problems(config), kubelet);
    let chained = kept.map(Kept::status);
    let standing = Standing::new((node, cluster), readiness, pods, chained, of_node);
    let standing = tokio::spawn(standing.follow()).abort_handle();
    Ok((objects, Some(standing)))
}

/// What is wrong with the node, and stays so until the agent is started again.
fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    if config.cri_socket.is_none() {
        problems.push(
            "no socket of a container runtime was found: pods that ran before Culvert came are \
             not meshed until they are made again; say it with --cri-socket"
                .to_owned(),
        );
    }
    for problem in &problems {
        tracing::warn!(problem, "Something is wrong with this node");
    }
    problems
}

/// Listeners, namespaces and netlink sockets of every pod are open all the time.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "Could not raise the limit of open files");
    }
}

fn cannot_bind(path: &Path) -> String {
    format!("could not listen on {}", path.display())
}
