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
mod verify;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use self::{
    credentials::{CredentialError, Credentials},
    handshake::{Alert, HandshakeError, Handshaken, MAX_HANDSHAKE, handshake, refuse},
    peer::{PeerError, peer},
    session::Session,
};

/// The prefix of every protocol that proxies speak to each other.
pub(crate) const ALPN_PREFIX: &[u8] = b"culvert/";

/// ALPN of the raw stream.
pub(crate) const ALPN_TCP: &[u8] = b"culvert/tcp";

/// The longest record on the wire: header, 2^14 bytes and 256 of expansion (RFC 8446, section 5.2).
pub(crate) const MAX_RECORD: usize = 5 + (16 << 10) + 256;

/// What a TLS 1.3 record adds to its payload: header, content type and AEAD tag.
pub(crate) const RECORD_OVERHEAD: usize = 5 + 1 + 16;

/// The most payload of one record.
pub(crate) const MAX_FRAGMENT: usize = 16 << 10;
