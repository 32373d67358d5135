// SPDX-License-Identifier: Apache-2.0
//! The four listeners of a pod. `sk_lookup` gives them connections to any address and port, so
//! they are bound to loopback and any port.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use culvert_api::agent::{Family, Listener};
use nix::{
    getsockopt_impl, libc, sockopt_impl,
    sys::socket::{
        self,
        sockopt::{AcceptConn, GetStruct},
    },
};
use socket2::{Domain, Socket, Type};

/// As long as applications' own; `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

sockopt_impl!(
    /// `TCP_INFO`.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info,
    GetStruct<libc::tcp_info>
);

/// The listeners of a pod, in the order of [`Listener::ALL`].
#[derive(Clone, Debug)]
pub struct Listeners {
    slots: [Option<Arc<OwnedFd>>; 4],
}

// === impl Listeners ===

impl Listeners {
    /// Makes the listeners of the namespace that the calling thread is in.
    pub fn make() -> io::Result<Self> {
        let mut slots = [const { None }; 4];
        for (slot, listener) in slots.iter_mut().zip(Listener::ALL) {
            *slot = make(listener.family)?.map(Arc::new);
        }
        Ok(Self { slots })
    }

    /// Which there are.
    pub fn named(&self) -> Vec<(Listener, Arc<OwnedFd>)> {
        let all = Listener::ALL.into_iter().zip(&self.slots);
        all.filter_map(|(listener, fd)| Some((listener, Arc::clone(fd.as_ref()?))))
            .collect()
    }

    /// All, for the SOCKMAP.
    pub fn slots(&self) -> [Option<BorrowedFd<'_>>; 4] {
        self.slots
            .each_ref()
            .map(|slot| slot.as_ref().map(|fd| fd.as_fd()))
    }

    /// Whether all of them still listen.
    pub fn are_listening(&self) -> bool {
        let listens = |fd: &Arc<OwnedFd>| socket::getsockopt(fd, AcceptConn) == Ok(true);
        self.slots.iter().flatten().all(listens)
    }

    /// How many connections wait to be accepted: `tcpi_unacked` of a listener
    /// (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp.c#L4154>).
    pub fn waiting(&self) -> u32 {
        let backlog = |fd: &Arc<OwnedFd>| socket::getsockopt(fd, TcpInfo).ok();
        let infos = self.slots.iter().flatten().filter_map(backlog);
        infos.map(|info| info.tcpi_unacked).sum()
    }
}

/// None where the kernel has no such family. A namespace with `disable_ipv6` has listeners that
/// nothing reaches: what is transparent binds `::1` without it.
fn make(family: Family) -> io::Result<Option<OwnedFd>> {
    match listen(family) {
        Ok(socket) => Ok(Some(socket.into())),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn listen(family: Family) -> io::Result<Socket> {
    let socket = transparent(family)?;
    let any_port: SocketAddr = match family {
        Family::V4 => (Ipv4Addr::LOCALHOST, 0).into(),
        Family::V6 => (Ipv6Addr::LOCALHOST, 0).into(),
    };
    // Inherited by what is accepted, which stands in the bind bucket of the application's own port:
    // without it a server that restarts would find its port taken for as long as TIME_WAIT lasts
    // (<https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/inet_hashtables.c>, `__inet_inherit_port`).
    socket.set_reuse_address(true)?;
    socket.bind(&any_port.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A transparent TCP socket of the namespace that the calling thread is in.
pub fn transparent(family: Family) -> io::Result<Socket> {
    let socket = plain(family)?;
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true)?,
        Family::V6 => socket.set_ip_transparent_v6(true)?,
    }
    Ok(socket)
}

/// A TCP socket of the namespace that the calling thread is in, not blocking.
pub fn plain(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let kind = Type::STREAM.cloexec().nonblocking();
    let socket = Socket::new(domain, kind, None)?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::{netns::Netns, testing::TestNetns};

    async fn listeners(pod: &TestNetns) -> (Netns, Listeners) {
        let netns = Netns::open(pod.path())
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        let made = netns
            .run(Listeners::make)
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        (netns, made.unwrap_or_else(|e| panic!("{e}")))
    }

    #[tokio::test]
    async fn a_namespace_with_both_families_has_four_and_counts_who_waits() {
        let pod = TestNetns::new("listeners");
        pod.ip("link set lo up");
        let (netns, made) = listeners(&pod).await;
        assert_eq!(made.named().len(), 4);
        assert_eq!(made.waiting(), 0);
        let fd = Arc::clone(&made.named()[0].1);
        let connect = move || {
            let fd = fd.try_clone()?;
            let addr = Socket::from(fd).local_addr()?.as_socket();
            TcpStream::connect(addr.ok_or(io::ErrorKind::InvalidData)?)
        };
        let _stream = netns.run(connect).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(made.waiting(), 1);
    }
}
