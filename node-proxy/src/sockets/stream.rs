// SPDX-License-Identifier: Apache-2.0
//! A connection on a pooled socket, and the way of its socket back to the pool.

use std::{
    io,
    mem::ManuallyDrop,
    ops::RangeInclusive,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    pool::{Pool, Taken},
    ports::WireGuard,
    recycler::Recycler,
};
use crate::tcp;

/// A connection on a socket of a pool. Dropped after both ends closed, its socket is used again.
#[derive(Debug)]
pub struct PooledStream {
    /// Taken out by [`Drop`] only.
    stream: ManuallyDrop<TcpStream>,
    pool: Arc<Pool>,
    recycler: Recycler,
    fate: Fate,
    /// The port that the socket is bound to for good, kept from others meanwhile.
    _port: Option<WireGuard>,
}

/// What becomes of the socket when the stream is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Used again once its connection has ended.
    Reuse,
    /// Used again at once: what is open is ended with RST.
    Reset,
    /// As [`Fate::Reuse`], but the socket is bound for good and is closed afterwards.
    Close,
    /// As [`Fate::Reset`], for a socket that is bound for good.
    ResetAndClose,
}

// === impl PooledStream ===

impl PooledStream {
    pub(super) fn new(stream: TcpStream, pool: Arc<Pool>, recycler: Recycler, fate: Fate) -> Self {
        pool.metrics.live.inc();
        Self {
            stream: ManuallyDrop::new(stream),
            pool,
            recycler,
            fate,
            _port: None,
        }
    }

    /// As it is, with the port that it was bound to.
    pub(super) fn holding(self, port: Option<WireGuard>) -> Self {
        let mut held = self;
        held._port = port;
        held
    }

    /// The socket, for its addresses, options and non-blocking reads.
    pub fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    /// The socket, to be read and written in both directions at once.
    pub fn tcp_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    pub(super) fn count_port(&self, high: &RangeInclusive<u16>) {
        let Ok(local) = self.stream.local_addr() else {
            return;
        };
        let metrics = &self.pool.metrics;
        match high.contains(&local.port()) {
            true => metrics.high_ports.inc(),
            false => metrics.low_ports.inc(),
        }
    }

    /// Ends the connection with RST.
    pub fn reset(mut self) {
        self.fate = self.fate.aborting(true);
    }

    /// Whether RST ends the connection when this is dropped, or the process is killed.
    pub(crate) fn abort_on_close(&mut self, abort: bool) {
        tcp::abort_on_close(&self.stream, abort);
        self.fate = self.fate.aborting(abort);
    }
}

// === impl Fate ===

impl Fate {
    fn aborting(self, abort: bool) -> Self {
        match (self, abort) {
            (Self::Reuse | Self::Reset, false) => Self::Reuse,
            (Self::Reuse | Self::Reset, true) => Self::Reset,
            (Self::Close | Self::ResetAndClose, false) => Self::Close,
            (Self::Close | Self::ResetAndClose, true) => Self::ResetAndClose,
        }
    }
}

impl Drop for PooledStream {
    fn drop(&mut self) {
        self.pool.metrics.live.dec();
        // SAFETY: the stream is taken here only, and nothing sees it after `drop`.
        let stream = unsafe { ManuallyDrop::take(&mut self.stream) };
        let Ok(socket) = stream.into_std() else {
            self.pool.metrics.closed.inc();
            return;
        };
        let (fd, pool) = (OwnedFd::from(socket), self.pool.clone());
        self.recycler.spent(Taken { fd, pool }, self.fate);
    }
}

impl AsyncRead for PooledStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PooledStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
