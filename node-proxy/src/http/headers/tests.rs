// SPDX-License-Identifier: Apache-2.0

use http::{Method, Request, Response, StatusCode, Version};

use super::*;
use crate::http::respond::{Cause, ProxyError};

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn map(pairs: Pairs<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        let value = HeaderValue::from_str(value).unwrap_or_else(|e| panic!("{e}"));
        headers.append(name, value);
    }
    headers
}

fn assert_prepared(
    prepare: fn(&mut HeaderMap, bool),
    keep: bool,
    given: Pairs<'_>,
    left: Pairs<'_>,
) {
    let mut headers = map(given);
    prepare(&mut headers, keep);
    assert_eq!(headers, map(left), "{given:?}");
}

/// Without an upgrade: what goes in, what is left.
const REQUESTS: [(Pairs<'_>, Pairs<'_>); 11] = [
    (
        &[("host", "a"), ("accept", "*/*")],
        &[("host", "a"), ("accept", "*/*")],
    ),
    (
        &[
            ("connection", "close, X-One , x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
        ],
        &[("x-three", "3")],
    ),
    (
        &[
            ("connection", "x-one"),
            ("connection", "x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
        ],
        &[],
    ),
    (
        &[
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
        ],
        &[],
    ),
    (
        &[("proxy-authorization", "Basic eA==")],
        &[("proxy-authorization", "Basic eA==")],
    ),
    (
        &[
            ("transfer-encoding", "Chunked"),
            ("content-length", "3"),
            ("trailer", "x"),
        ],
        &[("transfer-encoding", "chunked"), ("trailer", "x")],
    ),
    (&[("te", "gzip, trailers;q=0.5")], &[("te", "trailers")]),
    (
        &[("te", "trailers"), ("connection", "TE, close")],
        &[("te", "trailers"), ("connection", "te")],
    ),
    (&[("te", "deflate"), ("connection", "te")], &[]),
    (&[("upgrade", "websocket"), ("connection", "upgrade")], &[]),
    (
        &[
            ("connection", "host, content-length, L5D-Client-Id, ,b@d"),
            ("host", "a"),
            ("content-length", "3"),
            ("l5d-client-id", "me"),
        ],
        &[
            ("host", "a"),
            ("content-length", "3"),
            ("l5d-client-id", "me"),
        ],
    ),
];

#[test]
fn a_request_loses_what_is_for_one_hop() {
    for (given, left) in REQUESTS {
        assert_prepared(prepare_request, false, given, left);
    }
}

#[test]
fn an_upgrade_is_kept_when_asked() {
    let websocket: Pairs<'_> = &[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
    ];
    let left: Pairs<'_> = &[("connection", "upgrade"), ("upgrade", "websocket")];
    assert_prepared(prepare_request, true, websocket, left);
    assert_prepared(prepare_response, true, websocket, left);
    assert_prepared(prepare_response, false, websocket, &[]);
    assert_prepared(prepare_request, true, &[("upgrade", "websocket")], &[]);
}

#[test]
fn an_upgrade_to_http2_is_not_forwarded() {
    let h2c: Pairs<'_> = &[
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
    ];
    assert!(!is_upgrade(&map(h2c)));
    assert_prepared(prepare_request, true, h2c, &[]);
    let both = map(&[("connection", "upgrade"), ("upgrade", "websocket, H2C")]);
    assert!(!is_upgrade(&both));
}

#[test]
fn a_response_is_framed_anew() {
    for (given, left) in [
        (
            &[("transfer-encoding", "chunked"), ("content-length", "3")][..],
            &[][..],
        ),
        (
            &[("content-length", "3"), ("connection", "close")],
            &[("content-length", "3")],
        ),
        (
            &[("trailer", "grpc-status"), ("te", "trailers")],
            &[("trailer", "grpc-status")],
        ),
        (
            &[("proxy-authenticate", "Basic"), ("keep-alive", "x")],
            &[("proxy-authenticate", "Basic")],
        ),
    ] {
        assert_prepared(prepare_response, false, given, left);
    }
}

#[test]
fn trailers_neither_frame_nor_identify() {
    let mut trailers = map(&[
        ("grpc-status", "0"),
        ("content-length", "3"),
        ("transfer-encoding", "chunked"),
        ("host", "a"),
        ("connection", "x"),
        ("l5d-client-id", "root"),
        ("l5d-proxy-error", "x"),
    ]);
    prepare_trailers(&mut trailers);
    assert_eq!(trailers, map(&[("grpc-status", "0")]));
}

#[test]
fn an_upgrade_takes_both_fields() {
    for (given, upgrade) in [
        (
            &[("connection", "upgrade"), ("upgrade", "websocket")][..],
            true,
        ),
        (
            &[
                ("connection", "close"),
                ("connection", "UPGRADE"),
                ("upgrade", "x"),
            ],
            true,
        ),
        (&[("upgrade", "websocket")], false),
        (&[("connection", "upgrade")], false),
        (&[("connection", "upgraded"), ("upgrade", "x")], false),
    ] {
        assert_eq!(is_upgrade(&map(given)), upgrade, "{given:?}");
    }
}

#[test]
fn only_a_proxy_says_what_only_a_proxy_may() {
    let mut headers = map(&[
        ("l5d-client-id", "root"),
        ("l5d-client-id", "again"),
        ("l5d_client_id", "cgi"),
        ("l5d_client-id", "mixed"),
        ("l5d-proxy-error", "x"),
        ("l5d-proxy-connection", "close"),
        ("l5d-orig-proto", "HTTP/1.1"),
        ("l5d-dst-canonical", "a"),
        ("l5d-something-new", "a"),
        ("l5d-dst-override", "a:80"),
        ("l5d-require-id", "b"),
        ("l5d-retry-limit", "1"),
        ("l5d-timeout", "1s"),
        ("l5dx", "mine"),
    ]);
    strip_forgeable(&mut headers);
    let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    let asked = [
        "l5d-dst-override",
        "l5d-require-id",
        "l5d-retry-limit",
        "l5d-timeout",
        "l5dx",
    ];
    assert_eq!(left, asked);
}

#[test]
fn the_client_is_who_tls_says() {
    let mut headers = map(&[("l5d-client-id", "root"), ("l5d-client-id", "again")]);
    set_client_id(&mut headers, Some(&HeaderValue::from_static("web")));
    assert_eq!(headers, map(&[("l5d-client-id", "web")]));
    set_client_id(&mut headers, None);
    assert!(headers.is_empty());
}

#[test]
fn connections_that_are_authenticated_are_told() {
    for (given, bound) in [
        (&[("authorization", "NTLM TlRM")][..], true),
        (&[("authorization", "negotiate YII")], true),
        (
            &[("www-authenticate", "Basic realm=\"a\", Negotiate")],
            true,
        ),
        (
            &[("www-authenticate", "Bearer"), ("www-authenticate", "NTLM")],
            true,
        ),
        (&[("proxy-authenticate", "NTLM")], true),
        (&[("proxy-authorization", "NTLM x")], true),
        (&[("authorization", "Bearer ntlm")], false),
        (&[("authorization", "NTLMv3 x")], false),
        (&[], false),
    ] {
        assert_eq!(is_connection_auth(&map(given)), bound, "{given:?}");
    }
}

#[test]
fn host_says_what_the_absolute_target_says() {
    for (target, given, left) in [
        (
            "http://a.b:80/c",
            &[("host", "x"), ("host", "y")][..],
            &[("host", "a.b:80")][..],
        ),
        ("http://a.b/c", &[], &[("host", "a.b")]),
        ("/c", &[("host", "x")], &[("host", "x")]),
        ("a.b:80", &[("host", "x")], &[("host", "x")]),
    ] {
        let mut headers = map(given);
        let uri = target.parse().unwrap_or_else(|e| panic!("{target}: {e}"));
        align_host(Version::HTTP_11, &uri, &mut headers);
        assert_eq!(headers, map(left), "{target}");
    }
}

#[test]
fn http2_gets_no_host_beside_its_authority() {
    let same = &[("host", "a.b")][..];
    for (given, left) in [
        (&[][..], &[][..]),
        (same, same),
        (&[("host", "x")], &[]),
        (&[("host", "a.b"), ("host", "x")], &[]),
    ] {
        let mut headers = map(given);
        align_host(
            Version::HTTP_2,
            &Uri::from_static("http://a.b/c"),
            &mut headers,
        );
        assert_eq!(headers, map(left), "{given:?}");
    }
}

fn request(line: &str, fields: Pairs<'_>) -> Request<()> {
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (method, target, version) = (word(), word(), word());
    let mut request = Request::new(());
    *request.method_mut() = method.parse().unwrap_or(Method::TRACE);
    *request.uri_mut() = target.parse().unwrap_or_else(|e| panic!("{target}: {e}"));
    *request.version_mut() = match version {
        "1.0" => Version::HTTP_10,
        "1.1" => Version::HTTP_11,
        _ => Version::HTTP_2,
    };
    *request.headers_mut() = map(fields);
    request
}

/// A request line, the fields, and why it is refused, if it is.
const CHECKED: [(&str, Pairs<'_>, Option<Cause>); 41] = [
    ("GET / 1.1", &[("host", "a")], None),
    ("GET / 1.1", &[("host", "a:80")], None),
    ("GET / 1.1", &[("host", "[::1]:80")], None),
    ("GET / 1.1", &[("host", "")], None),
    ("GET / 1.0", &[], None),
    ("GET / 1.1", &[], Some(Cause::BadRequest)),
    (
        "GET / 1.1",
        &[("host", "a"), ("host", "a")],
        Some(Cause::BadRequest),
    ),
    (
        "GET / 1.0",
        &[("host", "a"), ("host", "b")],
        Some(Cause::BadRequest),
    ),
    ("GET / 1.1", &[("host", "a/b")], Some(Cause::BadRequest)),
    ("GET / 1.1", &[("host", "a, b")], Some(Cause::BadRequest)),
    ("GET / 1.1", &[("host", "u@a")], Some(Cause::BadRequest)),
    ("GET http://a/ 1.1", &[("host", "b")], None),
    (
        "GET http://u:p@a/ 1.1",
        &[("host", "a")],
        Some(Cause::BadRequest),
    ),
    ("GET a:80 1.1", &[("host", "a")], Some(Cause::BadRequest)),
    ("OPTIONS * 1.1", &[("host", "a")], None),
    ("GET * 1.1", &[("host", "a")], Some(Cause::BadRequest)),
    ("CONNECT a:80 1.1", &[("host", "a")], None),
    ("CONNECT a 1.1", &[("host", "a")], Some(Cause::BadRequest)),
    ("CONNECT / 1.1", &[("host", "a")], Some(Cause::BadRequest)),
    (
        "POST / 1.1",
        &[("host", "a"), ("transfer-encoding", "chunked")],
        None,
    ),
    (
        "POST / 1.1",
        &[("host", "a"), ("transfer-encoding", "CHUNKED")],
        None,
    ),
    (
        "POST / 1.1",
        &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
        Some(Cause::TransferCoding),
    ),
    (
        "POST / 1.1",
        &[("host", "a"), ("transfer-encoding", "chunked, chunked")],
        Some(Cause::TransferCoding),
    ),
    (
        "POST / 1.1",
        &[
            ("host", "a"),
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "chunked"),
        ],
        Some(Cause::TransferCoding),
    ),
    (
        "POST / 1.1",
        &[("host", "a"), ("transfer-encoding", "xchunked")],
        Some(Cause::TransferCoding),
    ),
    (
        "POST / 1.1",
        &[("host", "a"), ("content-length", "3")],
        None,
    ),
    (
        "POST / 1.1",
        &[("host", "a"), ("content-length", "+3")],
        Some(Cause::BadRequest),
    ),
    (
        "POST / 1.1",
        &[("host", "a"), ("content-length", "3, 3")],
        Some(Cause::BadRequest),
    ),
    (
        "POST / 1.1",
        &[("host", "a"), ("content-length", "")],
        Some(Cause::BadRequest),
    ),
    (
        "POST / 2",
        &[
            ("host", "a"),
            ("content-length", "3"),
            ("content-length", "4"),
        ],
        Some(Cause::BadRequest),
    ),
    (
        "POST / 2",
        &[
            ("host", "a"),
            ("content-length", "3"),
            ("content-length", "3"),
        ],
        None,
    ),
    ("GET / 2", &[("host", "a")], None),
    ("GET / 2", &[], Some(Cause::BadRequest)),
    ("GET http://a/ 2", &[], None),
    ("GET http://a/ 2", &[("host", "A")], None),
    ("GET http://a/ 2", &[("host", "b")], Some(Cause::BadRequest)),
    (
        "GET http://a/ 2",
        &[("host", "a"), ("host", "a")],
        Some(Cause::BadRequest),
    ),
    ("GET http://u@a/ 2", &[], Some(Cause::BadRequest)),
    ("OPTIONS * 2", &[("host", "a")], None),
    ("CONNECT a:80 2", &[], None),
    ("CONNECT http://a/ 2", &[], Some(Cause::BadRequest)),
];

#[test]
fn a_request_that_reads_two_ways_is_refused() {
    for (line, fields, refused) in CHECKED {
        let checked = check_request(&request(line, fields));
        assert_eq!(checked.err().map(|e| e.cause), refused, "{line} {fields:?}");
    }
}

#[test]
fn a_response_that_reads_two_ways_is_refused() {
    for (fields, good) in [
        (&[("content-length", "3")][..], true),
        (
            &[("transfer-encoding", "chunked"), ("content-length", "3")],
            true,
        ),
        (&[("transfer-encoding", "gzip")], false),
        (&[("transfer-encoding", "gzip, chunked")], false),
        (&[("content-length", "3"), ("content-length", "3")], true),
        (&[("content-length", "3, 3")], false),
        (&[("content-length", "3"), ("content-length", "4")], false),
    ] {
        let mut response = Response::new(());
        *response.headers_mut() = map(fields);
        let checked = check_response(&response, false).map_err(|e| e.cause);
        assert_eq!(
            checked,
            if good {
                Ok(())
            } else {
                Err(Cause::BadResponse)
            },
            "{fields:?}"
        );
    }
}

#[test]
fn protocols_are_switched_only_when_asked() {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    assert_eq!(check_response(&response, true), Ok(()));
    let unasked = check_response(&response, false);
    let expected = ProxyError::new(Cause::BadResponse, "switched protocols unasked");
    assert_eq!(unasked, Err(expected));
}
