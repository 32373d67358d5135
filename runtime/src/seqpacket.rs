// SPDX-License-Identifier: Apache-2.0
//! JSON messages with file descriptors over a Unix SEQPACKET socket: one datagram, one message.

use std::{
    io::{self, IoSlice},
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::{
    libc,
    sys::socket::{
        self, AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr,
        UnixCredentials, sockopt::PeerCredentials,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::unix::AsyncFd;

const BACKLOG: i32 = 16;

/// `SCM_MAX_FD`: with room for as many as the kernel takes, none is ever cut off and leaked
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/net/scm.h#L18>).
const SCM_MAX_FD: usize = 253;

/// A listening SEQPACKET socket.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
}

/// One end of a connection. `send` and `recv` may run at the same time, each once.
#[derive(Debug)]
pub struct Channel {
    fd: AsyncFd<OwnedFd>,
    max_message: usize,
    max_fds: usize,
}

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Message<T> {
    /// What was said.
    pub body: T,
    /// The descriptors, in the sender's order.
    pub fds: Vec<OwnedFd>,
    /// There were more, for which this process has no room in its table of descriptors.
    pub short: bool,
}

/// A message could not be sent or received. All but [`Error::Malformed`] end the connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer closed.
    #[error("the peer closed the connection")]
    Closed,
    /// The datagram or its descriptors did not fit: a protocol error of the peer.
    #[error("the peer sent more than {max_message} bytes or {max_fds} descriptors in one message")]
    Truncated {
        /// The longest message that is taken.
        max_message: usize,
        /// The most descriptors that are taken.
        max_fds: usize,
    },
    /// Not a message of this protocol.
    #[error("the peer sent something that is not a message of this protocol: {0}")]
    Malformed(#[source] serde_json::Error),
    /// The kernel refused.
    #[error("could not talk over the Unix socket: {0}")]
    Io(#[from] io::Error),
}

// === impl Listener ===

impl Listener {
    /// Binds `path`, whose earlier socket, if there is one, is replaced.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let fd = seqpacket()?;
        socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        socket::listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(Self { fd: register(fd)? })
    }

    /// Takes the next connection, and says whose it is.
    pub async fn accept(
        &self,
        max_message: usize,
        max_fds: usize,
    ) -> io::Result<(Channel, UnixCredentials)> {
        let fd = loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(accepted) = ready.try_io(|fd| accept(fd.get_ref())) {
                break accepted?;
            }
        };
        let credentials = socket::getsockopt(&fd, PeerCredentials)?;
        Ok((Channel::new(fd, max_message, max_fds)?, credentials))
    }
}

// === impl Channel ===

impl Channel {
    /// Connects to a listener at `path`.
    pub fn connect(path: &Path, max_message: usize, max_fds: usize) -> io::Result<Self> {
        let fd = seqpacket()?;
        socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::new(fd, max_message, max_fds)
    }

    fn new(fd: OwnedFd, max_message: usize, max_fds: usize) -> io::Result<Self> {
        let fd = register(fd)?;
        Ok(Self {
            fd,
            max_message,
            max_fds,
        })
    }

    /// Sends one message. Waits while the peer does not read.
    pub async fn send<T: Serialize>(&self, body: &T, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = serde_json::to_vec(body).map_err(Error::Malformed)?;
        loop {
            let mut ready = self.fd.writable().await?;
            if let Ok(sent) = ready.try_io(|fd| send(fd.get_ref(), &bytes, fds)) {
                return Ok(sent?);
            }
        }
    }

    /// Receives one message.
    pub async fn recv<T: DeserializeOwned>(&self) -> Result<Message<T>, Error> {
        let Received {
            bytes, fds, short, ..
        } = self.recv_bytes().await?;
        let body = serde_json::from_slice(&bytes).map_err(Error::Malformed)?;
        Ok(Message { body, fds, short })
    }

    async fn recv_bytes(&self) -> Result<Received, Error> {
        loop {
            let mut ready = self.fd.readable().await?;
            let received = ready.try_io(|fd| receive(fd.get_ref(), self.max_message, self.max_fds));
            let Ok(received) = received else { continue };
            let received = received?;
            if received.truncated {
                return Err(Error::Truncated {
                    max_message: self.max_message,
                    max_fds: self.max_fds,
                });
            }
            if received.bytes.is_empty() {
                return Err(Error::Closed);
            }
            return Ok(received);
        }
    }
}

struct Received {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    truncated: bool,
    short: bool,
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open and the same until the `AsyncFd` drops it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket::socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?)
}

fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: accept4 just returned this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(fd: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    socket::sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
    Ok(())
}

fn receive(fd: &OwnedFd, max_message: usize, max_fds: usize) -> io::Result<Received> {
    let mut bytes = vec![0_u8; max_message];
    // SAFETY: takes a number, touches no memory.
    let space = unsafe { libc::CMSG_SPACE((SCM_MAX_FD * size_of::<RawFd>()) as libc::c_uint) };
    // Of words: a control message is aligned like one.
    let mut control = vec![0_usize; (space as usize).div_ceil(size_of::<usize>())];
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: a plain C struct, for which zeroes are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(control.as_slice());
    // SAFETY: the header names buffers that are as long as it says and outlive the call.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled the header in, and its buffers are still there.
    let fds = unsafe { owned(&header) };
    bytes.truncate(length);
    Ok(Received {
        bytes,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0 || fds.len() > max_fds,
        // The buffer takes all that the kernel passes on, so it is the table that is full
        // (<https://elixir.bootlin.com/linux/v6.18/source/net/core/scm.c#L329>).
        short: header.msg_flags & libc::MSG_CTRUNC != 0,
        fds,
    })
}

/// The descriptors that came, also where some did not: nix gives none then, and they would leak.
///
/// # Safety
/// recvmsg(2) must have filled the header in, and nobody else may have taken the descriptors.
unsafe fn owned(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: as of the header.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: null, or a control message within the header's buffer.
    while let Some(message) = unsafe { next.as_ref() } {
        if (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: a message has a head of this length, and its data begins behind that.
            let (head, data) = unsafe { (libc::CMSG_LEN(0) as usize, libc::CMSG_DATA(next)) };
            let count = message.cmsg_len.saturating_sub(head) / size_of::<RawFd>();
            for nth in 0..count {
                // SAFETY: within the message's data; the kernel installed it for this message alone.
                fds.push(unsafe {
                    OwnedFd::from_raw_fd(data.cast::<RawFd>().add(nth).read_unaligned())
                });
            }
        }
        // SAFETY: as of the header.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    fds
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    async fn pair(max_message: usize) -> (Channel, Channel) {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap_or_else(|e| panic!("{e}"));
        let client = Channel::connect(&path, 1 << 16, 4).unwrap_or_else(|e| panic!("{e}"));
        let accepted = listener.accept(max_message, 4).await;
        (client, accepted.unwrap_or_else(|e| panic!("{e}")).0)
    }

    #[tokio::test]
    async fn descriptors_travel_with_their_message() {
        let (a, b) = pair(1 << 16).await;
        let null = std::fs::File::open("/dev/null").unwrap_or_else(|e| panic!("{e}"));
        let sent = a.send(&"two", &[null.as_fd(), null.as_fd()]).await;
        assert!(sent.is_ok());
        let got: Message<String> = b.recv().await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((got.body.as_str(), got.fds.len()), ("two", 2));
        drop(a);
        assert!(matches!(b.recv::<String>().await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn an_oversized_message_is_told_apart() {
        let (a, b) = pair(16).await;
        assert!(a.send(&"x".repeat(100), &[]).await.is_ok());
        let got = b.recv::<String>().await;
        assert!(matches!(got, Err(Error::Truncated { .. })), "{got:?}");
    }

    /// The table that is filled up is the thread's own.
    #[test]
    fn descriptors_for_which_there_is_no_room_are_missed_and_none_leaks() {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)?;
            let (a, b) = socket::socketpair(
                AddressFamily::Unix,
                SockType::SeqPacket,
                None,
                SockFlag::SOCK_CLOEXEC,
            )?;
            // As many as there may be but two.
            let mut full = Vec::new();
            while let Ok(fd) = a.try_clone() {
                full.push(fd);
            }
            full.truncate(full.len().saturating_sub(2));
            for _ in 0..3 {
                send(&a, b"four", &[a.as_fd(); 4])?;
                let got = receive(&b, 16, 4)?;
                assert_eq!((got.fds.len(), got.short, got.truncated), (2, true, false));
            }
            Ok::<_, io::Error>(())
        });
        let joined = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        joined.unwrap_or_else(|e| panic!("{e}"));
    }
}
