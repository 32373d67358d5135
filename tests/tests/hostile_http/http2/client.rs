// SPDX-License-Identifier: Apache-2.0
//! A client that puts its frames together by hand.

use std::{io::Write as _, time::Instant};

use anyhow::{Context as _, ensure};

use crate::{
    frames::{
        ACK, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, block, frame, read,
    },
    ground::{Ground, HTTP2, SOON, Way, Wire},
};

pub type Fields<'a> = &'a [(&'a str, &'a [u8])];

pub const GET: [(&str, &[u8]); 4] = [
    (":method", b"GET"),
    (":scheme", b"http"),
    (":authority", b"app"),
    (":path", b"/"),
];

/// `:status: 400` in HPACK's static table.
pub const STATUS_400: u8 = 0x8c;
pub const STATUS_200: u8 = 0x88;

/// A client's end.
pub struct Client {
    pub wire: Box<dyn Wire>,
    /// PINGs are answered for as long.
    until: Instant,
}

/// What became of a stream or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The first byte of the answer's header block.
    Answer(u8),
    Reset(u32),
    GoneAway(u32),
    /// The connection ended without GOAWAY.
    Closed,
}

// === impl Client ===

impl Client {
    pub fn dial(ground: &Ground<'_>, way: Way) -> anyhow::Result<Self> {
        Self::with(ground, way, &[])
    }

    /// With these settings.
    pub fn with(ground: &Ground<'_>, way: Way, settings: &[u8]) -> anyhow::Result<Self> {
        let mut wire = way.dial(ground.sandbox, HTTP2)?;
        wire.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat())?;
        let until = Instant::now() + 2 * SOON;
        Ok(Self { wire, until })
    }

    /// It may be too late: then the answer says so.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.wire.write_all(bytes);
    }

    /// Reads until a stream or the connection ends.
    pub fn end(&mut self, stream: u32) -> anyhow::Result<End> {
        loop {
            let Some(got) = self.next()? else {
                return Ok(End::Closed);
            };
            if let Some(end) = ended(&got, stream) {
                return Ok(end);
            }
        }
    }

    pub fn next(&mut self) -> anyhow::Result<Option<Frame>> {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        ensure!(Instant::now() < self.until, "nothing but PINGs comes");
        match read(&mut *self.wire) {
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {
                Ok(None)
            }
            got => {
                let got = got?;
                if let Some(frame) = &got {
                    let _ = frame.acknowledge(&mut *self.wire);
                }
                Ok(got)
            }
        }
    }

    /// Waits for the answer to a PING. Whether the connection ended instead.
    pub fn pong(&mut self) -> anyhow::Result<bool> {
        loop {
            match self.next()? {
                None => return Ok(true),
                Some(got) if got.kind == GOAWAY => return Ok(true),
                Some(got) if got.kind == PING && got.has(ACK) => return Ok(false),
                Some(_) => {}
            }
        }
    }

    /// Waits for the connection's window to be more than 65,535, which is what it begins with.
    pub fn window(&mut self) -> anyhow::Result<()> {
        loop {
            let got = self.next()?.context("the connection ended")?;
            if got.kind == WINDOW_UPDATE && got.stream == 0 {
                return Ok(());
            }
        }
    }

    /// A request is answered.
    pub fn works(&mut self, stream: u32) -> anyhow::Result<()> {
        self.send(&get_on(stream));
        let end = self.end(stream)?;
        ensure!(end == End::Answer(STATUS_200), "a good request got {end:?}");
        Ok(())
    }
}

pub fn ended(got: &Frame, stream: u32) -> Option<End> {
    match got.kind {
        GOAWAY => Some(End::GoneAway(got.number(4)?)),
        RST_STREAM if got.stream == stream => Some(End::Reset(got.number(0)?)),
        HEADERS if got.stream == stream => {
            // After a change of the table's size, if there is one.
            let status = got.payload.iter().find(|byte| **byte & 0xe0 != 0x20)?;
            Some(End::Answer(*status))
        }
        _ => None,
    }
}

pub fn headers(stream: u32, flags: u8, fields: Fields<'_>) -> Vec<u8> {
    frame(HEADERS, flags, stream, &block(fields))
}

pub fn get_on(stream: u32) -> Vec<u8> {
    headers(stream, END_HEADERS | END_STREAM, &GET)
}

pub fn open_on(stream: u32) -> Vec<u8> {
    headers(stream, END_HEADERS, &GET)
}

pub fn with(more: Fields<'_>) -> Vec<u8> {
    headers(1, END_HEADERS | END_STREAM, &[&GET, more].concat())
}

/// The request with another value of a pseudo-field, or without it.
pub fn pseudo(name: &str, value: Option<&'static [u8]>) -> Vec<u8> {
    let mut fields = GET.to_vec();
    fields.retain(|(of, _)| *of != name || value.is_some());
    for field in fields.iter_mut().filter(|(of, _)| *of == name) {
        field.1 = value.unwrap_or_default();
    }
    headers(1, END_HEADERS | END_STREAM, &fields)
}
