// SPDX-License-Identifier: Apache-2.0
//! The TLS of a stream: records in and out of a socket.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use rustls::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::piece::Piece;
use crate::{
    buffer::{Buffer, Intake, Size},
    tls::{Handshaken, Session},
};

/// A session, and what of it is on the way.
#[derive(Debug)]
pub(super) struct Records {
    session: Box<Session>,
    /// Between reads at most a record in part.
    intake: Intake,
    /// How much is read next.
    size: Size,
    /// Sealed, and not yet taken by the socket.
    outgoing: Option<Piece>,
    /// Who waits for the socket to take it.
    writer: Option<Waker>,
    end: End,
    failed: Option<Error>,
}

/// How far this side has said its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// close_notify is sealed; nothing has a place behind it.
    Closing,
    /// FIN is sent.
    Closed,
}

// === impl Records ===

impl Records {
    /// Also what was decrypted already.
    pub(super) fn new(handshaken: Handshaken) -> (Self, Vec<u8>) {
        let Handshaken {
            session,
            mut plain,
            sealed,
        } = handshaken;
        let mut records = Self {
            session,
            intake: Intake::default(),
            size: Size::default(),
            outgoing: None,
            writer: None,
            end: End::Open,
            failed: None,
        };
        if !sealed.is_empty() {
            records.intake = Intake::new(&sealed);
            records.open_early(&mut plain);
        }
        (records, plain)
    }

    /// The session with all that belongs to it.
    pub(super) fn into_handshaken(mut self, plain: Vec<u8>) -> Handshaken {
        let unsent = self.outgoing.as_ref().map_or(&[][..], Piece::rest);
        self.session.say_first(unsent);
        Handshaken {
            plain,
            sealed: self.intake.filled().to_vec(),
            session: self.session,
        }
    }

    /// Reads into `buf`, or answers what is too long for it. Neither: the peer has closed.
    pub(super) fn poll_read<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Option<Piece>>> {
        let before = buf.filled().len();
        loop {
            self.refuse_failed()?;
            if self.session.peer_closed() {
                return Poll::Ready(Ok(None));
            }
            self.write_unasked(socket, cx);
            let read = ready!(self.intake.poll_read(socket, cx, self.size))?;
            if read == 0 {
                return Poll::Ready(Err(cut_off()));
            }
            self.size = Size::after(read);
            let opened = self.open(buf);
            let piece = opened.map_err(|error| self.fail(error, socket, cx))?;
            if piece.is_some() || buf.filled().len() > before {
                return Poll::Ready(Ok(piece));
            }
        }
    }

    /// Seals as much of `bufs` as one write should take.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.refuse_failed()?;
        if self.end != End::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_flush(socket, cx))?;
        let accepted = self.seal(bufs).map_err(|error| broken(&error))?;
        // It is accepted, wherever it waits; nobody waits with it.
        match self.poll_outgoing(socket, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(accepted)),
        }
    }

    /// Gives the socket all that is sealed, and what rustls has to say.
    pub(super) fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let flushed = self.poll_outgoing(socket, cx);
        self.writer = flushed.is_pending().then(|| cx.waker().clone());
        flushed
    }

    pub(super) fn poll_shutdown<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end == End::Closed {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_flush(socket, cx))?;
        if self.end == End::Open {
            self.close().map_err(|error| broken(&error))?;
            ready!(self.poll_flush(socket, cx))?;
        }
        ready!(Pin::new(socket).poll_shutdown(cx))?;
        self.end = End::Closed;
        Poll::Ready(Ok(()))
    }

    fn poll_outgoing<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            while let Some(piece) = &self.outgoing {
                match ready!(Pin::new(&mut *socket).poll_write(cx, piece.rest()))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => Piece::advance(&mut self.outgoing, written),
                }
            }
            let control = self.session.take_control();
            self.outgoing = Piece::of(control).filter(|_| self.end == End::Open);
            if self.outgoing.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// What reading made rustls say, and what nobody flushed. A writer that waits does it itself:
    /// the socket knows one waker for writing. That the socket fails is told by its reads as well,
    /// behind what the peer sent before.
    fn write_unasked<S: AsyncWrite + Unpin>(&mut self, socket: &mut S, cx: &mut Context<'_>) {
        if self.writer.is_none() {
            let _ = self.poll_outgoing(socket, cx);
        }
    }

    /// Decrypts what there is: into `buf` if all of it fits there.
    fn open(&mut self, buf: &mut ReadBuf<'_>) -> Result<Option<Piece>, Error> {
        let length = self.intake.len();
        if length <= buf.remaining() {
            let written = self.open_into(buf.initialize_unfilled_to(length))?;
            buf.advance(written);
            return Ok(None);
        }
        let mut plain = Buffer::take(Size::holding(length));
        let written = self.open_into(&mut plain)?;
        Ok(Piece::begin(plain, written))
    }

    fn open_into(&mut self, plain: &mut [u8]) -> Result<usize, Error> {
        let opened = self.session.open(self.intake.filled(), plain)?;
        self.intake.discard(opened.consumed);
        if self.session.peer_closed() || self.intake.len() == 0 {
            self.intake = Intake::default();
        }
        Ok(opened.written)
    }

    fn open_early(&mut self, plain: &mut Vec<u8>) {
        let at = plain.len();
        plain.resize(at + self.intake.len(), 0);
        let opened = self.open_into(plain.get_mut(at..).unwrap_or_default());
        plain.truncate(at + *opened.as_ref().unwrap_or(&0));
        if let Err(error) = opened {
            self.note(error);
        }
        self.intake.rest();
    }

    fn seal(&mut self, bufs: &[IoSlice<'_>]) -> Result<usize, Error> {
        let mut slices = bufs.iter().filter(|slice| !slice.is_empty());
        match (slices.next(), slices.next()) {
            (None, _) => Ok(0),
            (Some(only), None) => {
                let most = only.len().min(Size::Large.read());
                self.seal_slice(only.get(..most).unwrap_or_default())
            }
            _ => {
                let (plain, length) = gather(bufs);
                self.seal_slice(plain.get(..length).unwrap_or_default())
            }
        }
    }

    /// As records that are as large as they may be; the room beside them is for a key update.
    fn seal_slice(&mut self, plain: &[u8]) -> Result<usize, Error> {
        let mut out = Buffer::take(reading(plain.len()));
        let length = self.session.seal(self.intake.filled(), plain, &mut out)?;
        self.put(out, length);
        Ok(plain.len())
    }

    fn close(&mut self) -> Result<(), Error> {
        self.end = End::Closing;
        if self.failed.is_some() {
            return Ok(());
        }
        let mut out = Buffer::take(Size::Small);
        let length = self.session.close(self.intake.filled(), &mut out)?;
        self.put(out, length);
        Ok(())
    }

    /// What TLS has to say goes before what was sealed after it. Nothing else is outgoing.
    fn put(&mut self, out: Buffer, length: usize) {
        let mut control = self.session.take_control();
        if control.is_empty() {
            self.outgoing = Piece::begin(out, length);
        } else {
            control.extend_from_slice(out.get(..length).unwrap_or_default());
            self.outgoing = Piece::of(control);
        }
    }

    fn refuse_failed(&self) -> io::Result<()> {
        self.failed
            .as_ref()
            .map_or(Ok(()), |error| Err(broken(error)))
    }

    /// Ends both directions, and says why if the socket takes it now or later.
    fn fail<S: AsyncWrite + Unpin>(
        &mut self,
        error: Error,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> io::Error {
        let told = broken(&error);
        self.note(error);
        let _ = self.poll_outgoing(socket, cx);
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        told
    }

    fn note(&mut self, error: Error) {
        let alert = self.session.last_words(self.intake.filled());
        self.session.say_first(&alert);
        self.intake = Intake::default();
        self.failed = Some(error);
    }
}

/// The size whose reads hold `bytes`.
fn reading(bytes: usize) -> Size {
    if bytes <= Size::Small.read() {
        Size::Small
    } else {
        Size::Large
    }
}

/// What one write takes of several slices, in one place.
fn gather(bufs: &[IoSlice<'_>]) -> (Buffer, usize) {
    let total: usize = bufs.iter().map(|slice| slice.len()).sum();
    let size = reading(total);
    let mut plain = Buffer::take(size);
    let most = total.min(size.read());
    let mut length = 0;
    for slice in bufs {
        let count = slice.len().min(most - length);
        let to = plain.get_mut(length..length + count).unwrap_or_default();
        to.copy_from_slice(slice.get(..count).unwrap_or_default());
        length += count;
    }
    (plain, length)
}

fn broken(error: &Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.clone())
}

fn cut_off() -> io::Error {
    let what = "the peer's stream was cut off: it ended without close_notify";
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}
