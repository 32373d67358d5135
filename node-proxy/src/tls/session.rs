// SPDX-License-Identifier: Apache-2.0
//! One TLS connection's state, without any buffer: rustls's unbuffered connections decrypt and
//! encrypt in the caller's, so that an idle connection holds none.
//!
//! What rustls itself wants to say (handshake, key updates, alerts) collects in `control` and has
//! to be written before anything that is encrypted later.

use std::{fmt, mem};

use rustls::{
    CommonState, Error,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};
use rustls_pki_types::CertificateDer;

/// One side of a TLS connection.
pub(crate) struct Session {
    connection: Connection,
    control: Vec<u8>,
    peer_closed: bool,
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What [`Session::open`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Bytes that were used up, to be removed from the front of what was given.
    pub(crate) consumed: usize,
    /// Bytes of plaintext that were written.
    pub(crate) written: usize,
}

/// What one step of rustls was.
enum Step {
    /// There may be more to do with the same input.
    Again,
    /// More input is needed, or there is nothing to do.
    Idle,
}

// === impl Session ===

impl Session {
    /// The side that dialled.
    pub(crate) fn client(connection: UnbufferedClientConnection) -> Self {
        Self::new(Connection::Client(connection))
    }

    /// The side that accepted.
    pub(crate) fn server(connection: UnbufferedServerConnection) -> Self {
        Self::new(Connection::Server(connection))
    }

    fn new(connection: Connection) -> Self {
        Self {
            connection,
            control: Vec::new(),
            peer_closed: false,
        }
    }

    /// The peer's chain, leaf first; of a resumed session the one that it began with.
    pub(crate) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.state().peer_certificates()
    }

    /// The protocol that both sides agreed on.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.state().alpn_protocol()
    }

    /// Whether the handshake still goes on.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.state().is_handshaking()
    }

    /// Whether the session continues an earlier one, without certificates on the wire.
    #[cfg(test)]
    pub(crate) fn is_resumed(&self) -> bool {
        self.state().handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// Whether the peer said that it sends no more.
    pub(crate) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// What rustls wants written now. Leaves nothing behind.
    pub(crate) fn take_control(&mut self) -> Vec<u8> {
        mem::take(&mut self.control)
    }

    /// Has `bytes`, which were taken or sealed and not written, written before all that is still to
    /// come.
    pub(crate) fn say_first(&mut self, bytes: &[u8]) {
        self.control.splice(..0, bytes.iter().copied());
    }

    /// What is to be written after [`Self::open`] failed: the alert that says why. rustls must not
    /// look at the offending record again, so it is asked no oftener than it has something to say.
    pub(crate) fn last_words(&mut self, incoming: &mut [u8]) -> Vec<u8> {
        while self.state().wants_write() {
            let (_, step) = self.step(incoming, &mut [], &mut 0);
            if step.is_err() {
                break;
            }
        }
        self.take_control()
    }

    /// Decrypts every complete record of `incoming` into `plain`, which is at least as long.
    /// What is left over has to be given again, in the same place or moved, with more behind it.
    pub(crate) fn open(&mut self, incoming: &mut [u8], plain: &mut [u8]) -> Result<Opened, Error> {
        let mut opened = Opened {
            consumed: 0,
            written: 0,
        };
        loop {
            let rest = incoming.get_mut(opened.consumed..).unwrap_or_default();
            let to = plain.get_mut(opened.written..).unwrap_or_default();
            let (discard, step) = self.step(rest, to, &mut opened.written);
            opened.consumed += discard;
            match step? {
                Step::Again => {}
                Step::Idle => return Ok(opened),
            }
        }
    }

    /// Encrypts all of `plain` into `out` and says how much that became. `incoming` is what was
    /// left over by [`Self::open`]. [`Self::take_control`] comes before `out` on the wire.
    pub(crate) fn seal(
        &mut self,
        incoming: &mut [u8],
        plain: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        self.write(incoming, |traffic| traffic.encrypt(plain, out))
    }

    /// Says that nothing more is sent.
    pub(crate) fn close(&mut self, incoming: &mut [u8], out: &mut [u8]) -> Result<usize, Error> {
        self.write(incoming, |traffic| traffic.close(out))
    }

    fn state(&self) -> &CommonState {
        match &self.connection {
            Connection::Client(connection) => connection,
            Connection::Server(connection) => connection,
        }
    }

    fn step(
        &mut self,
        incoming: &mut [u8],
        plain: &mut [u8],
        written: &mut usize,
    ) -> (usize, Result<Step, Error>) {
        let mut sink = Sink {
            plain,
            written,
            control: &mut self.control,
            peer_closed: &mut self.peer_closed,
        };
        match &mut self.connection {
            Connection::Client(connection) => sink.take(connection.process_tls_records(incoming)),
            Connection::Server(connection) => sink.take(connection.process_tls_records(incoming)),
        }
    }

    /// `incoming` was opened before, so that it holds no complete record: rustls consumes nothing.
    fn write(
        &mut self,
        incoming: &mut [u8],
        mut with: impl FnMut(&mut dyn Traffic) -> Result<usize, EncryptError>,
    ) -> Result<usize, Error> {
        loop {
            let control = &mut self.control;
            let written = match &mut self.connection {
                Connection::Client(connection) => {
                    traffic(connection.process_tls_records(incoming), control, &mut with)
                }
                Connection::Server(connection) => {
                    traffic(connection.process_tls_records(incoming), control, &mut with)
                }
            };
            if let Some(written) = written? {
                return Ok(written);
            }
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer_closed", &self.peer_closed)
            .finish_non_exhaustive()
    }
}

/// Where the outcome of a step goes.
struct Sink<'a> {
    plain: &'a mut [u8],
    written: &'a mut usize,
    control: &'a mut Vec<u8>,
    peer_closed: &'a mut bool,
}

impl Sink<'_> {
    fn take<D>(&mut self, status: UnbufferedStatus<'_, '_, D>) -> (usize, Result<Step, Error>) {
        let UnbufferedStatus { mut discard, state } = status;
        let step = state.and_then(|state| self.state(state, &mut discard));
        (discard, step)
    }

    fn state<D>(
        &mut self,
        state: ConnectionState<'_, '_, D>,
        discard: &mut usize,
    ) -> Result<Step, Error> {
        match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    *discard += record.discard;
                    self.plain(record.payload)?;
                }
                Ok(Step::Again)
            }
            ConnectionState::EncodeTlsData(data) => encode(data, self.control),
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                Ok(Step::Again)
            }
            ConnectionState::PeerClosed => {
                *self.peer_closed = true;
                Ok(Step::Again)
            }
            _ => Ok(Step::Idle),
        }
    }

    fn plain(&mut self, payload: &[u8]) -> Result<(), Error> {
        let to = mem::take(&mut self.plain);
        let Some((to, rest)) = to.split_at_mut_checked(payload.len()) else {
            return Err(Error::General("more plaintext than ciphertext".into()));
        };
        to.copy_from_slice(payload);
        self.plain = rest;
        *self.written += payload.len();
        Ok(())
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, control: &mut Vec<u8>) -> Result<Step, Error> {
    let at = control.len();
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        control.resize(at + size.required_size, 0);
        let encoded = data.encode(control.get_mut(at..).unwrap_or_default());
        encoded.map_err(|error| Error::General(error.to_string()))?;
    }
    Ok(Step::Again)
}

/// The two things that are written once the handshake is done, whatever the side.
trait Traffic {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError>;
    fn close(&mut self, out: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<D> Traffic for rustls::unbuffered::WriteTraffic<'_, D> {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError> {
        Self::encrypt(self, plain, out)
    }

    fn close(&mut self, out: &mut [u8]) -> Result<usize, EncryptError> {
        self.queue_close_notify(out)
    }
}

fn traffic<D>(
    status: UnbufferedStatus<'_, '_, D>,
    control: &mut Vec<u8>,
    with: &mut impl FnMut(&mut dyn Traffic) -> Result<usize, EncryptError>,
) -> Result<Option<usize>, Error> {
    match status.state? {
        ConnectionState::WriteTraffic(mut traffic) => {
            let written = with(&mut traffic);
            written
                .map(Some)
                .map_err(|error| Error::General(error.to_string()))
        }
        ConnectionState::EncodeTlsData(data) => encode(data, control).map(|_| None),
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(None)
        }
        other => Err(Error::General(format!("can't write now: {other:?}"))),
    }
}
