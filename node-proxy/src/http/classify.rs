// SPDX-License-Identifier: Apache-2.0
//! Whether a response counts as a success: linkerd2-proxy's default when no route says otherwise
//! (`linkerd/app/core/src/classify.rs`, `linkerd/proxy/client-policy/src/{grpc,http}.rs`).

use http::{HeaderMap, StatusCode};

/// The label `classification`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Anything but the failures.
    Success,
    /// The server's fault. A client's, as 404, is none.
    Failure,
}

/// The codes of gRPC that stand for trouble at the server
/// (<https://grpc.io/docs/guides/status-codes/>).
const UNKNOWN: u16 = 2;
const DEADLINE_EXCEEDED: u16 = 4;
const PERMISSION_DENIED: u16 = 7;
const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;
const DATA_LOSS: u16 = 15;

/// The highest code that gRPC defines: UNAUTHENTICATED.
const LAST: u16 = 16;

/// Judges a response that ended as it should. `grpc_status` is for responses to gRPC requests only
/// ([`super::respond::is_grpc`]): Linkerd looks at no other's.
///
/// One that broke off is a failure whatever its head said. Without a gRPC status the HTTP status
/// counts, as gRPC's clients do it; Linkerd calls even a 503 a success there.
pub(crate) fn classify(status: StatusCode, grpc_status: Option<u16>) -> Class {
    let failed = grpc_status.map_or(status.is_server_error(), is_failure);
    if failed {
        Class::Failure
    } else {
        Class::Success
    }
}

/// What `grpc-status` says, in trailers or in the head of a response that consists of nothing else.
///
/// A number that gRPC does not define is UNKNOWN, so there are 17 values; what is no number is none.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    let code: u16 = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    Some(if code > LAST { UNKNOWN } else { code })
}

fn is_failure(code: u16) -> bool {
    matches!(
        code,
        UNKNOWN | DEADLINE_EXCEEDED | PERMISSION_DENIED | INTERNAL | UNAVAILABLE | DATA_LOSS
    )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn trailers(value: &'static [u8]) -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static(std::str::from_utf8(value).unwrap_or("?")),
        )])
    }

    #[test]
    fn an_http_response_fails_from_500_on() {
        for (status, class) in [
            (StatusCode::SWITCHING_PROTOCOLS, Class::Success),
            (StatusCode::OK, Class::Success),
            (StatusCode::FOUND, Class::Success),
            (StatusCode::NOT_FOUND, Class::Success),
            (StatusCode::TOO_MANY_REQUESTS, Class::Success),
            (StatusCode::INTERNAL_SERVER_ERROR, Class::Failure),
            (StatusCode::SERVICE_UNAVAILABLE, Class::Failure),
            (StatusCode::LOOP_DETECTED, Class::Failure),
        ] {
            assert_eq!(classify(status, None), class, "{status}");
        }
    }

    #[test]
    fn a_grpc_response_fails_with_six_codes_whatever_the_status() {
        let failures: Vec<_> = (0..=LAST)
            .filter(|code| classify(StatusCode::OK, Some(*code)) == Class::Failure)
            .collect();
        assert_eq!(failures, [2, 4, 7, 13, 14, 15]);
        assert_eq!(classify(StatusCode::BAD_GATEWAY, Some(0)), Class::Success);
    }

    #[test]
    fn a_grpc_status_is_one_of_seventeen() {
        for (text, status) in [
            (&b"0"[..], Some(0)),
            (b"16", Some(16)),
            (b"17", Some(UNKNOWN)),
            (b"65535", Some(UNKNOWN)),
            (b"65536", None),
            (b"-1", None),
            (b" 1", None),
            (b"", None),
            (b"OK", None),
        ] {
            assert_eq!(grpc_status(&trailers(text)), status, "{text:?}");
        }
        assert_eq!(grpc_status(&HeaderMap::new()), None);
    }
}
