// SPDX-License-Identifier: Apache-2.0
//! A leg from the pod to one address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use culvert_api::{agent::Direction, identity::Identity};
use rustls::{client::UnbufferedClientConnection, pki_types::ServerName};
use tokio::time::timeout;

use crate::{
    accept::{Connection, Refused},
    carry::Wire,
    destinations::Endpoint,
    identities::NoCertificate,
    metrics::{Fault, Tls},
    sockets::PooledStream,
    tcp,
    tls::{self, Alpn, Credentials, HandshakeError, Handshaken, PeerError, Session, Stream},
};

/// Dials for one connection of an application.
#[derive(Debug)]
pub(crate) struct Dialler<'a> {
    connection: &'a Connection,
    own: Arc<Vec<IpAddr>>,
}

/// A leg.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) stream: PooledStream,
    pub(crate) tls: Tls,
    pub(crate) to: SocketAddr,
    pub(crate) wire: Wire,
}

/// A leg that bytes are read from and written to.
#[derive(Debug)]
pub(crate) struct Streaming {
    pub(crate) stream: Stream<PooledStream>,
    pub(crate) tls: Tls,
    pub(crate) to: SocketAddr,
}

/// There is no leg. Never answered by trying with less.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody answered, or with RST.
    #[error("could not dial {to}: {error}")]
    Connect {
        /// Who was dialled.
        to: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The peer did not take the handshake, or this side did not take the peer.
    #[error("the handshake with {to} failed: {error}")]
    Handshake {
        /// Who was dialled.
        to: SocketAddr,
        /// Why.
        error: HandshakeError,
    },
    /// The handshake did not end.
    #[error("the handshake with {to} took too long")]
    Slow {
        /// Who was dialled.
        to: SocketAddr,
    },
    /// The peer is somebody else.
    #[error("the peer at {to} proved another identity: {error}")]
    Peer {
        /// Who was dialled.
        to: SocketAddr,
        /// What is wrong with it.
        error: PeerError,
    },
    /// The peer chose no protocol of this release.
    #[error("{to} agreed to no protocol of this release")]
    Protocol {
        /// Who was dialled.
        to: SocketAddr,
    },
    /// This workload can't prove its own identity.
    #[error(transparent)]
    NoCertificate(#[from] NoCertificate),
    /// It would come back to this proxy.
    #[error("{0}")]
    Loop(Refused),
}

// === impl Dialled ===

impl Dialled {
    pub(crate) fn into_stream(self) -> Streaming {
        Streaming {
            stream: self.wire.into_stream(self.stream),
            tls: self.tls,
            to: self.to,
        }
    }
}

// === impl Streaming ===

impl Streaming {
    /// As it is, `read` being what was read of it and is to be read again.
    pub(crate) fn after(self, read: &[u8]) -> Self {
        self.into_dialled(read).into_stream()
    }

    /// Back again, `read` being what was read of it.
    pub(crate) fn into_dialled(self, read: &[u8]) -> Dialled {
        let (stream, wire) = self.stream.into_parts(read);
        Dialled {
            stream,
            tls: self.tls,
            to: self.to,
            wire,
        }
    }
}

// === impl Dialler ===

impl<'a> Dialler<'a> {
    pub(crate) fn new(connection: &'a Connection) -> Self {
        Self {
            own: connection.pod.addresses(),
            connection,
        }
    }

    /// Dials an endpoint: with mutual TLS if it is meshed, unless it is the pod itself.
    pub(crate) async fn endpoint(
        &self,
        endpoint: &Endpoint,
        alpn: Alpn,
    ) -> Result<Dialled, DialError> {
        let to = endpoint.addr;
        match self.is_encrypted(endpoint) {
            true => self.meshed(to, &endpoint.identity, alpn).await,
            false => self.plain(to).await,
        }
    }

    /// Whether an endpoint is dialled with mutual TLS.
    pub(crate) fn is_encrypted(&self, endpoint: &Endpoint) -> bool {
        endpoint.meshed && !self.is_own(endpoint.addr.ip())
    }

    /// Dials without TLS.
    pub(crate) async fn plain(&self, to: SocketAddr) -> Result<Dialled, DialError> {
        let tls = if self.is_own(to.ip()) {
            Tls::Loopback
        } else {
            Tls::NoIdentity
        };
        Ok(Dialled {
            stream: self.connect(to, false).await?,
            tls,
            to,
            wire: Wire::Plain(Vec::new()),
        })
    }

    /// A peer that does not answer in TLS may have left the mesh a moment ago: it gets a second
    /// chance, on a new connection and with TLS again.
    async fn meshed(
        &self,
        to: SocketAddr,
        peer: &Identity,
        alpn: Alpn,
    ) -> Result<Dialled, DialError> {
        let proxy = &self.connection.proxy;
        let own = &self.connection.pod.identity;
        let credentials = proxy.identities.credentials(own).await?;
        match self.mutual(to, (peer, alpn), &credentials).await {
            Err(error) if error.is_not_tls() => {
                let metrics = self.connection.pod.metrics();
                metrics.fault(Direction::Outbound, Fault::NotTls);
                self.mutual(to, (peer, alpn), &credentials).await
            }
            other => other,
        }
    }

    async fn mutual(
        &self,
        to: SocketAddr,
        (peer, alpn): (&Identity, Alpn),
        credentials: &Credentials,
    ) -> Result<Dialled, DialError> {
        // Made before the connection, so that the ClientHello goes out with its first segment.
        let session = self.session(peer, alpn, credentials);
        let session = session.map_err(|error| failed(to, error.into()))?;
        let mut stream = self.connect(to, true).await?;
        let limit = self.connection.proxy.config.handshake_timeout;
        let handshake = tls::handshake(session, stream.tcp_mut(), Vec::new());
        let done = match timeout(limit, handshake).await {
            Err(_) => Err(DialError::Slow { to }),
            Ok(done) => done.map_err(|error| failed(to, error)),
        };
        match done.and_then(|done| self.check(to, (peer, alpn), done)) {
            Ok(done) => Ok(Dialled {
                stream,
                tls: Tls::Mutual,
                to,
                wire: Wire::Mutual(done),
            }),
            Err(error) => {
                tcp::drained(stream.tcp()).await;
                stream.reset();
                Err(error)
            }
        }
    }

    fn session(
        &self,
        peer: &Identity,
        alpn: Alpn,
        credentials: &Credentials,
    ) -> Result<Box<Session>, rustls::Error> {
        let name = self.connection.proxy.domain.server_name(peer);
        let name = ServerName::try_from(name)
            .map_err(|_| rustls::Error::General(format!("{peer} makes no DNS name")))?;
        let config = credentials.client.clone();
        let connection = UnbufferedClientConnection::new_with_alpn(config, name, alpn.offers())?;
        Ok(Box::new(Session::client(connection)))
    }

    /// Exactly who was dialled. A resumed session did not ask the verifier, so it is asked here.
    fn check(
        &self,
        to: SocketAddr,
        (expected, offered): (&Identity, Alpn),
        done: Handshaken,
    ) -> Result<Handshaken, DialError> {
        let got = tls::peer(&done.session, &self.connection.proxy.domain)
            .map_err(|error| DialError::Peer { to, error })?;
        if got != *expected {
            let (got, expected) = (Box::new(got), Box::new(expected.clone()));
            let error = PeerError::Other { got, expected };
            return Err(DialError::Peer { to, error });
        }
        match done.session.alpn().and_then(Alpn::of) {
            Some(agreed) if agreed == offered || agreed == Alpn::Tcp => Ok(done),
            _ => Err(DialError::Protocol { to }),
        }
    }

    async fn connect(&self, to: SocketAddr, defer: bool) -> Result<PooledStream, DialError> {
        let connection = self.connection;
        connection.check_loop(to).map_err(DialError::Loop)?;
        let limit = connection.proxy.config.outbound_connect_timeout;
        let sockets = &connection.pod.sockets;
        let stream = sockets.dial(to, self.source(to), limit, defer).await;
        stream.map_err(|error| DialError::Connect { to, error })
    }

    /// The address that the application chose, where there is a choice: with one address per family
    /// the kernel finds it.
    fn source(&self, to: SocketAddr) -> Option<IpAddr> {
        let source = self.connection.source.ip();
        let same = |ip: &&IpAddr| ip.is_ipv4() == to.is_ipv4();
        let choice = self.own.iter().filter(same).count() > 1;
        let fits = source.is_ipv4() == to.is_ipv4() && self.is_own(source);
        (choice && fits).then_some(source)
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        self.own.contains(&ip)
    }
}

fn failed(to: SocketAddr, error: HandshakeError) -> DialError {
    DialError::Handshake { to, error }
}

// === impl DialError ===

impl DialError {
    /// Whether another endpoint would fare no better.
    pub(crate) fn is_final(&self) -> bool {
        self.is_not_tls() || matches!(self, Self::NoCertificate(_) | Self::Loop(_))
    }

    /// What it counts as.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            _ if self.is_not_tls() => Fault::NotTls,
            Self::Connect { .. } => Fault::Io,
            Self::Handshake { .. } | Self::Slow { .. } => Fault::Tls,
            Self::Peer { .. } => Fault::PeerIdentity,
            Self::Protocol { .. } => Fault::NoApplicationProtocol,
            Self::NoCertificate(_) => Fault::NoCertificate,
            Self::Loop(refused) => refused.fault,
        }
    }

    fn is_not_tls(&self) -> bool {
        matches!(
            self,
            Self::Handshake {
                error: HandshakeError::NotTls { .. },
                ..
            }
        )
    }
}
