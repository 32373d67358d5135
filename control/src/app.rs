// SPDX-License-Identifier: Apache-2.0
//! Puts the parts together.

use std::{
    future::Future,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex},
};

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
    ca::{self, Authority},
    config::Config,
    discovery::{Discovery, Parts},
    identity::Identities,
    index::{Index, Reports},
    keep,
    metrics::Metrics,
    objects::{self, Follower},
    server,
    serving::Serving,
    tokens::TokenFile,
};

/// A control plane that listens and does not serve yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    admin: Admin,
    readiness: Readiness,
    config: Config,
    authority: Arc<Authority>,
    tokens: TokenFile,
    reports: Reports,
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
    readiness.pending(objects::PENDING);
    let registry = Registry::new();
    let metrics = Metrics::register(&registry)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("could not listen on {}", config.listen))?;
    let admin = Admin::bind(config.admin, registry, readiness.clone())
        .await
        .with_context(|| format!("could not listen on {}", config.admin))?;
    let files = config.clone();
    let (authority, reports, tokens) = spawn_blocking(move || read(&files)).await??;
    Ok(Bound {
        listener,
        admin,
        readiness,
        config,
        authority: Arc::new(authority),
        tokens,
        reports,
        metrics,
    })
}

fn read(config: &Config) -> anyhow::Result<(Authority, Reports, TokenFile)> {
    let (domain, lifetime) = (config.domain.clone(), config.issuance_lifetime);
    let authority = match &config.authority {
        Some(files) => ca::given(files, domain, lifetime)?,
        None => ca::open(&config.state_dir, domain, lifetime)?,
    };
    let dir = &config.state_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))?;
    let reports = keep::load(dir)?;
    Ok((
        authority,
        reports,
        TokenFile::open(config.join_tokens.clone()),
    ))
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
        let (front, mut tasks) = self.start(&stop)?;
        let mut served = pin!(front.serve(stop.subscribe()));
        tokio::select! {
            served = &mut served => return served,
            Some(ended) = tasks.join_next() => bail!("a task of control ended: {ended:?}"),
            () = end => {}
        }
        stop.send_replace(true);
        served.await
    }

    fn start(self, stop: &watch::Sender<bool>) -> anyhow::Result<(Front, JoinSet<()>)> {
        let serving = Arc::new(Serving::new(Arc::clone(&self.authority))?);
        let tls = Arc::new(serving.tls()?);
        let (loaded, ready) = watch::channel(false);
        let (keeping, kept) = watch::channel(0);
        let index = Index::new(self.reports);
        let views = index.view();
        let index = Arc::new(Mutex::new(index));
        let authenticator = self.tokens.authenticator();
        let metrics = self.metrics;
        let follower = Follower {
            dir: self.config.manifests,
            index: Arc::clone(&index),
            readiness: self.readiness,
            loaded,
            metrics: metrics.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async { match self.admin.serve().await {} });
        tasks.spawn(self.tokens.follow());
        tasks.spawn(serving.renew(self.config.issuance_lifetime, metrics.clone()));
        tasks.spawn(keep::keep(
            self.config.state_dir,
            Arc::clone(&index),
            keeping,
            metrics.clone(),
        ));
        tasks.spawn(follower.run());
        let discovery = Discovery::new(Parts {
            index,
            kept,
            stopping: stop.subscribe(),
            authenticator: authenticator.clone(),
            metrics: metrics.clone(),
            max_subscriptions: self.config.max_subscriptions,
        });
        let identities = Identities {
            authority: self.authority,
            authenticator,
            views,
            metrics: metrics.clone(),
        };
        let front = Front {
            listener: self.listener,
            tls,
            discovery,
            identities,
            ready,
            metrics,
        };
        Ok((front, tasks))
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
