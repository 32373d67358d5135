// SPDX-License-Identifier: Apache-2.0
//! What a request is addressed to.

use std::net::SocketAddr;

use http::{
    Method, Uri, Version,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

/// Addresses a request to a server.
pub(super) fn prepare(head: &mut Parts, original: SocketAddr) {
    match head.version {
        Version::HTTP_2 => name_authority(head, original),
        // A proxy speaks its own version (RFC 9110, 2.5), which needs a Host.
        Version::HTTP_10 if head.headers.contains_key(HOST) => head.version = Version::HTTP_11,
        _ => {}
    }
}

/// HTTP/2 needs an authority (RFC 9113, 8.3.1), which a client may have put into `Host` only, or left
/// out: then it is what was dialled.
fn name_authority(head: &mut Parts, original: SocketAddr) {
    if head.method == Method::CONNECT || head.uri.authority().is_some() {
        return;
    }
    let host = head.headers.get(HOST).map(|host| host.as_bytes());
    let host = host.and_then(|host| Authority::try_from(host).ok());
    let authority = host.or_else(|| Authority::try_from(original.to_string()).ok());
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.authority = authority;
    parts.scheme.get_or_insert(Scheme::HTTP);
    parts
        .path_and_query
        .get_or_insert(PathAndQuery::from_static("/"));
    head.uri = Uri::from_parts(parts).unwrap_or_default();
}
