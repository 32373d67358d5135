// SPDX-License-Identifier: Apache-2.0
//! A proxy for tests, all of it but its listeners' clients: with a control plane in this process
//! and the agent's end of the queues in the test's hands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use culvert_api::{
    agent::{Family, FromProxy, Listener},
    identity::Identity,
    workload::{NetnsCookie, PodUid, Workload, WorkloadKey},
};
use culvert_runtime::readiness::Readiness;
use prometheus::Registry;
use tokio::{
    runtime::Handle,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::AbortHandle,
};

use crate::{
    access_log::AccessLog,
    agent_link::ToAgent,
    app::Proxy,
    config::{AccessLogFormat, DataPathConfig},
    control_link::{Ask, ControlLink, ControlMetrics, fake::FakeControl, fake::domain},
    destinations::{DestinationMetrics, Destinations},
    identities::{self, Identities, IdentityMetrics, watch_anchors},
    metrics::Metrics,
    pods::{self, Announced, Pods},
    sockets::{Recycler, SocketMetrics},
    state::{Dirty, State},
};

/// The parts of a proxy.
pub(crate) struct Fixture {
    pub(crate) control: FakeControl,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) pods: Pods,
    pub(crate) registry: Registry,
    pub(crate) readiness: Readiness,
    pub(crate) to_agent: Option<UnboundedReceiver<ToAgent>>,
    pub(crate) asks: Option<UnboundedReceiver<Ask>>,
}

impl Fixture {
    /// A proxy that knows nothing from before.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::with(State::default()).await
    }

    /// A proxy that knows `state` from before.
    pub(crate) async fn with(state: State) -> anyhow::Result<Self> {
        let control = FakeControl::start().await?;
        let registry = Registry::new();
        let (agent, to_agent) = unbounded_channel();
        let (ask, asks) = unbounded_channel();
        let (certify, mut certified) = unbounded_channel::<Identity>();
        let (anchors, follow) = watch_anchors(control.dir.path().join("anchors.pem"));
        tokio::spawn(follow);
        let identities = Identities::new(identities::Surroundings {
            domain: domain(),
            control: control.client(),
            anchors,
            agent: agent.clone(),
            certified: certify,
            metrics: IdentityMetrics::register(&registry)?,
            runtime: Handle::current(),
        });
        let dirty = Dirty::default();
        let metrics = DestinationMetrics::register(&registry)?;
        let destinations = Destinations::new(domain(), ask.clone(), dirty.clone(), metrics);
        destinations.restore(state.destinations);
        let proxy = Arc::new(Proxy {
            destinations,
            identities,
            domain: domain(),
            config: data_path(),
            metrics: Metrics::register(&registry)?,
            access_log: AccessLog::new(AccessLogFormat::Off),
            draining: tokio::sync::watch::Sender::new(false),
        });
        let around = pods::Surroundings {
            proxy: proxy.clone(),
            data: Handle::current(),
            agent,
            control: ask,
            dirty,
            recycler: Recycler::spawn(),
            socket_metrics: SocketMetrics::register(&registry)?,
        };
        let pods = Pods::new(around, state.policies, state.reported);
        let told = pods.clone();
        tokio::spawn(async move {
            while let Some(identity) = certified.recv().await {
                told.certified(&identity);
            }
        });
        Ok(Self {
            control,
            proxy,
            pods,
            registry,
            readiness: Readiness::default(),
            to_agent: Some(to_agent),
            asks: Some(asks),
        })
    }

    /// Starts the link to control.
    pub(crate) fn link_control(&mut self) -> anyhow::Result<AbortHandle> {
        let link = ControlLink {
            node: "node-1".to_owned(),
            control: self.control.client(),
            destinations: self.proxy.destinations.clone(),
            pods: self.pods.clone(),
            identities: self.proxy.identities.clone(),
            readiness: self.readiness.clone(),
            metrics: ControlMetrics::register(&self.registry)?,
        };
        let asks = self
            .asks
            .take()
            .ok_or_else(|| anyhow::anyhow!("linked twice"))?;
        Ok(tokio::spawn(link.run(asks)).abort_handle())
    }

    /// What the agent was told next, wishes for sockets left out.
    pub(crate) async fn told_agent(&mut self) -> ToAgent {
        let Some(told) = self.to_agent.as_mut() else {
            panic!("a link has the queue");
        };
        loop {
            match tokio::time::timeout(Duration::from_secs(10), told.recv()).await {
                Ok(Some(ToAgent {
                    message: FromProxy::Want { .. },
                    ..
                })) => {}
                Ok(Some(told)) => return told,
                other => panic!("the agent was told nothing: {other:?}"),
            }
        }
    }
}

/// Waits until `condition` holds, and gives up after ten seconds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not in ten seconds: {what}");
}

/// The pod of most tests: its identity is what the fake control signs.
pub(crate) fn workload() -> Workload {
    Workload {
        uid: PodUid("uid-1".to_owned()),
        namespace: "shop".to_owned(),
        name: "cart-1".to_owned(),
        service_account: "cart".to_owned(),
        owner_kind: "deployment".to_owned(),
        owner_name: "cart".to_owned(),
    }
}

/// The enrolment of [`workload`].
pub(crate) fn key() -> WorkloadKey {
    WorkloadKey {
        uid: workload().uid,
        cookie: NetnsCookie(7),
    }
}

/// As the agent announces [`workload`], with new listeners.
pub(crate) fn announced() -> anyhow::Result<Announced> {
    let v4 = Listener::ALL
        .into_iter()
        .filter(|listener| listener.family == Family::V4);
    let listeners =
        v4.map(|listener| Ok((listener, std::net::TcpListener::bind("127.0.0.1:0")?.into())));
    Ok(Announced {
        key: key(),
        workload: workload(),
        addresses: vec!["10.1.0.2".parse()?],
        live: false,
        listeners: listeners.collect::<anyhow::Result<_>>()?,
    })
}

/// What an earlier proxy knew of [`workload`].
pub(crate) fn known() -> State {
    let policy = culvert_api::policy::InboundPolicy::permissive();
    State::new(
        Vec::new(),
        BTreeMap::from([(key().uid, policy)]),
        BTreeSet::from([key()]),
    )
}

fn data_path() -> DataPathConfig {
    let second = Duration::from_secs(1);
    DataPathConfig {
        outbound_connect_timeout: second,
        inbound_connect_timeout: second,
        handshake_timeout: second,
        half_open_timeout: second,
        body_timeout: second,
        access_log: AccessLogFormat::Off,
    }
}
