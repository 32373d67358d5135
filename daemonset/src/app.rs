// SPDX-License-Identifier: Apache-2.0
//! Puts the parts together.

use std::{convert::Infallible, net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context;
use culvert_manifests::Source;
use culvert_runtime::{admin::Admin, readiness::Readiness};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus::{Registry, process_collector::ProcessCollector};
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    cni_server::CniServer,
    config::Config,
    desired::Desired,
    ebpf::Ebpf,
    follow::Follower,
    metrics::{Metrics, Steering},
    pods::Pods,
    proxy_link::{ProxyLink, hub::Hub},
    store::Store,
};

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
    _source: Source,
}

/// Loads the programs, takes over the pods of an earlier agent, and binds the sockets.
pub async fn build(config: Config) -> anyhow::Result<Agent> {
    tracing::info!(?config, "The agent starts");
    raise_open_files();
    let readiness = Readiness::default();
    readiness.pending(EBPF);
    readiness.pending(SOCKETS);
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self()))?;
    let metrics = Metrics::register(&registry)?;
    let admin = serve_admin(config.admin, &registry, &readiness).await?;
    std::fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("could not make {}", config.run_dir.display()))?;
    let store = Store::open(&config.state_dir)?;
    let (source, desired) = watch_manifests(&config, &store, &metrics).await?;
    let ebpf = Ebpf::load(config.ebpf).await?;
    readiness.done(EBPF);
    let hub = Hub::new(config.node, ebpf.clone(), metrics.clone());
    registry.register(Box::new(Steering::new(ebpf.clone(), hub.clone())?))?;
    let pods = Pods::new(ebpf, hub.clone(), store, desired, metrics.clone());
    pods.restore().await?;
    let bind = |name: &str| config.run_dir.join(name);
    let (uid, path) = (config.proxy_uid, bind("proxy.sock"));
    let proxies =
        ProxyLink::bind(&path, uid, hub, metrics.clone()).with_context(|| cannot_bind(&path))?;
    let path = bind("cni.sock");
    let cni = CniServer::bind(&path, pods.clone(), metrics).with_context(|| cannot_bind(&path))?;
    // After the socket is bound: from here on the plugin leaves no note without asking again.
    tokio::spawn(pods.adopt_passed());
    Ok(Agent {
        admin,
        proxies,
        cni,
        readiness,
        _source: source,
    })
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

async fn watch_manifests(
    config: &Config,
    store: &Store,
    metrics: &Metrics,
) -> anyhow::Result<(Source, watch::Receiver<Arc<Desired>>)> {
    let dir = config.manifests.clone();
    let source = spawn_blocking(move || Source::watch(dir)).await?;
    let source =
        source.with_context(|| format!("could not watch {}", config.manifests.display()))?;
    let follower = Follower::new(&config.node, store.clone(), metrics.clone());
    let desired = follower.follow(&source).await;
    Ok((source, desired))
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
