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
    iter::{repeat, repeat_n},
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
    ports::{BELOW, HIGH, LEGS, LEGS_BELOW, LOW, Wires},
    stream::Fate,
};
pub use self::{ports::WireGuard, stream::PooledStream};
use crate::{
    agent_link::ToAgent,
    descriptors::{self, Use},
};

/// How long a dial waits for a socket of an empty pool.
const POOL_WAIT: Duration = Duration::from_secs(2);

/// How many stretches of free ports a dial tries before it gives up.
const TRIES: usize = 16;

/// Where a dial looks for an explicit port, with a socket for each try, before it gives up; the first
/// two if `connect` has not looked there already.
///
/// What Linux clients choose from themselves comes last: a client that takes the port of a live dial
/// waits for its end.
const EXPLICIT_TRIES: [&RangeInclusive<u16>; 6] = [&HIGH, &HIGH, &BELOW, &BELOW, &LOW, &LEGS_BELOW];

/// Of the sockets that the agent sends at once, how many connections may be waiting for: enough to dial
/// with, and to begin to make more.
const WAITED_FOR: usize = 8;

/// How many ports a leg tries below the range that it shares with the application.
const LEG_TRIES: usize = 12;

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
/// `connect` chooses from the high range; what it has no room for is bound explicitly.
const RANGED: u8 = 2;

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
        let (begun, tried) = match self.choice(family(to)).is_explicit() {
            false => (self.begin_ranged(client, to).await, 2),
            true => (Err(no_port()), 0),
        };
        let (taken, port) = match begun {
            Err(error) if is_taken(&error) => {
                let (taken, port) = self.begin_explicit(client, to, tried).await?;
                (taken, Some(port))
            }
            other => (other?, None),
        };
        let fate = port.as_ref().map_or(Fate::Reuse, |_| Fate::Close);
        let stream = self.finish(taken, fate, wait).await?.holding(port);
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
        let begun = begin_leg(taken.fd(), SocketAddr::new(source, 0), to, defer);
        let (taken, fate) = match recycled_unless(begun, taken) {
            Err(error) if is_taken(&error) => self.begin_leg_below(source, to, defer).await?,
            other => (other?, Fate::Reuse),
        };
        self.finish(taken, fate, wait).await
    }

    /// The legs' share of the ports to this destination is used up. More of it would be at the expense
    /// of the application, whose sockets and legs have one table.
    async fn begin_leg_below(
        &self,
        source: IpAddr,
        to: SocketAddr,
        defer: bool,
    ) -> io::Result<(Taken, Fate)> {
        for _ in 0..LEG_TRIES {
            let taken = self.take(SocketKind::OutboundLeg, to).await?;
            let local = SocketAddr::new(source, rand::random_range(LEGS_BELOW));
            match begin_leg(taken.fd(), local, to, defer) {
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

    /// New sockets from the agent. `owed`: how many descriptors connections are still to open.
    pub(crate) fn receive(&self, id: SocketPool, mut sockets: Vec<OwnedFd>, owed: usize) {
        let waited_for = if self.pool(id).is_empty() {
            WAITED_FOR
        } else {
            0
        };
        let waited_for = repeat_n((Use::Socket, 0), waited_for);
        let mut uses = waited_for.chain(repeat((Use::Spare, owed)));
        let fits = |socket: &OwnedFd| {
            let room = uses
                .next()
                .map(|(for_a, owed)| descriptors::suffice(socket, owed, for_a));
            room == Some(true) && kernel::fit(socket.as_fd(), id.kind, &LEGS).is_ok()
        };
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
    async fn begin_ranged(&self, client: IpAddr, to: SocketAddr) -> io::Result<Taken> {
        let taken = self.take(SocketKind::InboundDial, to).await?;
        let begun = self.connect_ranged(taken.fd(), client, to);
        recycled_unless(begun, taken)
    }

    fn connect_ranged(&self, fd: BorrowedFd<'_>, client: IpAddr, to: SocketAddr) -> io::Result<()> {
        kernel::bind_late(fd, client)?;
        for ports in self.gaps(client, &HIGH) {
            kernel::set_port_range(fd, ports)?;
            match kernel::connect(fd, to) {
                Err(error) if is_taken(&error) => {}
                other => return other,
            }
        }
        Err(no_port())
    }

    /// Binds a port of its choice. One whose earlier connection still waits out its TIME_WAIT is
    /// refused by `connect` only, when the socket can't be bound again.
    async fn begin_explicit(
        &self,
        client: IpAddr,
        to: SocketAddr,
        tried: usize,
    ) -> io::Result<(Taken, WireGuard)> {
        for range in EXPLICIT_TRIES.into_iter().skip(tried) {
            if self.gaps(client, range).next().is_none() {
                continue;
            }
            let taken = self.take(SocketKind::InboundDial, to).await?;
            match self.connect_explicit(taken.fd(), client, to, range) {
                Ok(port) => return Ok((taken, port)),
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
    ) -> io::Result<WireGuard> {
        for (from, last) in self.gaps(client, range) {
            let local = SocketAddr::new(client, rand::random_range(from..=last));
            match kernel::bind_now(fd, local) {
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(error),
                // Before anybody else chooses it, whom only connect() would refuse.
                Ok(()) => {
                    let port = self.inner.wires.register(local);
                    return kernel::connect(fd, to).map(|()| port);
                }
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
        self.0.load(Ordering::Relaxed) != RANGED
    }

    /// Tries one of the first sockets, which is spent by it.
    fn decide(&self, family: Family, sockets: &mut Vec<OwnedFd>) {
        if self.0.load(Ordering::Relaxed) != UNTRIED || sockets.len() < 2 {
            return;
        }
        let reaches = sockets.pop().is_some_and(|socket| {
            kernel::can_choose_from(socket.as_fd(), family, &HIGH).unwrap_or(false)
        });
        let choice = if reaches { RANGED } else { EXPLICIT };
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

/// From `local`, whose port `connect` chooses if it is zero.
fn begin_leg(fd: BorrowedFd<'_>, local: SocketAddr, to: SocketAddr, defer: bool) -> io::Result<()> {
    kernel::set_defer(fd, defer)?;
    let bound = match local.port() {
        0 => kernel::bind_late(fd, local.ip()),
        _ => kernel::bind_now(fd, local),
    };
    bound.map_err(|error| unless_gone(error, local.ip()))?;
    kernel::connect(fd, to)
}

/// That an address is none of the pod's any more is no want of ports.
fn unless_gone(error: io::Error, source: IpAddr) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!("{source} is no address of the pod any more"),
        ),
        _ => error,
    }
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
