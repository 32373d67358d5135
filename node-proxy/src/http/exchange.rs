// SPDX-License-Identifier: Apache-2.0
//! A request from its arrival to the end of its answer: what it holds meanwhile, and what is counted
//! and logged of it then.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use culvert_api::agent::Direction;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, HeaderMap},
};
use http_body::Frame;
use hyper::body::Incoming;

use super::{
    Version,
    body::{Body, BodyError},
    classify::{Class, classify, grpc_status},
    conversation::Conversation,
    expect::Expected,
    headers,
    host::{Host, Lease},
    respond::{
        Cause, PROXY_CONNECTION, PROXY_ERROR, ProxyError, grpc_trailers, is_grpc, respond,
        take_remarks,
    },
    served::Busy,
    upgrade::Asked,
};
use crate::{
    balance::Choice,
    metrics::{HttpSeries, Outcome},
};

/// The label `error` of an answer that the client did not wait for.
const CANCELED: &str = "canceled";

/// One request and its answer. It counts as answered when this is dropped.
#[derive(Debug)]
pub(crate) struct Exchange {
    conversation: Arc<Conversation>,
    /// The client is not idle meanwhile.
    _busy: Busy,
    started: Instant,
    grpc: bool,
    /// What the client would rather have than HTTP.
    asked: Option<Asked>,
    /// Until then the request's body may not be wanted.
    expected: Option<Expected>,
    series: Option<Arc<HttpSeries>>,
    status: Option<StatusCode>,
    /// It is in `request_total`: an endless answer counts before its end.
    requested: bool,
    /// When the first of the answer's body was there.
    first: Option<Instant>,
    grpc_status: Option<u16>,
    error: &'static str,
    taken: Option<Taken>,
}

/// What a request has for as long as its answer lasts.
#[derive(Debug)]
pub(super) struct Taken {
    /// Counts as load on the endpoint.
    choice: Option<Choice>,
    host: Arc<Host>,
    lease: Lease,
    /// Where the connection stays, instead of with the others.
    own: Option<Arc<Own>>,
}

/// The connection that the requests of one client connection alone go out on: it was authenticated as
/// a whole (RFC 4559, 6), so that whoever else got it would be taken for that client.
#[derive(Debug, Default)]
pub(super) struct Own(Mutex<Option<Kept>>);

/// A connection that is nobody else's, and where it goes.
#[derive(Debug)]
struct Kept {
    /// The endpoint, where there is a choice.
    at: Option<SocketAddr>,
    host: Arc<Host>,
    lease: Lease,
}

// === impl Own ===

impl Own {
    /// The endpoint that it goes to.
    pub(super) fn at(&self) -> Option<SocketAddr> {
        self.lock().as_ref()?.at
    }

    /// The connection, if it is one to `host` and still stands.
    pub(super) async fn take(&self, host: &Arc<Host>) -> Option<Lease> {
        let kept = self.lock().take();
        let mut lease = kept.filter(|kept| Arc::ptr_eq(&kept.host, host))?.lease;
        lease.is_ready().await.then_some(lease)
    }

    fn keep(&self, kept: Kept) {
        *self.lock() = Some(kept);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Taken ===

impl Taken {
    pub(super) fn new(choice: Option<Choice>, host: Arc<Host>, lease: Lease) -> Self {
        Self {
            choice,
            host,
            lease,
            own: None,
        }
    }

    /// The connection is nobody else's from now on.
    pub(super) fn stay_with(&mut self, own: &Arc<Own>) {
        self.own = Some(own.clone());
    }

    /// The answer was read to its end.
    fn release(self) {
        match self.own {
            Some(own) => own.keep(Kept {
                at: self.choice.map(|choice| choice.endpoint().addr),
                host: self.host,
                lease: self.lease,
            }),
            None => self.host.release(self.lease),
        }
    }
}

// === impl Exchange ===

impl Exchange {
    /// A request has arrived.
    pub(super) fn begin(conversation: &Arc<Conversation>, request: &mut Request<Incoming>) -> Self {
        Self {
            conversation: conversation.clone(),
            _busy: conversation.busy.clone(),
            started: Instant::now(),
            grpc: conversation.version == Version::Http2 && is_grpc(request.headers()),
            asked: Asked::of(request),
            expected: None,
            series: None,
            status: None,
            requested: false,
            first: None,
            grpc_status: None,
            error: CANCELED,
            taken: None,
        }
    }

    /// Its body waits for the server to want it.
    pub(super) fn expects(&mut self, expected: Option<Expected>) {
        self.expected = expected;
    }

    /// Whether it asks for something else than HTTP.
    pub(super) fn asks(&self) -> bool {
        self.asked.is_some()
    }

    /// Where it goes, or went in the end: it is counted there once.
    pub(super) fn goes(&mut self, series: Arc<HttpSeries>) {
        self.series = Some(series);
    }

    /// It was answered: by an application, or by a `peer` proxy.
    pub(super) fn answered(
        mut self,
        mut response: Response<Incoming>,
        taken: Taken,
        is_peer: bool,
    ) -> Response<Body> {
        let asked = self.asked.take();
        if let Some(asked) = asked.filter(|asked| asked.is_granted(&response)) {
            let tunnel = asked.tunnel(&self.conversation.connection, &mut response, taken);
            self.conversation.tunnel(tunnel.run());
            return self.switched(response.map(|_| Body::empty()));
        }
        let (mut head, incoming) = response.into_parts();
        let close = self.remarks(&mut head.headers, is_peer);
        let upgrade = head.status == StatusCode::UPGRADE_REQUIRED;
        headers::prepare_response(&mut head.headers, upgrade);
        if close && self.conversation.version == Version::Http1 {
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.head(head.status, &head.headers);
        self.taken = Some(taken);
        let version = self.conversation.version;
        Response::from_parts(head, Body::new(incoming, version, self))
    }

    fn switched(mut self, mut response: Response<Body>) -> Response<Body> {
        headers::prepare_response(response.headers_mut(), true);
        self.head(response.status(), response.headers());
        self.error = "";
        response
    }

    /// It was not answered by anybody: the proxy does.
    pub(super) fn failed(mut self, error: &ProxyError) -> Response<Body> {
        let connection = self.conversation.connection.clone();
        let metrics = connection.pod.metrics();
        metrics.http_fault(connection.direction, error.cause.as_fault());
        tracing::debug!(
            %error,
            pod.name = %connection.pod.workload,
            direction = ?connection.direction,
            src = %connection.source,
            dst = %connection.original,
            "A request failed"
        );
        let mut response = respond(error, self.grpc).map(|_| Body::empty());
        self.close(response.headers_mut(), error.close);
        self.head(response.status(), response.headers());
        self.error = error.cause.as_fault();
        response
    }

    /// A part of the answer.
    pub(super) fn frame(&mut self, frame: &Frame<Bytes>) {
        self.first.get_or_insert_with(Instant::now);
        if let Some(trailers) = frame.trailers_ref()
            && let Some(status) = grpc_status(trailers)
        {
            self.grpc_status = Some(status);
        }
    }

    /// The answer broke off.
    pub(super) fn broke(&mut self, error: &BodyError) {
        let connection = &self.conversation.connection;
        self.error = Cause::Io.as_fault();
        let metrics = connection.pod.metrics();
        metrics.http_fault(connection.direction, self.error);
        tracing::debug!(%error, dst = %connection.original, "An answer broke off");
    }

    /// The trailers that a broken answer ends in, for a client of gRPC.
    pub(super) fn rescue(&mut self, error: &BodyError) -> Option<HeaderMap> {
        let trailers = self.grpc.then(|| grpc_trailers(error.cause()))?;
        self.grpc_status = grpc_status(&trailers);
        Some(trailers)
    }

    /// The answer is there as a whole.
    pub(super) fn complete(mut self) {
        if self.error == CANCELED {
            self.error = "";
        }
        if let Some(taken) = self.taken.take() {
            taken.release();
        }
    }

    fn head(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status);
        self.grpc_status = grpc_status(headers);
        if let Some(series) = &self.series {
            series.request();
            self.requested = true;
        }
    }

    /// What a peer's proxy says of itself is heard, and passed on as far as it concerns the
    /// application. Nobody else has a say.
    fn remarks(&self, headers: &mut HeaderMap, is_peer: bool) -> bool {
        let (error, close) = take_remarks(headers);
        if !is_peer {
            return false;
        }
        if let Some(error) = error {
            headers.insert(PROXY_ERROR, error);
        }
        close
    }

    /// An application's connection is closed outright, a peer is told to close its application's.
    fn close(&self, headers: &mut HeaderMap, close: bool) {
        if self.conversation.connection.direction == Direction::Outbound {
            headers.remove(PROXY_CONNECTION);
        }
        if close && self.conversation.version == Version::Http1 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(series) = self.series.take() else {
            return;
        };
        if !self.requested {
            series.request();
        }
        // The client went away first: nobody has failed, as Linkerd has it.
        let Some(status) = self.status else { return };
        let class = match self.error {
            "" | CANCELED => classify(status, self.grpc_status),
            _ => Class::Failure,
        };
        let outcome = Outcome {
            status: Some(status.as_u16()),
            class,
            grpc_status: self.grpc_status,
            error: self.error,
        };
        let answered = self.first.unwrap_or_else(Instant::now);
        series.response(&outcome, answered - self.started);
    }
}
