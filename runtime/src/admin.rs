// SPDX-License-Identifier: Apache-2.0
//! The admin server: `/metrics` for Prometheus, `/ready` and `/live` for Kubernetes,
//! `/version` for `culvert check`.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, IntCounter, Registry, TextEncoder};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::readiness::Readiness;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take for its one request: who doesn't read is not waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many connections are open at once: any pod of the cluster may reach the address.
const MAX_CONNECTIONS: usize = 64;

/// A bound admin server.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    registry: Registry,
    readiness: Readiness,
    connections: Arc<Semaphore>,
    refused: IntCounter,
    patience: Duration,
}

impl Admin {
    /// Binds the server's address, and registers what the server counts.
    pub async fn bind(
        addr: SocketAddr,
        registry: Registry,
        readiness: Readiness,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let refused = refused(&registry).map_err(io::Error::other)?;
        Ok(Self {
            listener,
            registry,
            readiness,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            refused,
            patience: PATIENCE,
        })
    }

    /// Where the server listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the task is dropped. A connection's trouble ends that connection only.
    pub async fn serve(self) -> Infallible {
        let mut failing = false;
        loop {
            let accepted = self.listener.accept().await;
            let failed = accepted.is_err();
            match accepted {
                Ok((stream, _)) => self.begin(stream),
                Err(error) => {
                    // Said once, not ten times a second.
                    if !failing {
                        tracing::warn!(%error, "Could not accept admin connections");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            failing = failed;
        }
    }

    fn begin(&self, stream: TcpStream) {
        match Arc::clone(&self.connections).try_acquire_owned() {
            Ok(permit) => self.spawn(stream, permit),
            Err(_) => self.refused.inc(),
        }
    }

    fn spawn(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let patience = self.patience;
        let (registry, readiness) = (self.registry.clone(), self.readiness.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer(request.uri().path(), &registry, &readiness);
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        tokio::spawn(async move {
            let _permit = permit;
            // One request each: the time-out must not fall into a later one.
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            match timeout(patience, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "An admin connection failed"),
                Err(_) => tracing::debug!("An admin connection took too long"),
            }
        });
    }
}

fn refused(registry: &Registry) -> prometheus::Result<IntCounter> {
    let refused = IntCounter::new(
        "culvert_admin_connections_refused_total",
        "Connections to the admin server beyond its limit",
    )?;
    registry.register(Box::new(refused.clone()))?;
    Ok(refused)
}

fn answer(path: &str, registry: &Registry, readiness: &Readiness) -> Response<Full<Bytes>> {
    match path {
        "/metrics" => metrics(registry),
        "/ready" => ready(&readiness.waiting_for()),
        "/live" => text(StatusCode::OK, "live\n"),
        // One release for all of the workspace.
        "/version" => text(StatusCode::OK, concat!(env!("CARGO_PKG_VERSION"), "\n")),
        _ => text(
            StatusCode::NOT_FOUND,
            "try /metrics, /ready, /live or /version\n",
        ),
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn admin(registry: &Registry) -> Admin {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = Admin::bind(any, registry.clone(), Readiness::default()).await;
        bound.unwrap_or_else(|e| panic!("{e}"))
    }

    async fn connect(to: SocketAddr) -> TcpStream {
        let connected = TcpStream::connect(to).await;
        connected.unwrap_or_else(|e| panic!("{e}"))
    }

    /// What the server says until it hangs up; a reset is as good as an end.
    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .unwrap_or_else(|e| panic!("still open: {e}"));
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_are_dropped_and_counted() {
        let registry = Registry::new();
        let admin = admin(&registry).await;
        let to = admin.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let refused = admin.refused.clone();
        let serving = tokio::spawn(admin.serve());
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(connect(to).await);
        }
        let started = tokio::time::Instant::now();
        assert_eq!(rest(connect(to).await).await, "");
        assert!(started.elapsed() < HEADER_TIMEOUT, "not at once");
        assert_eq!(refused.get(), 1);
        serving.abort();
    }

    #[tokio::test]
    async fn who_does_not_read_is_hung_up_on() {
        let registry = Registry::new();
        let mut admin = admin(&registry).await;
        admin.patience = Duration::from_millis(200);
        // More than the sockets take.
        let large = IntCounter::new("large", "a".repeat(16 << 20));
        let large = large.unwrap_or_else(|e| panic!("{e}"));
        assert!(registry.register(Box::new(large)).is_ok());
        let to = admin.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let connections = Arc::clone(&admin.connections);
        let serving = tokio::spawn(admin.serve());
        let mut stream = connect(to).await;
        let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n");
        assert!(asked.await.is_ok());
        assert!(stream.readable().await.is_ok(), "the answer has begun");
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or_else(|e| panic!("{e}"));
        let freed = timeout(HEADER_TIMEOUT, connections.acquire_many(all)).await;
        assert!(matches!(freed, Ok(Ok(_))), "{freed:?}");
        serving.abort();
    }

    #[test]
    fn not_ready_says_what_is_missing() {
        let (registry, readiness) = (Registry::new(), Readiness::default());
        let status = |path| answer(path, &registry, &readiness).status();
        assert_eq!(status("/ready"), StatusCode::OK);
        readiness.pending("control");
        assert_eq!(status("/ready"), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status("/live"), StatusCode::OK);
        assert_eq!(status("/metrics"), StatusCode::OK);
        assert_eq!(status("/version"), StatusCode::OK);
        assert_eq!(status("/"), StatusCode::NOT_FOUND);
    }
}
