// SPDX-License-Identifier: Apache-2.0
//! Takes TLS connections: the accept loop never waits for a peer.

mod sources;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use self::sources::{Place, Sources};
use crate::metrics::{Metrics, Share};

/// How long a peer may take for its handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a peer may take from its handshake to its first authenticated call.
const PROBATION: Duration = Duration::from_secs(10);

/// How many handshakes go on at once.
const MAX_HANDSHAKES: usize = 256;

/// How many connections are open at once; each takes a file descriptor.
const MAX_CONNECTIONS: usize = 8192;

/// The same for one source address, so that no pod locks the nodes out.
const MAX_HANDSHAKES_OF_ONE: usize = 16;
const MAX_CONNECTIONS_OF_ONE: usize = 64;

/// How many connections wait for the gRPC server.
const QUEUE: usize = 64;

/// A TLS connection that is counted while it lives.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    probation: Probation,
    /// When probation ends; none once it was passed.
    deadline: Option<Pin<Box<Sleep>>>,
    _open: Open,
}

/// Whether a connection's peer is still to prove that it is a node. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probation {
    passed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Open {
    _permit: Permit,
    _share: Share,
}

/// One of a limited number, of all and of its source.
#[derive(Debug)]
struct Permit {
    _of_all: OwnedSemaphorePermit,
    _of_source: Place,
}

#[derive(Debug)]
struct Limit {
    all: Arc<Semaphore>,
    sources: Sources,
}

struct Acceptor {
    tls: TlsAcceptor,
    handshakes: Limit,
    connections: Limit,
    ready: mpsc::Sender<io::Result<Connection>>,
    metrics: Metrics,
}

/// Accepts connections until nobody takes them any more.
pub(crate) fn accept(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    metrics: Metrics,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(QUEUE);
    let acceptor = Acceptor {
        tls: tls.into(),
        handshakes: Limit::new(MAX_HANDSHAKES, MAX_HANDSHAKES_OF_ONE),
        connections: Limit::new(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ONE),
        ready,
        metrics,
    };
    tokio::spawn(acceptor.run(listener));
    connections
}

// === impl Limit ===

impl Limit {
    fn new(all: usize, of_one: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            sources: Sources::new(of_one),
        }
    }

    fn take(&self, peer: SocketAddr) -> Option<Permit> {
        Some(Permit {
            _of_all: Arc::clone(&self.all).try_acquire_owned().ok()?,
            _of_source: self.sources.enter(peer.ip())?,
        })
    }
}

// === impl Acceptor ===

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.ready.closed() => return,
            };
            match accepted {
                Ok((stream, peer)) => self.begin(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "Could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn begin(&self, stream: TcpStream, peer: SocketAddr) {
        let permits = self.handshakes.take(peer).zip(self.connections.take(peer));
        let Some((handshake, connection)) = permits else {
            tracing::warn!(peer.address = %peer, "Refused a connection: too many are open");
            self.metrics.handshake("refused");
            return;
        };
        let mut share = Share::of(&self.metrics.connections);
        share.set(1);
        let open = Open {
            _permit: connection,
            _share: share,
        };
        let (tls, ready, metrics) = (self.tls.clone(), self.ready.clone(), self.metrics.clone());
        tokio::spawn(async move {
            let stream = handshaken(&tls, stream, peer, &metrics).await;
            drop(handshake);
            if let Some(stream) = stream {
                let connection = Connection::new(stream, open, PROBATION);
                // The server may have stopped meanwhile.
                let _ = ready.send(Ok(connection)).await;
            }
        });
    }
}

async fn handshaken(
    tls: &TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    metrics: &Metrics,
) -> Option<TlsStream<TcpStream>> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(peer.address = %peer, %error, "Could not set TCP_NODELAY");
    }
    match timeout(PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            metrics.handshake("ok");
            Some(stream)
        }
        Ok(Err(error)) => {
            metrics.handshake("failed");
            tracing::info!(peer.address = %peer, %error, "A TLS handshake failed");
            None
        }
        Err(_) => {
            metrics.handshake("timeout");
            tracing::info!(peer.address = %peer, "A TLS handshake took too long");
            None
        }
    }
}

// === impl Connection ===

impl Connection {
    fn new(stream: TlsStream<TcpStream>, open: Open, patience: Duration) -> Self {
        Self {
            stream,
            probation: Probation::default(),
            deadline: Some(Box::pin(sleep(patience))),
            _open: open,
        }
    }

    /// Fails once the peer took too long to prove that it is a node.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(deadline) = &mut self.deadline else {
            return Ok(());
        };
        if self.probation.is_passed() {
            self.deadline = None;
            return Ok(());
        }
        match deadline.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no authenticated call",
            )),
        }
    }
}

// === impl Probation ===

impl Probation {
    /// The peer is a node.
    pub(crate) fn pass(&self) {
        self.passed.store(true, Ordering::Relaxed);
    }

    fn is_passed(&self) -> bool {
        self.passed.load(Ordering::Relaxed)
    }
}

impl Connected for Connection {
    type ConnectInfo = Probation;

    fn connect_info(&self) -> Probation {
        self.probation.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
