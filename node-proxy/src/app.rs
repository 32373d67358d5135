// SPDX-License-Identifier: Apache-2.0
//! The whole proxy, wired.
//!
//! Connections are served by a runtime of their own; the links to agent and control, renewals, the
//! state file and the admin server share the runtime that calls [`build`], so that neither waits
//! for the other.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use culvert_api::identity::{Identity, IdentityDomain};
use culvert_runtime::{admin::Admin, readiness::Readiness, shutdown};
use prometheus::Registry;
use tokio::{
    runtime::{Handle, Runtime},
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        watch,
    },
    task::JoinSet,
};

use crate::{
    access_log::AccessLog,
    agent_link::{self, AgentLink, AgentMetrics, ToAgent},
    config::{Config, DataPathConfig},
    confine::confine,
    control_link::{self, Ask, Control, ControlConfig, ControlLink, ControlMetrics},
    destinations::{DestinationMetrics, Destinations},
    identities::{self, AnchorMetrics, Identities, IdentityMetrics, watch_anchors},
    metrics::Metrics,
    pods::{self, Pods},
    seccomp,
    sockets::{Recycler, SocketMetrics},
    state::{Dirty, State, StateFile},
};

/// How often unused sockets are closed.
const TRIM: Duration = Duration::from_secs(30);

/// How often a drain looks whether it is over.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// What every connection of the data path needs.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// What applications dial.
    pub destinations: Destinations,
    /// The certificates of this node's workloads.
    pub identities: Identities,
    /// Where identities live.
    pub domain: IdentityDomain,
    /// Time-outs and the like.
    pub config: DataPathConfig,
    /// The data path's metrics.
    pub metrics: Metrics,
    /// The log of connections.
    pub access_log: AccessLog,
    /// True once the proxy drains.
    pub draining: watch::Sender<bool>,
}

/// A proxy that runs.
#[derive(Debug)]
pub struct Bound {
    admin: SocketAddr,
    tasks: JoinSet<()>,
    pods: Pods,
    proxy: Arc<Proxy>,
    state: StateFile,
    drain: Duration,
}

// === impl Proxy ===

impl Proxy {
    /// Whether the proxy drains.
    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Ready when the proxy drains: requests that have begun go on, and no more are taken.
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as this.
        let _ = self
            .draining
            .subscribe()
            .wait_for(|draining| *draining)
            .await;
    }
}

/// Refuses rights that the proxy must not have, and gives up the rest. Call it first.
pub fn give_up_rights(config: &Config) -> anyhow::Result<()> {
    Ok(confine(config.allow_root)?)
}

/// The runtime that serves connections, with `threads` threads or one for each CPU.
pub fn data_runtime(threads: usize) -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads);
    }
    Ok(builder.thread_name("data").enable_all().build()?)
}

/// Starts everything. Connections are served on `data`, all else on the current runtime.
pub async fn build(config: Config, data: Handle) -> anyhow::Result<Bound> {
    seccomp::install()?;
    let (registry, readiness) = (registry()?, Readiness::default());
    let admin = Admin::bind(config.admin, registry.clone(), readiness.clone()).await;
    let admin = admin.with_context(|| format!("could not listen on --admin {}", config.admin))?;
    let address = admin.local_addr()?;
    let mut wiring = Wiring::new(config, data, registry, readiness);
    wiring.tasks.spawn(async { match admin.serve().await {} });
    let bound = wiring.connect(address)?;
    tracing::info!(admin = %address, "The proxy runs");
    Ok(bound)
}

// === impl Bound ===

impl Bound {
    /// Where the admin server listens.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// Runs until SIGTERM or SIGINT, then lets open connections end for a while.
    pub async fn wait(mut self) -> anyhow::Result<()> {
        tokio::select! {
            signal = shutdown::requested() => {
                tracing::info!(signal = signal?, "Draining");
            }
            ended = self.tasks.join_next() => {
                anyhow::bail!("a part of the proxy ended: {ended:?}");
            }
        }
        self.pods.stop_accepting();
        self.proxy.draining.send_replace(true);
        self.drain().await;
        self.state
            .save(&now(&self.proxy.destinations, &self.pods))?;
        Ok(())
    }

    async fn drain(&self) {
        let begun = Instant::now();
        // Those of pods that have left have nobody to say farewell to.
        let open = || self.pods.open_connections();
        while open() > 0 && begun.elapsed() < self.drain {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        let took_ms = begun.elapsed().as_millis();
        tracing::info!(open = open(), took_ms, "Drained");
    }
}

/// The parts while they are put together.
struct Wiring {
    config: Config,
    data: Handle,
    registry: Registry,
    readiness: Readiness,
    dirty: Dirty,
    tasks: JoinSet<()>,
}

impl Wiring {
    fn new(config: Config, data: Handle, registry: Registry, readiness: Readiness) -> Self {
        Self {
            config,
            data,
            registry,
            readiness,
            dirty: Dirty::default(),
            tasks: JoinSet::new(),
        }
    }

    fn connect(mut self, admin: SocketAddr) -> anyhow::Result<Bound> {
        let (to_agent, for_agent) = unbounded_channel();
        let (to_control, for_control) = unbounded_channel();
        let (certify, certified) = unbounded_channel();
        let (state, known) = self.state()?;
        let control = self.control(certify, &to_agent)?;
        let identities = control.1;
        let destinations = Destinations::new(
            self.config.domain.clone(),
            to_control.clone(),
            self.dirty.clone(),
            DestinationMetrics::register(&self.registry)?,
        );
        destinations.restore(known.destinations);
        let proxy = Arc::new(self.proxy(destinations, identities)?);
        let around = self.pods(&proxy, to_agent, to_control)?;
        let pods = Pods::new(around, known.policies, known.reported);
        self.link_agent(&proxy, &pods, for_agent)?;
        self.link_control(control.0, &proxy, &pods, for_control)?;
        let told = tell_certified(certified, pods.clone(), self.readiness.clone());
        self.tasks.spawn(told);
        self.tasks.spawn(trim(pods.clone()));
        self.keep_state(&state, &proxy, &pods);
        let (tasks, drain) = (self.tasks, self.config.drain);
        Ok(Bound {
            admin,
            tasks,
            pods,
            proxy,
            state,
            drain,
        })
    }

    /// Control is waited for only where an earlier proxy left nothing to serve from.
    fn state(&self) -> anyhow::Result<(StateFile, State)> {
        let dir = &self.config.state_dir;
        let made = std::fs::create_dir_all(dir);
        made.with_context(|| format!("could not make --state-dir {}", dir.display()))?;
        let file = StateFile::new(dir);
        let known = file.load();
        self.readiness.pending(agent_link::READINESS);
        self.readiness.pending(identities::READINESS);
        if known.is_none() {
            self.readiness.pending(control_link::READINESS);
        }
        Ok((file, known.unwrap_or_default()))
    }

    fn control(
        &mut self,
        certified: UnboundedSender<Identity>,
        agent: &UnboundedSender<ToAgent>,
    ) -> anyhow::Result<(Control, Identities)> {
        let (anchors, follow) = watch_anchors(self.config.trust_anchors.clone());
        self.tasks.spawn(follow);
        let expiry = AnchorMetrics::register(&self.registry)?;
        self.tasks.spawn(expiry.follow(anchors.clone()));
        let domain = self.config.domain.clone();
        let itself = domain.identity(&domain.control_namespace, "culvert-control");
        let to = ControlConfig {
            address: self.config.control.clone(),
            server_name: domain.server_name(&itself),
            token_file: self.config.token_file.clone(),
        };
        let control = Control::new(to, anchors.clone());
        let identities = Identities::new(identities::Surroundings {
            domain,
            control: control.clone(),
            anchors,
            agent: agent.clone(),
            certified,
            metrics: IdentityMetrics::register(&self.registry)?,
            runtime: Handle::current(),
        });
        Ok((control, identities))
    }

    fn proxy(&self, destinations: Destinations, identities: Identities) -> anyhow::Result<Proxy> {
        Ok(Proxy {
            destinations,
            identities,
            domain: self.config.domain.clone(),
            config: self.config.data_path.clone(),
            metrics: Metrics::register(&self.registry)?,
            access_log: AccessLog::new(self.config.data_path.access_log),
            draining: watch::Sender::new(false),
        })
    }

    fn pods(
        &self,
        proxy: &Arc<Proxy>,
        agent: UnboundedSender<ToAgent>,
        control: UnboundedSender<Ask>,
    ) -> anyhow::Result<pods::Surroundings> {
        let recycler = {
            let _data = self.data.enter();
            Recycler::spawn()
        };
        Ok(pods::Surroundings {
            proxy: proxy.clone(),
            data: self.data.clone(),
            agent,
            control,
            dirty: self.dirty.clone(),
            recycler,
            socket_metrics: SocketMetrics::register(&self.registry)?,
        })
    }

    fn link_agent(
        &mut self,
        proxy: &Proxy,
        pods: &Pods,
        outgoing: UnboundedReceiver<ToAgent>,
    ) -> anyhow::Result<()> {
        let link = AgentLink {
            path: self.config.agent_socket.clone(),
            pods: pods.clone(),
            identities: proxy.identities.clone(),
            readiness: self.readiness.clone(),
            metrics: AgentMetrics::register(&self.registry)?,
        };
        self.tasks.spawn(link.run(outgoing));
        Ok(())
    }

    fn link_control(
        &mut self,
        control: Control,
        proxy: &Proxy,
        pods: &Pods,
        asks: UnboundedReceiver<Ask>,
    ) -> anyhow::Result<()> {
        let link = ControlLink {
            node: self.config.node.clone(),
            control,
            destinations: proxy.destinations.clone(),
            pods: pods.clone(),
            identities: proxy.identities.clone(),
            readiness: self.readiness.clone(),
            metrics: ControlMetrics::register(&self.registry)?,
        };
        self.tasks.spawn(link.run(asks));
        Ok(())
    }

    fn keep_state(&mut self, file: &StateFile, proxy: &Arc<Proxy>, pods: &Pods) {
        let (proxy, pods) = (proxy.clone(), pods.clone());
        let keep = file
            .clone()
            .keep(self.dirty.clone(), move || now(&proxy.destinations, &pods));
        self.tasks.spawn(keep);
    }
}

fn registry() -> anyhow::Result<Registry> {
    let registry = Registry::new();
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry.register(Box::new(process))?;
    Ok(registry)
}

fn now(destinations: &Destinations, pods: &Pods) -> State {
    let (policies, reported) = pods.save();
    State::new(destinations.save(), policies, reported)
}

async fn tell_certified(
    mut certified: UnboundedReceiver<Identity>,
    pods: Pods,
    readiness: Readiness,
) {
    while let Some(identity) = certified.recv().await {
        readiness.done(identities::READINESS);
        pods.certified(&identity);
    }
}

async fn trim(pods: Pods) {
    let mut every = tokio::time::interval(TRIM);
    loop {
        every.tick().await;
        pods.trim();
    }
}
