// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 frames that break the rules, or bend them until somebody suffers: RFC 9113.

pub mod client;
pub mod load;

use anyhow::{Context as _, ensure};

use self::client::{Client, End, GET, STATUS_400, get_on, headers, open_on, pseudo, with};
use crate::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, HEADERS, PADDED,
        PING, PROTOCOL_ERROR, PUSH_PROMISE, SETTINGS, WINDOW_UPDATE, frame,
    },
    ground::{Ground, WAYS},
};

pub fn streams(ground: &Ground<'_>) -> anyhow::Result<()> {
    let malformed = End::Reset(PROTOCOL_ERROR);
    let refused = End::Answer(STATUS_400);
    let connect = [(":method", &b"CONNECT"[..]), (":authority", b"app")];
    let cases = [
        ("connection", with(&[("connection", b"close")]), malformed),
        ("keep-alive", with(&[("keep-alive", b"1")]), malformed),
        (
            "proxy-connection",
            with(&[("proxy-connection", b"1")]),
            malformed,
        ),
        (
            "transfer-encoding",
            with(&[("transfer-encoding", b"chunked")]),
            malformed,
        ),
        ("upgrade", with(&[("upgrade", b"websocket")]), malformed),
        ("te: gzip", with(&[("te", b"gzip")]), malformed),
        ("a path twice", with(&[(":path", b"/smuggled")]), malformed),
        ("a status", with(&[(":status", b"200")]), malformed),
        (
            "a pseudo-field behind a field",
            headers(1, 5, &[&GET[..3], &[("a", b"b"), (":path", b"/")]].concat()),
            malformed,
        ),
        ("no method", pseudo(":method", None), malformed),
        ("no scheme", pseudo(":scheme", None), malformed),
        ("no path", pseudo(":path", None), malformed),
        ("an empty path", pseudo(":path", Some(b"")), malformed),
        (
            "a path with a space",
            pseudo(":path", Some(b"/a b")),
            malformed,
        ),
        (
            "an authority with a space",
            pseudo(":authority", Some(b"a b")),
            malformed,
        ),
        (
            "a length without a body",
            with(&[("content-length", b"5")]),
            malformed,
        ),
        (
            "a length that is none",
            with(&[("content-length", b"x")]),
            malformed,
        ),
        (
            "a length with a plus",
            with(&[("content-length", b"+0")]),
            malformed,
        ),
        ("no authority", pseudo(":authority", None), refused),
        (
            "a user in the authority",
            pseudo(":authority", Some(b"u@app")),
            refused,
        ),
        ("a Host that differs", with(&[("host", b"other")]), refused),
        (
            "two Hosts",
            with(&[("host", b"app"), ("host", b"app")]),
            refused,
        ),
        (
            "CONNECT without a port",
            headers(1, END_HEADERS, &connect),
            refused,
        ),
    ];
    for way in WAYS {
        let before = way.faults(ground.sandbox)?;
        let served = way.app2(ground).begun();
        for (what, bytes, expected) in &cases {
            let mut client = Client::dial(ground, way)?;
            client.send(bytes);
            let end = client.end(1).with_context(|| format!("{way:?}, {what}"))?;
            ensure!(
                end == *expected,
                "{way:?}, {what}: {end:?}, expected {expected:?}"
            );
            client
                .works(3)
                .with_context(|| format!("{way:?}, after {what}"))?;
        }
        let answered = cases.iter().filter(|(_, _, end)| *end == refused).count();
        way.counted(ground, &before, "bad request", answered)?;
        let more = way.app2(ground).begun() - served;
        ensure!(
            more == cases.len(),
            "{way:?}: {more} requests arrived, {} were good",
            cases.len()
        );
    }
    Ok(())
}

pub fn connections(ground: &Ground<'_>) -> anyhow::Result<()> {
    let one = |bytes: &[u8]| [&open_on(1), bytes].concat();
    let settings = |id: u16, value: u32| {
        frame(
            SETTINGS,
            0,
            0,
            &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat(),
        )
    };
    let cases = [
        ("an upper-case name", with(&[("Aa", b"b")]), PROTOCOL_ERROR),
        ("NUL in a value", with(&[("a", b"b\0")]), PROTOCOL_ERROR),
        (
            "CR LF in a value",
            with(&[("a", b"b\r\nc: d")]),
            PROTOCOL_ERROR,
        ),
        ("a space in a name", with(&[("a b", b"c")]), PROTOCOL_ERROR),
        ("a colon in a name", with(&[("a:b", b"c")]), PROTOCOL_ERROR),
        (
            "an unknown pseudo-field",
            with(&[(":foo", b"x")]),
            PROTOCOL_ERROR,
        ),
        (
            "a frame of 16,385",
            one(&frame(DATA, 0, 1, &[0; 16_385])),
            FRAME_SIZE_ERROR,
        ),
        (
            "HEADERS of 16,385",
            frame(HEADERS, 5, 1, &[0; 16_385]),
            FRAME_SIZE_ERROR,
        ),
        ("DATA for nobody", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        (
            "DATA before HEADERS",
            frame(DATA, 0, 5, b"x"),
            PROTOCOL_ERROR,
        ),
        ("an even stream", get_on(2), PROTOCOL_ERROR),
        (
            "a stream that is over",
            [open_on(5), open_on(3)].concat(),
            PROTOCOL_ERROR,
        ),
        (
            "HEADERS within a header block",
            [frame(HEADERS, 0, 1, b""), get_on(3)].concat(),
            PROTOCOL_ERROR,
        ),
        (
            "CONTINUATION of nothing",
            frame(CONTINUATION, END_HEADERS, 1, b""),
            PROTOCOL_ERROR,
        ),
        (
            "too much padding",
            frame(HEADERS, PADDED | 5, 1, &[255, 0]),
            PROTOCOL_ERROR,
        ),
        (
            "an index that HPACK does not have",
            frame(HEADERS, 5, 1, &[0xff, 0xff, 0xff]),
            PROTOCOL_ERROR,
        ),
        (
            "a promise",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            PROTOCOL_ERROR,
        ),
        (
            "a window that overflows",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
            FLOW_CONTROL_ERROR,
        ),
        (
            "SETTINGS of five bytes",
            frame(SETTINGS, 0, 0, b"12345"),
            PROTOCOL_ERROR,
        ),
        (
            "a window that is no window",
            settings(4, u32::MAX),
            PROTOCOL_ERROR,
        ),
        ("frames of one byte", settings(5, 1), PROTOCOL_ERROR),
        (
            "PING of seven bytes",
            frame(PING, 0, 0, b"1234567"),
            PROTOCOL_ERROR,
        ),
    ];
    for way in WAYS {
        let before = way.faults(ground.sandbox)?;
        for (what, bytes, code) in &cases {
            let mut client = Client::dial(ground, way)?;
            client.send(bytes);
            let end = client.end(1).with_context(|| format!("{way:?}, {what}"))?;
            ensure!(
                end == End::GoneAway(*code),
                "{way:?}, {what}: {end:?}, expected {code}"
            );
        }
        way.counted(ground, &before, "bad request", cases.len())?;
    }
    Ok(())
}
