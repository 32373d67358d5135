// SPDX-License-Identifier: Apache-2.0
//! Heads that were cut up, turned and put together again: nothing of one hop gets past them.

use http::{Method, Request, Response};

use super::*;

/// How many heads.
const HEADS: u32 = 20_000;

/// What heads are made of: the names that mean something here, and what they may be taken for.
const NAMES: [&str; 28] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "content-length",
    "host",
    "expect",
    "cookie",
    "x-own",
    "x_own",
    "l5d-client-id",
    "l5d_client_id",
    "l5d-client_id",
    "l5d_client-id",
    "l5d-proxy-error",
    "l5d_proxy_error",
    "l5d-proxy-unsent",
    "l5d-proxy-connection",
    "l5d-require-id",
    "l5d-retry-limit",
    "l5d",
    "l5d-",
    "proxy-authorization",
    "authorization",
];
const VALUES: [&str; 24] = [
    "",
    "close",
    "keep-alive",
    "upgrade",
    "te, upgrade",
    "l5d-client-id",
    "x-own, X_OWN,,",
    ", ,",
    "transfer-encoding",
    "content-length, host",
    "chunked",
    "Chunked",
    "gzip, chunked",
    "trailers",
    "trailers;q=1, gzip",
    "h2c",
    "websocket",
    "5",
    "5, 5",
    "-1",
    "a:80",
    "u@a",
    "100-continue",
    "NTLM x",
];
const TARGETS: [&str; 9] = [
    "/",
    "*",
    "a:80",
    "http://a/",
    "http://u@a:1/",
    "http://[::1]:80/x?y",
    "/%00",
    "//a",
    "a",
];

/// xorshift64: the same heads each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap_or_default()
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.roll(all.len())]
    }

    /// One of `all`, or some bytes of it replaced, dropped or doubled.
    fn mutated(&mut self, all: &[&str]) -> Vec<u8> {
        let mut bytes = self.of(all).as_bytes().to_vec();
        for _ in 0..self.roll(8).saturating_sub(5) {
            let at = self.roll(bytes.len() + 1);
            let any = u8::try_from(self.roll(256)).unwrap_or_default();
            match self.roll(4) {
                0 => bytes.insert(at, any),
                1 => bytes.truncate(at),
                2 => bytes.extend_from_within(at..),
                _ => bytes
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|byte| *byte ^= 0x20),
            }
        }
        bytes
    }

    fn headers(&mut self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for _ in 0..self.roll(12) {
            let name = HeaderName::from_bytes(&self.mutated(&NAMES));
            let value = HeaderValue::from_bytes(&self.mutated(&VALUES));
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        headers
    }

    fn request(&mut self) -> Option<Request<()>> {
        let mut request = Request::new(());
        *request.headers_mut() = self.headers();
        *request.uri_mut() = Uri::try_from(self.mutated(&TARGETS)).ok()?;
        *request.method_mut() =
            Method::from_bytes(&self.mutated(&["GET", "CONNECT", "OPTIONS"])).ok()?;
        let versions = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];
        *request.version_mut() = versions[self.roll(versions.len())];
        Some(request)
    }
}

/// In every spelling that some server takes for the same name.
fn canonical(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

/// What `Connection` named, as a strict reader reads it.
fn named(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter();
    let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let names = names.map(|name| String::from_utf8_lossy(name.trim_ascii()).to_lowercase());
    names.filter(|name| !name.starts_with("l5d-")).collect()
}

fn assert_clean(before: &HeaderMap, after: &HeaderMap, upgrade: bool) {
    let kept = [
        "te",
        "transfer-encoding",
        "upgrade",
        "connection",
        "host",
        "content-length",
        "trailer",
    ];
    for name in after.keys() {
        let is = canonical(name);
        assert!(
            !is.starts_with("l5d-client-id") && !is.starts_with("l5d-proxy-"),
            "{name} of {before:?}"
        );
        assert!(
            !["keep-alive", "proxy-connection", "http2-settings"].contains(&name.as_str()),
            "{name}"
        );
        let named = named(before).iter().any(|of| of == name.as_str());
        assert!(
            !named || kept.contains(&name.as_str()),
            "{name}, named by {before:?}"
        );
    }
    let one = |name, allowed: &[&str]| {
        let mut values = after.get_all(name).iter();
        let fits = values
            .next()
            .is_none_or(|value| allowed.iter().any(|it| value == it));
        assert!(
            fits && values.next().is_none(),
            "{before:?} became {after:?}"
        );
    };
    one(TE, &["trailers"]);
    one(TRANSFER_ENCODING, &["chunked"]);
    if !upgrade || !is_upgrade(before) {
        assert!(!after.contains_key(UPGRADE), "{before:?} became {after:?}");
        one(CONNECTION, &["te"]);
    }
    let framed_twice = after.contains_key(TRANSFER_ENCODING) && after.contains_key(CONTENT_LENGTH);
    assert!(!framed_twice, "{before:?} became {after:?}");
}

#[test]
fn no_request_carries_on_what_ends_here() {
    let mut dice = Dice(0x00c0_ffee);
    let mut passed = 0;
    for _ in 0..HEADS {
        let Some(request) = dice.request() else {
            continue;
        };
        passed += u32::from(check_request(&request).is_ok());
        for upgrade in [false, true] {
            let mut headers = request.headers().clone();
            align_host(request.version(), request.uri(), &mut headers);
            strip_forgeable(&mut headers);
            prepare_request(&mut headers, upgrade);
            assert_clean(request.headers(), &headers, upgrade);
            let once = headers.clone();
            strip_forgeable(&mut headers);
            prepare_request(&mut headers, upgrade);
            assert_eq!(headers, once, "of {request:?}");
        }
    }
    assert!(passed > HEADS / 100, "only {passed} were valid");
}

#[test]
fn what_passes_is_read_in_one_way() {
    let mut dice = Dice(0x0bad_cafe);
    for _ in 0..HEADS {
        let Some(request) = dice.request() else {
            continue;
        };
        if check_request(&request).is_err() {
            continue;
        }
        let headers = request.headers();
        let hosts = headers.get_all(HOST).iter().count();
        let user = request
            .uri()
            .authority()
            .is_some_and(|it| it.as_str().contains('@'));
        assert!(hosts <= 1 && !user, "{request:?}");
        assert!(
            hosts == 1 || request.version() != Version::HTTP_11,
            "{request:?}"
        );
        assert_framed_once(headers);
    }
}

#[test]
fn no_response_carries_on_what_ends_here() {
    let mut dice = Dice(0xfeed_beef);
    for _ in 0..HEADS {
        let mut response = Response::new(());
        *response.headers_mut() = dice.headers();
        let switched = dice.roll(4) == 0;
        if switched {
            *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        }
        if check_response(&response, false).is_ok() {
            assert!(!switched, "{response:?}");
            assert_framed_once(response.headers());
        }
        let before = response.headers().clone();
        let headers = response.headers_mut();
        prepare_response(headers, false);
        for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, TE] {
            assert!(
                !headers.contains_key(&name),
                "{before:?} became {headers:?}"
            );
        }
        prepare_trailers(headers);
        for name in [HOST, CONTENT_LENGTH] {
            assert!(
                !headers.contains_key(&name),
                "{before:?} became {headers:?}"
            );
        }
        let forged = headers
            .keys()
            .any(|name| canonical(name).starts_with("l5d-client-id"));
        assert!(!forged, "{before:?} became {headers:?}");
    }
}

/// By one coding that is known, or one length.
fn assert_framed_once(headers: &HeaderMap) {
    let codings: Vec<_> = headers.get_all(TRANSFER_ENCODING).iter().collect();
    let chunked = codings
        .iter()
        .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    assert!(codings.len() <= 1 && chunked, "{headers:?}");
    let mut lengths: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().collect();
    lengths.dedup();
    let digits = lengths
        .iter()
        .all(|it| !it.is_empty() && it.as_bytes().iter().all(u8::is_ascii_digit));
    assert!(lengths.len() <= 1 && digits, "{headers:?}");
}
