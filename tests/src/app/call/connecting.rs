// SPDX-License-Identifier: Apache-2.0
//! Ways to bind and connect.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use socket2::{Protocol, Socket};

use super::{Call, Called, connected, echo, echoed, socket};
use crate::app::report;

pub(super) fn nonblocking(call: &Call, to: &mut Called) -> io::Result<()> {
    let socket = socket(call, Protocol::TCP)?;
    socket.set_nonblocking(true)?;
    match to.note("connect", socket.connect(&call.target.into())) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => return other,
    }
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let polled = poll(&mut fds, PollTimeout::from(5000_u16)).map_err(io::Error::from);
    to.note("poll", polled)?;
    let writable = fds[0]
        .revents()
        .is_some_and(|at| at.contains(PollFlags::POLLOUT));
    to.say("writable", &writable.to_string());
    to.note("SO_ERROR", socket.take_error()?.map_or(Ok(()), Err))?;
    socket.set_nonblocking(false)?;
    echo(&mut socket.into(), to)
}

pub(super) fn plainly(call: &Call, protocol: Protocol, to: &mut Called) -> io::Result<()> {
    let socket = socket(call, protocol)?;
    to.note("connect", socket.connect(&call.target.into()))?;
    echo(&mut socket.into(), to)
}

pub(super) fn bound(call: &Call, to: &mut Called) -> io::Result<()> {
    let (socket, local) = (socket(call, Protocol::TCP)?, local(call)?);
    to.note("bind", socket.bind(&local.into()))?;
    let port = port(&socket)?;
    to.note("connect", socket.connect(&call.target.into()))?;
    let kept = self::port(&socket)? == port && (local.port() == 0 || local.port() == port);
    to.say("the port is kept", &kept.to_string());
    echo(&mut socket.into(), to)
}

pub(super) fn two_destinations(call: &Call, to: &mut Called) -> io::Result<()> {
    let mut streams = Vec::new();
    for target in [call.target, other(call)?] {
        let socket = socket(call, Protocol::TCP)?;
        socket.set_reuse_address(true)?;
        to.note("bind", socket.bind(&local(call)?.into()))?;
        to.note("connect", socket.connect(&target.into()))?;
        streams.push(TcpStream::from(socket));
    }
    streams.iter_mut().try_for_each(|stream| echo(stream, to))
}

/// Twice: the second has a cookie, if the server gives one.
pub(super) fn fast_open_connect(
    call: &Call,
    protocol: Protocol,
    to: &mut Called,
) -> io::Result<()> {
    for _ in 0..2 {
        let socket = socket(call, protocol)?;
        let set = set_int(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
        to.note("TCP_FASTOPEN_CONNECT", set)?;
        to.note("connect", socket.connect(&call.target.into()))?;
        echo(&mut socket.into(), to)?;
    }
    Ok(())
}

/// Twice: the second has a cookie, if the server gives one.
pub(super) fn fast_open_send(call: &Call, protocol: Protocol, to: &mut Called) -> io::Result<()> {
    for _ in 0..2 {
        let socket = socket(call, protocol)?;
        let sent = socket.send_to_with_flags(b"ping", &call.target.into(), libc::MSG_FASTOPEN);
        to.note("MSG_FASTOPEN", sent)?;
        echoed(&mut socket.into(), to)?;
    }
    Ok(())
}

pub(super) fn foreign(
    call: &Call,
    set: fn(&Socket, bool) -> io::Result<()>,
    to: &mut Called,
) -> io::Result<()> {
    let socket = socket(call, Protocol::TCP)?;
    to.note("option", set(&socket, true))?;
    to.note("bind", socket.bind(&local(call)?.into()))?;
    let connect = socket.connect_timeout(&call.target.into(), Duration::from_secs(2));
    to.note("connect", connect)?;
    echo(&mut socket.into(), to)
}

pub(super) fn again(call: &Call, to: &mut Called) -> io::Result<()> {
    let home = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let at_home = home.local_addr()?;
    thread::spawn(move || {
        let (stream, _) = home.accept()?;
        io::copy(&mut &stream, &mut &stream)
    });
    let mut stream = connected(call, to)?;
    echo(&mut stream, to)?;
    for target in [at_home, other(call)?, call.target] {
        to.note("AF_UNSPEC", unspecified(&stream))?;
        let socket = socket2::SockRef::from(&stream);
        to.note("connect", socket.connect(&target.into()))?;
        echo(&mut stream, to)?;
    }
    Ok(())
}

/// As QUIC does: large datagrams on a connected socket.
pub(super) fn udp(call: &Call, to: &mut Called) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    for _ in 0..2 {
        to.note("connect", socket.connect(call.target))?;
        for length in [1, 1200, 1200] {
            to.note("send", socket.send(&vec![b'q'; length]))?;
            let mut datagram = [0; 2048];
            let got = to.note("receive", socket.recv(&mut datagram))?;
            to.say("length", &got.to_string());
        }
        to.note("AF_UNSPEC", unspecified(&socket))?;
        let peer = socket.peer_addr();
        to.say(
            "getpeername",
            &peer.map_or_else(|error| report::name(&error), |at| at.to_string()),
        );
    }
    Ok(())
}

fn unspecified(socket: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: a plain C struct, for which zeroes are valid: AF_UNSPEC is 0.
    let none: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is as long as it says and outlives the call.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const none, length) };
    Ok(Errno::result(done).map(drop)?)
}

/// Sets an option that is one int.
pub(crate) fn set_int(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let (value, length) = (
        &raw const value,
        size_of::<libc::c_int>() as libc::socklen_t,
    );
    // SAFETY: the kernel reads one int, which outlives the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), length) };
    Ok(Errno::result(done).map(drop)?)
}

fn port(socket: &Socket) -> io::Result<u16> {
    let local = socket.local_addr()?.as_socket();
    local
        .map(|at| at.port())
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn local(call: &Call) -> io::Result<SocketAddr> {
    call.local
        .ok_or_else(|| io::Error::other("--local is missing"))
}

fn other(call: &Call) -> io::Result<SocketAddr> {
    call.other
        .ok_or_else(|| io::Error::other("--other is missing"))
}
