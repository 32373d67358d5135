// SPDX-License-Identifier: Apache-2.0
//! Bodies on their way through the proxy.

use std::{
    error::Error as _,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

use super::{
    Version, exchange::Exchange, expect::Held, headers::prepare_trailers, respond::Cause,
    served::Busy,
};

/// A request's body on its way to a server.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    incoming: Option<Source>,
    /// The server is to say first that it wants it.
    held: Option<Held>,
    patience: Option<Patience>,
    /// Its client is not idle meanwhile.
    _busy: Option<Busy>,
}

/// How long a client may pause.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What comes in, and over what.
#[derive(Debug)]
struct Source {
    incoming: Incoming,
    version: Version,
}

/// A body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It paused for too long.
    #[error("the request's body did not move for {0:?}")]
    Idle(Duration),
    /// Its sender left, or what it sent is malformed.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// Its stream was reset without an error (RFC 9113, 8.1), but not after its end: to hyper that is
    /// one. What is left of it is reset for the same reason.
    #[error("the stream was reset before its end")]
    CutOff(#[source] h2::Error),
    /// The client was to be told first that it is wanted, and never was.
    #[error("the server does not want the request's body")]
    Unwanted,
}

/// A response's body on its way to a client. With it ends the exchange.
#[derive(Debug)]
pub(crate) struct Body {
    incoming: Option<Source>,
    exchange: Option<Exchange>,
}

// === impl Outgoing ===

impl Outgoing {
    /// What the client sends, who may pause for as long as `patience`, if that is limited.
    pub(super) fn new(
        incoming: Incoming,
        version: Version,
        busy: Busy,
        patience: Option<Duration>,
    ) -> Self {
        if incoming.is_end_stream() {
            return Self::default();
        }
        Self {
            incoming: Some(Source { incoming, version }),
            held: None,
            patience: patience.map(|limit| Patience { limit, timer: None }),
            _busy: Some(busy),
        }
    }

    /// Nothing is sent until `held` lets go.
    pub(super) fn hold(&mut self, held: Held) {
        self.held = Some(held);
    }

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        match incoming.poll_filled(cx) {
            Poll::Ready(frame) => {
                self.patience.iter_mut().for_each(Patience::renew);
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::of_request)))
            }
            Poll::Pending => match &mut self.patience {
                Some(patience) => patience.poll(cx).map(|idle| Some(Err(idle))),
                None => Poll::Pending,
            },
        }
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(held) = &mut this.held {
            let wanted = ready!(held.poll(cx));
            this.held = None;
            if !wanted {
                this.incoming = None;
                this._busy = None;
                return Poll::Ready(Some(Err(BodyError::Unwanted)));
            }
        }
        let frame = ready!(this.poll_incoming(cx));
        if frame.is_none() || this.is_end_stream() {
            this._busy = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_none_or(|incoming| incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let incoming = self.incoming.as_ref();
        incoming.map_or(SizeHint::with_exact(0), |incoming| incoming.size_hint())
    }
}

// === impl Source ===

impl Source {
    /// The next frame that says something: a peer ends a connection over which many empty ones come.
    /// No trailer passes that would be a head's.
    fn poll_filled(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.incoming).poll_frame(cx)) else {
                return Poll::Ready(
                    self.cut_off()
                        .map(|reason| Err(BodyError::CutOff(reason.into()))),
                );
            };
            let mut frame = frame?;
            if let Some(trailers) = frame.trailers_mut() {
                prepare_trailers(trailers);
            }
            let is_empty = frame.data_ref().is_some_and(Bytes::is_empty);
            if !is_empty || self.is_end_stream() {
                return Poll::Ready(Some(Ok(frame)));
            }
        }
    }

    /// Why an end is none: hyper takes RST with NO_ERROR and with CANCEL for one. All of an announced
    /// length may have come by then, and servers (Node's) end with NO_ERROR what has no length.
    fn cut_off(&self) -> Option<h2::Reason> {
        if self.version == Version::Http1 || self.is_end_stream() {
            return None;
        }
        match self.size_hint().exact() {
            Some(0) => None,
            // RFC 9113, 8.1.1.
            Some(_) => Some(h2::Reason::PROTOCOL_ERROR),
            None => Some(h2::Reason::NO_ERROR),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

// === impl Patience ===

impl Patience {
    fn renew(&mut self) {
        self.timer = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(cx).map(|()| BodyError::Idle(limit))
    }
}

// === impl BodyError ===

impl BodyError {
    /// What the client is answered, if it is still there.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::Idle(_) => Cause::BodyTimeout,
            Self::Http(error) => Cause::of_body(error),
            Self::CutOff(_) | Self::Unwanted => Cause::Io,
        }
    }

    /// Whether a server ended its answer so that clients take it for whole.
    fn is_end(&self) -> bool {
        matches!(self, Self::CutOff(error) if error.reason() == Some(h2::Reason::NO_ERROR))
    }

    /// A client has taken its request back, whatever it calls that.
    fn of_request(self) -> Self {
        match self {
            Self::CutOff(_) => Self::CutOff(h2::Reason::CANCEL.into()),
            other => other,
        }
    }

    /// Whether it is the stream alone that ended, not its connection.
    fn is_reset(&self) -> bool {
        let Self::Http(error) = self else {
            return true;
        };
        let error = error.source().and_then(|it| it.downcast_ref::<h2::Error>());
        error.is_some_and(h2::Error::is_reset)
    }
}

// === impl Body ===

impl Body {
    /// What a server sends.
    pub(super) fn new(incoming: Incoming, version: Version, exchange: Exchange) -> Self {
        let mut body = Self {
            incoming: Some(Source { incoming, version }),
            exchange: Some(exchange),
        };
        if body.is_end_stream() {
            body.complete();
        }
        body
    }

    /// Nothing: the head says it all.
    pub(super) fn empty() -> Self {
        Self {
            incoming: None,
            exchange: None,
        }
    }

    fn complete(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.complete();
        }
    }

    /// A gRPC client is told by trailers what has become of its call. What the server itself reset is
    /// passed on as that: its code says more.
    fn rescue(&mut self, error: BodyError) -> Result<Frame<Bytes>, BodyError> {
        let exchange = self.exchange.as_mut().filter(|_| !error.is_reset());
        match exchange.and_then(|exchange| exchange.rescue(&error)) {
            Some(trailers) => {
                (self.incoming, self.exchange) = (None, None);
                Ok(Frame::trailers(trailers))
            }
            None => Err(error),
        }
    }

    fn note(&mut self, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        match frame {
            Some(Ok(frame)) => exchange.frame(frame),
            Some(Err(error)) if !error.is_end() => exchange.broke(error),
            Some(Err(_)) => self.complete(),
            None => {}
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        let frame = ready!(incoming.poll_filled(cx));
        this.note(frame.as_ref());
        let frame = frame.map(|frame| frame.or_else(|error| this.rescue(error)));
        if frame.is_none() || this.is_end_stream() {
            this.complete();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_none_or(|incoming| incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let incoming = self.incoming.as_ref();
        incoming.map_or(SizeHint::with_exact(0), |incoming| incoming.size_hint())
    }
}
