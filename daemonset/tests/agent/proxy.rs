// SPDX-License-Identifier: Apache-2.0
//! A proxy that does what a test tells it.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
};

use culvert_api::{
    agent::{FromAgent, FromProxy, Listener, MAX_FDS, MAX_MESSAGE, SocketPool, VERSIONS},
    version::Versions,
    workload::WorkloadKey,
};
use culvert_runtime::seqpacket::{Channel, Error, Message};
use tokio::time::timeout;

use crate::node::{Node, PATIENCE};

/// A connected proxy.
pub struct Proxy {
    channel: Channel,
    pub listeners: BTreeMap<Listener, OwnedFd>,
    pub sockets: Vec<(SocketPool, OwnedFd)>,
}

impl Proxy {
    /// Connects and says hello.
    pub async fn connect(node: &Node, versions: Versions) -> Self {
        let channel = Channel::connect(&node.path("run/proxy.sock"), MAX_MESSAGE, MAX_FDS);
        let channel = channel.unwrap_or_else(|e| panic!("{e}"));
        drop(channel.send(&FromProxy::Hello { versions }, &[]).await);
        Self {
            channel,
            listeners: BTreeMap::new(),
            sockets: Vec::new(),
        }
    }

    /// Connects and takes the snapshot: the pods that it names.
    pub async fn snapshot(node: &Node) -> (Self, Vec<WorkloadKey>) {
        let mut proxy = Self::connect(node, VERSIONS).await;
        let mut pods = Vec::new();
        loop {
            match proxy.next().await {
                FromAgent::Pod { key, .. } => pods.push(key),
                FromAgent::SnapshotEnd { .. } => return (proxy, pods),
                _ => {}
            }
        }
    }

    /// The next message, acknowledged, its descriptors kept.
    pub async fn next(&mut self) -> FromAgent {
        let received = self.try_next().await;
        received.unwrap_or_else(|e| panic!("{e}"))
    }

    /// The next message or the end.
    pub async fn try_next(&mut self) -> Result<FromAgent, Error> {
        let received = timeout(PATIENCE, self.channel.recv()).await;
        let Message { body, fds, .. } = received.unwrap_or_else(|_| panic!("nothing came"))?;
        let seq = match &body {
            FromAgent::Pod { seq, listeners, .. } => {
                assert_eq!(listeners.len(), fds.len());
                self.listeners = listeners.iter().copied().zip(fds).collect();
                *seq
            }
            FromAgent::Sockets { pool, .. } => {
                self.sockets.extend(fds.into_iter().map(|fd| (*pool, fd)));
                return Ok(body);
            }
            FromAgent::Addresses { seq, .. }
            | FromAgent::Withdraw { seq, .. }
            | FromAgent::Remove { seq, .. }
            | FromAgent::SnapshotEnd { seq } => *seq,
            FromAgent::Hello { .. } | FromAgent::Key { .. } => return Ok(body),
        };
        self.say(&FromProxy::Ack { seq }, None).await;
        Ok(body)
    }

    /// Reads on until a message is as wanted.
    pub async fn until<T>(&mut self, wanted: impl Fn(&Self, &FromAgent) -> Option<T>) -> T {
        loop {
            let message = self.next().await;
            if let Some(found) = wanted(self, &message) {
                return found;
            }
        }
    }

    /// Says something.
    pub async fn say(&self, message: &FromProxy, fd: Option<&OwnedFd>) {
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        let said = self.channel.send(message, &fds).await;
        said.unwrap_or_else(|e| panic!("{e}"));
    }
}
