// SPDX-License-Identifier: Apache-2.0
//! One question to the node's agent over its Unix socket.

use std::{
    io::{
        self,
        ErrorKind::{Interrupted, WouldBlock},
        Read, Write,
    },
    path::Path,
    time::{Duration, Instant},
};

use culvert_api::cni::{Command, MAX_MESSAGE, Request, Response, VERSIONS};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::NoAnswer;

/// Asks the agent, and waits for its answer until `patience` is over.
pub fn ask(socket: &Path, command: Command, patience: Duration) -> Result<Response, NoAnswer> {
    let deadline = Instant::now() + patience;
    let request = encode(command)?;
    let stream = connect(socket, patience).map_err(NoAnswer::Connect)?;
    let answer = exchange(stream, &request, deadline).map_err(NoAnswer::Silent)?;
    serde_json::from_slice(&answer).map_err(NoAnswer::Unreadable)
}

fn encode(command: Command) -> Result<Vec<u8>, NoAnswer> {
    let request = Request {
        versions: VERSIONS,
        command,
    };
    let mut bytes = serde_json::to_vec(&request).map_err(NoAnswer::Unreadable)?;
    bytes.push(b'\n');
    if bytes.len() > MAX_MESSAGE {
        return Err(NoAnswer::TooLong {
            got: bytes.len(),
            limit: MAX_MESSAGE,
        });
    }
    Ok(bytes)
}

/// A connect() to a Unix socket whose backlog is full waits as long as SO_SNDTIMEO says
/// (<https://elixir.bootlin.com/linux/v6.18/source/net/unix/af_unix.c#L1635>).
fn connect(path: &Path, patience: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(patience))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

fn exchange(mut stream: Socket, request: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while !answer.contains(&b'\n') && answer.len() <= MAX_MESSAGE {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => answer.extend_from_slice(&chunk[..n]),
            // Time is up, or a signal came: `remaining` tells.
            Err(error) if matches!(error.kind(), Interrupted | WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the time was up"));
    }
    Ok(left)
}
