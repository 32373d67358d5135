// SPDX-License-Identifier: Apache-2.0
//! What tests say to the agent, and look at in the pod.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::fd::OwnedFd,
    process::Child,
};

use culvert_api::{
    agent::{Direction, Family, FromAgent, Listener, SocketKind, SocketPool},
    cni::Response,
    workload::WorkloadKey,
};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use socket2::SockRef;

use crate::{
    node::{Node, PATIENCE, POD},
    proxy::Proxy,
};

pub const STEERED: Response = Response::Done { steered: true };
pub const UNSTEERED: Response = Response::Done { steered: false };

/// Where nothing is: only a steered connection gets anywhere.
pub const ELSEWHERE: &str = "203.0.113.9";

pub fn failure(response: Response) -> u32 {
    match response {
        Response::Failed { code, .. } => code,
        done => panic!("{done:?}"),
    }
}

/// A client in the pod that says hello, then echoes what it hears to its stdout.
pub fn client(node: &Node, host: &str) -> Child {
    let talk = format!(
        "bash -c 'exec 3<>/dev/tcp/{host}/80 && echo hello >&3 && while read -r l <&3; do echo $l; done'"
    );
    node.spawn(&talk)
}

/// What a client that gets nowhere complains about.
pub fn complaint(client: Child) -> String {
    let output = client.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Accepts from a listener of the pod.
pub fn accept(proxy: &Proxy, direction: Direction, family: Family) -> TcpStream {
    let fd = &proxy.listeners[&Listener { direction, family }];
    let listener = SockRef::from(fd);
    listener
        .set_nonblocking(false)
        .unwrap_or_else(|e| panic!("{e}"));
    // Of accept() too.
    let patient = listener.set_read_timeout(Some(PATIENCE));
    patient.unwrap_or_else(|e| panic!("{e}"));
    let (accepted, _) = listener.accept().unwrap_or_else(|e| panic!("{e}"));
    accepted
        .set_nonblocking(false)
        .unwrap_or_else(|e| panic!("{e}"));
    accepted.into()
}

/// A connection of the pod to elsewhere reaches the proxy's listener.
pub fn expect_steered(node: &Node, proxy: &Proxy) -> (Child, TcpStream) {
    expect_steered_to(node, proxy, (ELSEWHERE, Family::V4), POD)
}

/// A connection from an address of the pod to `host` reaches the proxy's listener.
pub fn expect_steered_to(
    node: &Node,
    proxy: &Proxy,
    (host, family): (&str, Family),
    from: &str,
) -> (Child, TcpStream) {
    let client = client(node, host);
    let mut stream = accept(proxy, Direction::Outbound, family);
    let addrs = stream
        .local_addr()
        .and_then(|to| Ok((to, stream.peer_addr()?)));
    let (to, peer) = addrs.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((to.ip().to_string().as_str(), to.port()), (host, 80));
    assert_eq!(peer.ip().to_string(), from);
    let mut hello = [0; 6];
    stream
        .read_exact(&mut hello)
        .unwrap_or_else(|e| panic!("{e}"));
    (client, stream)
}

pub fn expect_open(client: &mut Child, stream: &mut TcpStream) {
    stream
        .write_all(b"back\n")
        .unwrap_or_else(|e| panic!("{e}"));
    let mut back = [0; 5];
    let stdout = client.stdout.as_mut();
    let read = stdout.map(|stdout| stdout.read_exact(&mut back));
    assert!(matches!(read, Some(Ok(()))), "{read:?}");
}

pub fn end(mut client: Child, stream: TcpStream) {
    drop(stream);
    client.wait().unwrap_or_else(|e| panic!("{e}"));
}

pub async fn pod_message(proxy: &mut Proxy) -> (WorkloadKey, bool) {
    let pod = |_: &Proxy, message: &FromAgent| match message {
        FromAgent::Pod { key, live, .. } => Some((key.clone(), *live)),
        _ => None,
    };
    proxy.until(pod).await
}

pub async fn sockets(proxy: &mut Proxy, count: usize) {
    while proxy.sockets.len() < count {
        proxy.next().await;
    }
}

pub fn taken(proxy: &mut Proxy, kind: SocketKind) -> OwnedFd {
    let of = |(pool, _): &(SocketPool, OwnedFd)| pool.kind == kind && pool.family == Family::V4;
    let at = proxy.sockets.iter().position(of);
    let at = at.unwrap_or_else(|| panic!("no socket of {kind:?}"));
    proxy.sockets.swap_remove(at).1
}

/// Whether nothing of the pod is left on the node.
pub fn is_nothing_left(node: &Node) -> bool {
    let records = fs::read_dir(node.path("state/pods")).map(Iterator::count);
    let namespaces = node.files().filter(|name| name.starts_with("net:"));
    node.pins().is_empty() && records.ok() == Some(0) && namespaces.count() == 0
}

pub fn record_cookie(node: &Node) -> culvert_api::workload::NetnsCookie {
    let records = fs::read_dir(node.path("state/pods"))
        .into_iter()
        .flatten()
        .flatten();
    let names = records.filter_map(|record| record.file_name().into_string().ok());
    let cookies =
        names.filter_map(|name| name.strip_suffix(".json")?.rsplit('-').next()?.parse().ok());
    let cookie = cookies.into_iter().next();
    culvert_api::workload::NetnsCookie(cookie.unwrap_or_else(|| panic!("no record")))
}

pub fn sealed(content: &[u8]) -> OwnedFd {
    let fd = memfd_create(c"key", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
    let mut file = fs::File::from(fd.unwrap_or_else(|e| panic!("{e}")));
    file.write_all(content).unwrap_or_else(|e| panic!("{e}"));
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap_or_else(|e| panic!("{e}"));
    file.into()
}

pub fn in_netns<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> T {
    let netns = fs::File::open(format!("/run/netns/{name}")).unwrap_or_else(|e| panic!("{e}"));
    let thread = std::thread::spawn(move || {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
        work()
    });
    let done = thread
        .join()
        .unwrap_or_else(|_| panic!("the thread panicked"));
    done.unwrap_or_else(|e| panic!("{e}"))
}
