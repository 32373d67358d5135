// SPDX-License-Identifier: Apache-2.0
//! The sockets of one pod: made by the agent in the pod's network namespace, dialled and recycled here.

mod kernel;
mod metrics;
mod mint;
mod pool;
mod ports;
mod recycler;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use culvert_api::{
    agent::{Family, SocketKind, SocketPool},
    workload::WorkloadKey,
};
use nix::libc;
use tokio::{net::TcpStream, sync::mpsc::UnboundedSender, time::timeout};

pub(crate) use self::{
    kernel::{accept_queue, cookie},
    metrics::SocketMetrics,
    recycler::Recycler,
};
use self::{
    mint::Mint,
    pool::{Pool, Taken},
    ports::{HIGH, LOW, Wires},
    stream::Fate,
};
pub use self::{ports::WireGuard, stream::PooledStream};
use crate::agent_link::ToAgent;

/// How long a dial waits for a socket of an empty pool.
const POOL_WAIT: Duration = Duration::from_secs(2);

/// How many stretches of free ports a dial tries before it gives up.
const TRIES: usize = 16;

/// Where a dial looks for an explicit port, with a socket for each try, before it gives up.
const EXPLICIT_TRIES: [&RangeInclusive<u16>; 4] = [&HIGH, &HIGH, &LOW, &LOW];

/// The pools of one pod's sockets, and which ports its clients use. Clones share them.
#[derive(Clone, Debug)]
pub struct Sockets {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// In the order of [`index`].
    pools: [Arc<Pool>; 4],
    mints: [Mint; 4],
    wires: Wires,
    choice: [Choice; 2],
    recycler: Recycler,
}

/// How a dial of one family gets its port: whether the kernel can be told a range, and whether the
/// namespace's range reaches there, is tried on the first sockets.
#[derive(Debug, Default)]
struct Choice(AtomicU8);

const UNTRIED: u8 = 0;
/// Ports are bound explicitly, and such sockets are closed after use.
const EXPLICIT: u8 = 1;
/// `connect` chooses from the high range.
const RANGED_HIGH: u8 = 2;
/// `connect` chooses from the high range, then from the low one.
const RANGED: u8 = 3;

// === impl Sockets ===

impl Sockets {
    /// Empty pools, for which the agent is asked at once.
    pub(crate) fn new(
        key: &WorkloadKey,
        agent: &UnboundedSender<ToAgent>,
        metrics: &SocketMetrics,
        recycler: Recycler,
    ) -> Self {
        let pools = IDS.map(|id| Pool::new(key.clone(), id, agent.clone(), metrics.pool(id)));
        let inner = Inner {
            pools,
            mints: IDS.map(|id| Mint::new(id.family)),
            wires: Wires::default(),
            choice: Default::default(),
            recycler,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Registers a wire connection of `client` that the inbound listener accepted.
    pub fn wire(&self, client: SocketAddr) -> WireGuard {
        self.inner.wires.register(client)
    }

    /// Dials the application at `to`, in the pod, from its client's own address. `wait` bounds the
    /// connecting, after a socket was there.
    pub async fn dial_from(
        &self,
        client: IpAddr,
        to: SocketAddr,
        wait: Duration,
    ) -> io::Result<PooledStream> {
        let (client, to) = (client.to_canonical(), canonical(to));
        let (taken, fate) = match self.choice(family(to)).0.load(Ordering::Relaxed) {
            RANGED => self.begin_ranged(client, to, &[HIGH, LOW]).await?,
            RANGED_HIGH => self.begin_ranged(client, to, &[HIGH]).await?,
            _ => self.begin_explicit(client, to).await?,
        };
        let stream = self.finish(taken, fate, wait).await?;
        stream.count_port(&HIGH);
        Ok(stream)
    }

    /// Dials `to` from the pod, from `source` if one is given. With `defer` the first bytes are
    /// written with the handshake's last segment (`TCP_DEFER_ACCEPT` on a connecting socket).
    pub async fn dial(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
        wait: Duration,
        defer: bool,
    ) -> io::Result<PooledStream> {
        let to = canonical(to);
        let source = source.map(|source| source.to_canonical());
        let source = source.unwrap_or_else(|| kernel::unspecified(family(to)));
        let taken = self.take(SocketKind::OutboundLeg, to).await?;
        let begun = begin_leg(taken.fd(), source, to, defer);
        let taken = recycled_unless(begun, taken)?;
        self.finish(taken, Fate::Reuse, wait).await
    }

    /// New sockets from the agent.
    pub(crate) fn receive(&self, id: SocketPool, mut sockets: Vec<OwnedFd>) {
        let fits = |socket: &OwnedFd| kernel::fit(socket.as_fd(), id.kind, *LOW.end()).is_ok();
        sockets.retain(fits);
        match id.kind {
            SocketKind::InboundDial => self.choice(id.family).decide(id.family, &mut sockets),
            SocketKind::OutboundLeg => {
                let of_family = |mint: &&Mint| mint.family() == id.family;
                let mints = self.inner.mints.iter().filter(of_family);
                mints.for_each(|mint| mint.seed_leg(&mut sockets));
            }
        }
        self.inner.mints[index(id)].seed_listener(&mut sockets);
        self.pool(id).receive(sockets);
    }

    /// The agent came back: asks for what is missing. Only families that the pod has are asked for.
    pub(crate) fn refill(&self, addresses: &[IpAddr]) {
        for pool in &self.inner.pools {
            if addresses.iter().any(|ip| family_of(*ip) == pool.id.family) {
                pool.refill();
            }
        }
    }

    /// Closes sockets that were not used for a while.
    pub(crate) fn trim(&self) {
        self.inner.pools.iter().for_each(|pool| pool.trim());
    }

    /// The pod is gone.
    pub(crate) fn close(&self) {
        self.inner.mints.iter().for_each(Mint::close);
        self.inner.pools.iter().for_each(|pool| pool.close());
    }

    fn pool(&self, id: SocketPool) -> &Arc<Pool> {
        &self.inner.pools[index(id)]
    }

    fn choice(&self, family: Family) -> &Choice {
        &self.inner.choice[family as usize]
    }

    async fn take(&self, kind: SocketKind, to: SocketAddr) -> io::Result<Taken> {
        let family = family(to);
        let id = SocketPool { kind, family };
        let (pool, mint) = (self.pool(id), &self.inner.mints[index(id)]);
        let used_once = kind == SocketKind::InboundDial && self.choice(family).is_explicit();
        let own = used_once && mint.works_well();
        let taken = pool.pop(!own);
        if own && pool.is_low() {
            self.make_ahead(id);
        }
        if let Some(taken) = taken {
            return Ok(taken);
        }
        match mint.make().await {
            Ok(fd) => Ok(pool.made(fd)),
            Err(error) => {
                tracing::debug!(%error, ?id, "Could not make a socket, waiting for the agent");
                pool.take(POOL_WAIT).await
            }
        }
    }

    /// Sockets that are used once are not asked of the agent one by one.
    fn make_ahead(&self, id: SocketPool) {
        let sockets = self.clone();
        tokio::spawn(async move {
            let mint = &sockets.inner.mints[index(id)];
            mint.make_ahead(sockets.pool(id)).await;
        });
    }

    /// Lets `connect` choose a port among those that no live wire connection of the client has.
    async fn begin_ranged(
        &self,
        client: IpAddr,
        to: SocketAddr,
        ranges: &[RangeInclusive<u16>],
    ) -> io::Result<(Taken, Fate)> {
        let taken = self.take(SocketKind::InboundDial, to).await?;
        let begun = self.connect_ranged(taken.fd(), client, to, ranges);
        recycled_unless(begun, taken).map(|taken| (taken, Fate::Reuse))
    }

    fn connect_ranged(
        &self,
        fd: BorrowedFd<'_>,
        client: IpAddr,
        to: SocketAddr,
        ranges: &[RangeInclusive<u16>],
    ) -> io::Result<()> {
        kernel::bind_late(fd, client)?;
        for range in ranges {
            for ports in self.gaps(client, range) {
                kernel::set_port_range(fd, ports)?;
                match kernel::connect(fd, to) {
                    Err(error) if is_taken(&error) => {}
                    other => return other,
                }
            }
        }
        Err(no_port())
    }

    /// Binds a port of its choice. One whose earlier connection still waits out its TIME_WAIT is
    /// refused by `connect` only, when the socket can't be bound again.
    async fn begin_explicit(&self, client: IpAddr, to: SocketAddr) -> io::Result<(Taken, Fate)> {
        for range in EXPLICIT_TRIES {
            let taken = self.take(SocketKind::InboundDial, to).await?;
            match self.connect_explicit(taken.fd(), client, to, range) {
                Ok(()) => return Ok((taken, Fate::Close)),
                Err(error) => {
                    taken.close();
                    if !is_taken(&error) {
                        return Err(error);
                    }
                }
            }
        }
        Err(no_port())
    }

    fn connect_explicit(
        &self,
        fd: BorrowedFd<'_>,
        client: IpAddr,
        to: SocketAddr,
        range: &RangeInclusive<u16>,
    ) -> io::Result<()> {
        for (from, last) in self.gaps(client, range) {
            let local = SocketAddr::new(client, rand::random_range(from..=last));
            match kernel::bind_now(fd, local) {
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(error),
                Ok(()) => return kernel::connect(fd, to),
            }
        }
        Err(no_port())
    }

    /// Some stretches of free ports, from a random one on.
    fn gaps(
        &self,
        client: IpAddr,
        range: &RangeInclusive<u16>,
    ) -> impl Iterator<Item = (u16, u16)> + use<> {
        let mut gaps = self.inner.wires.gaps(client, range);
        if !gaps.is_empty() {
            let by = rand::random_range(0..gaps.len());
            gaps.rotate_left(by);
        }
        gaps.into_iter().take(TRIES)
    }

    /// Waits until the connection stands.
    async fn finish(&self, taken: Taken, fate: Fate, wait: Duration) -> io::Result<PooledStream> {
        let Taken { fd, pool } = taken;
        let stream = TcpStream::from_std(std::net::TcpStream::from(fd))?;
        let stream = PooledStream::new(stream, pool, self.inner.recycler.clone(), fate);
        timeout(wait, stream.tcp().writable())
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        match stream.tcp().take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }
}

// === impl Choice ===

impl Choice {
    fn is_explicit(&self) -> bool {
        !matches!(self.0.load(Ordering::Relaxed), RANGED | RANGED_HIGH)
    }

    /// Tries two of the first sockets, which are spent by it.
    fn decide(&self, family: Family, sockets: &mut Vec<OwnedFd>) {
        if self.0.load(Ordering::Relaxed) != UNTRIED || sockets.len() < 3 {
            return;
        }
        let mut reaches = |ports| {
            let socket = sockets.pop();
            socket.is_some_and(|socket| {
                kernel::can_choose_from(socket.as_fd(), family, &ports).unwrap_or(false)
            })
        };
        let (high, low) = (reaches(HIGH), reaches(LOW));
        let choice = match (high, low) {
            (true, true) => RANGED,
            (true, false) => RANGED_HIGH,
            (false, _) => EXPLICIT,
        };
        if choice == EXPLICIT {
            tracing::debug!(
                ?family,
                "Sockets that dial the pod's applications are used once: its net.ipv4.\
                 ip_local_port_range does not reach 65535, or the kernel is older than 6.3"
            );
        }
        self.0.store(choice, Ordering::Relaxed);
    }
}

const IDS: [SocketPool; 4] = [
    SocketPool {
        kind: SocketKind::OutboundLeg,
        family: Family::V4,
    },
    SocketPool {
        kind: SocketKind::OutboundLeg,
        family: Family::V6,
    },
    SocketPool {
        kind: SocketKind::InboundDial,
        family: Family::V4,
    },
    SocketPool {
        kind: SocketKind::InboundDial,
        family: Family::V6,
    },
];

fn index(id: SocketPool) -> usize {
    match id.kind {
        SocketKind::OutboundLeg => id.family as usize,
        SocketKind::InboundDial => 2 + id.family as usize,
    }
}

fn begin_leg(fd: BorrowedFd<'_>, source: IpAddr, to: SocketAddr, defer: bool) -> io::Result<()> {
    kernel::set_defer(fd, defer)?;
    kernel::bind_late(fd, source)?;
    kernel::connect(fd, to)
}

fn recycled_unless(begun: io::Result<()>, taken: Taken) -> io::Result<Taken> {
    match begun {
        Ok(()) => Ok(taken),
        Err(error) => {
            taken.recycle();
            Err(error)
        }
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE)
    )
}

fn no_port() -> io::Error {
    io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn family(addr: SocketAddr) -> Family {
    family_of(addr.ip())
}

fn family_of(ip: IpAddr) -> Family {
    match ip.to_canonical() {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}
