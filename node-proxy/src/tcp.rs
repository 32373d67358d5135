// SPDX-License-Identifier: Apache-2.0
//! What the data path does to TCP sockets beside reading and writing.

use std::{
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::libc;
use socket2::{SockRef, TcpKeepalive};
use tokio::{io::Interest, net::TcpStream};

/// An idle connection is probed after this long, as in Linkerd.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 4;

/// How long a peer may leave what was sent to it unanswered.
const UNANSWERED: Duration = Duration::from_secs(30);

/// How long a reset waits for what was sent before it.
const DRAIN: Duration = Duration::from_secs(1);

/// The state of a connection that is none any more
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/net/tcp_states.h>).
const TCP_CLOSE: u8 = 7;

/// The address without IPv4-mapped IPv6.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Options of a leg that stays in the pod: it can't die silently, so it is not probed.
pub(crate) fn tune_local(tcp: &TcpStream) -> io::Result<()> {
    tune(tcp)
}

/// Options of a leg that leaves the pod.
///
/// No TCP_USER_TIMEOUT: it also ends connections whose peer answers but keeps its window shut, so
/// that an application that pauses reading would lose its connection
/// (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp_timer.c#L387>). [`is_dead`] tells
/// the two apart.
pub(crate) fn tune_wire(tcp: &TcpStream) -> io::Result<()> {
    tune(tcp)?;
    SockRef::from(tcp).set_tcp_keepalive(&keepalive())
}

/// An urgent byte stays where it is in the stream, as RFC 6093, 5 recommends: read apart it would be
/// lost, because TLS has nothing to say it with.
fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    SockRef::from(tcp).set_out_of_band_inline(true)
}

/// How an idle connection is probed: a peer that does not answer is gone after half a minute.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES)
}

/// Closes with RST.
pub(crate) fn reset(tcp: TcpStream) {
    abort_on_close(&tcp, true);
}

/// Whether the socket's last close sends RST (`SO_LINGER` with zero seconds) and not FIN.
///
/// On while a connection is carried: a proxy that is killed would end it with FIN, and an application
/// whose reply ends with the connection would take a part of it for the whole
/// (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp.c#L3141>).
pub(crate) fn abort_on_close(tcp: &TcpStream, abort: bool) {
    let linger = abort.then_some(Duration::ZERO);
    if let Err(error) = SockRef::from(tcp).set_linger(linger) {
        tracing::debug!(%error, abort, "Could not say how a socket is to be closed");
    }
}

/// The first byte that waits to be read, without consuming it and, if there is none yet, without
/// waiting for it (`WouldBlock`). `None`: the peer has closed.
///
/// Asks the kernel and not the runtime, which has not heard of a socket that was just accepted.
pub(crate) fn peek(tcp: &TcpStream) -> io::Result<Option<u8>> {
    let mut byte = [MaybeUninit::new(0)];
    match SockRef::from(tcp).peek(&mut byte)? {
        0 => Ok(None),
        // SAFETY: it was initialised above.
        _ => Ok(Some(unsafe { byte[0].assume_init() })),
    }
}

/// As many of the bytes that wait to be read as `into` has room for, without consuming them.
pub(crate) fn peek_into<'a>(tcp: &TcpStream, into: &'a mut [u8]) -> io::Result<&'a [u8]> {
    // SAFETY: nothing uninitialised is written through it, `recv` initialises what it writes.
    let room = unsafe { &mut *(std::ptr::from_mut(into) as *mut [MaybeUninit<u8>]) };
    let count = SockRef::from(tcp).peek(room)?;
    Ok(into.get(..count).unwrap_or_default())
}

/// As [`peek`], when there is a byte or the peer has closed.
pub(crate) async fn peek_or_wait(tcp: &TcpStream) -> io::Result<Option<u8>> {
    tcp.async_io(Interest::READABLE, || peek(tcp)).await
}

/// Waits until the peer's kernel has everything that was written, at most a second: a reset throws
/// away what it has not.
pub(crate) async fn drained(tcp: &TcpStream) {
    let (start, mut pause) = (Instant::now(), Duration::from_micros(200));
    while start.elapsed() < DRAIN && unacknowledged(tcp).is_ok_and(|bytes| bytes > 0) {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// How many bytes the peer's kernel has not acknowledged (`SIOCOUTQ`, tcp(7)).
pub(crate) fn unacknowledged(tcp: &TcpStream) -> io::Result<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open and the ioctl writes one int.
    let result = unsafe { libc::ioctl(tcp.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes)
}

/// Whether the peer has let 30 seconds of retransmissions or window probes pass without a word.
pub(crate) fn is_dead(tcp: &TcpStream) -> io::Result<bool> {
    Ok(dead(&info(tcp)?))
}

/// Why the kernel has closed a connection that this side has not: a reset, or probes that nobody
/// answered. `None`: it stands.
pub(crate) fn lost(tcp: &TcpStream) -> Option<io::Error> {
    let closed = info(tcp).is_ok_and(|info| info.tcpi_state == TCP_CLOSE);
    closed.then(|| {
        let error = tcp.take_error().ok().flatten();
        // What a reset after FIN is called by who only writes.
        let named = error.filter(|error| error.raw_os_error() != Some(libc::EPIPE));
        named.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ECONNRESET))
    })
}

/// Ready when the peer has reset the connection. One that has only said its last (FIN) still waits
/// for an answer.
pub(crate) async fn was_reset(tcp: &TcpStream) -> io::Error {
    let look = || lost(tcp).ok_or_else(|| io::ErrorKind::WouldBlock.into());
    let reset = tcp.async_io(Interest::ERROR, look).await;
    reset.unwrap_or_else(|error| error)
}

/// A peer with a shut window answers the probes, which puts their count back to zero.
fn dead(info: &libc::tcp_info) -> bool {
    let limit = u32::try_from(UNANSWERED.as_millis()).unwrap_or(u32::MAX);
    let silent = info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv) >= limit;
    let retransmitting = info.tcpi_unacked > 0 && info.tcpi_retransmits > 0;
    silent && (retransmitting || info.tcpi_probes > 1)
}

fn info(tcp: &TcpStream) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or_default();
    // SAFETY: `info` has room for `length` bytes, and every bit pattern of it is valid.
    let result = unsafe {
        libc::getsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, then written by the kernel.
    Ok(unsafe { info.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel of 6.18 tells of peers that vanished and of peers that pause.
    #[test]
    fn a_shut_window_is_no_death() {
        let info = |ack, unacked, retransmits, probes| libc::tcp_info {
            tcpi_last_ack_recv: ack,
            tcpi_last_data_recv: 100_000,
            tcpi_unacked: unacked,
            tcpi_retransmits: retransmits,
            tcpi_probes: probes,
            // SAFETY: a plain C struct of integers, for which zeroes are valid.
            ..unsafe { std::mem::zeroed() }
        };
        assert!(dead(&info(32_512, 1, 7, 0)), "unacknowledged data");
        assert!(dead(&info(40_000, 0, 0, 3)), "unanswered probes");
        assert!(!dead(&info(28_000, 1, 7, 0)), "not yet");
        assert!(!dead(&info(51_000, 0, 0, 1)), "a probe is under way");
        assert!(
            !dead(&info(51_000, 0, 0, 0)),
            "idle, or probed and answered"
        );
    }
}
