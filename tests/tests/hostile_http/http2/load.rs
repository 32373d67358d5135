// SPDX-License-Identifier: Apache-2.0
//! Frames that are right one by one, and too many.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use culvert_tests::wait::wait_for;

use super::client::{Client, End, GET, STATUS_200, ended, get_on, headers, open_on};
use crate::{
    frames::{
        CANCEL, CONTINUATION, DATA, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING, PRIORITY,
        REFUSED_STREAM, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame,
    },
    ground::{Ground, HTTP1, SOON, WAYS, Way, get, memory},
};

/// Who floods through TLS cannot read once it cannot write: it sees the end of the connection alone.
fn is_calming(way: Way, end: End) -> bool {
    end == End::GoneAway(ENHANCE_YOUR_CALM) || way == Way::Peer && end == End::Closed
}

pub fn floods(ground: &Ground<'_>) -> anyhow::Result<()> {
    let many = |bytes: Vec<u8>| bytes.repeat(100_000);
    let start = headers(1, END_STREAM, &GET);
    let field = block(&[("a", &[b'x'; 4_000])]);
    let big = frame(CONTINUATION, 0, 1, &field).repeat(200);
    let calm = [
        (
            "CONTINUATION",
            [start.clone(), many(frame(CONTINUATION, 0, 1, b""))].concat(),
        ),
        ("CONTINUATION with fields", [start, big].concat()),
        (
            "empty DATA",
            [open_on(1), many(frame(DATA, 0, 1, b""))].concat(),
        ),
        (
            "a bomb of HPACK",
            frame(
                HEADERS,
                5,
                1,
                &[
                    &block(&GET)[..],
                    &[0x40, 1, b'a', 0x7f, 0xb0, 0x1e],
                    &[b'x'; 3_999],
                    &[0xbe; 4_000],
                ]
                .concat(),
            ),
        ),
    ];
    for way in WAYS {
        let before = way.faults(ground.sandbox)?;
        for (what, bytes) in &calm {
            let mut client = Client::dial(ground, way)?;
            client.send(bytes);
            let end = client.end(1).with_context(|| format!("{way:?}, {what}"))?;
            ensure!(is_calming(way, end), "{way:?}, {what}: {end:?}");
        }
        way.counted(ground, &before, "flood", calm.len())?;
        for (what, one) in harmless() {
            costs_itself(ground, way, &one).with_context(|| format!("{way:?}, {what}"))?;
        }
    }
    Ok(())
}

/// What is answered or ignored frame by frame. A peer that does not read the answers is not read either.
fn harmless() -> [(&'static str, Vec<u8>); 5] {
    [
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PING", frame(PING, 0, 0, b"12345678")),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown frames", frame(77, 0, 0, b"x")),
    ]
}

/// A flood that nobody reads the answers of, within a second.
fn costs_itself(ground: &Ground<'_>, way: Way, one: &[u8]) -> anyhow::Result<()> {
    let before = memory(ground.sandbox)?;
    let mut client = Client::dial(ground, way)?;
    client.wire.patience(Duration::from_secs(1))?;
    client.send(&one.repeat(200_000));
    let now = memory(ground.sandbox)?;
    ensure!(
        now < before + (32 << 20),
        "the proxies grew from {before} to {now} bytes"
    );
    get(&mut *way.dial(ground.sandbox, HTTP1)?, "/meanwhile")
}

/// CVE-2023-44487: all at once, and one by one.
pub fn resets(ground: &Ground<'_>) -> anyhow::Result<()> {
    let both = |stream: u32| {
        [
            open_on(stream),
            frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()),
        ]
        .concat()
    };
    for way in WAYS {
        let before = way.faults(ground.sandbox)?;
        let mut client = Client::dial(ground, way)?;
        client.send(
            &(0..20_000)
                .flat_map(|n| both(2 * n + 1))
                .collect::<Vec<_>>(),
        );
        let end = client.end(0)?;
        ensure!(is_calming(way, end), "{way:?}, at once: {end:?}");
        let mut client = Client::dial(ground, way)?;
        client.works(1)?;
        for n in 1..5_000 {
            let stream = 2 * n + 1;
            client.send(&open_on(stream));
            // A round trip, so that each is looked at by itself.
            client.send(&frame(PING, 0, 0, b"12345678"));
            client.send(&frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
            if client.pong()? {
                break;
            }
        }
        client.send(&get_on(20_001));
        let end = client.end(20_001)?;
        ensure!(
            end != End::Answer(STATUS_200),
            "{way:?}: 5,000 streams were taken back"
        );
        way.counted(ground, &before, "flood", 1)?;
        way.counted(ground, &before, "rapid reset", 1)?;
    }
    Ok(())
}

/// The streams that are too many; those before them go on.
pub fn too_many(ground: &Ground<'_>) -> anyhow::Result<()> {
    const ALLOWED: u32 = 1_000;
    for way in WAYS {
        let mut client = Client::dial(ground, way)?;
        let streams = || (0..ALLOWED + 20).map(|n| 2 * n + 1);
        client.send(&streams().flat_map(open_on).collect::<Vec<_>>());
        for stream in streams().skip(ALLOWED as usize) {
            let end = client.end(stream)?;
            ensure!(
                end == End::Reset(REFUSED_STREAM),
                "{way:?}, {stream}: {end:?}"
            );
        }
        client.send(&frame(DATA, END_STREAM, 1, b""));
        let end = client.end(1)?;
        ensure!(end == End::Answer(STATUS_200), "{way:?}: {end:?}");
    }
    Ok(())
}

/// As gRPC sends them: h2 counts what their frames cost against the connection's window.
pub fn small_messages(ground: &Ground<'_>) -> anyhow::Result<()> {
    for way in WAYS {
        for (size, streams) in [(5, 1), (20, 1), (20, 4), (50, 4)] {
            let mut client = Client::dial(ground, way)?;
            client.window()?;
            let ids = || (0..streams).map(|n| 2 * n + 1);
            let mut bytes: Vec<_> = ids().flat_map(open_on).collect();
            for _ in 0..60_000 / size {
                bytes.extend(ids().flat_map(|id| frame(DATA, 0, id, &vec![b'x'; size])));
            }
            bytes.extend(ids().flat_map(|id| frame(DATA, END_STREAM, id, b"")));
            client.send(&bytes);
            let mut left: Vec<_> = ids().collect();
            while !left.is_empty() {
                let got = client
                    .next()?
                    .with_context(|| format!("{way:?}, {size} bytes"))?;
                ensure!(
                    got.kind != GOAWAY,
                    "{way:?}, {streams} × {size} bytes: {got:?}"
                );
                left.retain(|id| ended(&got, *id) != Some(End::Answer(STATUS_200)));
            }
        }
    }
    Ok(())
}

/// Answers that may not be sent are not sent, and stop nobody.
pub fn shut_windows(ground: &Ground<'_>) -> anyhow::Result<()> {
    /// Their answers fit the window of the connection.
    const STREAMS: u32 = 60;
    for way in WAYS {
        let served = way.app2(ground).whole();
        let mut client = Client::with(ground, way, &[0, 4, 0, 0, 0, 0])?;
        client.send(
            &(0..STREAMS)
                .flat_map(|n| get_on(2 * n + 1))
                .collect::<Vec<_>>(),
        );
        wait_for("the requests to arrive", SOON, || {
            let more = way.app2(ground).whole() - served;
            ensure!(more >= STREAMS as usize, "{more} arrived");
            Ok::<_, anyhow::Error>(())
        })?;
        Client::dial(ground, way)?.works(1)?;
        // The window opens: it all comes.
        client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]));
        let mut whole = 0;
        while whole < STREAMS {
            let got = client
                .next()
                .with_context(|| format!("{way:?}: {whole} answers came"))?;
            let got = got.with_context(|| format!("{way:?}: it ended after {whole} answers"))?;
            whole += u32::from(got.kind == DATA && got.has(END_STREAM));
        }
    }
    Ok(())
}
