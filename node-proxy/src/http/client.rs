// SPDX-License-Identifier: Apache-2.0
//! Opens HTTP on a connection to a server.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    streams::Streams,
};
use crate::accept::Connection;

/// What requests are sent on.
#[derive(Debug)]
pub(super) enum Sender {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>, Allowed),
}

/// How many streams the server of an HTTP/2 connection allows at once.
pub(super) struct Allowed(Box<dyn Fn() -> usize + Send + Sync>);

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
            let streams = Streams::new(tasks.clone());
            let (sender, driver) = http2_builder(streams.clone())
                .handshake(TokioIo::new(io))
                .await?;
            // hyper knows it in the driver alone, which need not run when it changes.
            let driver = Arc::new(Mutex::new(driver));
            let known = Arc::downgrade(&driver);
            let driving = poll_fn(move |cx| lock(&driver).poll_unpin(cx).map(noted));
            tasks.spawn(streams.run(driving));
            let allowed = move || {
                let driver = known.upgrade();
                driver.map_or(0, |driver| lock(&driver).current_max_send_streams())
            };
            Ok(Sender::Http2(sender, Allowed(Box::new(allowed))))
        }
    }
}

// === impl Allowed ===

impl Allowed {
    pub(super) fn count(&self) -> usize {
        (self.0)()
    }
}

impl std::fmt::Debug for Allowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Allowed")
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_header_size(server::MAX_HEAD)
        .max_buf_size(server::MAX_BUFFER);
    builder
}

fn http2_builder(streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
