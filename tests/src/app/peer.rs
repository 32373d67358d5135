// SPDX-License-Identifier: Apache-2.0
//! A peer of the agent's socket for proxies, which says what it is told to and prints the answers.

use std::{
    io::{self, Read},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::report;

/// Talk to an agent as a proxy would.
#[derive(Args, Clone, Debug)]
pub struct Peer {
    /// The agent's socket.
    pub socket: PathBuf,
    /// The first message.
    pub hello: String,
    /// How long to listen, in seconds.
    #[arg(long, default_value_t = 5)]
    pub patience: u64,
}

/// What the agent did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// Its messages.
    pub messages: Vec<Value>,
    /// `eof` if it hung up, `timeout` if it did not, else the errno.
    pub end: String,
}

/// Talks, and prints the answers.
pub fn run(peer: &Peer) -> anyhow::Result<()> {
    let mut answers = Answers::default();
    answers.end = match talk(peer, &mut answers.messages) {
        Ok(()) => "eof".to_owned(),
        Err(error) => report::name(&error),
    };
    report::say(&answers)
}

fn talk(peer: &Peer, messages: &mut Vec<Value>) -> io::Result<()> {
    let mut socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_read_timeout(Some(Duration::from_secs(peer.patience)))?;
    socket.connect(&SockAddr::unix(&peer.socket)?)?;
    socket.send(peer.hello.as_bytes())?;
    let mut buffer = vec![0; culvert_api::agent::MAX_MESSAGE];
    loop {
        match socket.read(&mut buffer)? {
            0 => return Ok(()),
            n => messages.push(serde_json::from_slice(&buffer[..n])?),
        }
    }
}
