// SPDX-License-Identifier: Apache-2.0
//! What was read from the wire and is not yet decrypted: between reads at most a record in part.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::{Buffer, Size};

/// Undecrypted bytes.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    bytes: Option<Buffer>,
    filled: usize,
}

impl Intake {
    /// What the handshake read too much, at most [`crate::tls::MAX_HANDSHAKE`] bytes.
    pub(crate) fn new(early: &[u8]) -> Self {
        let mut intake = Self::default();
        if let Some(room) = intake.reserve(Size::Large).get_mut(..early.len()) {
            room.copy_from_slice(early);
            intake.filled = early.len();
        }
        intake.rest();
        intake
    }

    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// What there is.
    pub(crate) fn filled(&mut self) -> &mut [u8] {
        let bytes = self.bytes.as_deref_mut().unwrap_or_default();
        bytes.get_mut(..self.filled).unwrap_or_default()
    }

    /// Reads once behind what there is. Zero bytes: the peer has closed.
    pub(crate) fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        cx: &mut Context<'_>,
        size: Size,
    ) -> Poll<io::Result<usize>> {
        let bytes = self.reserve(size);
        let mut room = ReadBuf::new(bytes);
        if room.capacity() == 0 {
            let what = "a TLS message is longer than any that a peer has reason to send";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        let read = Pin::new(from).poll_read(cx, &mut room);
        let count = room.filled().len();
        if count == 0 {
            self.rest();
        }
        ready!(read)?;
        self.filled += count;
        Poll::Ready(Ok(count))
    }

    /// Removes from the front.
    pub(crate) fn discard(&mut self, count: usize) {
        let filled = self.filled;
        if count > 0 {
            self.filled().copy_within(count.min(filled).., 0);
            self.filled = filled.saturating_sub(count);
        }
    }

    /// Gives memory back before a wait.
    pub(crate) fn rest(&mut self) {
        if self.filled == 0 {
            self.bytes = None;
        } else if self.is_large() && self.filled <= Size::Small.read() {
            self.move_to(Size::Small);
        }
    }

    /// The room behind what there is, in a buffer of at least `size`.
    fn reserve(&mut self, size: Size) -> &mut [u8] {
        let small = !self.is_large();
        if self.bytes.is_none() || (small && (size == Size::Large || self.is_full())) {
            let size = if self.is_full() { Size::Large } else { size };
            self.move_to(size);
        }
        let filled = self.filled;
        let bytes = self.bytes.as_deref_mut().unwrap_or_default();
        bytes.get_mut(filled..).unwrap_or_default()
    }

    fn move_to(&mut self, size: Size) {
        let mut to = Buffer::take(size);
        let from = self.filled();
        if let Some(room) = to.get_mut(..from.len()) {
            room.copy_from_slice(from);
        }
        self.bytes = Some(to);
    }

    fn is_large(&self) -> bool {
        let size = self.bytes.as_ref().map(Buffer::size);
        size == Some(Size::Large)
    }

    fn is_full(&self) -> bool {
        self.bytes
            .as_ref()
            .is_some_and(|bytes| bytes.len() == self.filled)
    }
}
