// SPDX-License-Identifier: Apache-2.0
//! One pool: the idle sockets of one kind and family of one pod.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use culvert_api::{
    agent::{FromProxy, MAX_FDS, SocketPool},
    workload::WorkloadKey,
};
use tokio::sync::{Notify, mpsc::UnboundedSender};

use super::{kernel, metrics::PoolMetrics};
use crate::agent_link::ToAgent;

const LOW_WATER: usize = 4;
const MOST_LOW_WATER: usize = 64;
const BATCH: usize = 16;
/// The most idle sockets that are kept for the next burst.
const MOST_IDLE: usize = 1024;
/// After so long without an answer the agent is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The idle sockets of one kind and family.
#[derive(Debug)]
pub(super) struct Pool {
    key: WorkloadKey,
    pub(super) id: SocketPool,
    state: Mutex<State>,
    arrived: Notify,
    agent: UnboundedSender<ToAgent>,
    pub(super) metrics: PoolMetrics,
}

#[derive(Debug)]
struct State {
    idle: Vec<OwnedFd>,
    low_water: usize,
    asked: Option<Instant>,
    /// The fewest that were idle since the last trim.
    floor: usize,
    closed: bool,
}

/// A socket taken from its pool.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) fd: OwnedFd,
    pub(super) pool: Arc<Pool>,
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(
        key: WorkloadKey,
        id: SocketPool,
        agent: UnboundedSender<ToAgent>,
        metrics: PoolMetrics,
    ) -> Arc<Self> {
        let state = State {
            idle: Vec::new(),
            low_water: LOW_WATER,
            asked: None,
            floor: 0,
            closed: false,
        };
        Arc::new(Self {
            key,
            id,
            state: Mutex::new(state),
            arrived: Notify::new(),
            agent,
            metrics,
        })
    }

    /// Takes a socket, and waits for one where there is none.
    pub(super) async fn take(self: &Arc<Self>, wait: Duration) -> io::Result<Taken> {
        tokio::time::timeout(wait, self.take_next())
            .await
            .map_err(|_| {
                self.metrics.starved.inc();
                io::Error::new(io::ErrorKind::TimedOut, Starved(self.id, wait))
            })
    }

    /// Whether few are left.
    pub(super) fn is_low(&self) -> bool {
        let state = self.lock();
        !state.closed && state.idle.len() < state.low_water
    }

    /// Whether none is left: somebody may be waiting.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().idle.is_empty()
    }

    /// A socket that was made without the agent.
    pub(super) fn made(self: &Arc<Self>, fd: OwnedFd) -> Taken {
        self.metrics.made.inc();
        let pool = self.clone();
        Taken { fd, pool }
    }

    async fn take_next(self: &Arc<Self>) -> Taken {
        loop {
            let mut arrived = pin!(self.arrived.notified());
            // Or one that arrives after the look and before the wait wakes somebody else, or nobody.
            arrived.as_mut().enable();
            if let Some(taken) = self.pop(true) {
                return taken;
            }
            arrived.await;
        }
    }

    /// Takes a socket, if there is one. Where few are left and `ask` says so, the agent is asked.
    pub(super) fn pop(self: &Arc<Self>, ask: bool) -> Option<Taken> {
        let mut state = self.lock();
        let fd = state.idle.pop();
        state.floor = state.floor.min(state.idle.len());
        if fd.is_none() {
            state.low_water = (state.low_water * 2).min(MOST_LOW_WATER);
        }
        if ask {
            self.ask(&mut state);
        }
        drop(state);
        let fd = fd?;
        self.metrics.idle.dec();
        Some(Taken {
            fd,
            pool: self.clone(),
        })
    }

    /// New sockets from the agent.
    pub(super) fn receive(&self, sockets: Vec<OwnedFd>) {
        self.metrics.received.inc_by(sockets.len() as u64);
        let mut state = self.lock();
        state.asked = None;
        let room = if state.closed {
            0
        } else {
            MOST_IDLE.saturating_sub(state.idle.len())
        };
        let kept = sockets.len().min(room);
        state.idle.extend(sockets.into_iter().take(room));
        drop(state);
        self.metrics.idle.add(kept as i64);
        (0..kept).for_each(|_| self.arrived.notify_one());
    }

    /// Takes a socket back that is as good as new.
    pub(super) fn give_back(&self, fd: OwnedFd) {
        let mut state = self.lock();
        if state.closed || state.idle.len() >= MOST_IDLE {
            drop(state);
            self.metrics.closed.inc();
            return;
        }
        state.idle.push(fd);
        drop(state);
        self.metrics.idle.inc();
        self.arrived.notify_one();
    }

    /// Asks the agent again if too few are left: the agent came back and knows of no earlier wish.
    pub(super) fn refill(&self) {
        let mut state = self.lock();
        state.asked = None;
        self.ask(&mut state);
    }

    /// Closes half of what was never used since the last call.
    pub(super) fn trim(&self) {
        let mut state = self.lock();
        let spare = state.floor.saturating_sub(state.low_water.max(BATCH)) / 2;
        let dropped: Vec<_> = state.idle.drain(..spare).collect();
        state.floor = state.idle.len();
        state.low_water = (state.low_water / 2).max(LOW_WATER);
        drop(state);
        self.metrics.idle.sub(dropped.len() as i64);
    }

    /// The pod is gone: idle sockets are closed, and those in use will be.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.idle);
        drop(state);
        self.metrics.idle.sub(dropped.len() as i64);
    }

    fn ask(&self, state: &mut State) {
        let asked = state.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN);
        if state.closed || asked || state.idle.len() >= state.low_water {
            return;
        }
        state.asked = Some(Instant::now());
        let message = FromProxy::Want {
            key: self.key.clone(),
            pool: self.id,
            count: (state.low_water * 2).clamp(BATCH, MAX_FDS),
        };
        // The link outlives the pods; if it is gone, the process ends.
        let _ = self.agent.send(ToAgent::from(message));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.lock().idle.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

// === impl Taken ===

impl Taken {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Makes the socket as good as new and puts it back, or closes it.
    pub(super) fn recycle(self) {
        let Self { fd, pool } = self;
        match kernel::disconnect(fd.as_fd()) {
            Ok(()) => {
                pool.metrics.recycled.inc();
                pool.give_back(fd);
            }
            Err(error) => {
                tracing::debug!(%error, "A spent socket could not be used again");
                pool.metrics.closed.inc();
            }
        }
    }

    /// Puts a socket back that was not used.
    pub(super) fn put_back(self) {
        self.pool.give_back(self.fd);
    }

    /// Closes the socket: the kernel ends its connection as close(2) does.
    pub(super) fn close(self) {
        self.pool.metrics.closed.inc();
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no socket of the pod ({0:?}) within {1:?}: the agent is away or too slow")]
struct Starved(SocketPool, Duration);
