// SPDX-License-Identifier: Apache-2.0
//! What the pools ask of the kernel: one function per request, none of which blocks.

use std::{
    io,
    mem::size_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use culvert_api::agent::{Family, SocketKind};
use nix::libc;
use socket2::{SockAddr, SockRef};

use crate::tcp;

/// How long the kernel may hold the handshake's last segment back for the first bytes.
const DEFER: libc::c_int = 1;

/// `IP_LOCAL_PORT_RANGE`, Linux 6.3, for both families
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/in.h#L172>).
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

/// A state of a TCP socket, as the pools tell them apart
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/net/tcp_states.h#L13>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// CLOSE: nothing is under way, the socket can be used again.
    Closed,
    /// SYN_SENT: nobody answered yet.
    Connecting,
    /// ESTABLISHED or CLOSE_WAIT: this end has not closed.
    Open,
    /// FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK or TIME_WAIT: this end has closed.
    Closing,
    /// LISTEN or a state of a later kernel.
    Other,
}

/// The state of the connection of a TCP socket.
pub(super) fn state(fd: BorrowedFd<'_>) -> io::Result<State> {
    Ok(match tcp_info(fd)?.tcpi_state {
        7 => State::Closed,
        2 => State::Connecting,
        1 | 8 => State::Open,
        4 | 5 | 6 | 9 | 11 => State::Closing,
        _ => State::Other,
    })
}

/// How many connections wait to be accepted: `tcpi_unacked` of a listener
/// (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp.c#L4195>).
pub(crate) fn accept_queue(listener: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(tcp_info(listener)?.tcpi_unacked)
}

fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    // SAFETY: `tcp_info` is a plain C struct of integers, for which zeroes are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which outlives the call.
    let got = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    done(got).map(|()| info)
}

/// Ends whatever the socket does, with RST if its connection is open, and makes it as good as new:
/// mark, transparency and sk_storage stay, the addresses go with the next `bind`
/// (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp.c#L3291>).
pub(super) fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    let unspec = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is valid for `length` bytes and outlives the call.
    done(unsafe { libc::connect(fd.as_raw_fd(), &raw const unspec, length) })?;
    SockRef::from(&fd).take_error().map(drop)
}

/// Sends FIN as close(2) would, and keeps the descriptor.
pub(super) fn shutdown(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).shutdown(std::net::Shutdown::Both)
}

/// Whether bytes arrived that nobody read: close(2) would answer them with RST.
pub(super) fn has_unread(fd: BorrowedFd<'_>) -> bool {
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which outlives the call.
    let got = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
    got == 0 && unread > 0
}

/// What every socket of a pool has, and keeps when it is used again.
///
/// Its port is no obstacle to an application that wants to listen there: both have SO_REUSEADDR
/// (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/inet_connection_sock.c#L180>).
///
/// An inbound dial stays in the pod. Bound to `lo` it may take an address and port again a second
/// after it closed them, not a minute: a client of many short connections would run out of ports
/// (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp_ipv4.c#L127>).
///
/// An outbound leg takes its port from `legs`, and none beyond: there the peer's proxy looks for
/// ports of dials from this pod. A kernel before 6.3 can't be told so.
pub(super) fn fit(
    fd: BorrowedFd<'_>,
    kind: SocketKind,
    legs: &RangeInclusive<u16>,
) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_keepalive(&tcp::keepalive())?;
    set_int(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    match kind {
        SocketKind::InboundDial => socket.bind_device(Some(b"lo")),
        SocketKind::OutboundLeg => match set_port_range(fd, (*legs.start(), *legs.end())) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
            other => other,
        },
    }
}

/// Whether the handshake's last segment waits for the first bytes, to go with them.
pub(super) fn set_defer(fd: BorrowedFd<'_>, defer: bool) -> io::Result<()> {
    let defer = if defer { DEFER } else { 0 };
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, defer)
}

/// Binds an address and leaves the port to `connect`. Unlike an explicit port this leaves no
/// `SOCK_BINDPORT_LOCK`, with which a socket could never be bound again.
pub(super) fn bind_late(fd: BorrowedFd<'_>, address: IpAddr) -> io::Result<()> {
    bind(fd, SocketAddr::new(address, 0))
}

/// Sets the range that `connect` chooses a port from. A bound of zero is the namespace's, and one
/// outside of the namespace's range counts for nothing
/// (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/inet_connection_sock.c#L133>).
pub(super) fn set_port_range(fd: BorrowedFd<'_>, (low, high): (u16, u16)) -> io::Result<()> {
    let range = u32::from(low) | u32::from(high) << 16;
    set_int(fd, libc::SOL_IP, IP_LOCAL_PORT_RANGE, range.cast_signed())
}

/// Binds an address and one of these ports, the last of which may be zero, and listens. A port that
/// somebody listens at is lost to connect(), so it is better none of the application's.
pub(super) fn listen(
    fd: BorrowedFd<'_>,
    address: IpAddr,
    ports: [u16; 3],
    backlog: i32,
) -> io::Result<()> {
    let [first, second, last] = ports.map(|port| SocketAddr::new(address, port));
    bind(fd, first)
        .or_else(|_| bind(fd, second))
        .or_else(|_| bind(fd, last))?;
    SockRef::from(&fd).listen(backlog)
}

/// The address that a socket is bound to.
pub(super) fn local_addr(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let local = SockRef::from(&fd).local_addr()?.as_socket();
    local.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Binds an address and a port, for good: the socket can't be bound again.
pub(super) fn bind_now(fd: BorrowedFd<'_>, local: SocketAddr) -> io::Result<()> {
    bind(fd, local)
}

fn bind(fd: BorrowedFd<'_>, local: SocketAddr) -> io::Result<()> {
    SockRef::from(&fd).bind(&SockAddr::from(local))
}

/// Whether `IP_LOCAL_PORT_RANGE` confines this socket's port to `ports`. Binds the socket, which
/// is of no other use then.
pub(super) fn can_choose_from(
    fd: BorrowedFd<'_>,
    family: Family,
    ports: &RangeInclusive<u16>,
) -> io::Result<bool> {
    set_int(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 0)?;
    set_port_range(fd, (*ports.start(), *ports.end()))?;
    bind(fd, SocketAddr::new(unspecified(family), 0))?;
    Ok(ports.contains(&local_addr(fd)?.port()))
}

/// Begins to connect. `Ok` says that it is under way, or done.
pub(super) fn connect(fd: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    match SockRef::from(&fd).connect(&SockAddr::from(to)) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// The wildcard address of a family.
pub(super) fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// What tells one socket from every other, for as long as the machine runs (`SO_COOKIE`).
pub(crate) fn cookie(socket: &impl AsFd) -> io::Result<u64> {
    SockRef::from(socket).cookie()
}

/// Sets an option that is one int.
pub(super) fn set_int(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int, which outlives the call.
    done(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            length,
        )
    })
}

fn done(returned: libc::c_int) -> io::Result<()> {
    if returned == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
