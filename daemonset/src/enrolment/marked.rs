// SPDX-License-Identifier: Apache-2.0
//! TCP sockets with a mark of ours in a namespace: those of connections through the proxy. The
//! kernel filters by the mark itself.

use std::{io, mem::size_of};

use culvert_api::agent::Family;
use culvert_ebpf_abi::{MARK_IN, MARK_MASK, MARK_OUT};
use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST},
    sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG},
};

use super::addresses::FAMILIES;

/// Of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/sock_diag.h#L7>, as the
/// next. It needs CONFIG_INET_DIAG_DESTROY, which distributions have.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/inet_diag.h>, as the rest.
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_MARK_COND: u8 = 10;
/// All but TIME_WAIT (6), CLOSE (7) and LISTEN (10). What is in TIME_WAIT would only answer a
/// repeated FIN, and `lo` loses none.
const STATES: u32 = 0x1fff & !((1 << 6) | (1 << 7) | (1 << 10));

const HEADER: usize = 16;
const REQUEST: usize = 56;
/// Of an `inet_diag_msg` and of an `inet_diag_req_v2`: family and state before the identity, and
/// family, protocol, extensions, padding and states.
const ID_IN_ANSWER: usize = HEADER + 4;
const ID_IN_REQUEST: usize = HEADER + 8;
const ID: usize = 48;

/// A socket as the kernel names it: `inet_diag_sockid`.
type SocketId = [u8; ID];

/// Whether a connection through the proxy is left in the namespace that the calling thread is in.
pub fn any() -> io::Result<bool> {
    let socket = open()?;
    for (family, mark) in all() {
        if !list(&socket, family, mark)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Resets the connections through the proxy, and says how many there were.
pub fn end_all() -> io::Result<usize> {
    let socket = open()?;
    let mut ended = 0;
    for (family, mark) in all() {
        for id in list(&socket, family, mark)? {
            end(&socket, family, &id)?;
            ended += 1;
        }
    }
    Ok(ended)
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    Ok(socket)
}

fn all() -> impl Iterator<Item = (Family, u32)> {
    let marks = |family| [MARK_IN, MARK_OUT].map(|mark| (family, mark));
    FAMILIES.into_iter().flat_map(marks)
}

fn list(socket: &Socket, family: Family, mark: u32) -> io::Result<Vec<SocketId>> {
    socket.send_to(&request(family, mark), &SocketAddr::new(0, 0), 0)?;
    let mut found = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for message in Messages(&answer) {
            match message? {
                Kind::Socket(id) => found.push(id),
                Kind::Done => return Ok(found),
                // A kernel without this family.
                Kind::Error(libc::ENOENT) => return Ok(Vec::new()),
                Kind::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Kind::Other => {}
            }
        }
    }
}

/// One that ended by itself meanwhile is fine.
fn end(socket: &Socket, family: Family, id: &SocketId) -> io::Result<()> {
    socket.send_to(&destruction(family, id), &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match Messages(&answer).next().transpose()? {
        Some(Kind::Error(0 | libc::ENOENT)) => Ok(()),
        Some(Kind::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(broken()),
    }
}

fn destruction(family: Family, id: &SocketId) -> Vec<u8> {
    let mut bytes = head(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, family, REQUEST);
    bytes[ID_IN_REQUEST..ID_IN_REQUEST + ID].copy_from_slice(id);
    bytes
}

/// A netlink header and an `inet_diag_req_v2` that names no socket, before so much.
fn head(kind: u16, flags: u16, family: Family, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + length);
    let length = u32::try_from(bytes.capacity()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    bytes.extend([family, libc::IPPROTO_TCP].map(|value| value.to_ne_bytes()[LOW_BYTE]));
    bytes.extend([0; 2]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

/// The filter behind it.
fn request(family: Family, mark: u32) -> Vec<u8> {
    let filter = filter(mark);
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut bytes = head(SOCK_DIAG_BY_FAMILY, flags, family, REQUEST + filter.len());
    bytes.extend(filter);
    bytes
}

const LOW_BYTE: usize = if cfg!(target_endian = "little") { 0 } else { 3 };

/// One instruction and its `inet_diag_markcond`: yes goes on behind it, which is the end; no
/// jumps beyond the end, which is a refusal.
fn filter(mark: u32) -> Vec<u8> {
    const OP: u8 = 4;
    const LENGTH: u8 = OP + 8;
    let mut bytes = Vec::new();
    bytes.extend((4 + u16::from(LENGTH)).to_ne_bytes());
    bytes.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    bytes.extend([INET_DIAG_BC_MARK_COND, LENGTH]);
    bytes.extend((u16::from(LENGTH) + u16::from(OP)).to_ne_bytes());
    bytes.extend(mark.to_ne_bytes());
    bytes.extend(MARK_MASK.to_ne_bytes());
    bytes
}

enum Kind {
    Socket(SocketId),
    Done,
    Error(i32),
    Other,
}

/// The messages of a datagram.
struct Messages<'a>(&'a [u8]);

impl Iterator for Messages<'_> {
    type Item = io::Result<Kind>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((length, kind)) = header(self.0) else {
            self.0 = &[];
            return Some(Err(broken()));
        };
        let kind = match i32::from(kind) {
            libc::NLMSG_DONE => Kind::Done,
            libc::NLMSG_ERROR => Kind::Error(error(self.0)),
            _ if kind == SOCK_DIAG_BY_FAMILY => match id(self.0) {
                Some(id) => Kind::Socket(id),
                None => Kind::Other,
            },
            _ => Kind::Other,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(kind))
    }
}

fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?;
    (length >= HEADER && length <= bytes.len()).then_some((length, kind))
}

fn id(bytes: &[u8]) -> Option<SocketId> {
    bytes.get(ID_IN_ANSWER..ID_IN_ANSWER + ID)?.try_into().ok()
}

fn broken() -> io::Error {
    let text = "the kernel answered with a broken netlink message";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn error(bytes: &[u8]) -> i32 {
    let code = bytes.get(HEADER..HEADER + size_of::<i32>());
    let code = code.and_then(|code| code.try_into().ok());
    code.map_or(libc::EPROTO, |code| -i32::from_ne_bytes(code))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
    };

    use nix::sys::socket::{setsockopt, sockopt::Mark};

    use super::*;
    use crate::{netns::Netns, testing::TestNetns};

    fn marked(mark: u32) -> io::Result<[bool; 2]> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        setsockopt(&listener, Mark, &mark)?;
        let before = any()?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        setsockopt(&stream, Mark, &mark)?;
        let during = any()?;
        Ok([before, during])
    }

    /// Whether a connection with the mark of a proxy's, and one without, still carry a byte.
    fn ended() -> io::Result<(usize, [bool; 2])> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let connect = || TcpStream::connect(listener.local_addr()?);
        let (mut ours, mut other) = (connect()?, connect()?);
        setsockopt(&ours, Mark, &MARK_OUT)?;
        let ended = end_all()?;
        Ok((ended, [ours.write(b"a").is_ok(), other.write(b"a").is_ok()]))
    }

    #[tokio::test]
    async fn connections_with_our_marks_are_ended_and_others_are_not() {
        let pod = TestNetns::new("ended");
        pod.ip("link set lo up");
        let netns = Netns::open(pod.path())
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        let got = netns.run(ended).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(got.unwrap_or_else(|e| panic!("{e}")), (1, [false, true]));
    }

    #[tokio::test]
    async fn connections_with_our_marks_are_found_and_others_are_not() {
        for (mark, expected) in [(MARK_IN, true), (MARK_OUT | 0x77, true), (0x77, false)] {
            let pod = TestNetns::new("marked");
            pod.ip("link set lo up");
            let netns = Netns::open(pod.path())
                .await
                .unwrap_or_else(|e| panic!("{e}"));
            let got = netns.run(move || marked(mark)).await;
            let got = got.unwrap_or_else(|e| panic!("{e}"));
            let got = got.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(got, [false, expected], "{mark:#x}");
        }
    }
}
