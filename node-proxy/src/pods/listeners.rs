// SPDX-License-Identifier: Apache-2.0
//! The listeners of one pod and the tasks that serve them.
//!
//! A restarted agent hands over new listeners. The old ones are served on until no connection came
//! to them for a while, and closed then.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use culvert_api::agent::{Direction, Family, Listener};
use socket2::SockRef;
use tokio::sync::watch;

use super::{Pod, Surroundings};
use crate::{app::Proxy, inbound, outbound, sockets};

/// How often a replaced listener is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// A replaced listener that was empty so often, in a row, is closed.
const EMPTY_LOOKS: u32 = 10;

/// How long a listener whose task panicked is left alone.
const PANIC_PAUSE: Duration = Duration::from_millis(100);

/// The agent's listeners can't be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadListeners {
    /// A descriptor is something else.
    #[error("the descriptor for {listener:?} is not a listening TCP socket of that family")]
    NotListening {
        /// What it was said to be.
        listener: Listener,
    },
    /// The kernel refused.
    #[error("could not use the descriptor for {listener:?}: {error}")]
    Io {
        /// What it was said to be.
        listener: Listener,
        /// Why.
        error: io::Error,
    },
}

/// A listener that was checked.
#[derive(Debug)]
pub(super) struct Serving {
    listener: Listener,
    socket: TcpListener,
    addr: SocketAddr,
    cookie: u64,
}

/// The listeners that are served.
#[derive(Debug, Default)]
pub(super) struct Served {
    current: Vec<Current>,
}

#[derive(Debug)]
struct Current {
    listener: Listener,
    addr: SocketAddr,
    cookie: u64,
    /// Another descriptor of the same socket, to look at its queue.
    socket: TcpListener,
    close: watch::Sender<bool>,
}

// === impl Served ===

impl Served {
    /// Serves `new`, and what it replaces until that is empty. Returns the addresses of all.
    pub(super) fn replace(
        &mut self,
        new: Vec<Serving>,
        pod: &Arc<Pod>,
        around: &Arc<Surroundings>,
    ) -> Result<Vec<SocketAddr>, BadListeners> {
        let mut own: Vec<_> = self.current.iter().map(|current| current.addr).collect();
        for serving in new {
            let listener = serving.listener;
            if self
                .current
                .iter()
                .any(|current| current.cookie == serving.cookie)
            {
                continue;
            }
            own.push(serving.addr);
            let current = start(serving, pod, around)
                .map_err(|error| BadListeners::Io { listener, error })?;
            self.current
                .extract_if(.., |old| old.listener == listener)
                .for_each(|old| drop(tokio::spawn(old.empty())));
            self.current.push(current);
        }
        own.sort_unstable();
        own.dedup();
        Ok(own)
    }

    /// Whether connections are accepted in both directions.
    pub(super) fn is_complete(&self) -> bool {
        let has = |direction| {
            self.current
                .iter()
                .any(|at| at.listener.direction == direction)
        };
        has(Direction::Inbound) && has(Direction::Outbound)
    }

    /// Accepts nothing any more.
    pub(super) fn close(&mut self) {
        for current in self.current.drain(..) {
            current.close.send_replace(true);
        }
    }
}

// === impl Current ===

impl Current {
    /// Waits until nothing comes to a replaced listener, and closes it.
    async fn empty(self) {
        let mut empty = 0;
        while empty < EMPTY_LOOKS && self.close.receiver_count() > 0 {
            tokio::time::sleep(LOOK).await;
            let waiting = sockets::accept_queue(self.socket.as_fd()).unwrap_or(0);
            empty = if waiting == 0 { empty + 1 } else { 0 };
        }
        self.close.send_replace(true);
    }
}

/// Checks that the descriptors are what the agent says.
pub(super) fn check(listeners: Vec<(Listener, OwnedFd)>) -> Result<Vec<Serving>, BadListeners> {
    listeners
        .into_iter()
        .map(|(listener, fd)| check_one(listener, fd))
        .collect()
}

fn check_one(listener: Listener, fd: OwnedFd) -> Result<Serving, BadListeners> {
    let failed = |error| BadListeners::Io { listener, error };
    let socket = SockRef::from(&fd);
    let listens = socket.is_listener().map_err(failed)?;
    let addr = socket.local_addr().map_err(failed)?.as_socket();
    let family = |addr: &SocketAddr| match addr {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    };
    let Some(addr) = addr.filter(|addr| listens && family(addr) == listener.family) else {
        return Err(BadListeners::NotListening { listener });
    };
    socket.set_nonblocking(true).map_err(failed)?;
    let cookie = sockets::cookie(&fd).map_err(failed)?;
    let socket = TcpListener::from(fd);
    Ok(Serving {
        listener,
        socket,
        addr,
        cookie,
    })
}

fn start(serving: Serving, pod: &Arc<Pod>, around: &Surroundings) -> io::Result<Current> {
    let (close, closed) = watch::channel(false);
    let socket = serving.socket.try_clone()?;
    let (proxy, pod) = (around.proxy.clone(), pod.clone());
    let Serving {
        listener,
        addr,
        cookie,
        ..
    } = serving;
    around
        .data
        .spawn(supervise(proxy, pod, listener, serving.socket, closed));
    Ok(Current {
        listener,
        addr,
        cookie,
        socket,
        close,
    })
}

/// Serves a listener until it is closed. A panic costs the connection that was being accepted.
async fn supervise(
    proxy: Arc<Proxy>,
    pod: Arc<Pod>,
    listener: Listener,
    socket: TcpListener,
    closed: watch::Receiver<bool>,
) {
    while !*closed.borrow() && closed.has_changed().is_ok() {
        let socket = socket
            .try_clone()
            .and_then(tokio::net::TcpListener::from_std);
        let ended = match socket {
            Ok(socket) => serve(&proxy, &pod, listener, socket, &closed).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = ended {
            tracing::error!(%error, pod.name = %pod.workload, ?listener, "Serving a listener failed");
            tokio::time::sleep(PANIC_PAUSE).await;
        }
    }
}

async fn serve(
    proxy: &Arc<Proxy>,
    pod: &Arc<Pod>,
    listener: Listener,
    socket: tokio::net::TcpListener,
    closed: &watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (proxy, pod, closed) = (proxy.clone(), pod.clone(), closed.clone());
    let task = match listener.direction {
        Direction::Inbound => tokio::spawn(inbound::serve(proxy, pod, socket, closed)),
        Direction::Outbound => tokio::spawn(outbound::serve(proxy, pod, socket, closed)),
    };
    Ok(task.await?)
}
