// SPDX-License-Identifier: Apache-2.0
//! The log of HTTP requests, a line each when its response begins, in Linkerd's two formats
//! (linkerd2-proxy, linkerd/http/access-log and linkerd/tracing/src/access_log.rs).
//!
//! What is in a line is what Linkerd has in it: the URI with its query, no other header than those
//! named here, never `Authorization` or a cookie.

use std::{
    fmt::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use culvert_api::policy::AccessLogFormat;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version,
    header::{CONTENT_LENGTH, HOST, USER_AGENT},
};
use serde::Serialize;

use super::{AccessLog, now};

/// Where the trace of a request is looked for, in this order.
const TRACE_IDS: [&str; 3] = ["x-b3-traceid", "x-request-id", "x-amzn-trace-id"];

/// What a line says of the request, kept while it is answered. Nothing is copied.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    timestamp: String,
    method: Method,
    uri: Uri,
    version: Version,
    trace_id: Option<HeaderValue>,
    length: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    host: Option<HeaderValue>,
}

/// A request whose response begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HttpEntry<'a> {
    /// The pod that is asked.
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) client_addr: SocketAddr,
    /// The client's identity; empty if it has none.
    pub(crate) client_id: &'a str,
    pub(crate) asked: &'a Asked,
    /// None: the client went away before there was a response.
    pub(crate) status: Option<u16>,
    /// `Content-Length` of the response, if it has one.
    pub(crate) response_bytes: Option<&'a HeaderValue>,
    /// From the request's head to the response's.
    pub(crate) total: Duration,
    /// What of it the proxy itself was busy or waited for others than the application.
    pub(crate) processing: Duration,
}

/// The order of the fields is Linkerd's: by name. Numbers but `status` are strings there.
#[derive(Debug, Serialize)]
struct Json<'a> {
    #[serde(rename = "client.addr")]
    client_addr: SocketAddr,
    #[serde(rename = "client.id")]
    client_id: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
    host: &'a str,
    method: &'a str,
    namespace: &'a str,
    pod: &'a str,
    processing_ns: String,
    request_bytes: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_bytes: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    timestamp: &'a str,
    total_ns: String,
    trace_id: &'a str,
    uri: String,
    user_agent: &'a str,
    version: String,
}

/// Text in which no character ends the line or the quotes.
struct Escaped<'a>(&'a str);

// === impl Asked ===

impl Asked {
    /// Of a request that has just arrived.
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        Self {
            timestamp: now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            trace_id: trace_id(headers),
            length: headers.get(CONTENT_LENGTH).cloned(),
            user_agent: headers.get(USER_AGENT).cloned(),
            host: headers.get(HOST).cloned(),
        }
    }
}

fn trace_id(headers: &HeaderMap) -> Option<HeaderValue> {
    TRACE_IDS
        .iter()
        .find_map(|name| headers.get(*name))
        .cloned()
}

/// Empty if there is none, or none in visible ASCII.
fn text(value: Option<&HeaderValue>) -> &str {
    value.and_then(|v| v.to_str().ok()).unwrap_or_default()
}

// === impl HttpEntry ===

impl HttpEntry<'_> {
    fn client(&self) -> &str {
        match self.client_id {
            "" => "-",
            id => id,
        }
    }

    fn line(&self, format: AccessLogFormat, dropped: u64) -> Option<String> {
        match format {
            AccessLogFormat::Apache => self.apache(),
            AccessLogFormat::Json => self.json(dropped),
        }
    }

    /// Linkerd's line ends at the version if there was no status.
    fn apache(&self) -> Option<String> {
        let mut line = String::with_capacity(256);
        let (client, asked) = (Escaped(self.client()), self.asked);
        write!(
            line,
            "{} {client} - [{}] ",
            self.client_addr, asked.timestamp
        )
        .ok()?;
        let uri = asked.uri.to_string();
        let (method, uri) = (Escaped(asked.method.as_str()), Escaped(&uri));
        write!(line, "\"{method} {uri} {:?}\"", asked.version).ok()?;
        match self.status {
            Some(status) => write!(line, " {status}").ok()?,
            None => line.push_str(" -"),
        }
        Some(line)
    }

    fn json(&self, dropped: u64) -> Option<String> {
        let asked = self.asked;
        let json = Json {
            client_addr: self.client_addr,
            client_id: self.client(),
            dropped,
            host: text(asked.host.as_ref()),
            method: asked.method.as_str(),
            namespace: self.namespace,
            pod: self.pod,
            processing_ns: self.processing.as_nanos().to_string(),
            request_bytes: text(asked.length.as_ref()),
            response_bytes: self.response_bytes.map(|length| text(Some(length))),
            status: self.status,
            timestamp: &asked.timestamp,
            total_ns: self.total.as_nanos().to_string(),
            trace_id: text(asked.trace_id.as_ref()),
            uri: asked.uri.to_string(),
            user_agent: text(asked.user_agent.as_ref()),
            version: format!("{:?}", asked.version),
        };
        let line = serde_json::to_string(&json).ok()?;
        Some(match line.chars().any(breaks) {
            true => line.chars().map(escaped_in_json).collect(),
            false => line,
        })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Whether some reader takes the character for the end of a line, or a command to the terminal.
fn breaks(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

fn escaped_in_json(c: char) -> String {
    match breaks(c) {
        true => format!("\\u{:04x}", u32::from(c)),
        false => c.to_string(),
    }
}

// === impl Escaped ===

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '"' | '\\' => write!(f, "\\{c}"),
            c if breaks(c) => write!(f, "{}", c.escape_unicode()),
            c => f.write_char(c),
        })
    }
}

// === impl AccessLog ===

impl AccessLog {
    /// Logs one request.
    pub(crate) fn log_http(&self, format: AccessLogFormat, entry: &HttpEntry<'_>) {
        self.send(|dropped| entry.line(format, dropped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str) -> Request<()> {
        let request = Request::post(uri)
            .version(Version::HTTP_2)
            .header("host", "webapp:7000")
            .header("user-agent", "curl/8")
            .header("content-length", "12")
            .header("x-request-id", "second")
            .header("x-b3-traceid", "first")
            .header("authorization", "Bearer secret")
            .header("cookie", "session=secret");
        request.body(()).unwrap_or_else(|e| panic!("{e}"))
    }

    fn logged(format: AccessLogFormat, uri: &str, status: Option<u16>) -> String {
        let mut asked = Asked::of(&request(uri));
        asked.timestamp = "2026-11-21T06:00:00.5Z".into();
        let length = HeaderValue::from_static("19");
        let entry = HttpEntry {
            namespace: "shop",
            pod: "cart-1",
            client_addr: SocketAddr::from(([10, 42, 0, 63], 51_160)),
            client_id: "",
            asked: &asked,
            status,
            response_bytes: status.map(|_| &length),
            total: Duration::from_nanos(1_234_567),
            processing: Duration::from_nanos(89),
        };
        let line = entry.line(format, 0).unwrap_or_default();
        assert!(
            !line.contains("secret") && !line.chars().any(breaks),
            "{line}"
        );
        line
    }

    #[test]
    fn apache_lines_are_linkerds() {
        let line = |status| logged(AccessLogFormat::Apache, "http://webapp:7000/a?b=c", status);
        let head = "10.42.0.63:51160 - - [2026-11-21T06:00:00.5Z] \
                    \"POST http://webapp:7000/a?b=c HTTP/2.0\"";
        assert_eq!(line(Some(200)), format!("{head} 200"));
        assert_eq!(line(None), format!("{head} -"));
    }

    #[test]
    fn json_lines_have_linkerds_fields() {
        let line = logged(AccessLogFormat::Json, "/a?b=c", Some(200));
        let expected = concat!(
            r#"{"client.addr":"10.42.0.63:51160","client.id":"-","host":"webapp:7000","#,
            r#""method":"POST","namespace":"shop","pod":"cart-1","processing_ns":"89","#,
            r#""request_bytes":"12","response_bytes":"19","status":200,"#,
            r#""timestamp":"2026-11-21T06:00:00.5Z","total_ns":"1234567","trace_id":"first","#,
            r#""uri":"/a?b=c","user_agent":"curl/8","version":"HTTP/2.0"}"#,
        );
        assert_eq!(line, expected);
        let line = logged(AccessLogFormat::Json, "/", None);
        assert!(
            !line.contains("status") && !line.contains("response_bytes"),
            "{line}"
        );
    }

    #[test]
    fn a_client_forges_no_line() {
        let escaped = Escaped("a\" 200\r\n\u{85}\u{2028}\u{1b}[2J\\").to_string();
        assert_eq!(
            escaped,
            "a\\\" 200\\u{d}\\u{a}\\u{85}\\u{2028}\\u{1b}[2J\\\\"
        );
        let json: String = "\"\u{7f}\u{85}\u{2029}\""
            .chars()
            .map(escaped_in_json)
            .collect();
        assert_eq!(json, r#""\u007f\u0085\u2029""#);
        assert_eq!(
            serde_json::from_str::<String>(&json).ok(),
            Some("\u{7f}\u{85}\u{2029}".into())
        );
        for uri in ["/a\"b", "/ä\u{2028}"] {
            if uri.parse::<Uri>().is_ok() {
                let line = logged(AccessLogFormat::Apache, uri, Some(200));
                assert_eq!(line.matches(" HTTP/2.0\" 200").count(), 1, "{line}");
                assert!(!line.contains("/a\"b"), "{line}");
            }
        }
    }

    /// xorshift64: the same bytes each time.
    fn bytes(state: &mut u64) -> Vec<u8> {
        let mut next = || {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            *state
        };
        let odd = b"\"\\ \t%/?#[]{}\x7f\xc2\x85\xe2\x80\xa8\xff\x1b";
        (0..next() % 24)
            .map(|_| match next() % 2 {
                0 => odd[next() as usize % odd.len()],
                _ => next() as u8,
            })
            .collect()
    }

    fn mutated(state: &mut u64) -> Asked {
        let mut value = || HeaderValue::from_bytes(&bytes(state)).ok();
        let (host, length, trace_id, user_agent) = (value(), value(), value(), value());
        let path = [&b"/"[..], &bytes(state)].concat();
        Asked {
            method: Method::from_bytes(&bytes(state)).unwrap_or_default(),
            uri: Uri::try_from(path).unwrap_or_default(),
            host,
            length,
            trace_id,
            user_agent,
            ..Asked::of(&request("/"))
        }
    }

    #[test]
    fn whatever_is_asked_is_one_line_of_its_format() {
        let mut state = 0x00c0_ffee;
        for _ in 0..20_000 {
            let asked = mutated(&mut state);
            let client_id = String::from_utf8_lossy(&bytes(&mut state)).into_owned();
            let length = HeaderValue::from_bytes(&bytes(&mut state)).ok();
            let entry = HttpEntry {
                namespace: "shop",
                pod: "cart-1",
                client_addr: SocketAddr::from(([10, 42, 0, 63], 51_160)),
                client_id: &client_id,
                asked: &asked,
                status: Some(200),
                response_bytes: length.as_ref(),
                total: Duration::ZERO,
                processing: Duration::ZERO,
            };
            let json = entry.line(AccessLogFormat::Json, 1).unwrap_or_default();
            let read: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
            assert_eq!(read["uri"], asked.uri.to_string(), "{json}");
            assert_eq!(read["client.id"], entry.client(), "{json}");
            let apache = entry.line(AccessLogFormat::Apache, 1).unwrap_or_default();
            let escaped = apache.replace("\\\\", "").replace("\\\"", "");
            let parts: Vec<_> = escaped.split('"').collect();
            assert!(parts.len() == 3 && parts[2] == " 200", "{apache}");
            for line in [json, apache] {
                assert!(!line.chars().any(breaks), "{line:?}");
            }
        }
    }
}
