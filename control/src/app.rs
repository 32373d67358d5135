// SPDX-License-Identifier: Apache-2.0
//! Puts the parts together.

use std::{future::Future, net::SocketAddr, pin::pin, sync::Arc};

use anyhow::{Context, bail};
use culvert_runtime::{admin::Admin, readiness::Readiness, shutdown};
use prometheus::Registry;
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinSet, spawn_blocking},
};

use crate::{
    accept::accept,
    ca::{self, Followed},
    config::{Cluster, Config},
    discovery::{Discovery, Parts},
    ground::{Ground, Telling},
    identity::Identities,
    metrics::Metrics,
    notices::Notices,
    server,
    serving::Serving,
};

/// A control plane that listens and does not serve yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    admin: Admin,
    readiness: Readiness,
    config: Config,
    authority: Followed,
    ground: Ground,
    metrics: Metrics,
}

/// What faces the nodes.
struct Front {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    discovery: Discovery,
    identities: Identities,
    /// Becomes true when the manifests were read.
    ready: watch::Receiver<bool>,
    metrics: Metrics,
}

/// Binds the addresses, and takes or makes the certificate authority.
pub async fn build(config: Config) -> anyhow::Result<Bound> {
    tracing::info!(?config, "Control starts");
    let readiness = Readiness::default();
    let registry = Registry::new();
    let metrics = Metrics::register(&registry)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("could not listen on {}", config.listen))?;
    let admin = Admin::bind(config.admin, registry, readiness.clone())
        .await
        .with_context(|| format!("could not listen on {}", config.admin))?;
    let files = config.clone();
    let authority = spawn_blocking(move || authority(&files)).await??;
    let ground = Ground::open(&config, &readiness).await?;
    Ok(Bound {
        listener,
        admin,
        readiness,
        config,
        authority,
        ground,
        metrics,
    })
}

fn authority(config: &Config) -> anyhow::Result<Followed> {
    let (domain, lifetime) = (config.domain.clone(), config.issuance_lifetime);
    let files = match (&config.authority, &config.cluster) {
        (Some(files), _) => files.clone(),
        (None, Cluster::Directory(files)) => ca::kept(&files.state_dir, &domain)?,
        (None, Cluster::Kubernetes(_)) => bail!("no issuer is given"),
    };
    Ok(Followed::open(files, domain, lifetime)?)
}

// === impl Bound ===

impl Bound {
    /// Where gRPC is served.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where metrics and readiness are served.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until a signal asks the process to end.
    pub async fn wait(self) -> anyhow::Result<()> {
        self.serve(async {
            match shutdown::requested().await {
                Ok(signal) => tracing::info!(signal, "Control stops"),
                Err(error) => tracing::error!(%error, "Could not wait for signals"),
            }
        })
        .await
    }

    /// Serves until `end`.
    pub async fn serve(self, end: impl Future<Output = ()>) -> anyhow::Result<()> {
        let stop = watch::Sender::new(false);
        let (front, replica, mut tasks) = self.start(&stop)?;
        let mut served = pin!(front.serve(stop.subscribe()));
        tokio::select! {
            served = &mut served => return served,
            Some(ended) = tasks.join_next() => bail!("a task of control ended: {ended:?}"),
            () = end => {}
        }
        stop.send_replace(true);
        let served = served.await;
        tasks.shutdown().await;
        if let Some(replica) = replica {
            replica.leave().await;
        }
        served
    }

    fn start(
        self,
        stop: &watch::Sender<bool>,
    ) -> anyhow::Result<(Front, Option<Telling>, JoinSet<()>)> {
        let (authority, issuer) = (self.authority.authority(), self.authority.issuer());
        let serving = Arc::new(Serving::new(authority.clone())?);
        let tls = Arc::new(serving.tls()?);
        let metrics = self.metrics;
        let mut tasks = JoinSet::new();
        tasks.spawn(async { match self.admin.serve().await {} });
        let (notices, heard) = Notices::new();
        let certificates = metrics.certificates.clone();
        tasks.spawn(serving.renew(self.config.issuance_lifetime, certificates.clone()));
        tasks.spawn(ca::warn(
            authority.clone(),
            certificates.clone(),
            notices.clone(),
        ));
        tasks.spawn(self.authority.follow(certificates, notices.clone()));
        let begun = self
            .ground
            .begin(self.readiness, (notices, heard), &metrics, &mut tasks);
        let authenticator = begun.authenticator;
        let discovery = Discovery::new(Parts {
            index: begun.index,
            kept: begun.kept,
            stopping: stop.subscribe(),
            authenticator: authenticator.clone(),
            metrics: metrics.clone(),
            max_subscriptions: self.config.max_subscriptions,
            issuer,
        });
        let replica = begun.replica;
        let replica = replica.map(|replica| replica.tell(&discovery, &mut tasks));
        let identities = Identities {
            authority,
            authenticator,
            views: begun.views,
            metrics: metrics.clone(),
        };
        let front = Front {
            listener: self.listener,
            tls,
            discovery,
            identities,
            ready: begun.ready,
            metrics,
        };
        Ok((front, replica, tasks))
    }
}

// === impl Front ===

impl Front {
    /// Connections wait in the backlog until the manifests were read: before, every address would
    /// be unknown, and dialled in plaintext.
    async fn serve(self, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut ready = self.ready;
        tokio::select! {
            loaded = ready.wait_for(|loaded| *loaded) => {
                loaded.context("the manifests are not followed")?;
            }
            _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
        }
        let connections = accept(self.listener, self.tls, self.metrics);
        server::serve(connections, self.discovery, self.identities, stopping)
            .await
            .context("the gRPC server failed")
    }
}
