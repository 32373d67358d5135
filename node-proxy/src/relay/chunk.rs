// SPDX-License-Identifier: Apache-2.0
//! Bytes on their way out of the proxy.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, net::tcp::WriteHalf};

use crate::buffer::Buffer;

/// What one write began with, and what is left of it.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Bytes,
    written: usize,
    end: usize,
    payload: usize,
}

#[derive(Debug)]
enum Bytes {
    Buffer(Buffer),
    Vec(Vec<u8>),
}

impl Chunk {
    /// The first `end` bytes of `buffer`, which carry `payload` bytes of the application's.
    pub(super) fn new(buffer: Buffer, end: usize, payload: usize) -> Self {
        Self {
            bytes: Bytes::Buffer(buffer),
            written: 0,
            end,
            payload,
        }
    }

    /// Application bytes that were read before the relay began.
    pub(super) fn early(bytes: Vec<u8>) -> Option<Self> {
        let payload = bytes.len();
        Self::vec(bytes, payload)
    }

    /// What TLS itself has to say.
    pub(super) fn control(bytes: Vec<u8>) -> Option<Self> {
        Self::vec(bytes, 0)
    }

    /// All of `bytes`, which carry `payload` bytes of the application's.
    pub(super) fn joined(bytes: Vec<u8>, payload: usize) -> Self {
        Self {
            written: 0,
            end: bytes.len(),
            bytes: Bytes::Vec(bytes),
            payload,
        }
    }

    fn vec(bytes: Vec<u8>, payload: usize) -> Option<Self> {
        (!bytes.is_empty()).then(|| Self::joined(bytes, payload))
    }

    /// Writes what is left. Answers how many bytes of the application's are out with it.
    pub(super) fn poll_write(
        &mut self,
        to: &mut WriteHalf<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        while self.written < self.end {
            let left = self.bytes.get(self.written..self.end);
            match ready!(Pin::new(&mut *to).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        Poll::Ready(Ok(self.payload))
    }
}

impl Bytes {
    fn get(&self, range: std::ops::Range<usize>) -> &[u8] {
        let bytes = match self {
            Self::Buffer(buffer) => buffer,
            Self::Vec(vec) => vec.as_slice(),
        };
        bytes.get(range).unwrap_or_default()
    }
}
