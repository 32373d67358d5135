// SPDX-License-Identifier: Apache-2.0
//! The descriptors that the agent hands to whoever is the proxy, misused.

use std::{
    io::{self, Read, Write},
    mem::ManuallyDrop,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use culvert_api::agent::{Family, FromAgent, FromProxy, SocketKind, SocketPool};
use nix::{errno::Errno, libc};
use socket2::{SockAddr, Socket};

use super::{Attempts, Turned, agent::Link, tried};

pub(super) const FOREIGN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 0);
const FOREIGN6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
    0,
);

/// What the agent handed over of one pod.
struct Loot {
    legs: Vec<Socket>,
    dials: Vec<Socket>,
    dials6: Vec<Socket>,
}

/// What the attempts came to, and the sockets for dialling that are left.
pub(super) fn attempts(turned: &Turned) -> anyhow::Result<(Attempts, Vec<Socket>)> {
    let mut loot = loot(turned)?;
    let mut leg = || loot.legs.pop().context("no leg left");
    let mut all = Attempts::new();
    let (a, b, c, d, e, f, g) = (leg()?, leg()?, leg()?, leg()?, leg()?, leg()?, leg()?);
    all.extend([
        tried("leg: a mark", || a.set_mark(0xc1)),
        tried("leg: transparency", || a.set_ip_transparent_v4(true)),
        tried("leg: the pod's namespace", || ioctl(&a, SIOCGSKNS)),
        tried("leg: take the pod's interface down", || down(&a)),
        tried("leg: bind to a device", || a.bind_device(Some(b"lo"))),
        tried("leg: bind a foreign address", || b.bind(&FOREIGN.into())),
        tried("leg: dial from a foreign address", || {
            c.set_freebind_v4(true)?;
            c.bind(&FOREIGN.into())?;
            dial(c, turned.elsewhere)
        }),
        tried("leg: dial another pod in plaintext", || {
            dial(d, turned.elsewhere)
        }),
        tried("leg: dial a server on the pod's loopback", || {
            dial(e, turned.local)
        }),
        tried("leg: be a server on the pod's loopback", || {
            listen(f, SocketAddr::from(([127, 0, 0, 1], 7999)))
        }),
        tried("leg: be a server on a privileged port", || {
            listen(g, SocketAddr::from(([127, 0, 0, 1], 80)))
        }),
    ]);
    let mut spare = || loot.dials.pop().context("no dial socket left");
    let (a, b, c, d) = (spare()?, spare()?, spare()?, spare()?);
    let e = loot.dials6.pop().context("no IPv6 dial socket left")?;
    all.extend([
        tried("dial: another mark", || a.set_mark(0xc1)),
        tried("dial: bind to a device", || a.bind_device(Some(b"eth0"))),
        tried("dial: a neighbour from a foreign IPv6 address", || {
            spoof(e, FOREIGN6, turned.neighbour6)
        }),
        tried("dial: the pod's server from any address", || {
            b.bind(&FOREIGN.into())?;
            dial(b, turned.served)
        }),
        tried("dial: a server on the pod's loopback", || {
            dial(c, turned.local)
        }),
        tried("dial: another pod from any address", || {
            d.bind(&FOREIGN.into())?;
            dial(d, turned.elsewhere)
        }),
    ]);
    Ok((all, loot.dials))
}

/// Dials from a foreign address past `lo`.
pub(super) fn spoof(socket: Socket, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    socket.bind_device(Some(b"eth0"))?;
    socket.bind(&from.into())?;
    dial(socket, to)
}

fn loot(turned: &Turned) -> anyhow::Result<Loot> {
    let link = Link::greet(&turned.socket)?;
    let mut key = None;
    loop {
        let (message, _) = link.hear()?.context("the agent hung up")?;
        match message {
            FromAgent::Pod {
                seq,
                key: of,
                workload,
                ..
            } => {
                link.say(&FromProxy::Ack { seq })?;
                key = key.or((workload.name == turned.pod).then_some(of));
            }
            FromAgent::SnapshotEnd { .. } => break,
            _ => {}
        }
    }
    let key = key.with_context(|| format!("the agent named no pod {}", turned.pod))?;
    let get = |kind, family, count| -> anyhow::Result<Vec<Socket>> {
        let pool = SocketPool { kind, family };
        link.say(&FromProxy::Want {
            key: key.clone(),
            pool,
            count,
        })?;
        loop {
            let (message, fds) = link.hear()?.context("the agent hung up")?;
            if matches!(message, FromAgent::Sockets { key: of, pool: got } if of == key && got == pool)
            {
                ensure!(fds.len() >= count, "got {} sockets", fds.len());
                return Ok(fds
                    .into_iter()
                    .map(|fd: OwnedFd| Socket::from(fd))
                    .collect());
            }
        }
    };
    Ok(Loot {
        legs: get(SocketKind::OutboundLeg, Family::V4, 8)?,
        dials: get(SocketKind::InboundDial, Family::V4, 8)?,
        dials6: get(SocketKind::InboundDial, Family::V6, 1)?,
    })
}

/// Connects, and has a word answered.
fn dial(socket: Socket, to: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.connect_timeout(&SockAddr::from(to), Duration::from_secs(1))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"word")?;
    stream.read_exact(&mut [0; 4])
}

fn listen(socket: Socket, at: SocketAddr) -> io::Result<()> {
    socket.bind(&at.into())?;
    socket.listen(1)?;
    // Closed at once.
    drop(TcpListener::from(socket));
    Ok(())
}

const SIOCGSKNS: libc::c_ulong = 0x894c;
const SIOCGIFFLAGS: libc::c_ulong = 0x8913;
const SIOCSIFFLAGS: libc::c_ulong = 0x8914;

/// A descriptor that it may return stays open.
fn ioctl(socket: &Socket, request: libc::c_ulong) -> io::Result<()> {
    let socket = ManuallyDrop::new(socket);
    // SAFETY: this request takes no memory.
    let got = unsafe { libc::ioctl(socket.as_raw_fd(), request) };
    Ok(Errno::result(got).map(drop)?)
}

/// Sets the flags that the interface has: who may do that may take it down.
fn down(socket: &Socket) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    for number in [SIOCGIFFLAGS, SIOCSIFFLAGS] {
        // SAFETY: both requests read and write one `ifreq`.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw mut request) };
        Errno::result(done)?;
    }
    Ok(())
}
