// SPDX-License-Identifier: Apache-2.0
//! Whether a namespace still has TCP sockets with a mark of ours: those of connections through the
//! proxy. The kernel filters by the mark itself, so that nothing but a count comes back.

use std::{io, mem::size_of};

use culvert_api::agent::Family;
use culvert_ebpf_abi::{MARK_IN, MARK_MASK, MARK_OUT};
use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST},
    sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG},
};

use super::addresses::FAMILIES;

/// Of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/sock_diag.h#L7>.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/inet_diag.h>, as the rest.
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_MARK_COND: u8 = 10;
/// All but TIME_WAIT (6), CLOSE (7) and LISTEN (10). What is in TIME_WAIT would only answer a
/// repeated FIN, and `lo` loses none.
const STATES: u32 = 0x1fff & !((1 << 6) | (1 << 7) | (1 << 10));

const HEADER: usize = 16;
const REQUEST: usize = 56;

/// Whether a connection through the proxy is left in the namespace that the calling thread is in.
pub fn any() -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    for family in FAMILIES {
        for mark in [MARK_IN, MARK_OUT] {
            if has(&socket, family, mark)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn has(socket: &Socket, family: Family, mark: u32) -> io::Result<bool> {
    socket.send_to(&request(family, mark), &SocketAddr::new(0, 0), 0)?;
    let mut found = false;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for message in Messages(&answer) {
            match message? {
                Kind::Socket => found = true,
                Kind::Done => return Ok(found),
                // A kernel without this family.
                Kind::Error(libc::ENOENT) => return Ok(false),
                Kind::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Kind::Other => {}
            }
        }
    }
}

/// A netlink header, an `inet_diag_req_v2` and the filter.
fn request(family: Family, mark: u32) -> Vec<u8> {
    let filter = filter(mark);
    let mut bytes = Vec::with_capacity(HEADER + REQUEST + filter.len());
    let length = u32::try_from(bytes.capacity()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]);
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    bytes.extend([family, libc::IPPROTO_TCP].map(|value| value.to_ne_bytes()[LOW_BYTE]));
    bytes.extend([0; 2]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.resize(HEADER + REQUEST, 0);
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
    Socket,
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
            let text = "the kernel answered with a broken netlink message";
            return Some(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        };
        let kind = match i32::from(kind) {
            libc::NLMSG_DONE => Kind::Done,
            libc::NLMSG_ERROR => Kind::Error(error(self.0)),
            _ if kind == SOCK_DIAG_BY_FAMILY => Kind::Socket,
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

fn error(bytes: &[u8]) -> i32 {
    let code = bytes.get(HEADER..HEADER + size_of::<i32>());
    let code = code.and_then(|code| code.try_into().ok());
    code.map_or(libc::EPROTO, |code| -i32::from_ne_bytes(code))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

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
