// SPDX-License-Identifier: Apache-2.0
//! The server of the demonstration.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::HeaderValue,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::sleep,
};

use super::{answer, grpc, hostname, upstream::Upstream};
use crate::args::DemoServer;

/// One in so many answers takes so many times as long.
const SLOW: u64 = 10;

type Body = BoxBody<Bytes, Infallible>;

/// Answers each request with a line, after asking its upstream if there is one.
#[derive(Debug)]
pub struct Server {
    name: String,
    port: u16,
    grpc: bool,
    latency: Duration,
    fail_one_in: u64,
    asked: AtomicU64,
    upstream: Option<Mutex<Upstream>>,
}

// === impl Server ===

impl Server {
    /// One that does not listen yet.
    pub fn new(args: DemoServer) -> io::Result<Self> {
        let upstream = args.upstream.as_deref().map(Upstream::new);
        Ok(Self {
            name: hostname()?,
            port: args.port,
            grpc: args.grpc,
            latency: args.latency,
            fail_one_in: args.fail_one_in,
            asked: AtomicU64::new(0),
            upstream: upstream.map(Mutex::new),
        })
    }

    /// Serves for ever.
    pub async fn serve(self) -> io::Result<()> {
        let listener = bind(self.port).await?;
        println!("listening on {}", listener.local_addr()?);
        self.serve_on(listener).await
    }

    /// Serves on a socket.
    pub async fn serve_on(self, listener: TcpListener) -> io::Result<()> {
        let server = Arc::new(self);
        loop {
            let (stream, peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let server = server.clone();
            tokio::spawn(async move {
                if let Err(error) = server.connection(stream, peer.ip()).await {
                    println!("a connection failed: {error}");
                }
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: IpAddr) -> hyper::Result<()> {
        let io = TokioIo::new(stream);
        let grpc = self.grpc;
        let service = service_fn(move |request| self.clone().respond(request, peer));
        match grpc {
            true => {
                let server = http2::Builder::new(TokioExecutor::new());
                server.serve_connection(io, service).await
            }
            false => http1::Builder::new().serve_connection(io, service).await,
        }
    }

    async fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: IpAddr,
    ) -> hyper::Result<Response<Body>> {
        let is_grpc = grpc::is_grpc(request.headers());
        let body = request.into_body().collect().await?.to_bytes();
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let slow = if number.is_multiple_of(SLOW) {
            SLOW as u32
        } else {
            1
        };
        sleep(self.latency * slow).await;
        if self.fail_one_in > 0 && number.is_multiple_of(self.fail_one_in) {
            return Ok(unavailable(is_grpc));
        }
        let line = match is_grpc {
            true => grpc::message(&body).unwrap_or_default(),
            false => String::from_utf8_lossy(&body).into_owned(),
        };
        Ok(ok(self.line(peer, &line).await, is_grpc))
    }

    /// Does without the upstream's answer if it says no.
    async fn line(&self, peer: IpAddr, line: &str) -> String {
        let mut reply = answer(&self.name, peer, line);
        if let Some(upstream) = &self.upstream {
            let mut upstream = upstream.lock().await;
            match upstream.ask(line).await {
                Ok((more, _)) => reply += &format!(" | {more}"),
                Err(error) => {
                    println!("{} failed: {error}", upstream.authority());
                    reply += &format!(" | {} is not well", upstream.authority());
                }
            }
        }
        reply
    }
}

/// Both families where there are both.
async fn bind(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(both) => Ok(both),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

fn ok(line: String, is_grpc: bool) -> Response<Body> {
    if !is_grpc {
        return Response::new(Full::new(line.into()).boxed());
    }
    let mut trailers = HeaderMap::new();
    trailers.insert(grpc::STATUS, HeaderValue::from_static(grpc::OK));
    let body = Full::new(grpc::frame(&line)).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    mark(&mut response);
    response
}

fn unavailable(is_grpc: bool) -> Response<Body> {
    let mut response = Response::new(Full::default().boxed());
    match is_grpc {
        true => {
            mark(&mut response);
            let status = HeaderValue::from_static(grpc::UNAVAILABLE);
            response.headers_mut().insert(grpc::STATUS, status);
        }
        false => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
    }
    response
}

fn mark(response: &mut Response<Body>) {
    let media_type = HeaderValue::from_static(grpc::MEDIA_TYPE);
    let headers = response.headers_mut();
    headers.insert(hyper::header::CONTENT_TYPE, media_type);
}
