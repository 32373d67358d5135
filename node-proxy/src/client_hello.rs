// SPDX-License-Identifier: Apache-2.0
//! Reads a ClientHello that may come in pieces, and keeps its bytes: whoever gets the connection
//! gets them all.

use rustls::server::{Acceptor, ClientHello};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::tls::{ALPN_PREFIX, Alpn};

/// The most that is read in search of a ClientHello, in bytes.
const MAX: usize = 16 << 10;

/// How much is read at once: most ClientHellos are shorter.
const PIECE: usize = 4 << 10;

/// The content type of a handshake record, and the major version of every record.
const HANDSHAKE: u8 = 0x16;
const MAJOR: u8 = 3;

/// Which of the mesh's protocols a client offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Offer {
    /// None: it is no mesh peer.
    #[default]
    Nothing,
    /// Only some of another release.
    Unknown,
    /// One that this release speaks.
    Known,
}

/// What counts of a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The SNI, if it is a DNS name.
    pub(crate) server_name: Option<String>,
    /// What ALPN offers of the mesh's protocols.
    pub(crate) offer: Offer,
}

/// What a connection began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// Nothing yet.
    Silence,
    /// A ClientHello.
    Hello(Hello),
    /// Something else, or a ClientHello that is too long or broken.
    Other,
    /// No complete ClientHello in time.
    TimedOut,
}

/// Puts a ClientHello together.
#[derive(Default)]
pub(crate) struct Assembler {
    acceptor: Acceptor,
    bytes: Vec<u8>,
}

/// Whether a first byte may begin a ClientHello.
pub(crate) fn may_begin(byte: u8) -> bool {
    byte == HANDSHAKE
}

/// Reads until it is clear what the connection begins with, and returns all that was read.
pub(crate) async fn read(tcp: &mut TcpStream, until: Instant) -> (First, Vec<u8>) {
    let mut assembler = Assembler::default();
    let first = timeout_at(until, assembler.read(tcp)).await;
    (first.unwrap_or(First::TimedOut), assembler.bytes)
}

// === impl Assembler ===

impl Assembler {
    async fn read(&mut self, tcp: &mut TcpStream) -> First {
        // On the heap: the connection's future would carry it to its end.
        let mut piece = vec![0; PIECE];
        loop {
            let room = PIECE.min(MAX - self.bytes.len());
            let read = tcp.read(piece.get_mut(..room).unwrap_or_default()).await;
            let Ok(read @ 1..) = read else {
                return First::Other;
            };
            if let Some(first) = self.push(piece.get(..read).unwrap_or_default()) {
                return first;
            }
        }
    }

    /// Takes the next piece. `None`: more is needed.
    pub(crate) fn push(&mut self, mut piece: &[u8]) -> Option<First> {
        self.bytes.extend_from_slice(piece);
        if !begins_like_tls(&self.bytes) {
            return Some(First::Other);
        }
        while !piece.is_empty() {
            if self.acceptor.read_tls(&mut piece).is_err() {
                return Some(First::Other);
            }
            match self.acceptor.accept() {
                Ok(Some(accepted)) => return Some(First::Hello(hello(&accepted.client_hello()))),
                Ok(None) => {}
                Err(_) => return Some(First::Other),
            }
        }
        (self.bytes.len() >= MAX).then_some(First::Other)
    }
}

/// Told before a whole header is there, so that an application's own protocol that happens to begin
/// with 0x16 is not kept waiting.
fn begins_like_tls(bytes: &[u8]) -> bool {
    let expected = [HANDSHAKE, MAJOR];
    bytes
        .iter()
        .zip(expected)
        .all(|(got, expected)| *got == expected)
}

fn hello(hello: &ClientHello<'_>) -> Hello {
    Hello {
        server_name: hello.server_name().map(str::to_owned),
        offer: hello.alpn().map_or(Offer::Nothing, offer),
    }
}

fn offer<'a>(protocols: impl Iterator<Item = &'a [u8]>) -> Offer {
    let kind = |protocol: &[u8]| match protocol {
        known if Alpn::of(known).is_some() => Offer::Known,
        _ if protocol.starts_with(ALPN_PREFIX) => Offer::Unknown,
        _ => Offer::Nothing,
    };
    protocols.map(kind).max().unwrap_or_default()
}

#[cfg(test)]
mod tests;
