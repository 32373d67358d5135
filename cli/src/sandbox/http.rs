// SPDX-License-Identifier: Apache-2.0
//! Connecting and asking over HTTP from inside a network namespace, with this process's cgroup.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::netns::Netns;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// What a server answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, as it is on the wire.
    pub body: String,
}

/// Connects. The socket belongs to the namespace and to the cgroup of this process.
pub async fn connect(netns: &Netns, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = netns.run(move || {
        let kind = Type::STREAM.nonblocking();
        Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))
    })?;
    TcpSocket::from_std_stream(socket.into())
        .connect(addr)
        .await
}

/// Asks for a path, with headers that are whole lines.
pub async fn ask(
    netns: &Netns,
    addr: SocketAddr,
    path: &str,
    headers: &str,
    patience: Duration,
) -> io::Result<Answer> {
    let asked = async {
        let mut stream = connect(netns, addr).await?;
        let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        parse(&answer)
    };
    let late = |_| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer in {patience:?}"),
        )
    };
    timeout(patience, asked).await.map_err(late)?
}

/// Asks one of Culvert's own admin servers.
pub async fn ask_admin(netns: &Netns, port: u16, path: &str) -> io::Result<Answer> {
    let addr = ([127, 0, 0, 1], port).into();
    ask(netns, addr, path, "Host: admin\r\n", Duration::from_secs(2)).await
}

fn parse(answer: &[u8]) -> io::Result<Answer> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5)?.parse().ok());
    let status = status.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "what came back is not HTTP/1")
    })?;
    let body = body.to_owned();
    Ok(Answer { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_other_bytes_are_told_apart() {
        let answer = parse(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nbody").ok();
        let body = "body".to_owned();
        assert_eq!(answer, Some(Answer { status: 503, body }));
        for bad in [&b""[..], b"+PONG\r\n", b"HTTP/1.1", b"HTTP/1.1 x\r\n\r\n"] {
            assert!(parse(bad).is_err());
        }
    }
}
