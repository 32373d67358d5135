// SPDX-License-Identifier: Apache-2.0
//! Keeps connections open, and uses them each time that it is told to.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
};

use anyhow::Context as _;
use clap::{Args, Parser};
use serde::{Deserialize, Serialize};

use super::{
    connect::{self, Connect},
    report,
};

/// Hold connections to an echo server; each line on stdin uses all of them once.
#[derive(Args, Clone, Debug)]
pub struct Hold {
    /// `HOST:PORT`.
    pub target: String,
    /// How many.
    #[arg(long, default_value_t = 1)]
    pub connections: u16,
    /// Bind the first to this address, and the others to the ports after it.
    #[arg(long)]
    pub bind: Option<SocketAddr>,
}

/// How the connections are, printed once they are open and after each use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How many work.
    pub working: usize,
    /// How many do not, by errno.
    pub broken: BTreeMap<String, u64>,
    /// The local ports of those that work.
    pub ports: Vec<u16>,
}

/// Holds until stdin ends.
pub fn run(hold: &Hold) -> anyhow::Result<()> {
    let mut streams = open(hold)?;
    report::say(&use_all(&mut streams, "open"))?;
    for line in io::stdin().lock().lines() {
        let held = use_all(&mut streams, &line?);
        report::say(&held)?;
    }
    Ok(())
}

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    connect: Connect,
}

fn open(hold: &Hold) -> anyhow::Result<Vec<TcpStream>> {
    let connect = Defaults::try_parse_from(["hold", &hold.target])?.connect;
    let mut addrs = hold.target.to_socket_addrs()?;
    let target = addrs.next().context("the target has no address")?;
    let streams = (0..hold.connections).map(|nth| {
        let bind = hold
            .bind
            .map(|first| SocketAddr::new(first.ip(), first.port() + nth));
        let connect = Connect {
            bind,
            ..connect.clone()
        };
        connect::open(&connect, target)
    });
    Ok(streams.collect::<io::Result<_>>()?)
}

fn use_all(streams: &mut [TcpStream], text: &str) -> Held {
    let mut held = Held::default();
    for stream in streams {
        match use_one(stream, text.as_bytes()) {
            Ok(port) => {
                held.working += 1;
                held.ports.push(port);
            }
            Err(error) => *held.broken.entry(report::name(&error)).or_default() += 1,
        }
    }
    held
}

fn use_one(stream: &mut TcpStream, text: &[u8]) -> io::Result<u16> {
    stream.write_all(text)?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    if back != text {
        return Err(io::Error::other("other bytes came back"));
    }
    Ok(stream.local_addr()?.port())
}
