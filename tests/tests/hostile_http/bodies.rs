// SPDX-License-Identifier: Apache-2.0
//! Bodies that are not framed as they should be: RFC 9112, section 7.

use std::io::Write as _;

use anyhow::{Context as _, ensure};
use culvert_tests::wait::wait_for;

use crate::{
    app::Seen,
    ground::{Ground, HTTP1, SOON, WAYS, Way, get, read_answer},
};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";

/// Chunks that are no chunks.
const BROKEN: [(&str, &str); 12] = [
    ("a bare LF after the size", "5\nhello\r\n0\r\n\r\n"),
    ("a bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n"),
    ("a lone CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
    ("a plus", "+5\r\nhello\r\n0\r\n\r\n"),
    ("a minus", "-5\r\nhello\r\n0\r\n\r\n"),
    ("a space first", " 5\r\nhello\r\n0\r\n\r\n"),
    ("no size", "\r\nhello\r\n0\r\n\r\n"),
    ("more than the size says", "5\r\nhelloXX0\r\n\r\n"),
    ("2^64 + 5", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("a size that is no number", "five\r\nhello\r\n0\r\n\r\n"),
    ("a trailer without a colon", "5\r\nhello\r\n0\r\nX\r\n\r\n"),
];

fn post(path: &str, rest: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n{rest}").into()
}

pub fn chunks(ground: &Ground<'_>) -> anyhow::Result<()> {
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(100_000));
    let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(5_000));
    let more = [("a long extension", &*long), ("many trailers", &*trailers)];
    for way in WAYS {
        let before = way.faults(ground.sandbox)?;
        let cases: Vec<_> = BROKEN.into_iter().chain(more).collect();
        for (what, rest) in &cases {
            breaks(ground, way, rest).with_context(|| format!("{way:?}, {what}"))?;
        }
        way.counted(ground, &before, "bad request", cases.len())?;
    }
    Ok(())
}

/// 400, the end, and no whole request at the application.
fn breaks(ground: &Ground<'_>, way: Way, rest: &str) -> anyhow::Result<()> {
    let whole = whole(ground, way, "/chunks");
    let mut wire = way.dial(ground.sandbox, HTTP1)?;
    get(&mut *wire, "/first")?;
    let _ = wire.write_all(&post("/chunks", &format!("{rest}{SMUGGLED}")));
    let answer = read_answer(&mut *wire)?.context("cut off without a word")?;
    ensure!(answer.status == 400, "{answer:?}");
    let more = read_answer(&mut *wire)?;
    ensure!(more.is_none(), "one answer too many: {more:?}");
    ensure!(
        self::whole(ground, way, "/chunks") == whole,
        "it arrived as a whole"
    );
    Ok(())
}

fn whole(ground: &Ground<'_>, way: Way, path: &str) -> usize {
    let seen = way.app(ground).of(path);
    seen.iter().filter(|seen| !seen.cut).count()
}

pub fn trailers(ground: &Ground<'_>) -> anyhow::Result<()> {
    let rest = "5\r\nhello\r\n0\r\nX-Sum: 1\r\nContent-Length: 3\r\nHost: evil\r\nTransfer-Encoding: gzip\r\nL5d-Client-Id: root\r\n\r\n";
    for way in WAYS {
        let mut wire = way.dial(ground.sandbox, HTTP1)?;
        let head = "POST /trailers HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Content-Length, Host, L5d-Client-Id, Transfer-Encoding\r\n\r\n";
        wire.write_all(format!("{head}{rest}").as_bytes())?;
        let answer = read_answer(&mut *wire)?.context("no answer")?;
        ensure!(answer.status == 200, "{answer:?}");
        let seen = way
            .app(ground)
            .of("/trailers")
            .pop()
            .context("it did not arrive")?;
        let expected = [("x-sum".to_owned(), "1".to_owned())];
        ensure!(
            seen.body == b"hello" && seen.trailers == expected,
            "{way:?}: {seen:?}"
        );
    }
    Ok(())
}

/// What ends before its end must not look whole to the application.
pub fn cut(ground: &Ground<'_>) -> anyhow::Result<()> {
    for way in WAYS {
        for (path, request) in [
            ("/cut-chunks", post("/cut-chunks", "5\r\nhello\r\n")),
            (
                "/cut-length",
                b"POST /cut-length HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhello"
                    .to_vec(),
            ),
        ] {
            // A client that has left before the application is dialled is heard of by nobody.
            let what = format!("{path} to be cut off, {way:?}");
            let seen: Vec<Seen> = wait_for(&what, SOON, || {
                way.dial(ground.sandbox, HTTP1)?.write_all(&request)?;
                let seen = way.app(ground).of(path);
                ensure!(!seen.is_empty(), "it did not arrive");
                Ok::<_, anyhow::Error>(seen)
            })?;
            ensure!(seen.iter().all(|seen| seen.cut), "{way:?}: {seen:?}");
        }
    }
    Ok(())
}
