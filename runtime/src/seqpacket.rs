// SPDX-License-Identifier: Apache-2.0
//! JSON messages with file descriptors over a Unix SEQPACKET socket: one datagram, one message.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
    SockType, UnixAddr, UnixCredentials, sockopt::PeerCredentials,
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
        let (bytes, fds) = self.recv_bytes().await?;
        let body = serde_json::from_slice(&bytes).map_err(Error::Malformed)?;
        Ok(Message { body, fds })
    }

    async fn recv_bytes(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), Error> {
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
            return Ok((received.bytes, received.fds));
        }
    }
}

struct Received {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    truncated: bool,
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
    let mut bytes = vec![0; max_message];
    let mut control = vec![0; socket::cmsg_space::<[RawFd; SCM_MAX_FD]>()];
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = socket::recvmsg::<()>(fd.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
    let cut = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
    let fds = owned(message.cmsgs()?);
    let truncated = message.flags.intersects(cut) || fds.len() > max_fds;
    let length = message.bytes;
    bytes.truncate(length);
    Ok(Received {
        bytes,
        fds,
        truncated,
    })
}

fn owned(messages: socket::CmsgIterator<'_>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    for message in messages {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel just installed these descriptors for this message alone.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
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
}
