// SPDX-License-Identifier: Apache-2.0
//! Opens HTTP on a connection to a server.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{
    Version,
    body::Outgoing,
    io::{Io, Socket},
    server::{self, Tasks},
};
use crate::accept::Connection;

/// What requests are sent on.
#[derive(Debug)]
pub(super) enum Sender {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>, Allowed),
}

/// How many streams the server of an HTTP/2 connection allows at once.
#[derive(Clone, Debug)]
pub(super) struct Allowed(Arc<AtomicUsize>);

/// How often a peer is asked whether it is there, and how long it may take to answer, as in Linkerd.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Opens HTTP on `io`. The connection lives until all its senders are dropped.
pub(super) async fn open<S: Socket>(
    io: Io<S>,
    version: Version,
    connection: &Connection,
) -> hyper::Result<Sender> {
    let tasks = Tasks::new(connection);
    match version {
        Version::Http1 => {
            let (sender, driver) = http1_builder().handshake(TokioIo::new(io)).await?;
            tasks.spawn(driver.with_upgrades().map(noted));
            Ok(Sender::Http1(sender))
        }
        Version::Http2 => {
            let (sender, mut driver) = http2_builder(tasks.clone())
                .handshake(TokioIo::new(io))
                .await?;
            let allowed = Allowed(Arc::new(driver.current_max_send_streams().into()));
            let told = allowed.0.clone();
            tasks.spawn(poll_fn(move |cx| {
                let polled = driver.poll_unpin(cx).map(noted);
                if polled.is_pending() {
                    told.store(driver.current_max_send_streams(), Relaxed);
                }
                polled
            }));
            Ok(Sender::Http2(sender, allowed))
        }
    }
}

// === impl Allowed ===

impl Allowed {
    pub(super) fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_header_size(server::MAX_HEAD)
        .max_buf_size(server::MAX_BUFFER);
    builder
}

fn http2_builder(tasks: Tasks) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(tasks);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(server::STREAM_WINDOW)
        .initial_connection_window_size(server::CONNECTION_WINDOW)
        .max_header_list_size(server::MAX_HEADER_LIST)
        .max_send_buf_size(server::MAX_SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// The request that it concerns is told by its own error.
fn noted(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "A connection to a server ended");
    }
}
