// SPDX-License-Identifier: Apache-2.0
//! Connections that stop being HTTP: WebSocket and whatever else is agreed on by `Upgrade` (RFC 9110,
//! 7.8), and CONNECT (9.3.6). From then on they are bytes, relayed like any others.

use std::sync::Arc;

use culvert_api::agent::Direction;
use http::{Method, Request, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{
    exchange::Taken,
    headers,
    io::{Io, Socket},
};
use crate::{
    accept::Connection,
    carry::Wire,
    metrics::OpenSide,
    relay::{Ends, Meters, Relayed, relay},
    sockets::PooledStream,
    tcp,
    tls::Session,
};

/// A request for something else than HTTP.
#[derive(Debug)]
pub(super) struct Asked {
    connect: bool,
    client: OnUpgrade,
}

/// Both ends of a tunnel, once they are there.
pub(super) struct Tunnel {
    connection: Arc<Connection>,
    client: OnUpgrade,
    server: OnUpgrade,
    /// Held for as long as it lasts.
    _taken: Taken,
}

// === impl Asked ===

impl Asked {
    /// None: the request is for an answer.
    pub(super) fn of<B>(request: &mut Request<B>) -> Option<Self> {
        let connect = request.method() == Method::CONNECT;
        (connect || headers::is_upgrade(request.headers())).then(|| Self {
            connect,
            client: hyper::upgrade::on(request),
        })
    }

    /// Whether the server agrees.
    pub(super) fn is_granted<B>(&self, response: &Response<B>) -> bool {
        match self.connect {
            true => response.status().is_success(),
            false => response.status() == StatusCode::SWITCHING_PROTOCOLS,
        }
    }

    /// What the connection becomes.
    pub(super) fn tunnel<B>(
        self,
        connection: &Arc<Connection>,
        response: &mut Response<B>,
        taken: Taken,
    ) -> Tunnel {
        Tunnel {
            connection: connection.clone(),
            client: self.client,
            server: hyper::upgrade::on(response),
            _taken: taken,
        }
    }
}

// === impl Tunnel ===

impl Tunnel {
    /// Carries bytes until both ends are done.
    pub(super) async fn run(self) {
        let Self {
            connection,
            client,
            server,
            _taken,
        } = self;
        let (client, server) = match tokio::try_join!(client, server) {
            Ok(ends) => ends,
            Err(error) => {
                tracing::debug!(%error, dst = %connection.original, "A tunnel did not come about");
                return;
            }
        };
        match (End::of(client), End::of(server)) {
            (Ok(client), Ok(server)) => carry(&connection, client, server).await,
            (Err(client), Err(server)) => copy(&connection, client, server).await,
            // Both are of one version of HTTP.
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => {}
        }
    }
}

/// Both are streams of HTTP/2.
async fn copy(connection: &Connection, client: Upgraded, server: Upgraded) {
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    let copied = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    if let Err(error) = copied {
        tracing::debug!(%error, dst = %connection.original, "A tunnel broke");
    }
}

/// What [`Wire::take`] gives.
type Read = (Option<Box<Session>>, Vec<u8>, Vec<u8>);

/// An end with a connection of its own.
struct End<S> {
    socket: S,
    wire: Wire,
    open: OpenSide,
}

// === impl End ===

impl<S: Socket> End<S> {
    /// An end that is a stream of HTTP/2 comes back.
    fn of(upgraded: Upgraded) -> Result<Self, Upgraded> {
        let parts = upgraded.downcast::<TokioIo<Io<S>>>()?;
        let (stream, open) = parts.io.into_inner().into_parts();
        let (socket, wire) = stream.into_parts(&parts.read_buf);
        Ok(Self { socket, wire, open })
    }
}

async fn carry(connection: &Connection, mut client: End<TcpStream>, mut server: End<PooledStream>) {
    let half_open = connection.proxy.config.half_open_timeout;
    let meters = meters(connection.direction, &client.open, &server.open);
    let ends = ends(
        connection.direction,
        (&mut client.socket, client.wire.take()),
        (server.socket.tcp_mut(), server.wire.take()),
    );
    let relayed = relay(ends, meters, half_open).await;
    ended(connection, client, server, &relayed);
}

fn ended(
    connection: &Connection,
    mut client: End<TcpStream>,
    mut server: End<PooledStream>,
    relayed: &Relayed,
) {
    let Err(broken) = &relayed.end else {
        server.socket.abort_on_close(false);
        return tcp::abort_on_close(&client.socket, false);
    };
    client.open.broke(broken.errno());
    server.open.broke(broken.errno());
    if let Some(fault) = broken.fault() {
        connection.pod.metrics().fault(connection.direction, fault);
    }
    tracing::debug!(%broken, dst = %connection.original, "A tunnel broke");
    server.socket.reset();
    tcp::reset(client.socket);
}

/// The application's side is never encrypted.
fn ends<'a>(
    direction: Direction,
    client: (&'a mut TcpStream, Read),
    server: (&'a mut TcpStream, Read),
) -> Ends<'a> {
    let ((app, (_, early, _)), (wire, (session, plain, sealed))) = match direction {
        Direction::Outbound => (client, server),
        Direction::Inbound => (server, client),
    };
    Ends {
        app,
        wire,
        session,
        plain,
        sealed,
        early,
        counted: true,
    }
}

fn meters(direction: Direction, client: &OpenSide, server: &OpenSide) -> Meters {
    let (client, server) = (client.meter().clone(), server.meter().clone());
    let (app, wire) = match direction {
        Direction::Outbound => (client, server),
        Direction::Inbound => (server, client),
    };
    Meters { app, wire }
}
