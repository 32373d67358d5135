// SPDX-License-Identifier: Apache-2.0
//! Takes TLS connections: the accept loop never waits for a peer.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use crate::metrics::{Metrics, Share};

/// How long a peer may take for its handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many handshakes go on at once.
const MAX_HANDSHAKES: usize = 256;

/// How many connections are open at once; each takes a file descriptor.
const MAX_CONNECTIONS: usize = 8192;

/// How many connections wait for the gRPC server.
const QUEUE: usize = 64;

/// A TLS connection that is counted while it lives.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    _open: Open,
}

#[derive(Debug)]
struct Open {
    _permit: OwnedSemaphorePermit,
    _share: Share,
}

struct Acceptor {
    tls: TlsAcceptor,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
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
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        ready,
        metrics,
    };
    tokio::spawn(acceptor.run(listener));
    connections
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
        let handshake = Arc::clone(&self.handshakes).try_acquire_owned();
        let connection = Arc::clone(&self.connections).try_acquire_owned();
        let (Ok(handshake), Ok(connection)) = (handshake, connection) else {
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
                let connection = Connection {
                    stream,
                    _open: open,
                };
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

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
