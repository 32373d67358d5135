// SPDX-License-Identifier: Apache-2.0
//! Mutual TLS between proxies: TLS 1.3 only, hybrid post-quantum key exchange first.
//!
//! [`Credentials`] are what one identity of this node speaks with; [`peer`] says whom a
//! certificate names; a [`Session`] is one connection's state, driven by [`handshake`] and then by
//! the relay. No type here prints key material.

mod credentials;
mod handshake;
mod peer;
mod session;
mod stream;
mod verify;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use self::{
    credentials::{CredentialError, Credentials},
    handshake::{Alert, HandshakeError, Handshaken, MAX_HANDSHAKE, handshake, refuse},
    peer::{PeerError, peer},
    session::Session,
    stream::Stream,
};

/// The prefix of every protocol that proxies speak to each other.
pub(crate) const ALPN_PREFIX: &[u8] = b"culvert/";

/// What is carried inside the mesh's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Alpn {
    /// The raw stream. A release that speaks nothing else relays it to the application.
    Tcp,
    /// HTTP/1 requests, one after the other.
    Http1,
    /// HTTP/2 with prior knowledge, gRPC among it.
    H2,
}

/// The longest record on the wire: header, 2^14 bytes and 256 of expansion (RFC 8446, section 5.2).
pub(crate) const MAX_RECORD: usize = 5 + (16 << 10) + 256;

/// What a TLS 1.3 record adds to its payload: header, content type and AEAD tag.
pub(crate) const RECORD_OVERHEAD: usize = 5 + 1 + 16;

/// The most payload of one record.
pub(crate) const MAX_FRAGMENT: usize = 16 << 10;

// === impl Alpn ===

impl Alpn {
    /// What a server of this release agrees to, what it would rather first.
    pub(crate) const ALL: [Self; 3] = [Self::H2, Self::Http1, Self::Tcp];

    /// Its name on the wire.
    pub(crate) fn name(self) -> &'static [u8] {
        match self {
            Self::Tcp => b"culvert/tcp",
            Self::Http1 => b"culvert/http1",
            Self::H2 => b"culvert/h2",
        }
    }

    /// What `name` stands for. `None`: another release's, or not of the mesh.
    pub(crate) fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.name() == name)
    }

    /// What a client offers who means this: a peer of an earlier release agrees to the raw stream.
    pub(crate) fn offers(self) -> Vec<Vec<u8>> {
        let mut offers = vec![self.name().to_vec()];
        if self != Self::Tcp {
            offers.push(Self::Tcp.name().to_vec());
        }
        offers
    }
}
