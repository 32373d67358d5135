// SPDX-License-Identifier: Apache-2.0
//! A client that uses its socket in an unusual way, and tells what each system call answered.

pub(super) mod connecting;
pub(super) mod ring;
mod sending;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::report;

/// The most that any one system call may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longer than any time-out of a proxy for a peer that does not answer.
const PAUSE: Duration = Duration::from_secs(40);

/// Use a socket in an unusual way.
#[derive(Args, Clone, Debug)]
pub struct Call {
    /// Which way.
    #[arg(value_enum)]
    pub way: Way,
    /// An echo server, unless the way needs another.
    pub target: SocketAddr,
    /// Another server, for ways that need two.
    #[arg(long)]
    pub other: Option<SocketAddr>,
    /// What to bind to.
    #[arg(long)]
    pub local: Option<SocketAddr>,
}

/// A way to use a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// O_NONBLOCK, connect(), poll(), SO_ERROR.
    Nonblocking,
    /// bind() first, as `--local` says.
    Bound,
    /// SO_REUSEADDR and one port to the target and to `--other` at once.
    TwoDestinations,
    /// TCP_FASTOPEN_CONNECT.
    FastOpenConnect,
    /// MSG_FASTOPEN.
    FastOpenSend,
    /// IPPROTO_MPTCP.
    Mptcp,
    /// IPPROTO_MPTCP and TCP_FASTOPEN_CONNECT.
    MptcpFastOpenConnect,
    /// IPPROTO_MPTCP and MSG_FASTOPEN.
    MptcpFastOpenSend,
    /// IP_FREEBIND to `--local`, an address of somebody else.
    FreeBind,
    /// IP_TRANSPARENT to `--local`, an address of somebody else.
    Transparent,
    /// connect(AF_UNSPEC) between the target, loopback and `--other`.
    Again,
    /// UDP: connect(), send, AF_UNSPEC, and again.
    Udp,
    /// io_uring: connect, send and receive.
    Ring,
    /// sendfile() to the socket.
    Sendfile,
    /// splice() from a pipe to the socket and from the socket to a pipe.
    Splice,
    /// A byte with MSG_OOB between others.
    Urgent,
    /// Reads to the end, and only then sends a megabyte and FIN.
    SendAfterFin,
    /// Reads some of what a server pours out, then ends with RST.
    ResetMidway,
    /// A tiny SO_RCVBUF, nothing is read for 40 seconds, then everything.
    SlowReader,
}

/// What the system calls answered, in order: `connect: EINPROGRESS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// One line each.
    pub did: Vec<String>,
}

/// Makes the calls and tells.
pub fn run(call: &Call) -> anyhow::Result<Called> {
    let mut called = Called::default();
    // An error ends the way and is the last line.
    let _ = go(call, &mut called);
    Ok(called)
}

fn go(call: &Call, to: &mut Called) -> io::Result<()> {
    use Protocol as P;
    match call.way {
        Way::Nonblocking => connecting::nonblocking(call, to),
        Way::Bound => connecting::bound(call, to),
        Way::TwoDestinations => connecting::two_destinations(call, to),
        Way::FastOpenConnect => connecting::fast_open_connect(call, P::TCP, to),
        Way::FastOpenSend => connecting::fast_open_send(call, P::TCP, to),
        Way::Mptcp => connecting::plainly(call, P::MPTCP, to),
        Way::MptcpFastOpenConnect => connecting::fast_open_connect(call, P::MPTCP, to),
        Way::MptcpFastOpenSend => connecting::fast_open_send(call, P::MPTCP, to),
        Way::FreeBind => connecting::foreign(call, Socket::set_freebind_v4, to),
        Way::Transparent => connecting::foreign(call, Socket::set_ip_transparent_v4, to),
        Way::Again => connecting::again(call, to),
        Way::Udp => connecting::udp(call, to),
        Way::Ring => ring::client(call.target, to),
        Way::Sendfile => sending::sendfile(call, to),
        Way::Splice => sending::splice(call, to),
        Way::Urgent => sending::urgent(call, to),
        Way::SendAfterFin => sending::send_after_fin(call, to),
        Way::ResetMidway => sending::reset_midway(call, to),
        Way::SlowReader => sending::slow_reader(call, to),
    }
}

// === impl Called ===

impl Called {
    /// Notes what a call answered, and passes it on.
    fn note<T>(&mut self, what: &str, answer: io::Result<T>) -> io::Result<T> {
        let told = match &answer {
            Ok(_) => "ok".to_owned(),
            Err(error) => report::name(error),
        };
        self.say(what, &told);
        answer
    }

    fn say(&mut self, what: &str, told: &str) {
        self.did.push(format!("{what}: {told}"));
    }

    /// Whether the calls answered so.
    pub fn expect(&self, did: &[&str]) -> anyhow::Result<()> {
        anyhow::ensure!(self.did == did, "got {:?}, expected {did:?}", self.did);
        Ok(())
    }
}

fn socket(call: &Call, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(call.target),
        Type::STREAM,
        Some(protocol),
    )?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn connected(call: &Call, to: &mut Called) -> io::Result<TcpStream> {
    let socket = socket(call, Protocol::TCP)?;
    to.note("connect", socket.connect(&call.target.into()))?;
    Ok(socket.into())
}

/// Sends four bytes and reads them back.
fn echo(stream: &mut TcpStream, to: &mut Called) -> io::Result<()> {
    to.note("send", stream.write_all(b"ping"))?;
    echoed(stream, to)
}

fn echoed(stream: &mut TcpStream, to: &mut Called) -> io::Result<()> {
    let mut back = [0; 4];
    to.note("receive", stream.read_exact(&mut back))?;
    to.say("received", &String::from_utf8_lossy(&back));
    Ok(())
}
