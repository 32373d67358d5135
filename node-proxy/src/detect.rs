// SPDX-License-Identifier: Apache-2.0
//! What a connection speaks, by what its client says first.
//!
//! - HTTP/1.x by its request line alone (RFC 9112, section 3), HTTP/2 by its preface (RFC 9113,
//!   section 3.4), TLS by the first two bytes of a handshake record (RFC 8446, section 5.1).
//! - HTTP/2 is spoken with prior knowledge only. `Upgrade: h2c`, which RFC 9113 no longer has, is
//!   an upgrade of HTTP/1 like any other, which a server may ignore.
//! - What can no longer become one of these is opaque at that very byte, so that no other protocol
//!   waits; only a first line of tokens without an end does, for [`INCOMPLETE`].
//! - A request line that no strict server takes (HTTP/0.9, a space in the target, more than
//!   [`MAX`] bytes) is opaque as well: the application gets it as it is and answers as it always did.

#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::timeout,
};

use crate::buffer::{Buffer, Size};

/// The longest request line that is recognised, with the empty lines before it, in bytes. Servers
/// take 8 KiB (nginx, Apache) or a little more; Linkerd looks at 1 KiB.
const MAX: usize = 16 << 10;

/// The longest method. The longest that is registered has 17 letters (UPDATEREDIRECTREF).
const MAX_METHOD: u8 = 32;

/// How long a first line may stay incomplete.
const INCOMPLETE: Duration = Duration::from_millis(100);

/// How long a client's preface is waited for after its server has begun HTTP/2.
pub(crate) const LATE_PREFACE: Duration = Duration::from_secs(3);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const TLS: &[u8] = &[0x16, 3];
/// RFC 9113, section 6.5.
const SETTINGS: u8 = 4;
const MAX_FRAME: u32 = 16 << 10;
const VERSION: &[u8] = b"HTTP/1.";

/// The methods that the rest of a line is waited for (RFC 9110, section 9.3; RFC 5789; RFC 4918; those
/// that caches know), and the HTTP/2 preface's. Others have to come as a whole line at once: `ping`
/// may as well be all that a client says.
const METHODS: [&[u8]; 21] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"QUERY",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"UNLOCK",
    b"REPORT",
    b"SEARCH",
    b"PURGE",
    b"PRI",
];

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS of the application's own.
    Tls,
    /// Anything else: bytes.
    Opaque,
}

/// What [`detect`] found. By default nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Detected {
    /// None: the client was silent and nothing was read.
    pub(crate) protocol: Option<Protocol>,
    /// All that was read, to be replayed.
    pub(crate) bytes: Vec<u8>,
}

/// A detection under way. What was read stays in it when [`Self::read`] is cancelled.
#[derive(Debug, Default)]
pub(crate) struct Detection {
    judge: Judge,
    bytes: Vec<u8>,
}

/// Reads until it is clear what the connection speaks; a first line that stays incomplete for
/// 100 ms is opaque. `silence` is how long the first byte is waited for, None: as long as it takes.
///
/// A client that ends before its first byte, or in the middle of a line, is opaque: its end is for
/// the application, which may well speak first. Not to be cancelled where nothing may be lost:
/// that is what [`Detection`] is for.
///
/// # Errors
/// The connection broke; what was read before goes with it.
pub(crate) async fn detect<S: AsyncRead + Unpin>(
    from: &mut S,
    silence: Option<Duration>,
) -> io::Result<Detected> {
    let mut detection = Detection::default();
    let protocol = detection.read(from, silence).await?;
    Ok(Detected {
        protocol,
        bytes: detection.into_bytes(),
    })
}

/// Whether a server that speaks first begins HTTP/2: with a SETTINGS frame (RFC 9113, sections 3.4 and
/// 6.5), for which its client needs not wait. Other greetings do not look like one.
pub(crate) fn is_settings(word: &[u8]) -> bool {
    let Some(([high, middle, low, kind, flags, stream @ ..], _)) = word.split_first_chunk::<9>()
    else {
        return false;
    };
    let length = u32::from_be_bytes([0, *high, *middle, *low]);
    *kind == SETTINGS
        && *flags == 0
        && *stream == [0; 4]
        && length.is_multiple_of(6)
        && length <= MAX_FRAME
}

// === impl Detection ===

impl Detection {
    /// As [`detect`], and may be cancelled and called again.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn read<S: AsyncRead + Unpin>(
        &mut self,
        from: &mut S,
        silence: Option<Duration>,
    ) -> io::Result<Option<Protocol>> {
        if self.bytes.is_empty() {
            let first = poll_fn(|cx| self.poll_piece(from, cx));
            let first = match silence {
                None => first.await?,
                Some(silence) => match timeout(silence, first).await {
                    Ok(first) => first?,
                    Err(_) => return Ok(None),
                },
            };
            if first.is_some() {
                return Ok(first);
            }
        }
        if !is_likely(&self.bytes) {
            return Ok(Some(Protocol::Opaque));
        }
        let rest = timeout(INCOMPLETE, self.read_line(from)).await;
        rest.unwrap_or(Ok(Protocol::Opaque)).map(Some)
    }

    /// All that was read.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    async fn read_line<S: AsyncRead + Unpin>(&mut self, from: &mut S) -> io::Result<Protocol> {
        loop {
            if let Some(protocol) = poll_fn(|cx| self.poll_piece(from, cx)).await? {
                return Ok(protocol);
            }
        }
    }

    /// Reads once, into memory that is given back before a wait.
    fn poll_piece<S: AsyncRead + Unpin>(
        &mut self,
        from: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Protocol>>> {
        let mut buffer = Buffer::take(Size::Small);
        let room = MAX.saturating_sub(self.bytes.len());
        let mut room = ReadBuf::new(buffer.get_mut(..room).unwrap_or_default());
        ready!(Pin::new(from).poll_read(cx, &mut room))?;
        let piece = room.filled();
        if piece.is_empty() {
            return Poll::Ready(Ok(Some(Protocol::Opaque)));
        }
        self.bytes.extend_from_slice(piece);
        Poll::Ready(Ok(self.judge.feed(piece)))
    }
}

/// How far a connection's first bytes were looked at.
#[derive(Clone, Copy, Debug)]
struct Judge {
    seen: usize,
    http1: Line,
    http2: bool,
    tls: bool,
}

/// How far a request line has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Nothing but empty lines, which servers pass over (RFC 9112, section 2.2).
    Start,
    /// The CR of an empty line.
    StartReturn,
    Method(u8),
    MethodEnd,
    Target,
    /// So many bytes of [`VERSION`].
    Version(u8),
    Minor,
    Return,
    Complete,
    /// It is none.
    Never,
}

// === impl Judge ===

impl Default for Judge {
    fn default() -> Self {
        Self {
            seen: 0,
            http1: Line::Start,
            http2: true,
            tls: true,
        }
    }
}

impl Judge {
    /// What a connection that goes on with `bytes` speaks. None: more bytes are needed to tell.
    fn feed(&mut self, bytes: &[u8]) -> Option<Protocol> {
        bytes.iter().find_map(|&byte| self.next(byte))
    }

    fn next(&mut self, byte: u8) -> Option<Protocol> {
        self.http1 = self.http1.next(byte);
        self.http2 &= PREFACE.get(self.seen) == Some(&byte);
        self.tls &= TLS.get(self.seen) == Some(&byte);
        self.seen += 1;
        if self.http1 == Line::Complete {
            Some(Protocol::Http1)
        } else if self.http2 && self.seen == PREFACE.len() {
            Some(Protocol::Http2)
        } else if self.tls && self.seen == TLS.len() {
            Some(Protocol::Tls)
        } else {
            self.is_over().then_some(Protocol::Opaque)
        }
    }

    fn is_over(&self) -> bool {
        self.seen == MAX || (self.http1 == Line::Never && !self.http2 && !self.tls)
    }
}

// === impl Line ===

impl Line {
    fn next(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Start, b'\r') => Self::StartReturn,
            (Self::Start | Self::StartReturn, b'\n') => Self::Start,
            (Self::Start, _) if is_tchar(byte) => Self::Method(1),
            (Self::Method(_), b' ') => Self::MethodEnd,
            (Self::Method(length @ 1..MAX_METHOD), _) if is_tchar(byte) => Self::Method(length + 1),
            (Self::Target, b' ') => Self::Version(0),
            (Self::MethodEnd | Self::Target, _) if is_target(byte) => Self::Target,
            (Self::Version(at), _) => version(at, byte),
            // A single LF ends a line as well (RFC 9112, section 2.2).
            (Self::Minor | Self::Return, b'\n') => Self::Complete,
            (Self::Minor, b'\r') => Self::Return,
            _ => Self::Never,
        }
    }
}

fn version(at: u8, byte: u8) -> Line {
    match VERSION.get(usize::from(at)) {
        Some(&expected) if byte == expected => Line::Version(at + 1),
        None if matches!(byte, b'0' | b'1') => Line::Minor,
        _ => Line::Never,
    }
}

/// Whether what began and is not yet complete is worth a wait.
fn is_likely(bytes: &[u8]) -> bool {
    let begun = bytes.trim_ascii_start();
    let method = begun.split(|byte| *byte == b' ').next().unwrap_or_default();
    match method.len() < begun.len() {
        true => METHODS.contains(&method),
        false => METHODS.iter().any(|known| known.starts_with(method)) || TLS.starts_with(begun),
    }
}

/// RFC 9110, section 5.6.2.
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// No space and no control character; bytes beyond ASCII as hyper takes them.
fn is_target(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}
