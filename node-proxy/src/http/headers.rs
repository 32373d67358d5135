// SPDX-License-Identifier: Apache-2.0
//! What a proxy does to the fields of a message: those of one hop end here (RFC 9110 section 7.6.1),
//! those that only a proxy may write are taken from whoever is none.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, Version,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        TE, TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE,
    },
};

mod check;
#[cfg(test)]
mod mutated;
#[cfg(test)]
mod tests;

pub(crate) use check::{check_request, check_response};

/// Who the client is, for the application: its identity as mutual TLS proved it.
pub(crate) const CLIENT_ID: HeaderName = HeaderName::from_static("l5d-client-id");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Linkerd's own fields.
const L5D: &str = "l5d-";

/// Those of them that clients write: what they ask of their own proxy.
const ASKED: [&str; 6] = [
    "l5d-dst-override",
    "l5d-require-id",
    "l5d-timeout",
    "l5d-request-timeout",
    "l5d-response-timeout",
    "l5d-retry-",
];

/// Leaves what is for whoever comes next.
///
/// `Transfer-Encoding: chunked` stays: hyper frames a body anew, but that of a GET only if the head
/// announces it. So does `TE: trailers`, without which no server sends any. `Proxy-Authorization`
/// stays because the application addressed another proxy than this one.
pub(crate) fn prepare_request(headers: &mut HeaderMap, keep_upgrade: bool) {
    let trailers = has_token(headers, &TE, "trailers");
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    let hops = headers.contains_key(CONNECTION);
    remove_hop_by_hop(headers, keep_upgrade);
    if chunked {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if hops {
            headers.append(CONNECTION, HeaderValue::from_static("te"));
        }
    }
}

/// Leaves what is for whoever comes next. `keep_upgrade` is for 101, and for 426, which has to name
/// the protocols that it wants.
pub(crate) fn prepare_response(headers: &mut HeaderMap, keep_upgrade: bool) {
    remove_hop_by_hop(headers, keep_upgrade);
}

/// Leaves no trailer that frames, routes or authenticates (RFC 9110 section 6.5.1).
pub(crate) fn prepare_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers, false);
    for name in [HOST, CONTENT_LENGTH] {
        trailers.remove(name);
    }
    strip_forgeable(trailers);
}

/// Whether the message asks for, or agrees on, another protocol on its connection.
///
/// Never HTTP/2: RFC 9113 section 3.1 took that upgrade back, and its requests would pass unseen.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && has_token(headers, &CONNECTION, "upgrade")
        && !has_token(headers, &UPGRADE, "h2c")
}

/// Takes out all of `l5d-*` that only a proxy may say, also in the spelling that CGI makes the same
/// name of (`l5d_client_id`).
pub(crate) fn strip_forgeable(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_forgeable(name)).cloned() {
        headers.remove(name);
    }
}

/// Tells the application who the client is, whatever the client said. After
/// [`strip_forgeable`] and [`prepare_request`].
pub(crate) fn set_client_id(headers: &mut HeaderMap, id: Option<&HeaderValue>) {
    match id {
        Some(id) => headers.insert(CLIENT_ID, id.clone()),
        None => headers.remove(CLIENT_ID),
    };
}

/// Whether the message authenticates its connection instead of itself: then nobody else's requests
/// may follow there (RFC 4559 section 6).
pub(crate) fn is_connection_auth(headers: &HeaderMap) -> bool {
    [
        AUTHORIZATION,
        WWW_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        PROXY_AUTHENTICATE,
    ]
    .iter()
    .flat_map(|name| headers.get_all(name))
    .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
    .any(is_connection_scheme)
}

/// Makes `Host` say what a target in absolute form says (RFC 9112 section 3.2.2).
///
/// HTTP/2 has the authority beside the headers: there a `Host` that says something else goes, and none
/// is added, for servers that take both for two hosts (nginx before 1.25 answers 400).
pub(crate) fn align_host(version: Version, uri: &Uri, headers: &mut HeaderMap) {
    let Some(authority) = uri.authority().filter(|_| uri.scheme().is_some()) else {
        return;
    };
    let mut hosts = headers.get_all(HOST).iter();
    if hosts.next().is_some_and(|host| host == authority.as_str()) && hosts.next().is_none() {
        return;
    }
    headers.remove(HOST);
    if version != Version::HTTP_2
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(HOST, host);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    let upgrade = (keep_upgrade && is_upgrade(headers)).then(|| headers.remove(UPGRADE));
    remove_named(headers);
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TE, UPGRADE, HTTP2_SETTINGS] {
        headers.remove(name);
    }
    if headers.remove(TRANSFER_ENCODING).is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    if let Some(upgrade) = upgrade.flatten() {
        headers.insert(UPGRADE, upgrade);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Removes `Connection` and what it names.
fn remove_named(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let named: Vec<_> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .filter(|name| is_removable(name))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    headers.remove(CONNECTION);
    for name in named {
        headers.remove(name);
    }
}

/// Whether naming a field in `Connection` is enough to lose it. Not what the message consists of,
/// not what a proxy says, and the usual options are no fields.
fn is_removable(name: &[u8]) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    let fixed = [
        "close",
        "host",
        "content-length",
        "transfer-encoding",
        "trailer",
    ];
    let ours = name
        .get(..L5D.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(L5D.as_bytes()));
    !ours && !fixed.into_iter().any(is)
}

/// The members of a field that is a list of tokens.
fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
}

/// Whether a list has a member, with or without a weight or parameters.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().flat_map(tokens).any(|member| {
        let end = member
            .iter()
            .position(|byte| *byte == b';')
            .unwrap_or(member.len());
        member[..end]
            .trim_ascii()
            .eq_ignore_ascii_case(token.as_bytes())
    })
}

fn is_forgeable(name: &HeaderName) -> bool {
    let name = name.as_str();
    if !name.starts_with("l5d") {
        return false;
    }
    let name = name.replace('_', "-");
    name.starts_with(L5D) && !ASKED.iter().any(|asked| name.starts_with(asked))
}

/// Whether a challenge or credentials begin with a scheme of RFC 4559, or its older sister.
fn is_connection_scheme(member: &[u8]) -> bool {
    let scheme = member.trim_ascii().split(|byte| *byte == b' ').next();
    scheme.is_some_and(|scheme| {
        scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
    })
}
