// SPDX-License-Identifier: Apache-2.0
//! A peer that was let in and then breaks the rules: it encrypts whatever it likes.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, bail};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, ExtractedSecrets,
    HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection, Stream,
    client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue},
    crypto::{
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher::{
            InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks,
            OutboundPlainMessage,
        },
    },
    pki_types::ServerName,
};

use super::{Credentials, Hello, client_config, server_config};

/// `key_update`, with `update_requested` (RFC 8446, section 4.6.3).
pub const KEY_UPDATE: &[u8] = &[24, 0, 0, 1, 1];

/// `certificate_request` after the handshake, with a context and signature algorithms.
pub const CERTIFICATE_REQUEST: &[u8] = &[13, 0, 0, 12, 1, 7, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3];

/// One side of a session.
pub struct Insider {
    /// The connection, for bytes that are not encrypted.
    pub tcp: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    decrypter: Box<dyn MessageDecrypter>,
    sent: u64,
    received: u64,
}

// === impl Insider ===

impl Insider {
    /// As a client that was let in.
    pub fn client(mut tcp: TcpStream, hello: &Hello, own: Credentials) -> anyhow::Result<Self> {
        let config = client_config(hello, Some(own))?;
        let name = ServerName::try_from(hello.server_name.clone())?;
        let mut connection = ClientConnection::new(config, name)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        while connection.wants_write() {
            connection.write_tls(&mut tcp)?;
        }
        // An answer shows that the certificate was taken; what came before it was read.
        let mut stream = Stream::new(&mut connection, &mut tcp);
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0])?;
        Self::new(tcp, connection.dangerous_extract_secrets()?)
    }

    /// As a server that a client took.
    pub fn server(mut tcp: TcpStream, own: Credentials) -> anyhow::Result<Self> {
        let mut connection = ServerConnection::new(server_config(own)?)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        // The client's first words may have come with the end of the handshake.
        let _ = Stream::new(&mut connection, &mut tcp).read(&mut [0; 1024])?;
        Self::new(tcp, connection.dangerous_extract_secrets()?)
    }

    fn new(tcp: TcpStream, secrets: ExtractedSecrets) -> anyhow::Result<Self> {
        let aead = TLS13_AES_128_GCM_SHA256
            .tls13()
            .context("no TLS 1.3")?
            .aead_alg;
        let (sent, ConnectionTrafficSecrets::Aes128Gcm { key, iv }) = secrets.tx else {
            bail!("another cipher suite was agreed on");
        };
        let mut encrypter = aead.encrypter(key, iv);
        // aws-lc wants to have seen every number from 0 on.
        for number in 0..sent {
            seal(&mut *encrypter, number, ContentType::ApplicationData, &[])?;
        }
        let (received, ConnectionTrafficSecrets::Aes128Gcm { key, iv }) = secrets.rx else {
            bail!("another cipher suite was agreed on");
        };
        let decrypter = aead.decrypter(key, iv);
        Ok(Self {
            tcp,
            encrypter,
            decrypter,
            sent,
            received,
        })
    }

    /// A record with this in it.
    pub fn record(&mut self, typ: ContentType, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        let record = seal(&mut *self.encrypter, self.sent, typ, payload)?;
        self.sent += 1;
        Ok(record)
    }

    /// Sends a record.
    pub fn send(&mut self, typ: ContentType, payload: &[u8]) -> anyhow::Result<()> {
        let record = self.record(typ, payload)?;
        Ok(self.tcp.write_all(&record)?)
    }

    /// Sends the same record many times, until the peer has had enough.
    pub fn flood(&mut self, typ: ContentType, payload: &[u8], times: usize) -> anyhow::Result<()> {
        for _ in 0..times.div_ceil(500) {
            let mut batch = Vec::new();
            for _ in 0..500.min(times) {
                batch.extend(self.record(typ, payload)?);
            }
            if self.tcp.write_all(&batch).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads the next record.
    pub fn receive(&mut self) -> io::Result<(ContentType, Vec<u8>)> {
        let mut header = [0; 5];
        self.tcp.read_exact(&mut header)?;
        let mut body = vec![0; u16::from_be_bytes([header[3], header[4]]).into()];
        self.tcp.read_exact(&mut body)?;
        let typ = ContentType::from(header[0]);
        let sealed = InboundOpaqueMessage::new(typ, ProtocolVersion::TLSv1_2, &mut body);
        let opened = self.decrypter.decrypt(sealed, self.received);
        let opened = opened.map_err(io::Error::other)?;
        self.received += 1;
        Ok((opened.typ, opened.payload.to_vec()))
    }

    /// Reads to the alert or the end: the alert's number, or what the end was.
    pub fn end(&mut self) -> Result<u8, io::Error> {
        loop {
            if let (ContentType::Alert, alert) = self.receive()? {
                return alert
                    .get(1)
                    .copied()
                    .ok_or_else(|| io::Error::other("half an alert"));
            }
        }
    }

    /// Whether the other side's application still answers.
    pub fn echoes(&mut self, text: &[u8]) -> anyhow::Result<bool> {
        self.send(ContentType::ApplicationData, text)?;
        let mut got = Vec::new();
        while got.len() < text.len() {
            let (typ, payload) = self.receive()?;
            if typ == ContentType::ApplicationData {
                got.extend(payload);
            }
        }
        Ok(got == text)
    }
}

fn seal(
    with: &mut dyn MessageEncrypter,
    number: u64,
    typ: ContentType,
    payload: &[u8],
) -> Result<Vec<u8>, rustls::Error> {
    let message = OutboundPlainMessage {
        typ,
        version: ProtocolVersion::TLSv1_3,
        payload: OutboundChunks::Single(payload),
    };
    Ok(with.encrypt(message, number)?.encode())
}

/// A client that does nothing but update its key, and never reads, until the server has had enough.
pub fn update_keys(
    mut tcp: TcpStream,
    hello: &Hello,
    own: Credentials,
    times: usize,
) -> anyhow::Result<()> {
    let name = ServerName::try_from(hello.server_name.clone())?;
    let mut connection = ClientConnection::new(client_config(hello, Some(own))?, name)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp)?;
    }
    for _ in 0..times {
        connection.refresh_traffic_keys()?;
        while connection.wants_write() {
            if connection.write_tls(&mut tcp).is_err() {
                return Ok(());
            }
        }
    }
    bail!("{times} key updates in a row were taken")
}

/// A client that is let in and then says nothing.
#[derive(Debug)]
pub struct Idle {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

// === impl Idle ===

impl Idle {
    /// As whom, and to whom.
    pub fn new(hello: &Hello, own: Credentials) -> anyhow::Result<Self> {
        Ok(Self {
            config: client_config(hello, Some(own))?,
            name: ServerName::try_from(hello.server_name.clone())?,
        })
    }

    /// One more, with its handshake done.
    pub fn connect(&self, addr: std::net::SocketAddr) -> anyhow::Result<TcpStream> {
        let mut tcp = super::dial(addr)?;
        let mut connection = ClientConnection::new(self.config.clone(), self.name.clone())?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        Ok(tcp)
    }
}

/// A client that offers its tickets to whomever it dials.
#[derive(Debug)]
pub struct Resumer {
    config: Arc<ClientConfig>,
}

// === impl Resumer ===

impl Resumer {
    /// Without a ticket.
    pub fn new(own: Credentials) -> anyhow::Result<Self> {
        let mut config = Arc::unwrap_or_clone(client_config(&Hello::mesh("any", b""), Some(own))?);
        config.resumption = Resumption::store(Arc::new(OneForAll::default()));
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// Dials a pod, and takes the ticket that it gives.
    pub fn connect(&self, mut tcp: TcpStream, account: &str) -> anyhow::Result<HandshakeKind> {
        let name = ServerName::try_from(super::server_name(account))?;
        let mut connection = ClientConnection::new(self.config.clone(), name)?;
        let mut stream = Stream::new(&mut connection, &mut tcp);
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0])?;
        connection.handshake_kind().context("no handshake")
    }
}

/// The last ticket, whoever gave it.
#[derive(Debug, Default)]
struct OneForAll(Mutex<Option<Tls13ClientSessionValue>>);

impl OneForAll {
    fn last(&self) -> std::sync::MutexGuard<'_, Option<Tls13ClientSessionValue>> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl ClientSessionStore for OneForAll {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        *self.last() = Some(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.last().take()
    }
}
