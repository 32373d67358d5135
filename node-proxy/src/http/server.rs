// SPDX-License-Identifier: Apache-2.0
//! Serves HTTP on a connection, and the limits of what a client may send.

use std::{
    convert::Infallible, future::Future, panic::AssertUnwindSafe, pin::pin, sync::Arc,
    time::Duration,
};

use culvert_api::agent::Direction;
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{
    Version,
    body::Body,
    conversation::Conversation,
    io::{Io, Socket},
    premature::Premature,
    respond::Cause,
    streams::Streams,
};
use crate::{accept::Connection, app::Proxy, metrics::Fault, pods::Pod};

/// The most bytes of a head over HTTP/1; of at most 100 fields, which hyper reads without allocating.
pub(super) const MAX_HEAD: usize = 64 << 10;

/// How much is read at once over HTTP/1, a whole head with what follows it.
pub(super) const MAX_BUFFER: usize = 2 * MAX_HEAD;

/// The most bytes of a head over HTTP/2, counted as RFC 9113, 6.5.2 has it.
pub(super) const MAX_HEADER_LIST: u32 = 64 << 10;

/// How much a peer may send ahead on one stream.
pub(super) const STREAM_WINDOW: u32 = 64 << 10;

/// How much it may send ahead on all streams of a connection: as many as there may be that nobody reads
/// do not stop the others. Nor would less do for bursts of small messages, whose overhead h2 limits by
/// a share of this (<https://docs.rs/h2/0.4.20>, `too_many_data_frames`).
pub(super) const CONNECTION_WINDOW: u32 = 16 << 20;

/// The most requests at once on a connection. More wait in the client.
const MAX_STREAMS: u32 = CONNECTION_WINDOW / STREAM_WINDOW;

/// How many streams a client may take back before they were looked at (CVE-2023-44487).
const MAX_RESETS: usize = 100;

/// How many streams of a client may have been reset for its own mistakes.
const MAX_MISTAKES: usize = 1_024;

/// How much of an answer waits in the proxy for a client that reads slowly, per stream.
pub(super) const MAX_SEND_BUFFER: usize = 64 << 10;

/// The label `error` of a connection most of whose requests were taken back.
const RAPID_RESET: &str = "rapid reset";

/// How long a connection of HTTP/1 that rests is kept when the proxy drains: who is asked much on it would
/// lose the request that crosses its end. It is answered, with `Connection: close`.
const REST: Duration = Duration::from_secs(1);

const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Spawns what belongs to a connection. A panic costs that task only.
#[derive(Clone, Debug)]
pub(super) struct Tasks {
    proxy: Arc<Proxy>,
    pod: Arc<Pod>,
    direction: Direction,
}

/// Serves a client's connection to its end, and what it became. Dropped before, both end with RST.
///
/// When the proxy drains no more requests are taken; those that have begun are answered. Answers what
/// the client's end broke by, if it did.
pub(super) async fn serve<S, F, Fut>(
    io: Io<S>,
    conversation: &Conversation,
    answer: F,
) -> Option<String>
where
    S: Socket,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let ended = match conversation.version {
        Version::Http1 => serve_http1(io, conversation, answer).await,
        Version::Http2 => serve_http2(io, conversation, answer).await,
    };
    let broken = ended.err();
    if let Some(error) = &broken {
        note(&conversation.connection, error);
    }
    conversation.finish().await;
    broken.map(|error| error.to_string())
}

async fn serve_http1<S, F, Fut>(
    io: Io<S>,
    conversation: &Conversation,
    answer: F,
) -> hyper::Result<()>
where
    S: Socket,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let proxy = &conversation.connection.proxy;
    let service = service_fn(|request| {
        let (answer, proxy) = (answer(request), Arc::clone(proxy));
        async move { Ok::<_, Infallible>(last_if_draining(answer.await, &proxy)) }
    });
    let served = http1_builder().serve_connection(TokioIo::new(io), service);
    let mut served = pin!(served.with_upgrades());
    tokio::select! {
        ended = served.as_mut() => return ended,
        () = rested(proxy) => served.as_mut().graceful_shutdown(),
    }
    served.await
}

/// Waits until the proxy drains, and then for requests that may be on their way.
async fn rested(proxy: &Proxy) {
    proxy.stopped().await;
    tokio::time::sleep(REST).await;
}

/// Tells a client to take its next request elsewhere.
fn last_if_draining(mut response: Response<Body>, proxy: &Proxy) -> Response<Body> {
    if proxy.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

async fn serve_http2<S, F, Fut>(
    io: Io<S>,
    conversation: &Conversation,
    answer: F,
) -> hyper::Result<()>
where
    S: Socket,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let premature = Arc::new(Premature::default());
    let service = service_fn(|request| {
        let (asked, answer) = (premature.asked(), answer(request));
        async move {
            let response = answer.await;
            asked.answered();
            Ok::<_, Infallible>(response)
        }
    });
    let connection = &conversation.connection;
    let streams = Streams::new(Tasks::new(connection));
    let builder = http2_builder(streams.clone());
    let serving = async {
        let mut served = pin!(builder.serve_connection(TokioIo::new(io), service));
        tokio::select! {
            ended = served.as_mut() => return ended,
            () = connection.proxy.stopped() => {}
            () = premature.enough() => {
                let metrics = connection.pod.metrics();
                metrics.http_fault(connection.direction, RAPID_RESET);
                // With RST: who waits for the client to let go waits for ever.
                return Ok(());
            }
        }
        served.as_mut().graceful_shutdown();
        served.await
    };
    streams.run(serving).await
}

/// What was wrong with what the client sent is counted.
fn note(connection: &Connection, error: &hyper::Error) {
    if let Some(cause) = Cause::of_server(error) {
        let metrics = connection.pod.metrics();
        metrics.http_fault(connection.direction, cause.as_fault());
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .half_close(true)
        .auto_date_header(false)
        // The wait for a next request is no wait for the rest of a head; see `io`.
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER);
    builder
}

fn http2_builder(streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .enable_connect_protocol()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_MISTAKES)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

// === impl Tasks ===

impl Tasks {
    pub(super) fn new(connection: &Connection) -> Self {
        Self {
            proxy: connection.proxy.clone(),
            pod: connection.pod.clone(),
            direction: connection.direction,
        }
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let tasks = self.clone();
        tokio::spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tasks.panicked();
            }
        });
    }

    /// A part of it did.
    pub(super) fn panicked(&self) {
        self.proxy.metrics.panicked();
        let metrics = self.pod.metrics();
        metrics.fault(self.direction, Fault::Unexpected);
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task.map(drop));
    }
}
