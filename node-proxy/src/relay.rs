// SPDX-License-Identifier: Apache-2.0
//! Carries bytes between an application and the wire, and each side's end to the other faithfully.
//!
//! | one side | the other side |
//! |---|---|
//! | FIN, after close_notify if it is TLS | the same; the other direction goes on |
//! | FIN without close_notify: cut off | RST |
//! | RST | RST, once what came before it has arrived |
//!
//! One future per connection, polled by hand: two directions, no lock, buffers only while bytes
//! move ([`crate::buffer`]), a timer only while something is waited for ([`watch`]).

mod chunk;
mod pump;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
    time::Duration,
};

use nix::errno::Errno;
use tokio::net::TcpStream;

use self::{pump::Pumps, watch::Watch};
use crate::{
    metrics::{Fault, Meter},
    tcp,
    tls::Session,
};

/// The two ends of a connection.
#[derive(Debug)]
pub(crate) struct Ends<'a> {
    /// The application's side, in plaintext.
    pub(crate) app: &'a mut TcpStream,
    /// The peer's side.
    pub(crate) wire: &'a mut TcpStream,
    /// What the wire is encrypted with.
    pub(crate) session: Option<Box<Session>>,
    /// What was read from the wire already, decrypted.
    pub(crate) plain: Vec<u8>,
    /// What was read from the wire already, not yet decrypted.
    pub(crate) sealed: Vec<u8>,
    /// What was read from the application already.
    pub(crate) early: Vec<u8>,
    /// What was read already is in the meters.
    pub(crate) counted: bool,
}

/// Where bytes are counted.
#[derive(Debug)]
pub(crate) struct Meters {
    pub(crate) app: Meter,
    pub(crate) wire: Meter,
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) struct Relayed {
    /// Bytes from the application.
    pub(crate) up: u64,
    /// Bytes to the application.
    pub(crate) down: u64,
    /// Whether both directions ended with FIN. If not, both ends have to be reset.
    pub(crate) end: Result<(), Broken>,
}

/// Why a connection did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The application's side.
    #[error("the application's connection broke: {0}")]
    App(io::Error),
    /// The wire's side.
    #[error("the peer's connection broke: {0}")]
    Wire(io::Error),
    /// FIN without close_notify.
    #[error("the peer's stream was cut off: it ended without close_notify")]
    Truncated,
    /// A record that is forged or malformed.
    #[error("the peer broke the TLS protocol: {0}")]
    Tls(rustls::Error),
    /// One direction ended, and nothing moved in the other.
    #[error("one direction ended and nothing moved in the other")]
    HalfOpen,
    /// What was sent is not acknowledged.
    #[error("the peer does not acknowledge what was sent")]
    Dead,
}

/// Relays until both directions ended or the connection broke. Whatever was read before a break is
/// given a second to arrive; then the caller resets both ends.
pub(crate) async fn relay(mut ends: Ends<'_>, meters: Meters, half_open: Duration) -> Relayed {
    let relayed = run(&mut ends, meters, half_open).await;
    if let Err(broken) = &relayed.end {
        settle(&ends, broken).await;
    }
    relayed
}

async fn run(ends: &mut Ends<'_>, meters: Meters, half_open: Duration) -> Relayed {
    let mut watch = Watch::new(half_open);
    let mut pumps = Pumps::new(ends, meters);
    let end = poll_fn(|cx| poll(&mut pumps, &mut watch, cx)).await;
    Relayed {
        up: pumps.up(),
        down: pumps.down(),
        end,
    }
}

fn poll(
    pumps: &mut Pumps<'_>,
    watch: &mut Watch,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Broken>> {
    if let Poll::Ready(end) = pumps.poll(cx) {
        return Poll::Ready(end);
    }
    watch.poll(pumps, cx).map(Err)
}

/// Lets what was written arrive before the reset that follows throws it away.
async fn settle(ends: &Ends<'_>, broken: &Broken) {
    match broken {
        Broken::App(_) => tcp::drained(ends.wire).await,
        Broken::Wire(_) | Broken::Truncated => tcp::drained(ends.app).await,
        // The alert that says what was wrong.
        Broken::Tls(_) => {
            tokio::join!(tcp::drained(ends.wire), tcp::drained(ends.app));
        }
        Broken::HalfOpen | Broken::Dead => {}
    }
}

// === impl Broken ===

impl Broken {
    /// The name of the error for `tcp_close_total`.
    pub(crate) fn errno(&self) -> String {
        let errno = match self {
            Self::App(error) | Self::Wire(error) => error.raw_os_error().map(Errno::from_raw),
            Self::HalfOpen | Self::Dead => Some(Errno::ETIMEDOUT),
            Self::Truncated | Self::Tls(_) => Some(Errno::EPROTO),
        };
        format!("{:?}", errno.unwrap_or(Errno::ECONNRESET))
    }

    /// What it counts as beside a closed connection. That an end resets is its own affair.
    pub(crate) fn fault(&self) -> Option<Fault> {
        match self {
            Self::App(_) | Self::Wire(_) => None,
            Self::Truncated | Self::Tls(_) => Some(Fault::Tls),
            Self::HalfOpen => Some(Fault::HalfOpen),
            Self::Dead => Some(Fault::PeerTimeout),
        }
    }
}
