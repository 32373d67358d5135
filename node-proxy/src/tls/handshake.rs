// SPDX-License-Identifier: Apache-2.0
//! Handshakes on a socket, and refusals before there is one. The caller sets the time limit.

use std::io;

use rustls::AlertDescription;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Session;

/// More than the longest message that rustls takes, 64 KiB, with the records around it: so all that
/// rustls takes fits, and what is longer is refused by the length that it begins with.
const MAX_INCOMING: usize = 72 << 10;
const READ: usize = 8 << 10;

/// The most that a handshake can have read too much.
pub(crate) const MAX_HANDSHAKE: usize = MAX_INCOMING + READ;

const HANDSHAKE: u8 = 0x16;
const ALERT: u8 = 0x15;

/// A session that is ready, and what the peer already sent in it.
#[derive(Debug)]
pub(crate) struct Handshaken {
    /// The session.
    pub(crate) session: Box<Session>,
    /// Decrypted.
    pub(crate) plain: Vec<u8>,
    /// Not yet decrypted.
    pub(crate) sealed: Vec<u8>,
}

/// A handshake failed. Nothing of it may be answered in plaintext.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The peer speaks something else: the knowledge that it is meshed is stale.
    #[error("the peer's first byte is {first:#04x}, expected a TLS record")]
    NotTls {
        /// What it was.
        first: u8,
    },
    /// The peer gave up.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The socket failed.
    #[error("the connection failed during the handshake: {0}")]
    Io(#[from] io::Error),
    /// One side refused the other.
    #[error("the handshake was refused: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a ClientHello is refused before there is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alert {
    /// The SNI names somebody else.
    UnrecognizedName,
    /// The ALPN offers nothing that proxies speak.
    NoApplicationProtocol,
}

/// Carries `session`'s handshake through, `received` being what was read of it before.
pub(crate) async fn handshake(
    mut session: Box<Session>,
    tcp: &mut TcpStream,
    received: Vec<u8>,
) -> Result<Handshaken, HandshakeError> {
    let (mut sealed, mut plain) = (received, Vec::new());
    loop {
        if let Err(error) = open(&mut session, &mut sealed, &mut plain) {
            tcp.write_all(&session.last_words(&mut sealed)).await?;
            return Err(error.into());
        }
        tcp.write_all(&session.take_control()).await?;
        if !session.is_handshaking() {
            break;
        }
        read(tcp, &mut sealed).await?;
    }
    Ok(Handshaken {
        session,
        plain,
        sealed,
    })
}

/// Answers a ClientHello with a fatal alert in plaintext (RFC 8446, section 6).
pub(crate) async fn refuse(tcp: &mut TcpStream, alert: Alert) -> io::Result<()> {
    let description = match alert {
        Alert::UnrecognizedName => AlertDescription::UnrecognisedName,
        Alert::NoApplicationProtocol => AlertDescription::NoApplicationProtocol,
    };
    const FATAL: u8 = 2;
    let record = [ALERT, 3, 3, 0, 2, FATAL, description.into()];
    tcp.write_all(&record).await?;
    tcp.shutdown().await
}

fn open(
    session: &mut Session,
    sealed: &mut Vec<u8>,
    plain: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let at = plain.len();
    plain.resize(at + sealed.len(), 0);
    let opened = session.open(sealed, plain.get_mut(at..).unwrap_or_default())?;
    plain.truncate(at + opened.written);
    sealed.drain(..opened.consumed);
    Ok(())
}

async fn read(tcp: &mut TcpStream, sealed: &mut Vec<u8>) -> Result<(), HandshakeError> {
    let at = sealed.len();
    if at >= MAX_INCOMING {
        return Err(rustls::Error::PeerSentOversizedRecord.into());
    }
    let first = at == 0;
    sealed.resize(at + READ, 0);
    let read = tcp.read(sealed.get_mut(at..).unwrap_or_default()).await?;
    sealed.truncate(at + read);
    match sealed.first() {
        _ if read == 0 => Err(HandshakeError::Closed),
        Some(&byte) if first && byte != HANDSHAKE && byte != ALERT && !seen(byte) => {
            Err(HandshakeError::NotTls { first: byte })
        }
        _ => Ok(()),
    }
}

/// The other content types of TLS: later records of a handshake begin with them.
fn seen(byte: u8) -> bool {
    matches!(byte, 0x14 | 0x17)
}
