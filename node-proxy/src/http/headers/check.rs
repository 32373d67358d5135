// SPDX-License-Identifier: Apache-2.0
//! Messages that two readers could read differently go no further: what RFC 9112 and RFC 9113 demand
//! and hyper does not see to.

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
    uri::Authority,
};

use crate::http::respond::{Cause, ProxyError};

/// Whether a request can be forwarded.
///
/// # Errors
///
/// 400 for a target, a `Host` or a length that is missing, invalid or ambiguous, 501 for a transfer
/// coding besides `chunked`.
pub(crate) fn check_request<B>(request: &Request<B>) -> Result<(), ProxyError> {
    let (uri, headers) = (request.uri(), request.headers());
    let extended = request.extensions().get::<hyper::ext::Protocol>().is_some();
    if !extended {
        check_target(request.method(), uri, request.version())?;
    }
    check_userinfo(uri)?;
    check_coding(headers).map_err(|message| ProxyError::new(Cause::TransferCoding, message))?;
    check_length(headers).map_err(bad_request)?;
    if request.version() == Version::HTTP_2 {
        check_authority(uri, headers)
    } else {
        check_host(request.version(), headers)
    }
}

/// Whether a response can be forwarded. `upgrade`: the request asked for one.
///
/// # Errors
///
/// 502 for a transfer coding besides `chunked`, an ambiguous length, or 101 without being asked.
pub(crate) fn check_response<B>(response: &Response<B>, upgrade: bool) -> Result<(), ProxyError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !upgrade {
        return Err(bad_response("switched protocols unasked"));
    }
    check_coding(response.headers()).map_err(bad_response)?;
    check_length(response.headers()).map_err(bad_response)
}

/// RFC 9112 section 3.2, RFC 9113 section 8.3.1.
fn check_target(method: &Method, uri: &Uri, version: Version) -> Result<(), ProxyError> {
    if method == Method::CONNECT {
        let complete = uri.port().is_some();
        return complete
            .then_some(())
            .ok_or_else(|| bad_request("CONNECT without host and port"));
    }
    if uri.path() == "*" && method != Method::OPTIONS {
        return Err(bad_request("target * is for OPTIONS alone"));
    }
    if version != Version::HTTP_2 && uri.scheme().is_none() && uri.authority().is_some() {
        return Err(bad_request(
            "a bare authority is a target for CONNECT alone",
        ));
    }
    Ok(())
}

/// RFC 9110 section 4.2.4, RFC 9113 section 8.3.1.
fn check_userinfo(uri: &Uri) -> Result<(), ProxyError> {
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err(bad_request("user information in the target"))
        }
        _ => Ok(()),
    }
}

/// RFC 9112 section 3.2: one `Host`, always from HTTP/1.1 on.
fn check_host(version: Version, headers: &HeaderMap) -> Result<(), ProxyError> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version >= Version::HTTP_11 => Err(bad_request("no Host")),
        (None, _) => Ok(()),
        (Some(_), Some(_)) => Err(bad_request("more than one Host")),
        (Some(host), None) => check_host_value(host).map(drop),
    }
}

/// RFC 9113 section 8.3.1: `:authority` and `Host` say the same, and one of them is there.
fn check_authority(uri: &Uri, headers: &HeaderMap) -> Result<(), ProxyError> {
    check_host(Version::HTTP_10, headers)?;
    let host = headers.get(HOST).map(HeaderValue::as_bytes);
    match (uri.authority(), host) {
        (None, None) => Err(bad_request("neither :authority nor Host")),
        (Some(authority), Some(host)) if !same_host(authority, host) => {
            Err(bad_request("Host differs from :authority"))
        }
        _ => Ok(()),
    }
}

fn same_host(authority: &Authority, host: &[u8]) -> bool {
    authority.as_str().as_bytes().eq_ignore_ascii_case(host)
}

/// An authority, or nothing for a target that has none.
fn check_host_value(host: &HeaderValue) -> Result<(), ProxyError> {
    if host.is_empty() {
        return Ok(());
    }
    match Authority::try_from(host.as_bytes()) {
        Ok(authority) if !authority.as_str().contains('@') => Ok(()),
        _ => Err(bad_request("invalid Host")),
    }
}

/// RFC 9112 section 6.1. hyper takes any coding if `chunked` comes last, and undoes only that one.
fn check_coding(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err("only the transfer coding chunked, once, is understood"),
    }
}

/// RFC 9110 section 8.6: digits, and the same wherever it is said.
fn check_length(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else {
        return Ok(());
    };
    let digits = !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
    if digits && lengths.all(|other| other == first) {
        Ok(())
    } else {
        Err("invalid or ambiguous Content-Length")
    }
}

fn bad_request(message: &str) -> ProxyError {
    ProxyError::new(Cause::BadRequest, message)
}

fn bad_response(message: &str) -> ProxyError {
    ProxyError::new(Cause::BadResponse, message)
}
