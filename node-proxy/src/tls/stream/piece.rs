// SPDX-License-Identifier: Apache-2.0
//! Bytes that are used from the front.

use tokio::io::ReadBuf;

use crate::buffer::Buffer;

/// Bytes, and how far they are used. Never empty.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    used: usize,
    end: usize,
}

#[derive(Debug)]
enum Bytes {
    Buffer(Buffer),
    Vec(Vec<u8>),
}

// === impl Piece ===

impl Piece {
    /// All of `bytes`.
    pub(super) fn of(bytes: Vec<u8>) -> Option<Self> {
        let end = bytes.len();
        Self::up_to(end, Bytes::Vec(bytes))
    }

    /// The first `end` bytes of `buffer`.
    pub(super) fn begin(buffer: Buffer, end: usize) -> Option<Self> {
        Self::up_to(end, Bytes::Buffer(buffer))
    }

    fn up_to(end: usize, bytes: Bytes) -> Option<Self> {
        (end > 0).then_some(Self {
            bytes,
            used: 0,
            end,
        })
    }

    /// What is left.
    pub(super) fn rest(&self) -> &[u8] {
        let bytes = match &self.bytes {
            Bytes::Buffer(buffer) => buffer,
            Bytes::Vec(vec) => vec.as_slice(),
        };
        bytes.get(self.used..self.end).unwrap_or_default()
    }

    /// Removes `count` bytes of `piece`, and the memory with the last one.
    pub(super) fn advance(piece: &mut Option<Self>, count: usize) {
        if let Some(some) = piece {
            some.used += count;
            if some.used >= some.end {
                *piece = None;
            }
        }
    }

    /// Moves what fits to `buf`. Answers whether there was anything.
    pub(super) fn give(piece: &mut Option<Self>, buf: &mut ReadBuf<'_>) -> bool {
        let Some(some) = piece else {
            return false;
        };
        let rest = some.rest();
        let count = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..count).unwrap_or_default());
        Self::advance(piece, count);
        true
    }
}
