// SPDX-License-Identifier: Apache-2.0
//! Heads that two readers would read differently: RFC 9112, sections 2, 3, 5 and 6.

use std::io::Write as _;

use anyhow::{Context as _, ensure};

use crate::ground::{Faults, Ground, HTTP1, WAYS, Way, get, read_answer};

/// Bytes on a connection that has carried a request already, and the statuses that answer them. The
/// connection ends then.
pub struct Case {
    pub what: &'static str,
    pub bytes: Vec<u8>,
    pub statuses: &'static [u16],
}

const BAD_REQUEST: &[u16] = &[400];
const TOO_LARGE: &[u16] = &[431];

/// Hidden in what comes before it: no application may ever see it.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";

/// A case whose last request asks for the connection to be closed.
fn closing(what: &'static str, head: &str, statuses: &'static [u16]) -> Case {
    let bytes = format!("{head}Connection: close\r\n\r\n").into_bytes();
    Case {
        what,
        bytes,
        statuses,
    }
}

/// Sends each case every way. Refusals are counted by the status that they had.
pub fn refused(ground: &Ground<'_>, cases: &[Case]) -> anyhow::Result<()> {
    WAYS.into_iter()
        .try_for_each(|way| refused_on(ground, way, cases))
}

fn refused_on(ground: &Ground<'_>, way: Way, cases: &[Case]) -> anyhow::Result<()> {
    let before = way.faults(ground.sandbox)?;
    for case in cases {
        play(ground, way, case).with_context(|| format!("{way:?}, {}", case.what))?;
    }
    tally(ground, way, &before, cases)
}

fn tally(ground: &Ground<'_>, way: Way, before: &Faults, cases: &[Case]) -> anyhow::Result<()> {
    for (status, error) in [
        (400, "bad request"),
        (431, "head too large"),
        (501, "transfer coding"),
    ] {
        let times = cases
            .iter()
            .filter(|case| case.statuses.contains(&status))
            .count();
        way.counted(ground, before, error, times)?;
    }
    Ok(())
}

fn play(ground: &Ground<'_>, way: Way, case: &Case) -> anyhow::Result<()> {
    let mut wire = way.dial(ground.sandbox, HTTP1)?;
    get(&mut *wire, "/first")?;
    // It may be refused before it was sent as a whole.
    let _ = wire.write_all(&case.bytes);
    for status in case.statuses {
        let answer = read_answer(&mut *wire)?;
        let got = answer.as_ref().map(|answer| answer.status);
        ensure!(got == Some(*status), "expected {status}, got {answer:?}");
    }
    let more = read_answer(&mut *wire)?;
    ensure!(more.is_none(), "one answer too many: {more:?}");
    Ok(())
}

pub fn heads(ground: &Ground<'_>) -> anyhow::Result<()> {
    let line = "GET / HTTP/1.1\r\nHost: app\r\n";
    let cases = [
        ("obs-fold", format!("{line}X: a\r\n b\r\n\r\n")),
        (
            "a folded Host",
            "GET / HTTP/1.1\r\nHost: app\r\n b\r\n\r\n".to_owned(),
        ),
        (
            "a space before the first field",
            "GET / HTTP/1.1\r\n X: a\r\nHost: app\r\n\r\n".to_owned(),
        ),
        ("a space before the colon", format!("{line}X : a\r\n\r\n")),
        ("a tab before the colon", format!("{line}X\t: a\r\n\r\n")),
        ("a lone CR in a value", format!("{line}X: a\rb\r\n\r\n")),
        ("CR CR LF", format!("{line}X: a\r\r\n\r\n")),
        ("NUL in a value", format!("{line}X: a\0b\r\n\r\n")),
        (
            "a control character in a value",
            format!("{line}X: a\u{1}b\r\n\r\n"),
        ),
        ("DEL in a value", format!("{line}X: a\u{7f}b\r\n\r\n")),
        (
            "vertical tab before a value",
            format!("{line}X:\u{b}a\r\n\r\n"),
        ),
        ("NUL in a name", format!("{line}X\0: a\r\n\r\n")),
        ("no colon", format!("{line}X\r\n\r\n")),
        ("no name", format!("{line}: a\r\n\r\n")),
        ("a bracket in a name", format!("{line}X(: a\r\n\r\n")),
        ("a space in a name", format!("{line}X Y: a\r\n\r\n")),
        (
            "two spaces after the method",
            "GET  / HTTP/1.1\r\nHost: app\r\n\r\n".to_owned(),
        ),
        (
            "a space in the target",
            "GET /a b HTTP/1.1\r\nHost: app\r\n\r\n".to_owned(),
        ),
        (
            "a control character in the target",
            "GET /\u{1} HTTP/1.1\r\nHost: app\r\n\r\n".to_owned(),
        ),
        (
            "a bracket in the method",
            "G(T / HTTP/1.1\r\nHost: app\r\n\r\n".to_owned(),
        ),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: app\r\n\r\n".to_owned()),
        ("HTTP/2.0", "GET / HTTP/2.0\r\nHost: app\r\n\r\n".to_owned()),
        ("HTTP/0.9", "GET /\r\n\r\n".to_owned()),
        ("no Host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("two Hosts", format!("{line}Host: app\r\n\r\n")),
        (
            "two Hosts that differ",
            format!("{line}Host: other\r\n\r\n"),
        ),
        (
            "a Host that is a list",
            "GET / HTTP/1.1\r\nHost: app, other\r\n\r\n".to_owned(),
        ),
        (
            "a Host with a path",
            "GET / HTTP/1.1\r\nHost: app/x\r\n\r\n".to_owned(),
        ),
        (
            "a Host with a user",
            "GET / HTTP/1.1\r\nHost: u@app\r\n\r\n".to_owned(),
        ),
        (
            "a target with a user",
            "GET http://u:p@app/ HTTP/1.1\r\nHost: app\r\n\r\n".to_owned(),
        ),
        (
            "an authority as target",
            "GET app:80 HTTP/1.1\r\nHost: app\r\n\r\n".to_owned(),
        ),
        (
            "* as target of GET",
            "GET * HTTP/1.1\r\nHost: app\r\n\r\n".to_owned(),
        ),
        (
            "CONNECT without a port",
            "CONNECT app HTTP/1.1\r\nHost: app\r\n\r\n".to_owned(),
        ),
    ];
    let cases = cases.map(|(what, head)| Case {
        what,
        bytes: [head.as_bytes(), SMUGGLED.as_bytes()].concat(),
        statuses: BAD_REQUEST,
    });
    refused(ground, &cases)
}

pub fn lengths(ground: &Ground<'_>) -> anyhow::Result<()> {
    let post = "POST /length HTTP/1.1\r\nHost: app\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let hidden = format!("\r\n0\r\n\r\n{SMUGGLED}");
    let cases: Vec<(&'static str, String, &'static [u16])> = vec![
        (
            "two lengths",
            "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".to_owned(),
            BAD_REQUEST,
        ),
        (
            "a list of lengths",
            "Content-Length: 3, 3\r\n\r\nabc".to_owned(),
            BAD_REQUEST,
        ),
        (
            "a plus",
            "Content-Length: +3\r\n\r\nabc".to_owned(),
            BAD_REQUEST,
        ),
        (
            "hexadecimal",
            "Content-Length: 0x3\r\n\r\nabc".to_owned(),
            BAD_REQUEST,
        ),
        (
            "less than nothing",
            "Content-Length: -1\r\n\r\nabc".to_owned(),
            BAD_REQUEST,
        ),
        (
            "an empty length",
            "Content-Length: \r\n\r\nabc".to_owned(),
            BAD_REQUEST,
        ),
        (
            "2^64 + 1",
            "Content-Length: 18446744073709551617\r\n\r\na".to_owned(),
            BAD_REQUEST,
        ),
        (
            "gzip alone",
            format!("Transfer-Encoding: gzip\r\n{hidden}"),
            BAD_REQUEST,
        ),
        (
            "identity",
            format!("Transfer-Encoding: identity\r\nContent-Length: 3\r\n{hidden}"),
            BAD_REQUEST,
        ),
        (
            "chunked not last",
            format!("Transfer-Encoding: chunked, gzip\r\n{hidden}"),
            BAD_REQUEST,
        ),
        (
            "chunked, then identity",
            format!("{chunked}Transfer-Encoding: identity\r\n{hidden}"),
            BAD_REQUEST,
        ),
        (
            "xchunked",
            format!("Transfer-Encoding: xchunked\r\n{hidden}"),
            BAD_REQUEST,
        ),
        (
            "chunked with a parameter",
            format!("Transfer-Encoding: chunked;q=1\r\n{hidden}"),
            BAD_REQUEST,
        ),
        (
            "a vertical tab",
            format!("Transfer-Encoding:\u{b}chunked\r\n{hidden}"),
            BAD_REQUEST,
        ),
        (
            "a space before the colon",
            format!("Transfer-Encoding : chunked\r\n{hidden}"),
            BAD_REQUEST,
        ),
        (
            "gzip and chunked",
            format!("Transfer-Encoding: gzip, chunked\r\n{hidden}"),
            &[501],
        ),
        (
            "identity and chunked",
            format!("Transfer-Encoding: identity\r\n{chunked}{hidden}"),
            &[501],
        ),
        (
            "chunked twice",
            format!("{chunked}{chunked}{hidden}"),
            &[501],
        ),
        // RFC 9112 6.3: the coding wins, the length is not forwarded, the connection closes.
        (
            "a length and chunked",
            format!("Content-Length: 6\r\n{chunked}{hidden}"),
            &[200],
        ),
        (
            "chunked and a length",
            format!("{chunked}Content-Length: 6\r\n{hidden}"),
            &[200],
        ),
    ];
    let cases: Vec<_> = cases
        .into_iter()
        .map(|(what, rest, statuses)| Case {
            what,
            bytes: format!("{post}{rest}").into_bytes(),
            statuses,
        })
        .collect();
    refused(ground, &cases)?;
    let old = "POST / HTTP/1.0\r\nHost: app\r\nTransfer-Encoding: chunked\r\n";
    let old = Case {
        what: "chunked in HTTP/1.0",
        bytes: format!("{old}{hidden}").into_bytes(),
        statuses: BAD_REQUEST,
    };
    refused(ground, &[old])?;
    for app in [Way::Plain.app(ground), Way::Peer.app(ground)] {
        let seen = app.of("/length");
        ensure!(!seen.is_empty(), "nothing was forwarded");
        for seen in seen {
            ensure!(seen.field("transfer-encoding") == ["chunked"], "{seen:?}");
            ensure!(
                seen.field("content-length").is_empty() && seen.body.is_empty(),
                "{seen:?}"
            );
        }
    }
    Ok(())
}

/// What is let through, it is made unambiguous.
pub fn forwarded(ground: &Ground<'_>) -> anyhow::Result<()> {
    let cases = [
        closing("bare LF", "GET /bare HTTP/1.1\nHost: app\nX: a\n", &[200]),
        closing(
            "absolute form",
            "GET http://right/absolute HTTP/1.1\r\nHost: wrong\r\n",
            &[200],
        ),
        closing(
            "the same length twice",
            "POST /twice HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\nContent-Length: 0\r\n",
            &[200],
        ),
        closing(
            "a client that says who it is",
            "GET /forged HTTP/1.1\r\nHost: app\r\nL5d-Client-Id: root\r\nl5d_client_id: root\r\nl5d-proxy-error: x\r\n",
            &[200],
        ),
        closing(
            "fields of one hop",
            "GET /hop HTTP/1.1\r\nHost: app\r\nX-One: 1\r\nConnection: x-one, host, l5d-client-id\r\nKeep-Alive: 1\r\nProxy-Connection: a\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            &[200],
        ),
        closing(
            "two at once",
            "GET /one HTTP/1.1\r\nHost: app\r\n\r\nGET /two HTTP/1.1\r\nHost: app\r\n",
            &[200, 200],
        ),
    ];
    for way in WAYS {
        refused_on(ground, way, &cases)?;
        let last = |path| {
            let seen = way.app(ground).of(path).pop();
            seen.with_context(|| format!("{way:?}: {path} did not arrive"))
        };
        ensure!(last("/bare")?.field("x") == ["a"], "{:?}", last("/bare")?);
        ensure!(
            last("/absolute")?.field("host") == ["right"],
            "{:?}",
            last("/absolute")?
        );
        ensure!(
            last("/twice")?.field("content-length") == ["0"],
            "{:?}",
            last("/twice")?
        );
        let forged = last("/forged")?;
        let id = forged.field("l5d-client-id");
        ensure!(
            !id.contains(&"root") && forged.field("l5d_client_id").is_empty(),
            "{way:?}: {forged:?}"
        );
        ensure!(forged.field("l5d-proxy-error").is_empty(), "{forged:?}");
        ensure!(id.is_empty() == (way == Way::Plain), "{way:?}: {forged:?}");
        let hop = last("/hop")?;
        ensure!(hop.field("host") == ["app"], "{hop:?}");
        for name in [
            "x-one",
            "keep-alive",
            "proxy-connection",
            "upgrade",
            "http2-settings",
        ] {
            ensure!(hop.field(name).is_empty(), "{name} of {hop:?}");
        }
    }
    Ok(())
}

pub fn sizes(ground: &Ground<'_>) -> anyhow::Result<()> {
    let line = "GET /size HTTP/1.1\r\nHost: app\r\n";
    let fields = |n| "a: b\r\n".repeat(n);
    let value = |n| format!("A: {}\r\n", "x".repeat(n));
    refused(
        ground,
        &[
            closing("100 fields", &format!("{line}{}", fields(98)), &[200]),
            closing(
                "a field of 32 KiB",
                &format!("{line}{}", value(32 << 10)),
                &[200],
            ),
            closing(
                "2,000 fields",
                &format!("{line}{}", fields(2_000)),
                TOO_LARGE,
            ),
            closing(
                "a field of 200 KiB",
                &format!("{line}{}", value(200 << 10)),
                TOO_LARGE,
            ),
            closing(
                "300,000 bytes of fields",
                &format!("{line}{}", value(1000).repeat(300)),
                TOO_LARGE,
            ),
            Case {
                what: "a target of 200 KiB",
                bytes: format!(
                    "GET /{} HTTP/1.1\r\nHost: app\r\n\r\n",
                    "x".repeat(200 << 10)
                )
                .into(),
                statuses: TOO_LARGE,
            },
        ],
    )
}
