// SPDX-License-Identifier: Apache-2.0
//! ClientHellos made by hand, byte for byte, and what a server makes of them.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use super::CULVERT_TCP;

const SERVER_NAME: u16 = 0;
const GROUPS: u16 = 10;
const SIGNATURES: u16 = 13;
const ALPN: u16 = 16;
const PRE_SHARED_KEY: u16 = 41;
const EARLY_DATA: u16 = 42;
const VERSIONS: u16 = 43;
const PSK_MODES: u16 = 45;
const KEY_SHARE: u16 = 51;

/// A ClientHello.
#[derive(Clone, Debug)]
pub struct ClientHello {
    /// The version of the record, as major and minor.
    pub record_version: [u8; 2],
    /// `legacy_version`.
    pub version: [u8; 2],
    /// The cipher suites.
    pub suites: Vec<u16>,
    /// The extensions, in order.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// What a server made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A handshake record: the handshake goes on.
    Handshake,
    /// A fatal alert of this number (RFC 8446, section 6).
    Alert(u8),
    /// The same bytes: an echo server got them.
    Echoed,
    /// RST, or FIN before any byte.
    Closed,
    /// Something else.
    Other(Vec<u8>),
}

// === impl ClientHello ===

impl ClientHello {
    /// What a proxy would say, with a key share that nobody has the secret of.
    pub fn new(server_name: &[u8]) -> Self {
        let mut share = vec![0, 36, 0, 0x1d, 0, 32];
        share.extend([9; 32]);
        Self {
            record_version: [3, 1],
            version: [3, 3],
            suites: vec![0x1301],
            extensions: Vec::new(),
        }
        .with(SERVER_NAME, names(&[server_name]))
        .with(GROUPS, vec![0, 2, 0, 0x1d])
        .with(SIGNATURES, vec![0, 4, 4, 3, 8, 4])
        .with(VERSIONS, vec![2, 3, 4])
        .with(KEY_SHARE, share)
        .alpn(&[CULVERT_TCP])
    }

    /// With an extension more.
    pub fn with(mut self, kind: u16, body: Vec<u8>) -> Self {
        self.extensions.push((kind, body));
        self
    }

    /// Without an extension.
    fn without(mut self, kind: u16) -> Self {
        self.extensions.retain(|(other, _)| *other != kind);
        self
    }

    /// With these protocols, and none if there are none.
    pub fn alpn(self, protocols: &[&[u8]]) -> Self {
        let this = self.without(ALPN);
        if protocols.is_empty() {
            return this;
        }
        let list = protocols
            .iter()
            .flat_map(|p| [&[p.len() as u8][..], p].concat());
        this.with(ALPN, sized(list.collect()))
    }

    /// Without a name.
    pub fn nameless(self) -> Self {
        self.without(SERVER_NAME)
    }

    /// With several names in one extension.
    pub fn names(self, all: &[&[u8]]) -> Self {
        self.nameless().with(SERVER_NAME, names(all))
    }

    /// As a client of an earlier version of TLS.
    pub fn of_version(self, version: [u8; 2]) -> Self {
        Self {
            version,
            suites: vec![0xc02b, 0xc02f, 0x002f],
            ..self.without(VERSIONS).without(KEY_SHARE)
        }
    }

    /// With values that nobody knows, as browsers do (RFC 8701).
    pub fn greased(mut self) -> Self {
        self.suites.insert(0, 0x0a0a);
        self.extensions.insert(0, (0x1a1a, Vec::new()));
        self.with(0x2a2a, vec![0])
    }

    /// With that many bytes more.
    pub fn padded(self, bytes: usize) -> Self {
        self.with(0x3a3a, vec![0; bytes])
    }

    /// With that many extensions more.
    pub fn crowded(mut self, extensions: u16) -> Self {
        self.extensions
            .extend((0..extensions).map(|n| (0x4000 + n, vec![0; 2])));
        self
    }

    /// Offers early data, with a ticket that no server made.
    pub fn early(self) -> Self {
        let ticket = [7; 64];
        let identity = [&sized(ticket.to_vec())[..], &[0, 0, 0, 1]].concat();
        let mut key = sized(identity);
        key.extend(sized([&[32][..], &[5; 32]].concat()));
        self.with(PSK_MODES, vec![1, 1])
            .with(EARLY_DATA, Vec::new())
            .with(PRE_SHARED_KEY, key)
    }

    /// The handshake message.
    pub fn message(&self) -> Vec<u8> {
        let suites = self
            .suites
            .iter()
            .flat_map(|suite| suite.to_be_bytes())
            .collect();
        let extensions = self
            .extensions
            .iter()
            .flat_map(|(kind, body)| [&kind.to_be_bytes()[..], &sized(body.clone())].concat());
        let body = [
            &self.version[..],
            &[1; 32],
            &[0],
            &sized(suites),
            &[1, 0],
            &sized(extensions.collect()),
        ]
        .concat();
        let length = (body.len() as u32).to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    /// The message in records of `size` bytes.
    pub fn records(&self, size: usize) -> Vec<u8> {
        let message = self.message();
        let record =
            |piece: &[u8]| [&[22][..], &self.record_version, &sized(piece.to_vec())].concat();
        message.chunks(size).flat_map(record).collect()
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        self.records(16 << 10)
    }
}

/// Sends bytes and tells what comes back.
pub fn say(mut stream: TcpStream, bytes: &[u8]) -> io::Result<Reply> {
    let mut answer = vec![0; bytes.len().max(7)];
    if let Err(error) = stream.write_all(bytes) {
        return closed(&error);
    }
    let mut got = 0;
    while got < answer.len() {
        match stream.read(&mut answer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(_) if got > 0 => break,
            Err(error) => return closed(&error),
        }
        if answer[0] == 22 && !bytes.starts_with(&answer[..got]) || got >= 7 && answer[0] == 21 {
            break;
        }
    }
    Ok(reply(&answer[..got], bytes))
}

fn closed(error: &io::Error) -> io::Result<Reply> {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(Reply::Closed),
        _ => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

fn reply(answer: &[u8], said: &[u8]) -> Reply {
    match answer {
        [] => Reply::Closed,
        _ if answer == said => Reply::Echoed,
        [21, 3, _, 0, 2, 2, alert, ..] => Reply::Alert(*alert),
        [22, 3, ..] => Reply::Handshake,
        other => Reply::Other(other.to_vec()),
    }
}

fn sized(bytes: Vec<u8>) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()
}

fn names(all: &[&[u8]]) -> Vec<u8> {
    let one = |name: &&[u8]| [&[0][..], &sized(name.to_vec())].concat();
    sized(all.iter().flat_map(one).collect())
}
