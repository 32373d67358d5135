// SPDX-License-Identifier: Apache-2.0
//! One server of an application's requests: an endpoint, or whoever was dialled.

use std::{error::Error, io, net::SocketAddr, sync::Arc};

use culvert_api::identity::Identity;
use http::Request;
use http_body::Body as _;
use hyper::client::conn::TrySendError;

use super::super::{
    Version,
    body::{BodyError, Outgoing},
    client::{self, Sender},
    host::{Host, Lease},
    io::Io,
    pool::Key,
    respond::{Cause, ProxyError},
};
use crate::{
    accept::Connection,
    balance::Choice,
    destinations::{Endpoint, Resolved},
    metrics::{HttpLeg, HttpSeries, Leg, Peer, Tls},
    outbound::{DialError, Dialler, Streaming, leg},
    tls::Alpn,
};

/// Who answers, how it is reached, and what its answers are counted as.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) to: SocketAddr,
    /// It is meshed: it is dialled with TLS.
    pub(super) is_peer: bool,
    pub(super) host: Arc<Host>,
    pub(super) series: Arc<HttpSeries>,
    version: Version,
    endpoint: Option<Endpoint>,
    leg: Leg,
}

/// Why a request was not answered by a server.
#[derive(Debug)]
pub(super) enum Missed {
    /// The server, or what is wrong with the client, would be the same again.
    Final(ProxyError),
    /// No application has got anything of it, or it may be sent twice.
    Again {
        error: ProxyError,
        unsent: Box<Request<Outgoing>>,
        elsewhere: bool,
    },
}

// === impl Server ===

impl Server {
    pub(super) fn new(
        connection: &Connection,
        version: Version,
        endpoint: Option<&Endpoint>,
        is_peer: bool,
        resolved: &Resolved,
    ) -> Self {
        let to = endpoint.map_or(connection.original, |endpoint| endpoint.addr);
        let peer = endpoint.filter(|_| is_peer);
        let tls = if is_peer {
            Tls::Mutual
        } else {
            Tls::NoIdentity
        };
        let leg = leg(tls, resolved, endpoint);
        let counted = HttpLeg {
            leg: leg.clone(),
            authority: authority(resolved),
        };
        Self {
            to,
            is_peer,
            host: connection.pod.http.host(Key {
                source: connection.source.ip(),
                to,
                peer: peer.map(|endpoint| endpoint.identity.clone()),
                version,
            }),
            series: connection.pod.metrics().http(&counted),
            version,
            endpoint: endpoint.cloned(),
            leg,
        }
    }

    pub(super) fn is(&self, endpoint: Option<&Endpoint>, is_peer: bool) -> bool {
        self.is_peer == is_peer && self.endpoint.as_ref() == endpoint
    }

    /// Who TLS proves it to be.
    pub(super) fn peer(&self) -> Option<&Identity> {
        let peer = self.endpoint.as_ref().filter(|_| self.is_peer);
        peer.map(|endpoint| &endpoint.identity)
    }

    /// A connection that is open, or a new one.
    pub(super) async fn lease(
        &self,
        connection: &Connection,
        choice: Option<&Choice>,
    ) -> Result<Lease, DialError> {
        if let Some(lease) = self.host.lease() {
            return Ok(lease);
        }
        let opening = self.host.opening().await;
        if let Some(lease) = opening.as_ref().and_then(|_| self.host.lease()) {
            return Ok(lease);
        }
        if choice.is_some_and(|choice| !choice.is_open()) {
            // Whoever dialled it before has found nobody there.
            return Err(self.broken(io::ErrorKind::ConnectionRefused.into()));
        }
        let sender = self.dial(connection, choice).await?;
        Ok(self.host.opened(sender))
    }

    async fn dial(
        &self,
        connection: &Connection,
        choice: Option<&Choice>,
    ) -> Result<Sender, DialError> {
        let dialler = Dialler::new(connection);
        let _dialling = connection.pod.metrics().dialling();
        let begun = std::time::Instant::now();
        let dialled = match &self.endpoint {
            Some(endpoint) => dialler.endpoint(endpoint, self.alpn()).await?,
            None => dialler.plain(self.to).await?,
        };
        if let Some(choice) = choice {
            choice.connected(begun.elapsed());
        }
        let opened = self.open(connection, dialled.into_stream()).await;
        opened.map_err(|error| self.broken(error))
    }

    /// Begins HTTP on a connection, unless it is not what the others are that it would be among: the
    /// pod's addresses, which are dialled in plaintext, may have changed meanwhile.
    pub(super) async fn open(
        &self,
        connection: &Connection,
        dialled: Streaming,
    ) -> io::Result<Sender> {
        if (dialled.tls == Tls::Mutual) != self.is_peer {
            return Err(io::Error::other("it was dialled as another kind of server"));
        }
        let mut leg = self.leg.clone();
        leg.tls = dialled.tls;
        let open = connection.pod.metrics().open_side(leg, Peer::Destination);
        let opened = client::open(Io::new(dialled.stream, open), self.version, connection);
        opened.await.map_err(io::Error::other)
    }

    fn alpn(&self) -> Alpn {
        match self.version {
            Version::Http1 => Alpn::Http1,
            Version::Http2 => Alpn::H2,
        }
    }

    fn broken(&self, error: io::Error) -> DialError {
        DialError::Connect { to: self.to, error }
    }
}

/// The service that was dialled, by the name that every pod may use for it.
fn authority(resolved: &Resolved) -> Arc<str> {
    match resolved {
        Resolved::Service(service) => service.authority().into(),
        Resolved::Pod(_) | Resolved::Unknown => "".into(),
    }
}

// === impl Missed ===

impl Missed {
    /// There is no connection.
    pub(super) fn dial(error: &DialError, unsent: Request<Outgoing>) -> Self {
        match error.is_final() {
            true => Self::Final(not_dialled(error)),
            false => Self::Again {
                error: not_dialled(error),
                unsent: Box::new(unsent),
                elsewhere: true,
            },
        }
    }

    /// The server's proxy says that it did not reach the application.
    pub(super) fn unreached(unsent: Request<Outgoing>) -> Self {
        Self::Again {
            error: Cause::Refused.into(),
            unsent: Box::new(unsent),
            elsewhere: true,
        }
    }

    /// The connection broke. `copy` is the request again, where there is one; `fresh`: the server has not
    /// answered anything on it.
    pub(super) fn sent(
        mut error: TrySendError<Request<Outgoing>>,
        copy: Option<Request<Outgoing>>,
        fresh: bool,
    ) -> Self {
        let unsent = error.take_message();
        let again = |copy: &Request<Outgoing>| {
            is_unprocessed(error.error()) || (!fresh && copy.method().is_idempotent())
        };
        match unsent.or(copy.filter(again)) {
            Some(unsent) => Self::Again {
                error: broke(error.error()),
                unsent: Box::new(unsent),
                elsewhere: fresh,
            },
            None => Self::Final(broke(error.error())),
        }
    }
}

/// A copy of a request that has no body: it may be sent twice if the first did not arrive, or if that
/// changes nothing (RFC 9110, 9.2.2).
pub(in crate::http) fn copy(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    request.body().is_end_stream().then(|| {
        let mut copy = Request::new(Outgoing::default());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        copy.headers_mut().clone_from(request.headers());
        copy.extensions_mut().clone_from(request.extensions());
        copy
    })
}

/// A server of HTTP/2 says that it has not looked at the request (RFC 9113, 6.8 and 8.7).
fn is_unprocessed(error: &hyper::Error) -> bool {
    let error = error.source().and_then(|it| it.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote()
            && (refused || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)))
    })
}

fn not_dialled(error: &DialError) -> ProxyError {
    match error {
        DialError::Connect { error, .. } if error.kind() == io::ErrorKind::TimedOut => {
            Cause::ConnectTimeout.into()
        }
        DialError::Connect { .. } => Cause::Refused.into(),
        error => error.fault().into(),
    }
}

/// A connection that was open broke, its server answered nonsense, or the client did not send all.
pub(in crate::http) fn broke(error: &hyper::Error) -> ProxyError {
    let body = error.source().and_then(|it| it.downcast_ref());
    match body {
        Some(body) => BodyError::cause(body).into(),
        None if error.is_parse() => Cause::BadResponse.into(),
        None => Cause::Io.into(),
    }
}
