// SPDX-License-Identifier: Apache-2.0
//! One end of a connection as a tokio stream, in plaintext or with mutual TLS.
//!
//! Memory is borrowed from [`crate::buffer`] while bytes move: an idle stream holds none, one whose
//! reader or socket does not take what is there holds that.

mod piece;
mod records;

#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::{piece::Piece, records::Records};
use super::Handshaken;
use crate::carry::Wire;

/// One end of a connection.
///
/// With TLS:
/// - An end without close_notify is [`io::ErrorKind::UnexpectedEof`]: the stream was cut off.
/// - What breaks the protocol is [`io::ErrorKind::InvalidData`] around a [`rustls::Error`], from
///   then on in both directions; the peer is told by an alert.
/// - A write that was accepted is on its way once a flush is through. No more is accepted while a
///   part of it waits for the socket.
/// - A shutdown sends close_notify, then FIN; reading goes on.
#[derive(Debug)]
pub(crate) struct Stream<S> {
    socket: S,
    /// In plaintext and not yet taken by the reader.
    early: Option<Piece>,
    records: Option<Records>,
}

// === impl Stream ===

impl<S> Stream<S> {
    /// Bytes as they are, `early` being what was read of them before.
    pub(crate) fn plain(socket: S, early: Vec<u8>) -> Self {
        Self {
            socket,
            early: Piece::of(early),
            records: None,
        }
    }

    /// Mutual TLS. What is wrong with what was read too much is told by the first read.
    pub(crate) fn mutual(socket: S, handshaken: Handshaken) -> Self {
        let (records, early) = Records::new(handshaken);
        Self {
            socket,
            early: Piece::of(early),
            records: Some(records),
        }
    }

    /// The socket, for what the kernel knows of it.
    pub(crate) fn socket(&self) -> &S {
        &self.socket
    }

    /// The socket, for its options: bytes go through the stream.
    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.socket
    }

    /// Back to what is carried without a look into it. `early` is what was taken from this stream
    /// and not used, and comes first.
    ///
    /// What was read and what the socket did not yet take of earlier writes goes along (whoever
    /// goes on writes it before anything else), so that no flush is needed. A stream that was
    /// shut down or that failed has nothing to go on with.
    pub(crate) fn into_parts(self, early: &[u8]) -> (S, Wire) {
        let unread = self.early.as_ref().map_or(&[][..], Piece::rest);
        let plain = [early, unread].concat();
        let wire = match self.records {
            None => Wire::Plain(plain),
            Some(records) => Wire::Mutual(records.into_handshaken(plain)),
        };
        (self.socket, wire)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 || Piece::give(&mut this.early, buf) {
            return Poll::Ready(Ok(()));
        }
        let Some(records) = &mut this.records else {
            return Pin::new(&mut this.socket).poll_read(cx, buf);
        };
        this.early = ready!(records.poll_read(&mut this.socket, cx, buf))?;
        Piece::give(&mut this.early, buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match &mut this.records {
            None => Pin::new(&mut this.socket).poll_write(cx, buf),
            Some(records) => records.poll_write(&mut this.socket, cx, &[IoSlice::new(buf)]),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match &mut this.records {
            None => Pin::new(&mut this.socket).poll_write_vectored(cx, bufs),
            Some(records) => records.poll_write(&mut this.socket, cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.records.is_some() || self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(records) = &mut this.records {
            ready!(records.poll_flush(&mut this.socket, cx))?;
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.records {
            None => Pin::new(&mut this.socket).poll_shutdown(cx),
            Some(records) => records.poll_shutdown(&mut this.socket, cx),
        }
    }
}
