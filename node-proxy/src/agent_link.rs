// SPDX-License-Identifier: Apache-2.0
//! The link to the agent: pods, listeners, sockets and stored keys come in, wishes and keys go out.
//!
//! The proxy serves what it has while the agent is away. Each connection begins with versions and
//! a snapshot; what a snapshot does not name is gone.

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, io, os::fd::OwnedFd, path::PathBuf, time::Duration};

use culvert_api::{
    agent::{FromAgent, FromProxy, Listener, MAX_FDS, MAX_MESSAGE, VERSIONS},
    identity::Identity,
    version::NoCommonVersion,
    workload::WorkloadKey,
};
use culvert_runtime::{
    readiness::Readiness,
    seqpacket::{self, Channel, Message},
};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use std::os::fd::AsFd;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    backoff::Backoff,
    identities::{self, Identities},
    pods::{Announced, Pods},
};

/// What [`Readiness`] calls the first snapshot.
pub(crate) const READINESS: &str = "agent";

const LEAST_WAIT: Duration = Duration::from_millis(50);
const MOST_WAIT: Duration = Duration::from_secs(2);

/// The wait where the versions do not match: nothing but an upgrade helps.
const VERSION_WAIT: Duration = Duration::from_secs(10);

/// How long the agent may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A message for the agent, and the descriptor that goes with it.
#[derive(Debug)]
pub(crate) struct ToAgent {
    pub(crate) message: FromProxy,
    pub(crate) fd: Option<OwnedFd>,
}

/// What the link counts.
#[derive(Clone, Debug)]
pub(crate) struct AgentMetrics {
    connected: IntGauge,
    version_mismatches: IntCounter,
    refused: IntCounterVec,
}

/// The link.
#[derive(Debug)]
pub(crate) struct AgentLink {
    pub(crate) path: PathBuf,
    pub(crate) pods: Pods,
    pub(crate) identities: Identities,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: AgentMetrics,
}

/// The pods that a snapshot named.
#[derive(Debug, Default)]
struct Named {
    pods: BTreeSet<WorkloadKey>,
    /// Something could not be read, which may have named more.
    in_part: bool,
}

/// A connection to the agent ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("could not connect: {0}")]
    Connect(#[source] io::Error),
    #[error(transparent)]
    Channel(#[from] seqpacket::Error),
    #[error("the agent said no hello in {HELLO_TIMEOUT:?}")]
    NoHello,
    #[error("the agent began with something else than a hello")]
    NotHello,
    #[error(transparent)]
    Version(#[from] NoCommonVersion),
    #[error("the process has no descriptors left for what the agent sends")]
    NoDescriptors,
}

/// What a message could not be carried out for.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{got} descriptors came with a message that names {expected}")]
    Descriptors { got: usize, expected: usize },
    #[error(transparent)]
    Listeners(#[from] crate::pods::BadListeners),
}

// === impl ToAgent ===

impl From<FromProxy> for ToAgent {
    fn from(message: FromProxy) -> Self {
        Self { message, fd: None }
    }
}

// === impl AgentMetrics ===

impl AgentMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let connected = IntGauge::new(
            "culvert_proxy_agent_connected",
            "Whether the proxy is connected to the agent of its node.",
        )?;
        let version_mismatches = IntCounter::new(
            "culvert_proxy_agent_version_mismatches_total",
            "Connections that ended because agent and proxy share no version.",
        )?;
        let refused = IntCounterVec::new(
            Opts::new(
                "culvert_proxy_agent_messages_refused_total",
                "Messages of the agent that could not be carried out.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(connected.clone()))?;
        registry.register(Box::new(version_mismatches.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self {
            connected,
            version_mismatches,
            refused,
        })
    }
}

// === impl AgentLink ===

impl AgentLink {
    /// Connects, again and again.
    pub(crate) async fn run(self, mut outgoing: UnboundedReceiver<ToAgent>) {
        let mut backoff = Backoff::new(LEAST_WAIT, MOST_WAIT);
        let mut last = String::new();
        loop {
            let ended = self.connect(&mut outgoing, &mut backoff).await;
            self.metrics.connected.set(0);
            let wait = self.wait(&ended, &mut backoff);
            let reason = ended.to_string();
            if reason != last {
                tracing::warn!(error = %reason, "No connection to the agent; what is known is served");
            }
            last = reason;
            tokio::time::sleep(wait).await;
        }
    }

    fn wait(&self, ended: &Ended, backoff: &mut Backoff) -> Duration {
        match ended {
            Ended::Version(_) => {
                self.metrics.version_mismatches.inc();
                VERSION_WAIT
            }
            _ => backoff.wait(),
        }
    }

    /// One connection, until it ends.
    async fn connect(
        &self,
        outgoing: &mut UnboundedReceiver<ToAgent>,
        backoff: &mut Backoff,
    ) -> Ended {
        let (channel, version) = match self.greet().await {
            Ok(greeted) => greeted,
            Err(ended) => return ended,
        };
        self.metrics.connected.set(1);
        tracing::info!(version, "Connected to the agent");
        // Wishes from before: the pods repeat theirs when the snapshot names them.
        while outgoing.try_recv().is_ok() {}
        let (replies, mut replied) = tokio::sync::mpsc::unbounded_channel();
        tokio::select! {
            ended = self.receive(&channel, &replies, backoff) => ended,
            ended = send(&channel, &mut replied, outgoing) => ended,
        }
    }

    async fn greet(&self) -> Result<(Channel, u32), Ended> {
        let channel = Channel::connect(&self.path, MAX_MESSAGE, MAX_FDS).map_err(Ended::Connect)?;
        channel
            .send(&FromProxy::Hello { versions: VERSIONS }, &[])
            .await?;
        let hello = tokio::time::timeout(HELLO_TIMEOUT, channel.recv::<FromAgent>());
        let hello = hello.await.map_err(|_| Ended::NoHello)??;
        let FromAgent::Hello { versions, node } = hello.body else {
            return Err(Ended::NotHello);
        };
        let version = VERSIONS.agree(versions)?;
        tracing::debug!(version, node, "The agent said hello");
        Ok((channel, version))
    }

    /// Carries messages out, one after the other: none of them waits for anything.
    async fn receive(
        &self,
        channel: &Channel,
        replies: &tokio::sync::mpsc::UnboundedSender<FromProxy>,
        backoff: &mut Backoff,
    ) -> Ended {
        let mut named = Named::default();
        loop {
            let message = match channel.recv::<FromAgent>().await {
                Ok(message) => message,
                Err(error @ seqpacket::Error::Malformed(_)) => {
                    self.metrics.refused.with_label_values(&["malformed"]).inc();
                    tracing::warn!(%error, "Ignored a message of the agent");
                    named.in_part = true;
                    continue;
                }
                Err(error) => return error.into(),
            };
            // Of sockets any number will do; what is missing of a pod is told again by the next snapshot.
            if message.short && !matches!(message.body, FromAgent::Sockets { .. }) {
                return Ended::NoDescriptors;
            }
            if matches!(message.body, FromAgent::SnapshotEnd { .. }) {
                backoff.reset();
            }
            if let Some(reply) = self.carry_out(message, &mut named) {
                // The receiver lives as long as this connection.
                let _ = replies.send(reply);
            }
        }
    }

    fn carry_out(&self, message: Message<FromAgent>, named: &mut Named) -> Option<FromProxy> {
        let Message { body, fds, .. } = message;
        let seq = sequence(&body);
        let done = self.apply(body, fds, named);
        if let Err(error) = &done {
            self.metrics.refused.with_label_values(&["refused"]).inc();
            tracing::warn!(%error, "Could not carry out a message of the agent");
        }
        let seq = seq?;
        Some(match done {
            Ok(()) => FromProxy::Ack { seq },
            Err(error) => FromProxy::Nack {
                seq,
                reason: error.to_string(),
            },
        })
    }

    fn apply(
        &self,
        message: FromAgent,
        fds: Vec<OwnedFd>,
        named: &mut Named,
    ) -> Result<(), Refused> {
        match message {
            FromAgent::Hello { .. } => {}
            FromAgent::Key { identity } => self.key(&identity, fds)?,
            FromAgent::Pod {
                key,
                workload,
                addresses,
                live,
                listeners,
                ..
            } => {
                named.pods.insert(key.clone());
                let listeners = pair(listeners, fds)?;
                self.pods.add(Announced {
                    key,
                    workload,
                    addresses,
                    live,
                    listeners,
                })?;
            }
            FromAgent::Addresses { key, addresses, .. } => self.pods.set_addresses(&key, addresses),
            FromAgent::Withdraw { key, .. } => self.pods.withdraw(&key),
            FromAgent::Remove { key, .. } => {
                named.pods.remove(&key);
                self.pods.remove(&key);
            }
            FromAgent::SnapshotEnd { .. } => self.snapshot_ended(named),
            FromAgent::Sockets { key, pool } => self.pods.receive_sockets(&key, pool, fds),
        }
        Ok(())
    }

    fn key(&self, identity: &Identity, fds: Vec<OwnedFd>) -> Result<(), Refused> {
        let fd = exactly(fds, 1)?.pop();
        if let Some(fd) = fd {
            self.identities.load(identity, fd);
        }
        Ok(())
    }

    /// An agent of a later release may say what this one can't read: no pod is given up for that.
    fn snapshot_ended(&self, named: &Named) {
        match named.in_part {
            true => tracing::warn!(
                "Not all of the agent's snapshot could be read: pods that it did not name are kept"
            ),
            false => self.pods.retain(&named.pods),
        }
        self.identities.forget_unused();
        self.identities.keep_all();
        self.readiness.done(READINESS);
        if self.pods.count() == 0 {
            self.readiness.done(identities::READINESS);
        }
        tracing::info!(pods = self.pods.count(), "The agent's snapshot is complete");
    }
}

async fn send(
    channel: &Channel,
    replied: &mut UnboundedReceiver<FromProxy>,
    outgoing: &mut UnboundedReceiver<ToAgent>,
) -> Ended {
    loop {
        let next = tokio::select! {
            reply = replied.recv() => reply.map(ToAgent::from),
            message = outgoing.recv() => message,
        };
        let Some(ToAgent { message, fd }) = next else {
            return Ended::Channel(seqpacket::Error::Closed);
        };
        let fd = fd.as_ref().map(AsFd::as_fd);
        if let Err(error) = channel.send(&message, fd.as_slice()).await {
            return error.into();
        }
    }
}

fn sequence(message: &FromAgent) -> Option<u64> {
    match message {
        FromAgent::Hello { .. } | FromAgent::Key { .. } | FromAgent::Sockets { .. } => None,
        FromAgent::Pod { seq, .. }
        | FromAgent::Addresses { seq, .. }
        | FromAgent::Withdraw { seq, .. }
        | FromAgent::Remove { seq, .. }
        | FromAgent::SnapshotEnd { seq } => Some(*seq),
    }
}

fn pair(listeners: Vec<Listener>, fds: Vec<OwnedFd>) -> Result<Vec<(Listener, OwnedFd)>, Refused> {
    let fds = exactly(fds, listeners.len())?;
    Ok(listeners.into_iter().zip(fds).collect())
}

fn exactly(fds: Vec<OwnedFd>, expected: usize) -> Result<Vec<OwnedFd>, Refused> {
    if fds.len() != expected {
        return Err(Refused::Descriptors {
            got: fds.len(),
            expected,
        });
    }
    Ok(fds)
}
