// SPDX-License-Identifier: Apache-2.0
//! The link to control: one stream of destinations, policies and reports, and certificates.
//!
//! Nothing is lost by a broken stream: the next one begins with everything that this node wants
//! and has to report.

mod client;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::tests::fake;

use std::{net::SocketAddr, time::Duration};

use culvert_api::{
    grpc::{VERSIONS, v1},
    policy::InboundPolicy,
    version::{NoCommonVersion, Versions},
    workload::{NetnsCookie, PodUid, WorkloadKey},
};
use culvert_runtime::readiness::Readiness;
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tonic::Streaming;
use v1::{watch_request::Kind as Request, watch_response::Kind as Response};

pub(crate) use self::client::{CertifyError, Control, ControlConfig, Unreachable};
use crate::{backoff::Backoff, destinations::Destinations, identities::Identities, pods::Pods};

/// What [`Readiness`] calls the first stream, where nothing is known from before.
pub(crate) const READINESS: &str = "control";

const LEAST_WAIT: Duration = Duration::from_millis(100);
/// Less than the five seconds for which control, when it is back, waits for a node before it tells
/// another that everybody knows of its pods.
const MOST_WAIT: Duration = Duration::from_secs(3);

/// How long control may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How often idle destinations are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// Something that control is to be asked or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// What a destination is.
    Subscribe(SocketAddr),
    /// It is not dialled any more.
    Unsubscribe(SocketAddr),
    /// The inbound policy of a local pod.
    SubscribePolicy(PodUid),
    /// The pod is gone.
    UnsubscribePolicy(PodUid),
    /// Whether a local pod is steered.
    Report(Report),
}

/// Whether a pod is steered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) key: WorkloadKey,
    pub(crate) generation: u64,
    pub(crate) steered: bool,
}

/// What the link counts.
#[derive(Clone, Debug)]
pub(crate) struct ControlMetrics {
    connected: IntGauge,
    streams: IntCounter,
    failures: IntCounter,
    version_mismatches: IntCounter,
}

/// The link.
#[derive(Debug)]
pub(crate) struct ControlLink {
    pub(crate) node: String,
    pub(crate) control: Control,
    pub(crate) destinations: Destinations,
    pub(crate) pods: Pods,
    pub(crate) identities: Identities,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: ControlMetrics,
}

/// A stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("control ended the stream: {}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("control closed the stream")]
    Closed,
    #[error("control said no hello in {HELLO_TIMEOUT:?}")]
    NoHello,
    #[error(transparent)]
    Version(#[from] NoCommonVersion),
}

// === impl Ended ===

impl Ended {
    /// Either end may be the one that says so.
    fn is_version_mismatch(&self) -> bool {
        match self {
            Self::Version(_) => true,
            Self::Status(status) => status.code() == tonic::Code::FailedPrecondition,
            Self::Unreachable(_) | Self::Closed | Self::NoHello => false,
        }
    }
}

// === impl ControlMetrics ===

impl ControlMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let connected = IntGauge::new(
            "culvert_proxy_control_connected",
            "Whether the proxy's stream to control is open.",
        )?;
        let streams = IntCounter::new(
            "culvert_proxy_control_streams_total",
            "Streams to control that were opened.",
        )?;
        let failures = IntCounter::new(
            "culvert_proxy_control_failures_total",
            "Streams to control that could not be opened, or that broke.",
        )?;
        let version_mismatches = IntCounter::new(
            "culvert_proxy_control_version_mismatches_total",
            "Streams that ended because proxy and control share no version.",
        )?;
        registry.register(Box::new(connected.clone()))?;
        registry.register(Box::new(streams.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(version_mismatches.clone()))?;
        Ok(Self {
            connected,
            streams,
            failures,
            version_mismatches,
        })
    }
}

// === impl ControlLink ===

impl ControlLink {
    /// Opens a stream, again and again.
    pub(crate) async fn run(self, mut asks: UnboundedReceiver<Ask>) {
        let mut backoff = Backoff::new(LEAST_WAIT, MOST_WAIT);
        let mut last = String::new();
        loop {
            let ended = self.stream(&mut asks, &mut backoff).await;
            let Err(ended) = ended;
            self.metrics.connected.set(0);
            self.metrics.failures.inc();
            if ended.is_version_mismatch() {
                self.metrics.version_mismatches.inc();
            }
            let reason = ended.to_string();
            if reason != last {
                tracing::warn!(error = %reason, "No stream to control; what is known is served");
            }
            last = reason;
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// One stream, until it ends.
    async fn stream(
        &self,
        asks: &mut UnboundedReceiver<Ask>,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Ended> {
        let (requests, outgoing) = tokio::sync::mpsc::unbounded_channel();
        send(&requests, Request::Hello(self.hello()))?;
        let mut responses = self.control.watch(outgoing).await?;
        let version = greet(&mut responses).await?;
        backoff.reset();
        self.metrics.connected.set(1);
        self.metrics.streams.inc();
        tracing::info!(version, "The stream to control is open");
        // What was asked before is asked again from what is wanted now.
        while asks.try_recv().is_ok() {}
        for ask in self.wanted() {
            send(&requests, ask.into())?;
        }
        self.readiness.done(READINESS);
        self.converse(asks, &requests, &mut responses).await
    }

    async fn converse(
        &self,
        asks: &mut UnboundedReceiver<Ask>,
        requests: &UnboundedSender<v1::WatchRequest>,
        responses: &mut Streaming<v1::WatchResponse>,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                response = responses.message() => {
                    let response = response?.ok_or(Ended::Closed)?;
                    let sequence = response.sequence;
                    self.apply(response);
                    send(requests, Request::Ack(v1::Ack { sequence }))?;
                }
                ask = asks.recv() => send(requests, ask.ok_or(Ended::Closed)?.into())?,
                _ = sweep.tick() => self.destinations.forget_idle(),
            }
        }
    }

    fn apply(&self, response: v1::WatchResponse) {
        match response.kind {
            Some(Response::Destination(destination)) => self.destinations.apply(&destination),
            Some(Response::Policy(policy)) => {
                let uid = PodUid(policy.pod_uid.clone());
                self.pods.set_policy(&uid, InboundPolicy::from(&policy));
            }
            Some(Response::Reported(reported)) => {
                let (uid, cookie) = (PodUid(reported.pod_uid), NetnsCookie(reported.netns_cookie));
                self.pods
                    .reported(&WorkloadKey { uid, cookie }, reported.generation);
            }
            Some(Response::Issuer(issuer)) => self.identities.signed_by(&issuer.fingerprint),
            // Of a later release, or out of place.
            Some(Response::Hello(_)) | None => {}
        }
    }

    fn wanted(&self) -> Vec<Ask> {
        let destinations = self.destinations.in_use().into_iter().map(Ask::Subscribe);
        destinations.chain(self.pods.wanted()).collect()
    }

    fn hello(&self) -> v1::Hello {
        v1::Hello {
            node: self.node.clone(),
            ..VERSIONS.into()
        }
    }
}

async fn greet(responses: &mut Streaming<v1::WatchResponse>) -> Result<u32, Ended> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, responses.message()).await;
    let first = first.map_err(|_| Ended::NoHello)??.ok_or(Ended::Closed)?;
    let Some(Response::Hello(hello)) = first.kind else {
        return Err(Ended::NoHello);
    };
    Ok(VERSIONS.agree(Versions::from(&hello))?)
}

fn send(requests: &UnboundedSender<v1::WatchRequest>, kind: Request) -> Result<(), Ended> {
    let request = v1::WatchRequest { kind: Some(kind) };
    requests.send(request).map_err(|_| Ended::Closed)
}

// === impl Request ===

impl From<Ask> for Request {
    fn from(ask: Ask) -> Self {
        let address = |addr: SocketAddr| Some(v1::Address::from(addr));
        match ask {
            Ask::Subscribe(to) => Self::Subscribe(v1::Subscribe {
                destination: address(to),
            }),
            Ask::Unsubscribe(to) => Self::Unsubscribe(v1::Unsubscribe {
                destination: address(to),
            }),
            Ask::SubscribePolicy(uid) => {
                Self::SubscribePolicy(v1::SubscribePolicy { pod_uid: uid.0 })
            }
            Ask::UnsubscribePolicy(uid) => {
                Self::UnsubscribePolicy(v1::UnsubscribePolicy { pod_uid: uid.0 })
            }
            Ask::Report(Report {
                key,
                generation,
                steered,
            }) => Self::Report(v1::Report {
                pod_uid: key.uid.0,
                netns_cookie: key.cookie.0,
                generation,
                steered,
            }),
        }
    }
}
