// SPDX-License-Identifier: Apache-2.0
//! System calls, files and other processes.

use std::{fs, io, os::unix::net::UnixStream, path::Path};

use nix::libc::{self, c_int, c_long};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Attempts, Turned, call, tried};

pub(super) fn attempts(turned: &Turned) -> Attempts {
    let mut all = sockets();
    all.extend(kernel());
    all.extend(others(turned));
    let read = turned
        .read
        .iter()
        .map(|path| tried(&format!("read {}", path.display()), || read(path)));
    all.extend(read.collect::<Attempts>());
    all
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<()> {
    Socket::new(
        Domain::from(family),
        Type::from(kind),
        Some(Protocol::from(protocol)),
    )
    .map(drop)
}

fn sockets() -> Attempts {
    let fresh = || Socket::new(Domain::IPV4, Type::STREAM, None);
    [
        tried("a raw socket", || {
            socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
        }),
        tried("a raw IPv6 socket", || {
            socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)
        }),
        tried("a packet socket", || {
            socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
        }),
        tried("a netlink socket", || {
            socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)
        }),
        tried("a mark on a new socket", || fresh()?.set_mark(1)),
        tried("transparency of a new socket", || {
            fresh()?.set_ip_transparent_v4(true)
        }),
    ]
    .into()
}

fn kernel() -> Attempts {
    let number = |number: c_int| c_long::from(number);
    // BPF_MAP_CREATE of an array: type, key size, value size, entries.
    let map = [2_u32, 4, 4, 1];
    [
        tried("unshare", || {
            call(libc::SYS_unshare, [number(libc::CLONE_NEWNET), 0, 0, 0, 0]).map(drop)
        }),
        tried("a user namespace", || {
            call(libc::SYS_unshare, [number(libc::CLONE_NEWUSER), 0, 0, 0, 0]).map(drop)
        }),
        tried("setns", || {
            let own = fs::File::open("/proc/thread-self/ns/net")?;
            Ok(nix::sched::setns(
                own,
                nix::sched::CloneFlags::CLONE_NEWNET,
            )?)
        }),
        tried("bpf", || {
            call(libc::SYS_bpf, [0, map.as_ptr() as c_long, 16, 0, 0]).map(drop)
        }),
        tried("mount", || {
            call(libc::SYS_fsopen, [c"tmpfs".as_ptr() as c_long, 0, 0, 0, 0]).map(drop)
        }),
        tried("execve", || {
            call(libc::SYS_execve, [c"/none".as_ptr() as c_long, 0, 0, 0, 0]).map(drop)
        }),
        tried("io_uring", || {
            call(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]).map(drop)
        }),
        tried("fork", fork),
    ]
    .into()
}

fn fork() -> io::Result<()> {
    let child = call(libc::SYS_clone, [c_long::from(libc::SIGCHLD), 0, 0, 0, 0])?;
    if child == 0 {
        // SAFETY: the child of a thread may only end.
        unsafe { libc::_exit(0) };
    }
    let child = i32::try_from(child).map_err(io::Error::other)?;
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None)?;
    Ok(())
}

fn others(turned: &Turned) -> Attempts {
    let (agent, proxy) = (turned.agent, turned.proxy);
    let seize = |pid: i32| {
        // PTRACE_SEIZE ends with the thread that did it.
        call(libc::SYS_ptrace, [0x4206, c_long::from(pid), 0, 0, 0]).map(drop)
    };
    let kill = |pid: i32| call(libc::SYS_kill, [c_long::from(pid), 0, 0, 0, 0]).map(drop);
    let open = |path: String| fs::File::open(path).map(drop);
    [
        tried("trace the agent", || seize(agent)),
        tried("trace the proxy", || seize(proxy)),
        tried("the agent's memory", || open(format!("/proc/{agent}/mem"))),
        tried("the proxy's memory", || open(format!("/proc/{proxy}/mem"))),
        tried("the agent's descriptors", || {
            fs::read_dir(format!("/proc/{agent}/fd")).map(drop)
        }),
        tried("the proxy's descriptors", || {
            fs::read_dir(format!("/proc/{proxy}/fd")).map(drop)
        }),
        tried("the agent's namespaces", || {
            open(format!("/proc/{agent}/ns/mnt"))
        }),
        tried("a signal to the agent", || kill(agent)),
        tried("a signal to the proxy", || kill(proxy)),
        tried("the plugin's socket", || {
            let path = turned.socket.with_file_name("cni.sock");
            UnixStream::connect(path).map(drop)
        }),
        tried("the agent's place", || {
            let mut name = turned.socket.clone().into_os_string();
            name.push(".moved");
            fs::rename(&turned.socket, &name)?;
            fs::rename(&name, &turned.socket)
        }),
    ]
    .into()
}

fn read(path: &Path) -> io::Result<()> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::read(path).map(drop),
        other => other.map(drop),
    }
}
