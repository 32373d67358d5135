// SPDX-License-Identifier: Apache-2.0
//! Connections to echo servers that carry bytes all the time, each of which is checked when it
//! comes back.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read, Write},
    net::{Shutdown, TcpStream, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::report;

const STACK: usize = 128 << 10;
const CHUNK: usize = 4096;
/// 400 kB/s on each connection: what is slow is not what is tested.
const PAUSE: Duration = Duration::from_millis(10);
/// Nothing comes back for so long: the connection is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Send to echo servers without end and check what comes back; each line on stdin asks how it goes.
#[derive(Args, Clone, Debug)]
pub struct Stream {
    /// `HOST:PORT`, each.
    #[arg(required = true)]
    pub targets: Vec<String>,
    /// How many connections to each.
    #[arg(long, default_value_t = 1)]
    pub connections: u64,
}

/// How the connections are, printed once they are open, after each line and at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streamed {
    /// How many work, or at the end: had all of their bytes back.
    pub working: usize,
    /// What became of the others: target, stage and errno.
    pub broken: BTreeMap<String, u64>,
    /// The fewest bytes that came back on one connection.
    pub least: u64,
    /// The bytes that came back on all.
    pub bytes: u64,
}

/// One connection.
struct One {
    target: String,
    sent: Arc<AtomicU64>,
    back: Arc<AtomicU64>,
    writer: Option<JoinHandle<io::Result<()>>>,
    reader: Option<JoinHandle<io::Result<()>>>,
    failed: Option<String>,
}

/// Streams until stdin ends, then says FIN and waits for the rest.
pub fn run(stream: &Stream) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut all = Vec::new();
    for target in &stream.targets {
        for nth in 0..stream.connections {
            let one = One::open(target, nth, &stop);
            all.push(one.with_context(|| format!("open {target}"))?);
        }
    }
    report::say(&tell(&mut all))?;
    for line in io::stdin().lock().lines() {
        line?;
        report::say(&tell(&mut all))?;
    }
    stop.store(true, Ordering::Relaxed);
    all.iter_mut().for_each(One::end);
    report::say(&tell(&mut all))
}

fn tell(all: &mut [One]) -> Streamed {
    let mut told = Streamed::default();
    for one in all.iter_mut() {
        one.look();
        match &one.failed {
            None => told.working += 1,
            Some(failed) => {
                let what = format!("{}: {failed}", one.target);
                *told.broken.entry(what).or_default() += 1;
            }
        }
        told.bytes += one.back.load(Ordering::Relaxed);
    }
    let back = all.iter().map(|one| one.back.load(Ordering::Relaxed));
    told.least = back.min().unwrap_or_default();
    told
}

// === impl One ===

impl One {
    fn open(target: &str, seed: u64, stop: &Arc<AtomicBool>) -> anyhow::Result<Self> {
        let mut addrs = target.to_socket_addrs()?;
        let addr = addrs.next().context("it has no address")?;
        let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (sent, back) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (to, from) = (stream.try_clone()?, stream);
        let (stop, counted) = (Arc::clone(stop), Arc::clone(&sent));
        let writer = start(move || write(to, seed, &counted, &stop))?;
        let counted = Arc::clone(&back);
        let reader = start(move || read(from, seed, &counted))?;
        Ok(Self {
            target: target.to_owned(),
            sent,
            back,
            writer: Some(writer),
            reader: Some(reader),
            failed: None,
        })
    }

    /// A thread that ended before its time has failed.
    fn look(&mut self) {
        let ended =
            |thread: &Option<JoinHandle<_>>| thread.as_ref().is_some_and(JoinHandle::is_finished);
        if ended(&self.writer) || ended(&self.reader) {
            self.end();
            self.failed.get_or_insert("ended early".to_owned());
        }
    }

    fn end(&mut self) {
        for (stage, thread) in [("write", self.writer.take()), ("read", self.reader.take())] {
            let Some(thread) = thread else { continue };
            let ended = thread.join();
            let ended = ended.unwrap_or_else(|_| Err(io::Error::other("panicked")));
            if let Err(error) = ended {
                let failed = format!("{stage}: {}", report::name(&error));
                self.failed.get_or_insert(failed);
            }
        }
        let (sent, back) = [&self.sent, &self.back]
            .map(|count| count.load(Ordering::Relaxed))
            .into();
        if sent != back {
            let failed = format!("{back} of {sent} bytes came back");
            self.failed.get_or_insert(failed);
        }
    }
}

fn start(
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<io::Result<()>>> {
    thread::Builder::new().stack_size(STACK).spawn(work)
}

fn write(mut to: TcpStream, seed: u64, sent: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let mut nth = 0;
    while !stop.load(Ordering::Relaxed) {
        to.write_all(&chunk(seed, nth))?;
        sent.fetch_add(CHUNK as u64, Ordering::Relaxed);
        nth += 1;
        thread::sleep(PAUSE);
    }
    to.shutdown(Shutdown::Write)
}

fn read(mut from: TcpStream, seed: u64, back: &AtomicU64) -> io::Result<()> {
    let (mut nth, mut got) = (0, Vec::with_capacity(2 * CHUNK));
    let mut buffer = [0; CHUNK];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => got.extend_from_slice(&buffer[..n]),
        }
        while got.len() >= CHUNK {
            if got[..CHUNK] != chunk(seed, nth) {
                return Err(io::Error::other("other bytes came back"));
            }
            got.drain(..CHUNK);
            back.fetch_add(CHUNK as u64, Ordering::Relaxed);
            nth += 1;
        }
    }
}

/// Bytes that are those of no other place of the stream: SplitMix64
/// (<https://doi.org/10.1145/2714064.2660195>).
fn chunk(seed: u64, nth: u64) -> [u8; CHUNK] {
    let mut state = seed.wrapping_shl(32) ^ nth.wrapping_mul(CHUNK as u64);
    let mut bytes = [0; CHUNK];
    for eight in bytes.as_chunks_mut::<8>().0 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *eight = (mixed ^ (mixed >> 31)).to_le_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_chunks_are_the_same() {
        assert_eq!(chunk(0, 1), chunk(0, 1));
        assert_ne!(chunk(0, 0), chunk(0, 1));
        assert_ne!(chunk(0, 0), chunk(1, 0));
    }
}
