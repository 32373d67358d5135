// SPDX-License-Identifier: Apache-2.0
//! What the kernel tells of a namespace, on a socket of its own: a pod that changes its routes all the
//! time fills this buffer and no other, so that no answer to a request is lost, and as the buffer is
//! read ten times a second at most, and for a pod that takes long to look at less often, the pod pays
//! for what it does and not the agent.

use std::{
    fmt,
    future::poll_fn,
    io,
    task::{Context, Poll},
    time::Duration,
};

use nix::libc;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::time::{Instant, sleep_until};

use super::{TABLES, table_of};

/// What is heard of. The kernel flushes the IPv4 routes of a link that goes down, and of a next hop
/// that goes, without a word, so links and next hops count too.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Nexthop,
];

/// The kernel's own port.
const KERNEL: u32 = 0;

/// How long nothing is read after something was.
const PAUSE: Duration = Duration::from_millis(100);

/// How many times as long as the last change took to follow, since looking at 10,000 routes takes
/// 20 ms.
const REST: u32 = 4;

/// But not longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How many messages are read at once: more than the buffer holds.
const AT_ONCE: usize = 512;

/// Longer than any message: one of a link with its statistics is about 2 KiB.
const LONGEST: usize = 64 << 10;

/// What the kernel tells.
pub struct Events {
    socket: TokioSocket,
    /// When is read again.
    next: Instant,
    /// When somebody began to follow the last change.
    told: Option<Instant>,
}

// === impl Events ===

impl Events {
    /// Listens in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0))?;
        let mut groups = GROUPS.iter();
        groups.try_for_each(|group| inner.add_membership(*group as u32))?;
        Ok(Self {
            socket,
            next: Instant::now(),
            told: None,
        })
    }

    /// Waits until something that matters may have changed.
    pub async fn changed(&mut self) -> io::Result<()> {
        if let Some(told) = self.told.take() {
            let rest = (told.elapsed() * REST).min(LONGEST_PAUSE);
            self.next = self.next.max(Instant::now() + rest);
        }
        loop {
            sleep_until(self.next).await;
            let matter = poll_fn(|cx| self.poll_read(cx)).await?;
            self.next = Instant::now() + PAUSE;
            if matter {
                self.told = Some(Instant::now());
                return Ok(());
            }
        }
    }

    /// Reads what there is, and whether something of it may matter.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut buffer = Vec::with_capacity(LONGEST);
        let mut matter = None;
        for _ in 0..AT_ONCE {
            buffer.clear();
            let this = match self.socket.poll_recv_from(cx, &mut buffer) {
                // A pod with CAP_NET_ADMIN can send to this socket too.
                Poll::Ready(Ok(from)) => from.port_number() == KERNEL && matters(&buffer),
                // What was lost may have mattered.
                Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if matter.is_none() => return Poll::Pending,
                Poll::Pending => break,
            };
            matter = Some(this || matter == Some(true));
        }
        Poll::Ready(Ok(matter == Some(true)))
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut this = f.debug_struct("Events");
        this.field("next", &self.next).finish_non_exhaustive()
    }
}

/// What can't be read may.
fn matters(datagram: &[u8]) -> bool {
    use RouteNetlinkMessage::{
        DelAddress, DelLink, DelRoute, DelRule, NewAddress, NewLink, NewRoute, NewRule,
    };
    let Ok(message) = NetlinkMessage::deserialize(datagram) else {
        return true;
    };
    match message.payload {
        NetlinkPayload::InnerMessage(message) => match message {
            NewAddress(_) | DelAddress(_) | NewLink(_) | DelLink(_) | NewRule(_) | DelRule(_) => {
                true
            }
            NewRoute(route) | DelRoute(route) => TABLES.contains(&table_of(&route)),
            _ => false,
        },
        _ => false,
    }
}
