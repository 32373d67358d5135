// SPDX-License-Identifier: Apache-2.0

use http_body::Body;

use super::*;

mod found;

/// Every cause: status, gRPC code, whether it closes.
const TABLE: [(Cause, u16, &str, bool); 20] = [
    (Cause::FailFast, 504, "4", true),
    (Cause::LoadShed, 503, "14", true),
    (Cause::Io, 502, "14", true),
    (Cause::ConnectTimeout, 504, "4", true),
    (Cause::Unresolved, 504, "4", true),
    (Cause::Unauthorized, 403, "7", false),
    (Cause::NotTls, 502, "14", true),
    (Cause::Tls, 502, "14", true),
    (Cause::PeerIdentity, 502, "14", true),
    (Cause::IdentityRequired, 502, "14", true),
    (Cause::NoCertificate, 502, "14", true),
    (Cause::Loop, 508, "10", true),
    (Cause::BadRequest, 400, "13", true),
    (Cause::HeadTooLarge, 431, "8", true),
    (Cause::TransferCoding, 501, "12", true),
    (Cause::HeadTimeout, 408, "4", true),
    (Cause::BodyTimeout, 408, "4", true),
    (Cause::Flood, 429, "8", true),
    (Cause::BadResponse, 502, "14", true),
    (Cause::Unexpected, 500, "13", true),
];

fn heads(response: &Response<ProxyBody>) -> Vec<(&str, &str)> {
    let mut heads: Vec<_> = response
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or("?")))
        .collect();
    heads.sort_unstable();
    heads
}

#[test]
fn http_gets_the_status_and_the_reason() {
    for (cause, status, _, close) in TABLE {
        let response = respond(&ProxyError::new(cause, "why"), false);
        assert_eq!(response.status(), status, "{cause:?}");
        let mut expected = vec![("content-length", "0"), ("l5d-proxy-error", "why")];
        if close {
            expected.insert(1, ("l5d-proxy-connection", "close"));
        }
        assert_eq!(heads(&response), expected, "{cause:?}");
        assert!(response.body().is_end_stream());
    }
}

#[test]
fn grpc_gets_trailers_alone() {
    for (cause, _, code, close) in TABLE {
        let response = respond(&ProxyError::new(cause, "why"), true);
        assert_eq!(response.status(), 200, "{cause:?}");
        let mut expected = vec![
            ("content-length", "0"),
            ("content-type", "application/grpc"),
            ("grpc-message", "why"),
            ("grpc-status", code),
            ("l5d-proxy-error", "why"),
        ];
        if close {
            expected.insert(4, ("l5d-proxy-connection", "close"));
        }
        assert_eq!(heads(&response), expected, "{cause:?}");
        assert!(response.body().is_end_stream());
    }
}

#[test]
fn a_message_is_one_line_of_visible_ascii() {
    let long = "x".repeat(1000);
    for (message, sent) in [
        ("endpoint 10.0.0.1:80", "endpoint 10.0.0.1:80"),
        ("a\r\nset-cookie: b\0\u{7f}\u{e9}\t", "a??set-cookie: b????"),
        (" \u{1f980} ", "?"),
        ("", ""),
        (&long, &long[..MAX_MESSAGE]),
    ] {
        let response = respond(&ProxyError::new(Cause::Io, message), false);
        assert_eq!(response.headers()[PROXY_ERROR], sent, "{message:?}");
    }
}

#[test]
fn grpc_reads_a_percent_encoded_message() {
    let error = ProxyError::new(Cause::Io, "50% of\n2");
    let response = respond(&error, true);
    assert_eq!(response.headers()[GRPC_MESSAGE], "50%25 of?2");
    assert_eq!(response.headers()[PROXY_ERROR], "50% of?2");
}

#[test]
fn the_caller_may_keep_the_connection() {
    let mut error = ProxyError::new(Cause::BodyTimeout, "late");
    error.close = false;
    let response = respond(&error, false);
    assert!(!response.headers().contains_key(PROXY_CONNECTION));
}

#[test]
fn grpc_is_told_by_its_content_type() {
    for (kind, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc; charset=utf-8", true),
        ("application/json", false),
        ("", false),
    ] {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        assert_eq!(is_grpc(&headers), grpc, "{kind}");
    }
    assert!(!is_grpc(&HeaderMap::new()));
}

#[test]
fn a_peer_proxys_remarks_are_taken_out() {
    let response = respond(&ProxyError::new(Cause::FailFast, "why"), false);
    let mut headers = response.headers().clone();
    let (error, close) = take_remarks(&mut headers);
    assert_eq!(error, Some(HeaderValue::from_static("why")));
    assert!(close);
    assert_eq!(take_remarks(&mut headers), (None, false));
    assert_eq!(headers.len(), 1, "{headers:?}");
}

#[test]
fn labels_are_linkerds_where_it_has_one_and_distinct() {
    for (cause, label) in [
        (Cause::FailFast, "failfast"),
        (Cause::LoadShed, "loadshed"),
        (Cause::Io, "i/o"),
        (Cause::Loop, "gateway loop"),
        (Cause::Unexpected, "unexpected"),
    ] {
        assert_eq!(cause.as_fault(), label);
    }
    let labels: std::collections::HashSet<_> =
        TABLE.iter().map(|(cause, ..)| cause.as_fault()).collect();
    assert_eq!(labels.len(), TABLE.len());
}

#[test]
fn a_connections_fault_becomes_a_response() {
    for (fault, status) in [
        (Fault::GatewayLoop, 508),
        (Fault::LoadShed, 503),
        (Fault::FailFast, 504),
        (Fault::Unresolved, 504),
        (Fault::Io, 502),
        (Fault::NotTls, 502),
        (Fault::Tls, 502),
        (Fault::PeerIdentity, 502),
        (Fault::NoCertificate, 502),
        (Fault::Unauthorized, 403),
        (Fault::Unexpected, 500),
    ] {
        let error = ProxyError::from(fault);
        assert_eq!(error.cause.status(), status, "{fault}");
        assert_eq!(error.message, error.cause.message());
    }
}
