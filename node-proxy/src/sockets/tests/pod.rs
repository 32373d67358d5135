// SPDX-License-Identifier: Apache-2.0
//! A network namespace that looks like an enrolled pod, on a thread of its own.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use culvert_api::{
    agent::{Family, FromProxy, SocketKind, SocketPool},
    workload::{NetnsCookie, PodUid, WorkloadKey},
};
use nix::{
    libc,
    sched::{CloneFlags, unshare},
};
use prometheus::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use super::super::{Recycler, SocketMetrics, Sockets, kernel};
use crate::agent_link::ToAgent;

const MARK_IN: u32 = 0x0100_0000;
const V4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2);

/// The namespace's `net.ipv4.ip_local_port_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// As Linux has it.
    Default,
    /// As the agent has it.
    Widened,
    /// Twenty ports.
    Few,
}

/// A pod without an agent.
pub(crate) struct TestPod {
    pub(crate) sockets: Sockets,
    pub(crate) v4: IpAddr,
    pub(crate) second: IpAddr,
    agent: Mutex<UnboundedReceiver<ToAgent>>,
}

/// Runs `test` in a namespace of its own, which ends with it.
pub(crate) fn in_pod<F, T>(range: Range, test: T)
where
    T: FnOnce(TestPod) -> F + Send + 'static,
    F: Future<Output = io::Result<()>>,
{
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        set_up(range)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { test(TestPod::new()?).await })
    });
    match thread.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Waits until `condition` holds, and gives up after five seconds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not in five seconds: {what}");
}

fn set_up(range: Range) -> io::Result<()> {
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add eth0 type veth peer name wire".to_owned(),
        format!("addr add {V4}/24 dev eth0"),
        format!("addr add {SECOND}/24 dev eth0"),
        format!("addr add {V6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        "link set wire up".to_owned(),
    ];
    for family in ["-4", "-6"] {
        lines.extend([
            format!("{family} rule add pref 1 lookup local"),
            format!("{family} rule del pref 0"),
            format!("{family} route add local default dev lo table 17100"),
            format!("{family} rule add fwmark {MARK_IN}/0xf000000 pref 0 lookup 17100"),
        ]);
    }
    lines.iter().try_for_each(|line| ip(line))?;
    sysctl("ipv4/tcp_fwmark_accept", "1")?;
    sysctl("ipv4/fwmark_reflect", "1")?;
    sysctl("ipv6/fwmark_reflect", "1")?;
    match range {
        Range::Default => Ok(()),
        Range::Widened => sysctl("ipv4/ip_local_port_range", "32768 65535"),
        Range::Few => sysctl("ipv4/ip_local_port_range", "40000 40019"),
    }
}

fn ip(line: &str) -> io::Result<()> {
    let output = Command::new("ip").args(line.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {line}: {error}")))
}

fn sysctl(name: &str, value: &str) -> io::Result<()> {
    std::fs::write(format!("/proc/sys/net/{name}"), value)
}

impl TestPod {
    fn new() -> io::Result<Self> {
        let key = WorkloadKey {
            uid: PodUid("test".to_owned()),
            cookie: NetnsCookie(1),
        };
        let (to_agent, agent) = unbounded_channel();
        let metrics = SocketMetrics::register(&Registry::new()).map_err(io::Error::other)?;
        Ok(Self {
            sockets: Sockets::new(&key, &to_agent, &metrics, Recycler::spawn()),
            v4: V4.into(),
            second: SECOND.into(),
            agent: Mutex::new(agent),
        })
    }

    /// What the agent would do.
    pub(crate) fn give(&self, pool: SocketPool, count: usize) -> io::Result<()> {
        let sockets: io::Result<Vec<_>> = (0..count).map(|_| make(pool)).collect();
        self.sockets.receive(pool, sockets?, 0);
        Ok(())
    }

    /// An application that listens.
    pub(crate) async fn listen(&self, family: Family) -> io::Result<(TcpListener, SocketAddr)> {
        let ip = match family {
            Family::V4 => V4.into(),
            Family::V6 => V6.into(),
        };
        let listener = TcpListener::bind(SocketAddr::new(ip, 8080)).await?;
        Ok((listener, SocketAddr::new(ip, 8080)))
    }

    /// The pools for which the agent was asked.
    pub(crate) fn wanted(&self) -> Vec<SocketPool> {
        let mut pools = Vec::new();
        let mut agent = self.agent.lock().unwrap_or_else(|e| panic!("{e}"));
        while let Ok(ToAgent {
            message: FromProxy::Want { pool, .. },
            ..
        }) = agent.try_recv()
        {
            pools.push(pool);
        }
        pools
    }
}

fn make(pool: SocketPool) -> io::Result<OwnedFd> {
    let domain = match pool.family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if pool.kind == SocketKind::InboundDial {
        match pool.family {
            Family::V4 => socket.set_ip_transparent_v4(true)?,
            Family::V6 => {
                kernel::set_int(
                    socket.as_fd(),
                    libc::IPPROTO_IPV6,
                    libc::IPV6_TRANSPARENT,
                    1,
                )?;
            }
        }
        socket.set_mark(MARK_IN)?;
    }
    Ok(socket.into())
}
