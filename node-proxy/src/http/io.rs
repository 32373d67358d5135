// SPDX-License-Identifier: Apache-2.0
//! What hyper reads and writes: the bytes of one side of a connection, counted.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::errno::Errno;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::served::Served;
use crate::{metrics::OpenSide, sockets::PooledStream, tcp, tls::Stream};

/// One side of a connection. Dropped before it was shut down in order it ends with RST, so that no
/// part of an answer passes for the whole.
#[derive(Debug)]
pub(crate) struct Io<S> {
    stream: Stream<S>,
    open: OpenSide,
    /// Of a client that is served.
    served: Option<Served>,
    /// Something was written since anything was read.
    unconfirmed: bool,
    /// When the peer is looked after next.
    look: Option<Pin<Box<Sleep>>>,
}

/// How often a peer that was written to and says nothing is looked after.
const LOOK: Duration = Duration::from_secs(10);

/// What a connection is on.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Whether it ends with RST when it is dropped.
    fn abort_on_close(&mut self, abort: bool);

    /// Its state in the kernel.
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn abort_on_close(&mut self, abort: bool) {
        tcp::abort_on_close(self, abort);
    }

    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for PooledStream {
    fn abort_on_close(&mut self, abort: bool) {
        Self::abort_on_close(self, abort);
    }

    fn tcp(&self) -> &TcpStream {
        Self::tcp(self)
    }
}

// === impl Io ===

impl<S: Socket> Io<S> {
    /// A server's side.
    pub(super) fn new(mut stream: Stream<S>, open: OpenSide) -> Self {
        stream.get_mut().abort_on_close(true);
        Self {
            stream,
            open,
            served: None,
            unconfirmed: false,
            look: None,
        }
    }

    /// A client's side, held to what clients are.
    pub(super) fn served(stream: Stream<S>, open: OpenSide, served: Served) -> Self {
        Self {
            served: Some(served),
            ..Self::new(stream, open)
        }
    }

    /// Its parts, for bytes that are no HTTP any more.
    pub(super) fn into_parts(self) -> (Stream<S>, OpenSide) {
        (self.stream, self.open)
    }

    /// Nothing comes: ready when it is the client that takes too long, or the peer that is dead.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let served = self.served.as_mut();
        let late = served.map_or(Poll::Pending, |served| served.poll_late(cx));
        if late.is_pending() && self.poll_death(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.noted(Err(io::ErrorKind::TimedOut.into())))
    }

    /// A node that vanished acknowledges nothing; the kernel alone would try for a quarter of an hour.
    fn poll_death(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.unconfirmed {
            let look = self.look.get_or_insert_with(|| Box::pin(sleep(LOOK)));
            ready!(look.as_mut().poll(cx));
            self.look = None;
            if tcp::is_dead(self.stream.socket().tcp()).unwrap_or(true) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    fn noted<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let errno = error.raw_os_error().map_or(Errno::EPROTO, Errno::from_raw);
            self.open.broke(format!("{errno:?}"));
        }
        result
    }

    fn written(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        let count = self.noted(result)?;
        self.unconfirmed = true;
        self.open.meter().write.inc_by(count as u64);
        if let Some(served) = &self.served {
            served.written(count);
        }
        Ok(count)
    }
}

impl<S: Socket> AsyncRead for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) else {
            return self.poll_late(cx);
        };
        let count = buf.filled().len() - before;
        self.unconfirmed = false;
        self.open.meter().read.inc_by(count as u64);
        if let Some(served) = &mut self.served {
            served.read(count);
        }
        Poll::Ready(self.noted(read))
    }
}

impl<S: Socket> AsyncWrite for Io<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(self.written(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(self.written(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(self.noted(flushed))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let ended = ready!(Pin::new(&mut this.stream).poll_shutdown(cx));
        this.noted(ended)?;
        if let Some(served) = &mut this.served {
            ready!(served.poll_linger(&mut this.stream, cx));
        }
        this.stream.get_mut().abort_on_close(false);
        Poll::Ready(Ok(()))
    }
}
