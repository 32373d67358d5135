// SPDX-License-Identifier: Apache-2.0
//! Sockets without the agent: what a socket of the agent's accepts, once it listens, has its mark,
//! its transparency and its exemption from steering too. The other end is a leg that is used again.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use culvert_api::agent::Family;
use nix::libc;
use tokio::{net::TcpListener, time::timeout};

use super::{kernel, pool::Pool, ports::HIGH};
use crate::descriptors::{self, Use};

/// A handshake over loopback is over when connect(2) returns, unless the machine is very busy.
const WAIT: Duration = Duration::from_secs(1);

/// Connections of strangers in the pod that may come between: they are closed.
const BACKLOG: i32 = 8;

/// Makes sockets of one kind and family. Nothing listens before the first is wanted.
#[derive(Debug)]
pub(super) struct Mint {
    family: Family,
    seeds: Mutex<Seeds>,
    /// One socket is made at a time.
    works: tokio::sync::Mutex<Option<Works>>,
    /// Whether the last one could be made.
    works_well: AtomicBool,
    /// Whether somebody makes some ahead.
    ahead: AtomicBool,
}

#[derive(Debug, Default)]
struct Seeds {
    closed: bool,
    /// Of the kind that is to be made.
    listener: Option<OwnedFd>,
    /// A leg, exempt from steering.
    leg: Option<OwnedFd>,
}

#[derive(Debug)]
struct Works {
    listener: TcpListener,
    at: SocketAddr,
    leg: OwnedFd,
}

// === impl Mint ===

impl Mint {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            seeds: Mutex::default(),
            works: tokio::sync::Mutex::default(),
            works_well: AtomicBool::new(false),
            ahead: AtomicBool::new(false),
        }
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// Takes one of many new sockets of the kind that is to be made, if it is needed.
    pub(super) fn seed_listener(&self, sockets: &mut Vec<OwnedFd>) {
        let mut seeds = self.seeds();
        seeds.listener = seeds.listener.take().or_else(|| spare(sockets));
    }

    /// Takes one of many new legs, if it is needed.
    pub(super) fn seed_leg(&self, legs: &mut Vec<OwnedFd>) {
        let mut seeds = self.seeds();
        seeds.leg = seeds.leg.take().or_else(|| spare(legs));
    }

    /// Whether the last socket could be made.
    pub(super) fn works_well(&self) -> bool {
        self.works_well.load(Ordering::Relaxed)
    }

    /// Makes one socket, as good as new.
    pub(super) async fn make(&self) -> io::Result<OwnedFd> {
        let made = self.try_make().await;
        self.works_well.store(made.is_ok(), Ordering::Relaxed);
        made
    }

    /// Makes sockets for `pool` as long as it has few.
    pub(super) async fn make_ahead(&self, pool: &Arc<Pool>) {
        if self.ahead.swap(true, Ordering::Relaxed) {
            return;
        }
        while pool.is_low()
            && let Ok(fd) = self.make().await
        {
            pool.made(fd).put_back();
        }
        self.ahead.store(false, Ordering::Relaxed);
    }

    async fn try_make(&self) -> io::Result<OwnedFd> {
        let mut works = self.works.lock().await;
        if self.seeds().closed {
            *works = None;
            return Err(io::ErrorKind::NotConnected.into());
        }
        let works = match &mut *works {
            Some(works) => works,
            none => none.insert(self.open()?),
        };
        works.make(self.family).await
    }

    /// The pod is gone: nothing may keep its namespace.
    pub(super) fn close(&self) {
        *self.seeds() = Seeds {
            closed: true,
            ..Seeds::default()
        };
        if let Ok(mut works) = self.works.try_lock() {
            *works = None;
        }
    }

    fn open(&self) -> io::Result<Works> {
        let mut seeds = self.seeds();
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let (listener, leg) = (
            seeds.listener.take().ok_or_else(missing)?,
            seeds.leg.take().ok_or_else(missing)?,
        );
        drop(seeds);
        let ports = [rand::random_range(HIGH), rand::random_range(HIGH), 0];
        kernel::listen(listener.as_fd(), loopback(self.family), ports, BACKLOG)?;
        let listener = TcpListener::from_std(std::net::TcpListener::from(listener))?;
        let at = listener.local_addr()?;
        Ok(Works { listener, at, leg })
    }

    fn seeds(&self) -> MutexGuard<'_, Seeds> {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Works ===

impl Works {
    async fn make(&mut self, family: Family) -> io::Result<OwnedFd> {
        kernel::disconnect(self.leg.as_fd())?;
        kernel::bind_late(self.leg.as_fd(), loopback(family))?;
        kernel::connect(self.leg.as_fd(), self.at)?;
        let leg = kernel::local_addr(self.leg.as_fd())?;
        let made = timeout(WAIT, self.accept(leg)).await;
        let made = made.map_err(|_| io::ErrorKind::TimedOut)??;
        kernel::disconnect(made.as_fd())?;
        if !descriptors::suffice(&made, 0, Use::Socket) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(made)
    }

    async fn accept(&self, leg: SocketAddr) -> io::Result<OwnedFd> {
        loop {
            let (made, peer) = self.listener.accept().await?;
            if peer == leg {
                return Ok(made.into_std()?.into());
            }
        }
    }
}

fn spare(sockets: &mut Vec<OwnedFd>) -> Option<OwnedFd> {
    let many = sockets.len() > 3;
    many.then(|| sockets.pop()).flatten()
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
        Family::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}
