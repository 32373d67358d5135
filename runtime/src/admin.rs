// SPDX-License-Identifier: Apache-2.0
//! The admin server: `/metrics` for Prometheus, `/ready` and `/live` for Kubernetes.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};

use crate::readiness::Readiness;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A bound admin server.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    registry: Registry,
    readiness: Readiness,
}

impl Admin {
    /// Binds the server's address.
    pub async fn bind(
        addr: SocketAddr,
        registry: Registry,
        readiness: Readiness,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        Ok(Self {
            listener,
            registry,
            readiness,
        })
    }

    /// Where the server listens.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the task is dropped. A connection's trouble ends that connection only.
    pub async fn serve(self) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => self.spawn(stream),
                Err(error) => {
                    tracing::warn!(%error, "Could not accept an admin connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn spawn(&self, stream: TcpStream) {
        let (registry, readiness) = (self.registry.clone(), self.readiness.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer(request.uri().path(), &registry, &readiness);
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        tokio::spawn(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "An admin connection failed");
            }
        });
    }
}

fn answer(path: &str, registry: &Registry, readiness: &Readiness) -> Response<Full<Bytes>> {
    match path {
        "/metrics" => metrics(registry),
        "/ready" => ready(&readiness.waiting_for()),
        "/live" => text(StatusCode::OK, "live\n"),
        _ => text(StatusCode::NOT_FOUND, "try /metrics, /ready or /live\n"),
    }
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut body = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut body) {
        Ok(()) => text(StatusCode::OK, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn ready(waiting: &[&str]) -> Response<Full<Bytes>> {
    if waiting.is_empty() {
        return text(StatusCode::OK, "ready\n");
    }
    let body = format!("waiting for {}\n", waiting.join(", "));
    text(StatusCode::SERVICE_UNAVAILABLE, body)
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_ready_says_what_is_missing() {
        let (registry, readiness) = (Registry::new(), Readiness::default());
        let status = |path| answer(path, &registry, &readiness).status();
        assert_eq!(status("/ready"), StatusCode::OK);
        readiness.pending("control");
        assert_eq!(status("/ready"), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status("/live"), StatusCode::OK);
        assert_eq!(status("/metrics"), StatusCode::OK);
        assert_eq!(status("/"), StatusCode::NOT_FOUND);
    }
}
