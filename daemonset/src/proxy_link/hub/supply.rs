// SPDX-License-Identifier: Apache-2.0
//! Sockets of pods' namespaces for proxies.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use culvert_api::{
    agent::{MAX_FDS, SocketKind, SocketPool},
    workload::WorkloadKey,
};

use super::{ConnectionId, Hub};
use crate::{
    enrolment::{
        addresses::{FAMILIES, family},
        sockets::{self, Error},
    },
    netns::Netns,
};

/// How many sockets of each pool a proxy begins with.
const INITIAL: usize = 8;

/// How long a request waits for its pod's budget.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Pools of a pod.
pub type Pools = Vec<SocketPool>;

/// The pools that a pod with these addresses needs.
pub fn initial(addresses: &[IpAddr]) -> Pools {
    let of = |wanted| addresses.iter().any(|ip| family(*ip) == wanted);
    let families = FAMILIES.into_iter().filter(|family| of(*family));
    let kinds = [SocketKind::OutboundLeg, SocketKind::InboundDial];
    families
        .flat_map(|family| kinds.map(|kind| SocketPool { kind, family }))
        .collect()
}

// === impl Hub ===

impl Hub {
    /// Makes the sockets that a proxy begins with.
    pub(super) fn supply(&self, id: ConnectionId, pods: Vec<(WorkloadKey, Pools)>) {
        let hub = self.clone();
        tokio::spawn(async move {
            for (key, pools) in pods {
                for pool in pools {
                    hub.sockets(id, &key, pool, INITIAL).await;
                }
            }
        });
    }

    /// Makes sockets of a pool for one proxy, later when the pod had too many.
    pub async fn sockets(
        &self,
        id: ConnectionId,
        key: &WorkloadKey,
        pool: SocketPool,
        count: usize,
    ) {
        let mut left = count.min(MAX_FDS);
        let deadline = Instant::now() + PATIENCE;
        while left > 0 && Instant::now() < deadline {
            let Some((netns, granted)) = self.grant(key, left) else {
                return self.failed("gone");
            };
            left -= granted;
            if granted > 0 {
                self.make(id, key, pool, (netns, granted)).await;
            }
            if left > 0 {
                self.shared.metrics.sockets_throttled.inc();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn make(
        &self,
        id: ConnectionId,
        key: &WorkloadKey,
        pool: SocketPool,
        (netns, count): (Netns, usize),
    ) {
        // Never closed, so always granted.
        let _maker = self.shared.makers.acquire().await;
        match sockets::batch(&netns, &self.shared.ebpf, pool, count).await {
            Ok(fds) => {
                self.shared.metrics.count_sockets(pool.kind, fds.len());
                self.enqueue_sockets(id, key, pool, fds);
            }
            Err(error) => {
                tracing::warn!(enrolment = %key, %error, "Could not make sockets for a proxy");
                self.failed(reason(&error));
            }
        }
    }

    /// None: the pod is gone.
    fn grant(&self, key: &WorkloadKey, count: usize) -> Option<(Netns, usize)> {
        let mut state = self.lock();
        let pod = state.pods.get_mut(key)?;
        let granted = pod.budget.take(count, Instant::now());
        Some((pod.handover.netns.clone(), granted))
    }

    fn failed(&self, reason: &str) {
        let failed = &self.shared.metrics.sockets_failed;
        failed.with_label_values(&[reason]).inc();
    }
}

const fn reason(error: &Error) -> &'static str {
    match error {
        Error::Netns(_) => "netns",
        Error::Socket(_) => "socket",
        Error::Exempt(_) => "exempt",
    }
}
