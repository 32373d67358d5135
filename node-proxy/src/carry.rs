// SPDX-License-Identifier: Apache-2.0
//! What happens to a connection of either direction once both its legs stand: bytes, until it ends.

#[cfg(test)]
pub(crate) mod tests;

use std::{future::Future, net::SocketAddr};

use culvert_api::agent::Direction;

use crate::{
    accept::{Accepted, Summary},
    metrics::{Leg, OpenLeg},
    relay::{Ends, Meters, Relayed, relay},
    sockets::PooledStream,
    tcp,
    tls::{Handshaken, Session, Stream},
};

/// A connection with both legs.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) accepted: Accepted,
    /// The other leg: to the application inbound, to the endpoint outbound.
    pub(crate) dialled: PooledStream,
    pub(crate) leg: Leg,
    pub(crate) wire: Wire,
    /// What was already read of the application's bytes.
    pub(crate) early: Vec<u8>,
    pub(crate) dst: SocketAddr,
    pub(crate) endpoint: Option<String>,
}

/// What goes over the leg that leaves the pod.
#[derive(Debug)]
pub(crate) enum Wire {
    /// The application's bytes as they are, and what was already read of them.
    Plain(Vec<u8>),
    /// Mutual TLS.
    Mutual(Handshaken),
}

/// Carries a connection to its end, or until `revoked` is ready: then both legs are reset.
pub(crate) async fn carry(mut carried: Carried, revoked: impl Future<Output = ()>) {
    let open = carried
        .accepted
        .connection
        .pod
        .metrics()
        .open(carried.leg.clone());
    let half_open = carried.accepted.connection.proxy.config.half_open_timeout;
    let meters = meters(carried.accepted.connection.direction, &open);
    carried.dialled.abort_on_close(true);
    let relayed = unless(revoked, relay(carried.ends(), meters, half_open)).await;
    match relayed {
        Some(relayed) => carried.ended(open, &relayed),
        None => carried.revoked(open),
    }
}

/// Once `revoked` is ready, `relay` moves nothing any more.
async fn unless<T>(revoked: impl Future<Output = ()>, relay: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = revoked => None,
        relayed = relay => Some(relayed),
    }
}

fn meters(direction: Direction, open: &OpenLeg) -> Meters {
    let (source, destination) = (open.source(), open.destination());
    match direction {
        Direction::Inbound => Meters {
            app: destination,
            wire: source,
        },
        Direction::Outbound => Meters {
            app: source,
            wire: destination,
        },
    }
}

// === impl Carried ===

impl Carried {
    fn ends(&mut self) -> Ends<'_> {
        let (session, plain, sealed) = self.wire.take();
        let early = std::mem::take(&mut self.early);
        let (accepted, dialled) = (&mut self.accepted.tcp, self.dialled.tcp_mut());
        let (app, wire) = match self.accepted.connection.direction {
            Direction::Inbound => (dialled, accepted),
            Direction::Outbound => (accepted, dialled),
        };
        Ends {
            app,
            wire,
            session,
            plain,
            sealed,
            early,
            counted: false,
        }
    }

    fn ended(mut self, open: OpenLeg, relayed: &Relayed) {
        let bytes = match self.accepted.connection.direction {
            Direction::Inbound => (relayed.down, relayed.up),
            Direction::Outbound => (relayed.up, relayed.down),
        };
        let Err(broken) = &relayed.end else {
            self.close_in_order();
            open.close(String::new());
            return self.log(bytes, None);
        };
        open.close(broken.errno());
        if let Some(fault) = broken.fault() {
            let connection = &self.accepted.connection;
            connection.pod.metrics().fault(connection.direction, fault);
        }
        self.log(bytes, Some(broken.to_string()));
        self.reset();
    }

    fn revoked(self, open: OpenLeg) {
        open.close("EACCES".into());
        self.log(
            (0, 0),
            Some("the policy changed and no longer lets the client in".into()),
        );
        self.reset();
    }

    /// Both directions have ended: what is still to be sent is.
    fn close_in_order(&mut self) {
        self.dialled.abort_on_close(false);
        tcp::abort_on_close(&self.accepted.tcp, false);
    }

    fn log(&self, bytes: (u64, u64), error: Option<String>) {
        self.accepted.connection.log(&Summary {
            leg: &self.leg,
            dst: Some(self.dst),
            endpoint: self.endpoint.as_deref(),
            bytes,
            error,
        });
    }

    fn reset(self) {
        self.dialled.reset();
        tcp::reset(self.accepted.tcp);
    }
}

// === impl Wire ===

impl Wire {
    /// What is read from and written to `socket` with it.
    pub(crate) fn into_stream<S>(self, socket: S) -> Stream<S> {
        match self {
            Self::Plain(early) => Stream::plain(socket, early),
            Self::Mutual(done) => Stream::mutual(socket, done),
        }
    }

    /// The session, and what was read: decrypted, and not yet.
    pub(crate) fn take(&mut self) -> (Option<Box<Session>>, Vec<u8>, Vec<u8>) {
        match std::mem::replace(self, Self::Plain(Vec::new())) {
            Self::Plain(plain) => (None, plain, Vec::new()),
            Self::Mutual(done) => (Some(done.session), done.plain, done.sealed),
        }
    }
}
