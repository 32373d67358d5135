// SPDX-License-Identifier: Apache-2.0
//! Dials for a test from inside of a pod: every connection is relayed byte by byte.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use clap::Args;
use socket2::SockRef;

/// Relay connections from the pod's loopback.
#[derive(Args, Clone, Debug)]
pub struct Relay {
    /// `PORT=TARGET`, as often as wanted.
    #[arg(required = true)]
    pub relay: Vec<String>,
}

/// Relays until it is killed. Prints a line when all ports are open.
pub fn run(relay: &Relay) -> anyhow::Result<()> {
    let mut threads = Vec::new();
    for one in &relay.relay {
        let (port, target) = one
            .split_once('=')
            .ok_or_else(|| anyhow::anyhow!("{one:?}: expected PORT=TARGET"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse()?))?;
        let target = target.parse()?;
        threads.push(thread::spawn(move || accept(&listener, target)));
    }
    super::report::say(&true)?;
    for thread in threads {
        let ended = thread.join();
        anyhow::ensure!(ended.is_ok_and(|ended| ended.is_ok()), "a listener ended");
    }
    Ok(())
}

fn accept(listener: &TcpListener, target: SocketAddr) -> io::Result<()> {
    loop {
        let (client, _) = listener.accept()?;
        thread::spawn(move || relay(&client, target));
    }
}

fn relay(client: &TcpStream, target: SocketAddr) -> io::Result<()> {
    let Ok(server) = TcpStream::connect(target) else {
        reset(client);
        return Ok(());
    };
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client)
    })
}

/// One direction. What breaks while it is read is broken for whoever reads it here; who does not
/// take any more may still have said why.
fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return to.shutdown(Shutdown::Write),
            Ok(n) => to.write_all(&chunk[..n])?,
            Err(_) => {
                reset(to);
                return Ok(());
            }
        }
    }
}

/// It may have been reset already.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    let _ = stream.shutdown(Shutdown::Both);
}
