// SPDX-License-Identifier: Apache-2.0
//! Clients that take their time.

use std::{
    io::{Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use culvert_tests::wait::wait_for;

use crate::{
    app::POURED,
    ground::{BODY_TIMEOUT, Ground, HTTP1, SOON, WAYS, Way, Wire, get, memory, read_answer},
};

/// Longer than a head may take.
const LONG: Duration = Duration::from_secs(30);
/// How many clients do not read, each way.
const READERS: usize = 40;

pub fn heads(ground: &Ground<'_>) -> anyhow::Result<()> {
    let before = WAYS.map(|way| way.faults(ground.sandbox));
    let mut resting = Vec::new();
    let mut dripping = Vec::new();
    for way in WAYS {
        let mut rests = way.dial(ground.sandbox, HTTP1)?;
        get(&mut *rests, "/before")?;
        resting.push((way, rests));
        for begun in [false, true] {
            let mut drips = way.dial(ground.sandbox, HTTP1)?;
            if begun {
                get(&mut *drips, "/first")?;
            }
            dripping.push(thread::spawn(move || drip(&mut *drips)));
        }
    }
    for thread in dripping {
        let took = thread.join().map_err(|_| anyhow!("it panicked"))??;
        ensure!(took < LONG, "a head of {took:?} was waited for");
    }
    for (way, before) in WAYS.into_iter().zip(before) {
        way.counted(ground, &before?, "head timeout", 2)?;
    }
    for (way, mut rests) in resting {
        get(&mut *rests, "/after")
            .with_context(|| format!("{way:?}: a rest was taken for a head"))?;
    }
    Ok(())
}

/// Sends a head without end, byte by byte. How long that went well.
fn drip(wire: &mut dyn Wire) -> anyhow::Result<Duration> {
    wire.write_all(b"GET /dripping HTTP/1.1\r\nHost: app\r\n")?;
    let begun = Instant::now();
    wire.patience(Duration::from_millis(500))?;
    while begun.elapsed() < LONG {
        if wire.write_all(b"x").is_err() {
            break;
        }
        match wire.read(&mut [0; 512]) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    Ok(begun.elapsed())
}

/// Of ten bytes five, and then nothing.
pub fn bodies(ground: &Ground<'_>) -> anyhow::Result<()> {
    for way in WAYS {
        let before = stalled(ground)?;
        let mut steady = way.dial(ground.sandbox, HTTP1)?;
        let steady = thread::spawn(move || drop_by_drop(&mut *steady));
        let mut stalls = way.dial(ground.sandbox, HTTP1)?;
        let begun = Instant::now();
        stalls
            .write_all(b"POST /stalled HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhello")?;
        let answer = read_answer(&mut *stalls)?.context("cut off without a word")?;
        ensure!(answer.status == 408, "{way:?}: {answer:?}");
        ensure!(begun.elapsed() >= BODY_TIMEOUT, "{:?}", begun.elapsed());
        let more = read_answer(&mut *stalls)?;
        ensure!(more.is_none(), "{way:?}: it is waited for again: {more:?}");
        let seen = wait_for("the end of the body", SOON, || {
            way.app(ground)
                .of("/stalled")
                .pop()
                .context("there is none")
        })?;
        ensure!(seen.cut && seen.body == b"hello", "{way:?}: {seen:?}");
        let steady = steady.join().map_err(|_| anyhow!("it panicked"))?;
        steady.with_context(|| format!("{way:?}: a slow body"))?;
        // Both proxies of a request wait equally long: one of them says so.
        wait_for("the time-out to be counted", SOON, || {
            let more = stalled(ground)? - before;
            ensure!(
                more == 1.0 || (way == Way::Outbound && more == 2.0),
                "{more}"
            );
            Ok::<_, anyhow::Error>(())
        })?;
    }
    Ok(())
}

/// How many bodies stood still for too long, by both proxies.
fn stalled(ground: &Ground<'_>) -> anyhow::Result<f64> {
    let faults = WAYS.map(|way| Ok(way.faults(ground.sandbox)?.of("body timeout")));
    faults.into_iter().sum()
}

/// A body that takes longer than a pause may, but never pauses for as long.
fn drop_by_drop(wire: &mut dyn Wire) -> anyhow::Result<()> {
    wire.write_all(b"POST /steady HTTP/1.1\r\nHost: app\r\nContent-Length: 8\r\n\r\n")?;
    for _ in 0..8 {
        thread::sleep(BODY_TIMEOUT / 4);
        wire.write_all(b"x")?;
    }
    let answer = read_answer(wire)?.context("no answer")?;
    ensure!(answer.status == 200, "{answer:?}");
    get(wire, "/afterwards")
}

pub fn readers(ground: &Ground<'_>) -> anyhow::Result<()> {
    for way in WAYS {
        let before = memory(ground.sandbox)?;
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let mut wire = way.dial(ground.sandbox, HTTP1)?;
            wire.write_all(b"GET /pour HTTP/1.1\r\nHost: app\r\n\r\n")?;
            wire.read_exact(&mut [0; 16])?;
            readers.push(wire);
        }
        // A megabyte each, of the sixteen that each asked for, in two proxies.
        let now = memory(ground.sandbox)?;
        let most = before + ((READERS as u64) << 20);
        ensure!(
            now < most,
            "{way:?}: the proxies grew from {before} to {now} bytes"
        );
        whole(ground, way)?;
        let mut last = readers.pop().context("no reader")?;
        rest(&mut *last).with_context(|| format!("{way:?}"))?;
    }
    Ok(())
}

/// Another client gets all of it meanwhile.
fn whole(ground: &Ground<'_>, way: Way) -> anyhow::Result<()> {
    let mut wire = way.dial(ground.sandbox, HTTP1)?;
    wire.write_all(b"GET /pour HTTP/1.1\r\nHost: app\r\n\r\n")?;
    let answer = read_answer(&mut *wire)?.context("no answer")?;
    ensure!(
        answer.body == vec![b'p'; POURED],
        "{} bytes",
        answer.body.len()
    );
    Ok(())
}

/// Who begins to read after all gets the rest.
fn rest(wire: &mut dyn Wire) -> anyhow::Result<()> {
    let mut left = POURED;
    let mut chunk = vec![0; 64 << 10];
    while left > 0 {
        let n = wire.read(&mut chunk)?;
        ensure!(n > 0, "{left} bytes are missing");
        left = left.saturating_sub(chunk[..n].iter().filter(|byte| **byte == b'p').count());
    }
    Ok(())
}
