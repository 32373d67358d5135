// SPDX-License-Identifier: Apache-2.0
//! Whom a program asks, over one connection that is kept.

use std::{io, net::IpAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
    header,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, time::timeout};

use super::grpc;

const PATIENCE: Duration = Duration::from_secs(10);

/// Before a target that is asked by gRPC, as in `grpc://db:8080`.
const GRPC: &str = "grpc://";

type Body = Full<Bytes>;

/// Somebody who is asked.
#[derive(Debug)]
pub struct Upstream {
    authority: String,
    grpc: bool,
    kept: Option<(Sender, IpAddr)>,
    connections: u64,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

// === impl Upstream ===

impl Upstream {
    /// `host:port` is asked over HTTP/1.1, `grpc://host:port` by gRPC. Nothing is connected yet.
    pub fn new(target: &str) -> Self {
        let grpc = target.strip_prefix(GRPC);
        Self {
            authority: grpc.unwrap_or(target).to_owned(),
            grpc: grpc.is_some(),
            kept: None,
            connections: 0,
        }
    }

    /// Whom.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// How often it was connected to.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// The answer, and the own address. A connection that failed is made again for the next.
    pub async fn ask(&mut self, line: &str) -> io::Result<(String, IpAddr)> {
        let asked = timeout(PATIENCE, self.try_ask(line)).await;
        let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::InvalidData;
        if asked.as_ref().is_err_and(|error| !refused(error)) {
            self.kept = None;
        }
        asked
    }

    async fn try_ask(&mut self, line: &str) -> io::Result<(String, IpAddr)> {
        let request = self.request(line)?;
        let (mut sender, own) = match self.kept.take() {
            Some(kept) if !kept.0.is_closed() => kept,
            _ => self.connect().await?,
        };
        let response = sender.send(request).await?;
        let answer = read(response, self.grpc).await;
        self.kept = Some((sender, own));
        Ok((answer?, own))
    }

    fn request(&self, line: &str) -> io::Result<Request<Body>> {
        let built = match self.grpc {
            true => Request::post(format!("http://{}{}", self.authority, grpc::PATH))
                .header(header::CONTENT_TYPE, grpc::MEDIA_TYPE)
                .header(header::TE, "trailers")
                .body(Full::new(grpc::frame(line))),
            false => Request::post("/")
                .header(header::HOST, &self.authority)
                .body(Full::new(line.to_owned().into())),
        };
        built.map_err(io::Error::other)
    }

    async fn connect(&mut self) -> io::Result<(Sender, IpAddr)> {
        let stream = TcpStream::connect(&self.authority).await?;
        stream.set_nodelay(true)?;
        let own = stream.local_addr()?.ip();
        self.connections += 1;
        Ok((Sender::handshake(stream, self.grpc).await?, own))
    }
}

// === impl Sender ===

impl Sender {
    async fn handshake(stream: TcpStream, http2: bool) -> io::Result<Self> {
        let io = TokioIo::new(stream);
        if http2 {
            let made = http2::handshake(TokioExecutor::new(), io).await;
            let (sender, connection) = made.map_err(io::Error::other)?;
            tokio::spawn(connection);
            return Ok(Self::Http2(sender));
        }
        let made = http1::handshake(io).await;
        let (sender, connection) = made.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self::Http1(sender))
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    async fn send(&mut self, request: Request<Body>) -> io::Result<Response<Incoming>> {
        let sent = match self {
            Self::Http1(sender) => {
                sender.ready().await.map_err(io::Error::other)?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await.map_err(io::Error::other)?;
                sender.send_request(request).await
            }
        };
        sent.map_err(io::Error::other)
    }
}

/// The answer. One that says no is `InvalidData`: the connection is as good as before.
async fn read(response: Response<Incoming>, grpc: bool) -> io::Result<String> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let no = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if !grpc {
        return match head.status {
            StatusCode::OK => Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned()),
            status => no(status.to_string()),
        };
    }
    let status = trailers
        .get(grpc::STATUS)
        .or(head.headers.get(grpc::STATUS));
    match status.map(|status| status.as_bytes()) {
        Some(ok) if ok == grpc::OK.as_bytes() => {
            let message = grpc::message(&body.to_bytes());
            message.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not one message"))
        }
        status => no(format!("{}, {} {status:?}", head.status, grpc::STATUS)),
    }
}
