// SPDX-License-Identifier: Apache-2.0
//! Layer 7: HTTP/1 and HTTP/2, a request at a time, streamed in both directions.
//!
//! | | towards who dialled | towards who answers |
//! |---|---|---|
//! | [`outbound`] | the application | endpoints, chosen per request; connections from the pod's [`pool`] |
//! | [`inbound`] | the wire | the application, one connection for each of the wire's |
//!
//! A request is served ([`server`]), sent on a connection of a [`host`], and accounted for from its
//! arrival to the end of its answer ([`exchange`]). Bodies pass through ([`body`]).

mod body;
mod classify;
mod client;
mod conversation;
mod exchange;
mod expect;
mod headers;
mod host;
pub(crate) mod inbound;
mod io;
mod logged;
pub(crate) mod outbound;
mod pool;
mod premature;
mod required;
mod respond;
mod served;
mod server;
mod streams;
mod target;
#[cfg(test)]
mod tests;
mod upgrade;

use crate::detect::Protocol;

pub(crate) use self::{classify::Class, pool::Pool};

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    /// HTTP/1.0 and HTTP/1.1 (RFC 9112).
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113).
    Http2,
}

impl Version {
    /// What HTTP a connection speaks, if it does.
    pub(crate) fn of(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::Http1 => Some(Self::Http1),
            Protocol::Http2 => Some(Self::Http2),
            Protocol::Tls | Protocol::Opaque => None,
        }
    }
}
