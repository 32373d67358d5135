// SPDX-License-Identifier: Apache-2.0
//! What the proxy answers itself: Linkerd's statuses and headers
//! (`linkerd/app/core/src/errors/respond.rs`, `linkerd/app/{inbound,outbound}/src/http/server.rs`).

use std::fmt;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::Empty;

use crate::metrics::Fault;

mod cause;
#[cfg(test)]
mod tests;

pub(crate) use cause::Cause;

/// Says why the proxy answers in the application's place.
pub(crate) const PROXY_ERROR: HeaderName = HeaderName::from_static("l5d-proxy-error");

/// `close` tells the client's proxy to close the application's connection, so that it dials anew.
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("l5d-proxy-connection");

/// Tells the client's proxy that no application has got anything of the request. Between proxies only.
pub(crate) const UNSENT: HeaderName = HeaderName::from_static("l5d-proxy-unsent");

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC: &str = "application/grpc";

/// The longest message that is sent, in bytes.
const MAX_MESSAGE: usize = 256;

/// The proxy's own responses have none: all is in the head.
pub(crate) type ProxyBody = Empty<Bytes>;

/// Why a request was not answered by the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyError {
    /// What the status and the metrics say.
    pub(crate) cause: Cause,
    /// What the client reads. Names nothing that the client did not say itself.
    pub(crate) message: String,
    /// Whether the client's connection is to be closed after the response. Over HTTP/1 the server
    /// adds `Connection: close`.
    pub(crate) close: bool,
}

/// The response that an error becomes: without a body, to gRPC trailers alone.
pub(crate) fn respond(error: &ProxyError, grpc: bool) -> Response<ProxyBody> {
    let message = header_value(&error.message);
    let mut response = Response::new(ProxyBody::new());
    if grpc {
        grpc_head(response.headers_mut(), error.cause, &message);
    } else {
        *response.status_mut() = error.cause.status();
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.insert(PROXY_ERROR, message);
    if error.close {
        headers.insert(PROXY_CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a gRPC answer that broke off ends in.
pub(crate) fn grpc_trailers(cause: Cause) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let message = HeaderValue::from_static(cause.message());
    grpc_result(&mut trailers, cause, &message);
    trailers
}

/// Whether a request is gRPC. Only meaningful over HTTP/2.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(GRPC.as_bytes()))
}

/// Whether a peer's proxy says that no application has got anything of the request.
pub(crate) fn take_unsent(headers: &mut HeaderMap) -> bool {
    headers.remove(UNSENT).is_some()
}

/// Takes a peer proxy's remarks out of a response: what it could not do, and whether the
/// application's connection is to be closed. An application that is no proxy has no say in that.
pub(crate) fn take_remarks(headers: &mut HeaderMap) -> (Option<HeaderValue>, bool) {
    headers.remove(UNSENT);
    let error = headers.remove(PROXY_ERROR);
    let connection = headers.remove(PROXY_CONNECTION);
    (error, connection.is_some_and(|value| value == "close"))
}

// === impl ProxyError ===

impl ProxyError {
    /// Closes the connection when Linkerd does.
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self {
            cause,
            message: message.into(),
            close: cause.closes(),
        }
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ProxyError {}

impl From<Cause> for ProxyError {
    fn from(cause: Cause) -> Self {
        Self::new(cause, cause.message())
    }
}

impl From<Fault> for ProxyError {
    fn from(fault: Fault) -> Self {
        Cause::from(fault).into()
    }
}

fn grpc_head(headers: &mut HeaderMap, cause: Cause, message: &HeaderValue) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    grpc_result(headers, cause, message);
}

fn grpc_result(headers: &mut HeaderMap, cause: Cause, message: &HeaderValue) {
    headers.insert(GRPC_STATUS, HeaderValue::from(cause.grpc_code()));
    headers.insert(GRPC_MESSAGE, percent_encoded(message));
}

/// One line of visible ASCII. Anything else becomes a question mark.
fn header_value(message: &str) -> HeaderValue {
    let line: String = message.chars().take(MAX_MESSAGE).map(visible).collect();
    HeaderValue::try_from(line.trim()).unwrap_or(HeaderValue::from_static("unexpected error"))
}

fn visible(character: char) -> char {
    if matches!(character, ' '..='~') {
        character
    } else {
        '?'
    }
}

/// gRPC percent-encodes a status message
/// (<https://github.com/grpc/grpc/blob/v1.70.0/doc/PROTOCOL-HTTP2.md#responses>): of visible ASCII
/// only the percent sign.
fn percent_encoded(message: &HeaderValue) -> HeaderValue {
    match message.to_str() {
        Ok(text) if text.contains('%') => {
            HeaderValue::try_from(text.replace('%', "%25")).unwrap_or_else(|_| message.clone())
        }
        _ => message.clone(),
    }
}
