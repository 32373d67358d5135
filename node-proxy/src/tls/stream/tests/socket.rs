// SPDX-License-Identifier: Apache-2.0
//! A socket that takes as much as a test wants.

use super::*;

/// A socket that is held back.
#[derive(Debug)]
pub(super) struct Held {
    socket: TcpStream,
    /// How many bytes it still takes.
    pub(super) takes: Option<usize>,
    /// Whether it takes odd amounts, and sometimes none.
    pub(super) ragged: bool,
    turn: usize,
}

impl Held {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            takes: None,
            ragged: false,
            turn: 0,
        }
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.socket
    }

    /// How many bytes it takes in this turn.
    fn room(&mut self) -> usize {
        self.turn += 1;
        match self.ragged {
            true if self.turn.is_multiple_of(3) => 0,
            true => 1 + self.turn * 7919 % 30_000,
            false => usize::MAX,
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut part = buf.take(self.room().max(1));
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        // SAFETY: `part` is the front of what is unfilled of `buf`, and `read` bytes of it are set.
        unsafe { buf.assume_init(read) };
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = self.room();
        if room == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let room = room.min(self.takes.unwrap_or(usize::MAX)).min(buf.len());
        if room == 0 && !buf.is_empty() {
            return Poll::Pending;
        }
        let front = buf.get(..room).unwrap_or_default();
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, front))?;
        self.takes = self.takes.map(|takes| takes - written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
