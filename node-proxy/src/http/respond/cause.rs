// SPDX-License-Identifier: Apache-2.0
//! Why the proxy answers: status, gRPC code, label and whether the connection closes.

use std::{error::Error as _, io};

use http::StatusCode;

use crate::metrics::Fault;

/// Why a request was not answered by the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// No endpoint was ready in time.
    FailFast,
    /// Too much is in flight, or waits for an endpoint.
    LoadShed,
    /// The connection to the peer or to the application broke.
    Io,
    /// It was refused: nobody has got anything of the request.
    Refused,
    /// It was not established in time.
    ConnectTimeout,
    /// Control did not say in time what the destination is.
    Unresolved,
    /// The policy does not let the client in.
    Unauthorized,
    /// A peer that is known to be meshed answered in plaintext.
    NotTls,
    /// The handshake with the peer failed.
    Tls,
    /// The peer's certificate names somebody else.
    PeerIdentity,
    /// The client asked for a server of another identity.
    IdentityRequired,
    /// The workload has no valid certificate.
    NoCertificate,
    /// The request would come back to this proxy.
    Loop,
    /// The request is malformed, or can be read in two ways.
    BadRequest,
    /// The request's head is too large.
    HeadTooLarge,
    /// A transfer coding that the proxy does not know.
    TransferCoding,
    /// The request's head did not come in time.
    HeadTimeout,
    /// The request's body did not move on in time.
    BodyTimeout,
    /// Frames of HTTP/2, or streams that are taken back, that are there to cost.
    Flood,
    /// The response is malformed, or can be read in two ways.
    BadResponse,
    /// A bug.
    Unexpected,
}

/// The codes of gRPC that the proxy answers with
/// (<https://grpc.io/docs/guides/status-codes/>).
const DEADLINE_EXCEEDED: u16 = 4;
const PERMISSION_DENIED: u16 = 7;
const RESOURCE_EXHAUSTED: u16 = 8;
const ABORTED: u16 = 10;
const UNIMPLEMENTED: u16 = 12;
const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;

// === impl Cause ===

impl Cause {
    /// What an error of hyper's server means for a connection that it ends, if it is one: none is
    /// a client that left. hyper has answered already, where the protocol lets it.
    pub(crate) fn of_server(error: &hyper::Error) -> Option<Self> {
        if error.is_parse_too_large() {
            return Some(Self::HeadTooLarge);
        }
        if error.is_parse() {
            return Some(Self::BadRequest);
        }
        if io_error(error).is_some_and(is_late) {
            return Some(Self::HeadTimeout);
        }
        Self::of_frames(error)
    }

    /// What h2 found. Its errors have a name in h2 alone, but say whose they are: a peer's GOAWAY is
    /// "received".
    fn of_frames(error: &hyper::Error) -> Option<Self> {
        let found = error.source()?.to_string();
        let found = found.strip_prefix("connection error detected: ")?;
        let flood = found.starts_with("detected excessive load");
        Some(if flood { Self::Flood } else { Self::BadRequest })
    }

    /// What ended the body of a request that was being forwarded.
    pub(crate) fn of_body(error: &hyper::Error) -> Self {
        match io_error(error).map(io::Error::kind) {
            Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Self::BadRequest,
            _ => Self::Io,
        }
    }

    /// The HTTP status: Linkerd's, or that of RFC 9110 section 15 where Linkerd leaves it to hyper.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::FailFast | Self::ConnectTimeout | Self::Unresolved => StatusCode::GATEWAY_TIMEOUT,
            Self::LoadShed => StatusCode::SERVICE_UNAVAILABLE,
            Self::Io
            | Self::Refused
            | Self::NotTls
            | Self::Tls
            | Self::PeerIdentity
            | Self::IdentityRequired
            | Self::NoCertificate
            | Self::BadResponse => StatusCode::BAD_GATEWAY,
            Self::Unauthorized => StatusCode::FORBIDDEN,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Flood => StatusCode::TOO_MANY_REQUESTS,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::HeadTimeout | Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unexpected => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The gRPC code: Linkerd's, or that of gRPC's own table for HTTP statuses
    /// (<https://github.com/grpc/grpc/blob/v1.70.0/doc/http-grpc-status-mapping.md>).
    pub(crate) fn grpc_code(self) -> u16 {
        match self {
            Self::FailFast
            | Self::ConnectTimeout
            | Self::Unresolved
            | Self::HeadTimeout
            | Self::BodyTimeout => DEADLINE_EXCEEDED,
            Self::LoadShed
            | Self::Io
            | Self::Refused
            | Self::NotTls
            | Self::Tls
            | Self::PeerIdentity
            | Self::IdentityRequired
            | Self::NoCertificate
            | Self::BadResponse => UNAVAILABLE,
            Self::Unauthorized => PERMISSION_DENIED,
            Self::Loop => ABORTED,
            Self::HeadTooLarge | Self::Flood => RESOURCE_EXHAUSTED,
            Self::TransferCoding => UNIMPLEMENTED,
            Self::BadRequest | Self::Unexpected => INTERNAL,
        }
    }

    /// The label `error` of `{in,out}bound_http_errors_total`: Linkerd's, or that of a connection's
    /// [`Fault`], or one of our own where Linkerd says `unexpected`.
    pub(crate) fn as_fault(self) -> &'static str {
        match self {
            Self::FailFast => Fault::FailFast.as_str(),
            Self::LoadShed => Fault::LoadShed.as_str(),
            Self::Io | Self::Refused => Fault::Io.as_str(),
            Self::ConnectTimeout => "connect timeout",
            Self::Unresolved => Fault::Unresolved.as_str(),
            Self::Unauthorized => Fault::Unauthorized.as_str(),
            Self::NotTls => Fault::NotTls.as_str(),
            Self::Tls => Fault::Tls.as_str(),
            Self::PeerIdentity => Fault::PeerIdentity.as_str(),
            Self::IdentityRequired => Fault::IdentityRequired.as_str(),
            Self::NoCertificate => Fault::NoCertificate.as_str(),
            Self::Loop => Fault::GatewayLoop.as_str(),
            Self::BadRequest => "bad request",
            Self::HeadTooLarge => "head too large",
            Self::TransferCoding => "transfer coding",
            Self::HeadTimeout => "head timeout",
            Self::BodyTimeout => "body timeout",
            Self::Flood => "flood",
            Self::BadResponse => "bad response",
            Self::Unexpected => Fault::Unexpected.as_str(),
        }
    }

    /// What the client reads when there is no more to say.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::FailFast => "service in fail-fast",
            Self::LoadShed => "service unavailable",
            Self::Io => "connection broken",
            Self::Refused => "connection refused",
            Self::ConnectTimeout => "connect timed out",
            Self::Unresolved => "destination not resolved in time",
            Self::Unauthorized => "unauthorized request",
            Self::NotTls => "meshed peer does not speak TLS",
            Self::Tls => "TLS handshake with the peer failed",
            Self::PeerIdentity => "peer has another identity",
            Self::IdentityRequired => "server has not the required identity",
            Self::NoCertificate => "workload has no valid certificate",
            Self::Loop => "gateway loop detected",
            Self::BadRequest => "malformed request",
            Self::HeadTooLarge => "request head too large",
            Self::TransferCoding => "unknown transfer coding",
            Self::HeadTimeout => "request head timed out",
            Self::BodyTimeout => "request body timed out",
            Self::Flood => "too many frames or resets",
            Self::BadResponse => "malformed response",
            Self::Unexpected => "unexpected error",
        }
    }

    /// Whether no application has got anything of the request, so that it may be sent elsewhere.
    pub(crate) fn is_unsent(self) -> bool {
        matches!(self, Self::Refused | Self::ConnectTimeout)
    }

    /// Whether the connection closes after the response, as in Linkerd. Alone a client that may not
    /// do this one thing keeps its connection.
    pub(crate) fn closes(self) -> bool {
        self != Self::Unauthorized
    }
}

fn io_error(error: &hyper::Error) -> Option<&io::Error> {
    error.source()?.downcast_ref()
}

/// The proxy's own time-out, not the kernel's for a peer that is gone.
fn is_late(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

impl From<Fault> for Cause {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::GatewayLoop => Self::Loop,
            Fault::LoadShed => Self::LoadShed,
            Fault::Unresolved => Self::Unresolved,
            Fault::FailFast => Self::FailFast,
            Fault::Io | Fault::HalfOpen | Fault::PeerTimeout => Self::Io,
            Fault::NotTls => Self::NotTls,
            Fault::Tls | Fault::UnrecognizedName | Fault::NoApplicationProtocol => Self::Tls,
            Fault::PeerIdentity => Self::PeerIdentity,
            Fault::NoCertificate => Self::NoCertificate,
            Fault::DetectionTimeout | Fault::IdentityRequired | Fault::Unauthorized => {
                Self::Unauthorized
            }
            Fault::Unexpected => Self::Unexpected,
        }
    }
}
